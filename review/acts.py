"""What reviewers do to a slide, and what its review is after it: a pure replay of the acts in the log.

    review = replay(rows)                                     # rows of review.audit, of one slide, in order
    name, fields = parse(body, facts, review)                 # BadAct where it makes no sense
    review = apply(review, Row(...))                          # NotAllowed where it may not be done now

A revision is the number of acts that changed the review. Nothing but the acts decides: the same rows give the same review, wherever and whenever.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from review.facts import Facts
from review.outline import OutlineError, area_px, parse_outline

NEW, IN_REVIEW, SIGNED, REOPENED = "new", "in_review", "signed", "reopened"
VERDICTS = ("accepted", "rejected", "unsure")
ACTS = ("open", "settings", "verdict", "comment", "draw", "erase", "undo", "sign", "reopen")
# Who has seen a label is noted with the acts, and changes no review: no request can make it, only the showing of one.
LABEL = "label"
TEXT_CHARACTERS = 2000
ID_CHARACTERS = 64
FINDINGS_MOST = 5000
REGION, DRAWN = "region", "drawn"


class BadAct(ValueError):
    """The act makes no sense: `code` and one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotAllowed(Exception):
    """The act cannot be done to the review as it is now: `code` and one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Row:
    """One act as the log has it. `n` counts over the whole log; `at` is ISO 8601 in UTC."""

    n: int
    at: str
    user: str
    slide: str
    act: str
    fields: Mapping[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A region of the model that somebody judged, or one drawn by hand. `outline` in level-0 px; `bbox` x, y, w, h."""

    id: str
    kind: str
    outline: tuple[tuple[float, float], ...]
    area_um2: float | None
    by: str
    at: str
    verdict: str | None = None
    comment: str = ""
    name: str | None = None
    highest: float | None = None
    mean: float | None = None

    def document(self) -> dict[str, Any]:
        """The JSON of it."""
        xs, ys = [x for x, _ in self.outline], [y for _, y in self.outline]
        return {
            "id": self.id,
            "kind": self.kind,
            "verdict": self.verdict,
            "comment": self.comment,
            "outline": [list(point) for point in self.outline],
            "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
            "area_um2": self.area_um2,
            "class": self.name,
            "max": self.highest,
            "mean": self.mean,
            "by": self.by,
            "at": self.at,
        }


@dataclass(frozen=True, slots=True)
class Settings:
    """What the regions are made of: a class, a threshold (0 to 1), and the smallest area (µm²)."""

    name: str
    threshold: float
    min_um2: float


@dataclass(frozen=True, slots=True)
class Signature:
    """Who signed, when, saying what, over which review (`document`) of which result; `hash` is the row's in the log."""

    by: str
    at: str
    statement: str
    document: str
    result: str
    n: int
    hash: str


@dataclass(frozen=True, slots=True)
class Change:
    """What an act changed, for undoing it: a finding's id ("" for the settings), what was there, what came."""

    by: str
    finding: str
    before: Finding | Settings | None
    after: Finding | Settings | None


@dataclass(frozen=True, slots=True)
class Review:
    """The review of one slide after `revision` acts."""

    revision: int = 0
    state: str = NEW
    reviewer: str | None = None
    settings: Settings | None = None
    findings: Mapping[str, Finding] = field(default_factory=dict)
    signed: Signature | None = None
    opened: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        """The JSON of it, without what depends on the result as it is now."""
        return {
            "revision": self.revision,
            "acts": self.revision,
            "state": self.state,
            "reviewer": self.reviewer,
            "signed": self.signed
            and {
                "by": self.signed.by,
                "at": self.signed.at,
                "hash": self.signed.hash,
                "n": self.signed.n,
                "statement": self.signed.statement,
            },
            "reopened": self.reason,
            "class": self.settings and self.settings.name,
            "threshold": self.settings and self.settings.threshold,
            "min_um2": self.settings and self.settings.min_um2,
            "findings": [finding.document() for finding in self.findings.values()],
            "opened": list(self.opened),
            "can_undo": sorted({change.by for change in self.changes}),
        }

    def open_regions(self) -> int:
        """Findings without a verdict or with an unsure one; drawn ones are somebody's own word."""
        return sum(
            1
            for finding in self.findings.values()
            if finding.verdict == "unsure" or finding.verdict is None and finding.kind == REGION
        )


def replay(rows: Iterable[Row]) -> Review:
    """The review after these acts of one slide."""
    review = Review()
    for row in rows:
        review = apply(review, row)
    return review


def apply(review: Review, row: Row) -> Review:
    """The review after one more act. NotAllowed where this act cannot follow; KeyError, TypeError, ValueError for fields
    that `parse` would not have made."""
    if row.act == LABEL:
        return review
    if review.state == SIGNED and row.act != "reopen":
        raise NotAllowed("signed", "the review is signed; reopen it, with a reason, to change it")
    done = _HANDLERS[row.act](review, row)
    return replace(done, revision=review.revision + 1)


def needs_appending(review: Review, act: str, user: str) -> bool:
    """Opening what one has open, or what is signed, is no act: nothing is written and no revision passes."""
    return act != "open" or review.state != SIGNED and user not in review.opened


def _open(review: Review, row: Row) -> Review:
    if row.user in review.opened:
        raise NotAllowed("opened", "you have opened this review already")
    state = IN_REVIEW if review.state == NEW else review.state
    return replace(review, state=state, opened=(*review.opened, row.user), reviewer=review.reviewer or row.user)


def _working(review: Review, row: Row) -> Review:
    state = IN_REVIEW if review.state == NEW else review.state
    opened = review.opened if row.user in review.opened else (*review.opened, row.user)
    return replace(review, state=state, opened=opened, reviewer=row.user)


def _settings(review: Review, row: Row) -> Review:
    new = Settings(row.fields["class"], float(row.fields["threshold"]), float(row.fields["min_um2"]))
    change = Change(row.user, "", review.settings, new)
    return replace(_working(review, row), settings=new, changes=(*review.changes, change))


def _judge(review: Review, row: Row) -> Review:
    name = row.fields["finding"]
    before = review.findings.get(name)
    if before is None and "region" not in row.fields:
        raise NotAllowed("no_finding", "there is no such finding")
    after = before or _from_region(name, row)
    if row.act == "verdict":
        after = replace(after, verdict=row.fields["verdict"], by=row.user, at=row.at)
    else:
        after = replace(after, comment=row.fields["comment"], by=row.user, at=row.at)
    return _changed(review, row, name, after)


def _from_region(name: str, row: Row) -> Finding:
    region = row.fields["region"]
    return Finding(
        name,
        REGION,
        tuple((float(x), float(y)) for x, y in region["outline"]),
        region["area_um2"],
        row.user,
        row.at,
        name=region["class"],
        highest=region["max"],
        mean=region["mean"],
    )


def _draw(review: Review, row: Row) -> Review:
    fields = row.fields
    if fields["finding"] in review.findings:
        raise NotAllowed("drawn", "this outline is there already")
    outline = tuple((float(x), float(y)) for x, y in fields["outline"])
    drawn = Finding(
        fields["finding"], DRAWN, outline, fields["area_um2"], row.user, row.at, "accepted", fields["comment"]
    )
    return _changed(review, row, drawn.id, drawn)


def _erase(review: Review, row: Row) -> Review:
    if row.fields["finding"] not in review.findings:
        raise NotAllowed("no_finding", "there is no such finding")
    return _changed(review, row, row.fields["finding"], None)


def _changed(review: Review, row: Row, name: str, after: Finding | None) -> Review:
    findings = dict(review.findings)
    change = Change(row.user, name, findings.get(name), after)
    _put(findings, name, after)
    if len(findings) > FINDINGS_MOST:
        raise NotAllowed("too_many", f"a review has at most {FINDINGS_MOST} findings")
    return replace(_working(review, row), findings=findings, changes=(*review.changes, change))


def _put(findings: dict[str, Finding], name: str, finding: Finding | None) -> None:
    if finding is None:
        findings.pop(name, None)
    else:
        findings[name] = finding


def _undo(review: Review, row: Row) -> Review:
    # One's own last change only, and only while it is what is there: never somebody else's later word.
    place = next((at for at in reversed(range(len(review.changes))) if review.changes[at].by == row.user), None)
    if place is None:
        raise NotAllowed("nothing_to_undo", "there is nothing of yours to undo")
    change = review.changes[place]
    now = review.findings.get(change.finding) if change.finding else review.settings
    if now != change.after:
        raise NotAllowed("changed_since", "somebody else has changed this since; change it again instead")
    changes = review.changes[:place] + review.changes[place + 1 :]
    review = replace(_working(review, row), changes=changes)
    if not change.finding:
        return replace(review, settings=change.before)
    findings = dict(review.findings)
    _put(findings, change.finding, change.before)
    return replace(review, findings=findings)


def _sign(review: Review, row: Row) -> Review:
    if review.state == NEW:
        raise NotAllowed("not_opened", "nobody has looked at this slide yet; open it first")
    signature = Signature(
        row.user, row.at, row.fields["statement"], row.fields["document"], row.fields["result"], row.n, row.hash
    )
    return replace(review, state=SIGNED, signed=signature, reviewer=row.user, changes=())


def _reopen(review: Review, row: Row) -> Review:
    if review.state != SIGNED:
        raise NotAllowed("not_signed", "only what is signed can be reopened")
    return replace(
        review, state=REOPENED, signed=None, reviewer=row.user, opened=(row.user,), reason=row.fields["reason"]
    )


_HANDLERS = {
    "open": _open,
    "settings": _settings,
    "verdict": _judge,
    "comment": _judge,
    "draw": _draw,
    "erase": _erase,
    "undo": _undo,
    "sign": _sign,
    "reopen": _reopen,
}


def parse(body: Mapping[str, Any], facts: Facts, review: Review) -> tuple[str, dict[str, Any]]:
    """The act and its fields out of a request; what only the server knows (a region's outline, a signature) is added later.

    BadAct where something is missing, of the wrong kind, or outside of the slide.
    """
    act = body.get("act")
    if not isinstance(act, str) or act not in ACTS:
        raise BadAct("act", f"act must be one of {', '.join(ACTS)}")
    if act == "settings":
        return act, parse_settings(body, facts)
    if act == "verdict":
        if body.get("verdict") not in VERDICTS:
            raise BadAct("verdict", f"verdict must be one of {', '.join(VERDICTS)}")
        return act, {"finding": _finding(body), "verdict": body["verdict"]}
    if act == "comment":
        return act, {"finding": _finding(body), "comment": _text(body, "comment", empty=True)}
    if act == "erase":
        return act, {"finding": _finding(body)}
    if act == "draw":
        try:
            outline = parse_outline(body.get("outline"), facts.width, facts.height)
        except OutlineError as error:
            raise BadAct("bad_outline", str(error)) from error
        area = round(area_px(outline) * facts.mpp_x * facts.mpp_y, 1) if facts.mpp_x and facts.mpp_y else None
        comment = _text(body, "comment", empty=True) if body.get("comment") is not None else ""
        return act, {"finding": f"d{review.revision + 1}", "outline": outline, "area_um2": area, "comment": comment}
    if act == "sign":
        return act, {"statement": _text(body, "statement")}
    if act == "reopen":
        return act, {"reason": _text(body, "reason")}
    return act, {}


def parse_settings(body: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """`class`, `threshold` and `min_um2` of a request. BadAct where one is missing or out of range."""
    if body.get("class") not in facts.classes:
        raise BadAct("class", f"class must be one of {', '.join(facts.classes) or 'none: there are no results yet'}")
    return {
        "class": body["class"],
        "threshold": _number(body, "threshold", 0.0, 1.0),
        "min_um2": _number(body, "min_um2", 0.0, 1e12),
    }


def region_fields(region: Mapping[str, Any]) -> dict[str, Any]:
    """What the log keeps of a region that is judged: enough to draw it again when thresholds have moved on."""
    return {
        "class": region["class"],
        "max": _tidy(region["max"]),
        "mean": _tidy(region["mean"]),
        "area_um2": _tidy(region["area_um2"]),
        "outline": [[_tidy(x), _tidy(y)] for x, y in region["outline"]],
    }


def _tidy(value: Any) -> float | int | None:
    number = value if value is None or isinstance(value, int) else round(float(value), 6)
    return number if number is None or math.isfinite(number) else None


def _finding(body: Mapping[str, Any]) -> str:
    value = body.get("finding")
    if not isinstance(value, str) or not 0 < len(value) <= ID_CHARACTERS or not value.isprintable():
        raise BadAct("finding", "finding must be the id of a region or of a drawn outline")
    return value


def _text(body: Mapping[str, Any], name: str, empty: bool = False) -> str:
    value = body.get(name)
    if not isinstance(value, str) or len(value) > TEXT_CHARACTERS or not (empty or value.strip()):
        raise BadAct(
            name, f"{name} must be text of at most {TEXT_CHARACTERS} characters{'' if empty else ', not empty'}"
        )
    value = value.replace("\r\n", "\n")
    if not all(_showable(letter) for letter in value):
        raise BadAct(name, f"{name} has a character that cannot be shown")
    return value.strip()


def _showable(letter: str) -> bool:
    # Bidirectional overrides can make a text read as what it is not.
    if letter in "\n\t":
        return True
    return unicodedata.category(letter) not in ("Cc", "Cs", "Cn") and not (
        "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    )


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = body.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise BadAct(name, f"{name} must be a number from {low:g} to {high:g}")
    return float(value)
