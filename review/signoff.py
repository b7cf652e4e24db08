"""A signature: over what, by whom, and when it may be given. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from review.acts import SIGNED, NotAllowed, Review
from review.facts import UNFINISHED, Facts


def canonical(value: Any) -> str:
    """JSON with one form for one value: sorted names, no spaces, ASCII. ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()


def signed_document(review: Review, facts: Facts) -> dict[str, Any]:
    """What a signature is over: the findings as they are, and which result of which model they judge."""
    document = review.document()
    return {
        "slide": facts.id,
        "revision": review.revision,
        "settings": {name: document[name] for name in ("class", "threshold", "min_um2")},
        "findings": document["findings"],
        "state": facts.state,
        "patches": facts.patches,
        "model": facts.model.get("sha256"),
        "result": facts.result,
    }


def unjudged(review: Review, regions: Sequence[Mapping[str, Any]]) -> int:
    """How many of the regions have no verdict."""
    found = (review.findings.get(region["id"]) for region in regions)
    return sum(1 for finding in found if finding is None or finding.verdict is None)


def sign_fields(review: Review, facts: Facts, statement: str, left: int | None = None) -> dict[str, Any]:
    """The fields of the act `sign`; `left`: how many regions have no verdict, where that is known. NotAllowed while the slide is not finished: what is unread must not look clear."""
    if facts.state in UNFINISHED:
        raise NotAllowed("not_finished", "the slide is still being read; sign when it is finished")
    document = signed_document(review, facts)
    verdicts = [finding["verdict"] or "none" for finding in document["findings"]]
    return {
        "statement": statement,
        "document": digest(document),
        "result": facts.result,
        "model": facts.model.get("sha256"),
        "state": facts.state,
        "patches": dict(facts.patches),
        "unjudged": left,
        "verdicts": {name: verdicts.count(name) for name in sorted(set(verdicts))},
    }


def outdated(review: Review, facts: Facts) -> bool:
    """Whether the slide has other results now than those that were signed."""
    return review.state == SIGNED and review.signed is not None and review.signed.result != facts.result
