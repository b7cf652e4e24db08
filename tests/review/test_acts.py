"""A review is a pure replay of its acts: properties over made-up histories, and each act over real HTTP."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from review import acts, guard, signoff, users
from review.acts import BadAct, NotAllowed, Review, Row
from review.facts import slide_key
from review.outline import OutlineError, area_px, crosses, fill, parse_outline
from tests.review.page import PASSWORD, TUMOUR, Browser, Page, facts, region, serve

KEY = slide_key("ward/甲 1")
FACTS = facts()
SQUARE = [[10, 10], [110, 10], [110, 110], [10, 110]]


def row(review: Review, user: str, act: str, **fields: Any) -> Row:
    n = review.revision + 1
    return Row(n, f"2026-11-24T00:00:{n % 60:02}Z", user, KEY, act, fields, "", f"{n:064x}")


@st.composite
def wishes(draw: st.DrawFn) -> list[tuple[str, str, dict[str, Any]]]:
    """What up to three people may want to do, allowed or not."""
    found = []
    for _ in range(draw(st.integers(0, 40))):
        user, act = draw(st.sampled_from("abc")), draw(st.sampled_from(acts.ACTS))
        finding = draw(st.sampled_from(["r1", "r2", "d1", "d3", "d5"]))
        fields: dict[str, Any] = {"finding": finding}
        if act == "settings":
            fields = {"class": "tumour", "threshold": draw(st.floats(0, 1)), "min_um2": 0.0}
        elif act in ("verdict", "comment"):
            fields |= {"verdict": draw(st.sampled_from(acts.VERDICTS)), "comment": draw(st.text("ab", max_size=3))}
            if finding.startswith("r"):
                fields["region"] = acts.region_fields(region(int(finding[1])))
        elif act == "draw":
            fields |= {"outline": SQUARE, "area_um2": 1.0, "comment": ""}
        elif act == "sign":
            fields = {"statement": "s", "document": "0" * 64, "result": "r"}
        elif act == "reopen":
            fields = {"reason": "r"}
        found.append((user, act, fields))
    return found


def play(history: list[tuple[str, str, dict[str, Any]]]) -> tuple[list[Row], list[Review]]:
    """The acts that were allowed, and the review after each."""
    review, rows, states = Review(), [], [Review()]
    for user, act, fields in history:
        made = row(review, user, act, **fields)
        try:
            review = acts.apply(review, made)
        except NotAllowed:
            continue
        rows.append(made)
        states.append(review)
    return rows, states


@settings(max_examples=150, deadline=None)
@given(wishes())
def test_a_replay_gives_the_same_review_at_every_point(history: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Also out of what JSON made of the rows, as they come from the disk; a revision counts the acts."""
    rows, states = play(history)
    for count, expected in enumerate(states):
        stored = [
            Row(r.n, r.at, r.user, r.slide, r.act, json.loads(signoff.canonical(r.fields)), r.previous, r.hash)
            for r in rows[:count]
        ]
        again = acts.replay(stored)
        assert again == expected and again.revision == count
        assert json.loads(signoff.canonical(again.document())) == again.document()


@settings(max_examples=150, deadline=None)
@given(wishes())
def test_what_is_signed_changes_only_by_reopening(history: list[tuple[str, str, dict[str, Any]]]) -> None:
    """After `sign` comes `reopen` or nothing, and findings are untouched by both."""
    rows, states = play(history)
    for before, act, after in zip(states, rows, states[1:], strict=False):
        if before.state == acts.SIGNED:
            assert act.act == "reopen"
        if act.act in ("sign", "reopen"):
            assert after.findings == before.findings and after.settings == before.settings
        assert (after.state == acts.SIGNED) == (after.signed is not None)


@settings(max_examples=150, deadline=None)
@given(wishes())
def test_undo_takes_back_ones_own_last_change_and_nobody_elses(history: list[tuple[str, str, dict[str, Any]]]) -> None:
    """At most one finding (or the settings) differs, and it is as it was before a change of that user."""
    rows, states = play(history)
    for before, act, after in zip(states, rows, states[1:], strict=False):
        if act.act != "undo":
            continue
        names = set(before.findings) | set(after.findings)
        differing = [name for name in names if before.findings.get(name) != after.findings.get(name)]
        assert len(differing) + (before.settings != after.settings) <= 1
        gone = [change for change in before.changes if change not in after.changes or before.changes.count(change) > 1]
        assert len(before.changes) - len(after.changes) == 1 and any(change.by == act.user for change in gone)


@settings(max_examples=100, deadline=None)
@given(wishes(), st.sampled_from("abc"))
def test_change_and_undo_is_where_one_was(history: list[tuple[str, str, dict[str, Any]]], user: str) -> None:
    """Findings and settings are exactly the same again; the log remembers both acts."""
    _, states = play(history)
    review = states[-1]
    if review.state == acts.SIGNED:
        return
    fields = {"finding": "r9", "verdict": "unsure", "region": acts.region_fields(region())}
    changed = acts.apply(review, row(review, user, "verdict", **fields))
    back = acts.apply(changed, row(changed, user, "undo"))
    assert back.findings == review.findings and back.settings == review.settings
    assert back.revision == review.revision + 2


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["act", "finding", "verdict", "comment", "outline", "class", "threshold", "min_um2", "statement", "reason"]
        ),
        st.one_of(
            st.sampled_from([*acts.ACTS, "r1", "tumour", "accepted"]),
            st.none() | st.booleans() | st.floats() | st.integers(),
            st.text(max_size=5),
            st.lists(st.lists(st.floats() | st.integers() | st.text(max_size=2), max_size=3), max_size=6),
        ),
    )
)
def test_any_request_is_an_act_or_refused(body: dict[str, Any]) -> None:
    """Nothing else is raised, and what is taken can be written and replayed."""
    try:
        act, fields = acts.parse(body, FACTS, Review())
    except BadAct:
        return
    signoff.canonical(fields)
    if act in ("settings", "draw"):
        acts.apply(Review(), row(Review(), "a", act, **fields))


@pytest.mark.parametrize(
    "outline",
    [
        None,
        [],
        [[0, 0], [1, 1]],
        [[0, 0], [10, 0], [20, 0]],
        [[5, 5]] * 10,
        [[0, 0], [10, 0], [10, math.nan]],
        [[0, 0], [10, 0], [10, math.inf]],
        [[0, 0], [10, 0], [10, 10**400]],
        [[0, 0], [10, 0], [True, 10]],
        [[0, 0], [10, 0], ["10", 10]],
        [[0, 0], [10, 0], [10, 10, 10]],
        [[-1, 0], [10, 0], [10, 10]],
        [[0, 0], [4001, 0], [10, 10]],
        [[0, 0], [10, 0], [10, 3000.5]],
        [[index % 100, index % 90] for index in range(2001)],
    ],
)
def test_an_outline_that_is_no_area_in_the_slide_is_refused(outline: Any) -> None:
    """Not finite, outside, too few or too many points, nothing enclosed."""
    with pytest.raises(OutlineError):
        parse_outline(outline, 4000, 3000)


def test_the_area_of_an_outline_is_exact_and_of_one_that_crosses_itself_counted() -> None:
    """A rectangle by its sides; a bow tie's two triangles do not cancel out."""
    assert area_px([[1000.5, 1000], [1100.5, 1000], [1100.5, 1050], [1000.5, 1050]]) == 5000
    tie = [[0, 0], [1000, 1000], [1000, 0], [0, 1000]]
    assert crosses(tie) and not crosses(SQUARE)
    assert area_px(tie) == pytest.approx(500_000, rel=5e-3)


def test_a_comment_may_be_chinese_and_may_not_deceive() -> None:
    """Full-width blanks and line breaks pass; control characters and bidirectional overrides do not."""
    body = {"act": "comment", "finding": "r1", "comment": "浸润性癌　\r\n见切缘 🔬"}
    assert acts.parse(body, FACTS, Review())[1]["comment"] == "浸润性癌　\n见切缘 🔬"
    for letter in "\x00\x1b\u202e\u2066\ud800":
        with pytest.raises(BadAct):
            acts.parse({**body, "comment": f"a{letter}b"}, FACTS, Review())


# Over HTTP


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    for name in ("anna", "bo"):
        users.add_user(tmp_path / "users.json", name, "reviewer", PASSWORD)
    with serve(guard.password_users(tmp_path / "users.json", None, tls=False), tmp_path) as running:
        yield running


def reviewer(page: Page, name: str = "anna") -> Browser:
    browser = page.browser()
    assert browser.sign_in(name).status == 200
    return browser


def good(answer: Any) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    return answer.json


def test_a_review_from_opening_to_reopening(page: Page) -> None:
    """Every act answers the new document, is in the log with its user, and tells the page's events."""
    anna, bo = reviewer(page), reviewer(page, "bo")
    document = good(anna.ask("GET", f"/api/slides/{KEY}/review"))
    assert (document["state"], document["revision"], document["class"], document["threshold"]) == (
        "new",
        0,
        "tumour",
        0.5,
    )
    document = good(anna.act(KEY, None, "open"))
    assert (document["state"], document["reviewer"]) == ("in_review", "anna")
    assert good(anna.act(KEY, None, "open"))["revision"] == 1, "opening again is no act"
    good(anna.act(KEY, 1, "settings", **{"class": "tumour", "threshold": 0.4, "min_um2": 100}))
    document = good(anna.act(KEY, 2, "verdict", finding="r1", verdict="accepted"))
    assert document["findings"][0]["outline"] == TUMOUR and document["findings"][0]["bbox"] == [100, 100, 200, 150]
    good(anna.act(KEY, 3, "comment", finding="r1", comment="切缘阳性"))
    document = good(anna.act(KEY, 4, "draw", outline=SQUARE, comment="missed"))
    assert [finding["id"] for finding in document["findings"]] == ["r1", "d5"]
    assert document["findings"][1]["area_um2"] == 2500
    good(anna.act(KEY, 5, "erase", finding="d5"))
    assert [finding["id"] for finding in good(anna.act(KEY, 6, "undo"))["findings"]] == ["r1", "d5"]
    assert anna.act(KEY, 7, "sign", statement="I have looked").json["code"] == "password_needed"
    assert anna.act(KEY, 7, "sign", statement="I have looked", password="wrong one").json["code"] == "wrong"
    document = good(anna.act(KEY, 7, "sign", statement="I have looked", password=PASSWORD))
    assert document["state"] == "signed" and document["signed"]["by"] == "anna"
    assert page.log.rows(KEY)[-1].fields["unjudged"] == 2, "what was left without a verdict is said"
    for act in ("settings", "verdict", "comment", "draw", "erase", "undo", "sign"):
        fields = {
            "class": "tumour",
            "threshold": 0.5,
            "min_um2": 0,
            "finding": "r1",
            "verdict": "rejected",
            "comment": "",
        }
        answer = bo.act(KEY, 8, act, **fields, outline=SQUARE, statement="x", password=PASSWORD)
        assert (answer.status, answer.json["code"]) == (409, "signed"), act
    assert bo.act(KEY, 8, "reopen").json["code"] == "reason"
    document = good(bo.act(KEY, 8, "reopen", reason="second opinion"))
    assert (document["state"], document["reviewer"], document["signed"]) == ("reopened", "bo", None)
    log = good(bo.ask("GET", f"/api/slides/{KEY}/log"))
    assert [entry["user"] for entry in log] == ["anna"] * 8 + ["bo"]
    assert all(b["previous"] == a["hash"] for a, b in itertools.pairwise(log))
    assert PASSWORD not in json.dumps(log)
    assert page.told == [(KEY, revision) for revision in range(1, 10)]


def test_a_stale_revision_is_a_conflict_with_what_is_there(page: Page) -> None:
    """409 with the newer document; nothing is overwritten."""
    anna, bo = reviewer(page), reviewer(page, "bo")
    good(anna.act(KEY, None, "open")), good(bo.act(KEY, None, "open"))
    good(anna.act(KEY, 2, "verdict", finding="r1", verdict="accepted"))
    answer = bo.act(KEY, 2, "verdict", finding="r1", verdict="rejected")
    assert (answer.status, answer.json["code"], answer.json["revision"]) == (409, "conflict", 3)
    assert answer.json["review"]["findings"][0]["verdict"] == "accepted"
    assert bo.act(KEY, 3, "undo").json["code"] == "nothing_to_undo"
    good(bo.act(KEY, 3, "verdict", finding="r1", verdict="rejected"))
    assert anna.act(KEY, 4, "undo").json["code"] == "changed_since"


def test_two_reviewers_racing_lose_nothing_and_overwrite_nothing(page: Page) -> None:
    """Each act of two at once lands exactly once, on the revision that its author had seen."""
    landed: dict[str, list[int]] = {"anna": [], "bo": []}
    conflicts = []
    browsers = {name: reviewer(page, name) for name in landed}

    def work(name: str) -> None:
        browser, revision = browsers[name], 0
        while len(landed[name]) < 15:
            answer = browser.act(KEY, revision, "comment", finding="r1", comment=f"{name} {len(landed[name])}")
            assert answer.status in (200, 409), answer.body
            if answer.status == 200:
                landed[name].append(answer.json["revision"])
            else:
                conflicts.append(name)
            revision = answer.json["revision"]

    threads = [threading.Thread(target=work, args=(name,)) for name in landed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(landed["anna"] + landed["bo"]) == list(range(1, 31))
    rows = page.log.rows(KEY)
    for name, revisions in landed.items():
        assert [rows[revision - 1].user for revision in revisions] == [name] * 15
    assert conflicts, "the two never met: the test shows nothing"


def test_acts_that_make_no_sense_are_422(page: Page) -> None:
    """With a stable code, and nothing is written."""
    anna = reviewer(page)
    good(anna.act(KEY, None, "open"))
    for act, fields, code in (
        ("dance", {}, "act"),
        ("verdict", {"finding": "r1", "verdict": "maybe"}, "verdict"),
        ("verdict", {"finding": "r77", "verdict": "accepted"}, "no_finding"),
        ("verdict", {"finding": "", "verdict": "accepted"}, "finding"),
        ("settings", {"class": "wolf", "threshold": 0.5, "min_um2": 0}, "class"),
        ("settings", {"class": "tumour", "threshold": 1.5, "min_um2": 0}, "threshold"),
        ("draw", {"outline": [[0, 0], [9999, 0], [1, 1]]}, "bad_outline"),
        ("comment", {"finding": "r1", "comment": "x" * 2001}, "comment"),
        ("sign", {"statement": " "}, "statement"),
    ):
        answer = anna.act(KEY, 1, act, **fields)
        assert (answer.status, answer.json["code"]) == (422, code), answer.body
    assert anna.act(KEY, None, "undo").json["code"] == "revision"
    assert page.log.head.n == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 14), st.integers(-2, 14)), min_size=3, max_size=8))
def test_pixels_are_in_an_outline_when_their_centres_are(points: list[tuple[int, int]]) -> None:
    """Even-odd, counted against a plain test of each centre; outlines may cross themselves and leave the picture."""
    mask = fill([(x + 0.25, y + 0.25) for x, y in points], 12, 10)
    for row in range(10):
        for column in range(12):
            inside = False
            for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
                y = row + 0.25  # the centre, as the points are moved
                if (ay > y) != (by > y) and column + 0.25 >= ax + (y - ay) * (bx - ax) / (by - ay):
                    inside = not inside
            assert bool(mask[row, column]) == inside
