"""The reviewed findings as annotations that open in QuPath."""

from __future__ import annotations

import json
import uuid
from typing import Any

from results.colours import class_colours
from review.export import Reviewed

_SPACE = uuid.UUID("5f0c1f5e-6d0c-5b1e-9c5e-51e0a1c0d3f7")  # of these features' ids (RFC 9562, version 5)


def make(reviewed: Reviewed, language: str) -> bytes:
    """A FeatureCollection with one `annotation` for each finding, in QuPath's coordinates: level-0 px from the corner of the
    scanned area where the slide names one.

    Classification: the class where it was accepted; else derived from it, as QuPath's `class: rejected`, `class: unsure`,
    `class: not reviewed`. QuPath shows `metadata` as text, the comment as the description (its QuPathTypeAdapters).
    """
    facts, document = reviewed.facts, reviewed.document
    left, top = (facts.bounds[0], facts.bounds[1]) if facts.bounds else (0, 0)
    colours = dict(zip(facts.classes, class_colours(facts.classes), strict=True)) if facts.classes else {}
    features = [_feature(reviewed, finding, left, top, colours) for finding in reviewed.findings]
    about = {
        "slide": facts.id,
        "state": facts.state,
        "reason": facts.reason,
        "patches": facts.patches,
        "origin": [left, top],
        "model": {"name": facts.model.get("name"), "sha256": facts.model.get("sha256")},
        "engine": facts.engine,
        "review": {
            name: document[name]
            for name in ("revision", "state", "reviewer", "signed", "outdated", "class", "threshold", "min_um2")
        },
        "log_head": reviewed.head,
    }
    whole = {"type": "FeatureCollection", "slidestream": about, "features": features}
    return json.dumps(whole, ensure_ascii=False, allow_nan=False, default=str).encode("utf-8", "replace")


def _feature(
    reviewed: Reviewed, finding: Any, left: int, top: int, colours: dict[str, tuple[int, int, int]]
) -> dict[str, Any]:
    ring = [[x - left, y - top] for x, y in finding["outline"]]
    if _turns_clockwise(ring):  # RFC 7946, 3.1.6, reads coordinates with y upwards
        ring.reverse()
    name = finding["class"] or reviewed.document["class"] or "Drawn"
    verdict = finding["verdict"]
    label = name if verdict == "accepted" else f"{name}: {verdict or 'not reviewed'}"
    measurements = {
        f"{name} max": finding["max"],
        f"{name} mean": finding["mean"],
        "area µm²": finding["area_um2"],
    }
    metadata = {
        "verdict": verdict or "not reviewed",
        "kind": finding["kind"],
        "by": finding["by"],
        "at": finding["at"],
        "ANNOTATION_DESCRIPTION": finding["comment"],
    }
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_SPACE, f"{reviewed.facts.key}/{finding['id']}")),
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        "properties": {
            "objectType": "annotation",
            "name": finding["id"],
            "isLocked": True,
            "classification": {"name": label, "color": list(colours.get(name, (128, 128, 128)))},
            "measurements": {key: value for key, value in measurements.items() if value is not None},
            "metadata": {key: value for key, value in metadata.items() if value},
            "verdict": verdict,
            "comment": finding["comment"],
            "kind": finding["kind"],
            "by": finding["by"],
            "at": finding["at"],
        },
    }


def _turns_clockwise(ring: list[list[float]]) -> bool:
    total = 0.0
    for (ax, ay), (bx, by) in zip(ring, [*ring[1:], ring[0]], strict=True):
        total += (bx - ax) * (by + ay)
    return total > 0
