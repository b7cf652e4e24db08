"""A reviewed slide to export: two accepted (one drawn), one rejected, one unsure, one that nobody judged."""

from __future__ import annotations

from typing import Any

from review.export import Reviewed, merged
from review.facts import Facts
from tests.review.page import TUMOUR, MadeUp, facts, region

HEAD = "12:" + "ab" * 32
DRAWN = [[1000, 1000], [1500, 1200], [1100, 1600]]


def finding(name: str, verdict: str | None, comment: str = "", **changes: Any) -> dict[str, Any]:
    number = int(name[1:])
    values = {
        "id": name,
        "kind": "region",
        "verdict": verdict,
        "comment": comment,
        "outline": region(number)["outline"],
        "bbox": region(number)["bbox"],
        "area_um2": 7500.0,
        "class": "tumour",
        "max": 0.98,
        "mean": 0.75,
        "by": "王丽",
        "at": "2026-11-24T08:00:00.000Z",
    }
    return values | changes


def reviewed(slide: Facts | None = None, regions: int = 4, **changes: Any) -> Reviewed:
    drawn = {
        "kind": "drawn",
        "outline": DRAWN,
        "bbox": [1000, 1000, 500, 600],
        "class": None,
        "max": None,
        "mean": None,
    }
    document = {
        "revision": 9,
        "acts": 9,
        "state": "signed",
        "reviewer": "王丽",
        "signed": {
            "by": "王丽",
            "at": "2026-11-24T08:01:00.000Z",
            "hash": "cd" * 32,
            "n": 12,
            "statement": "我已审阅整张切片。 All of it was seen.",
        },
        "outdated": False,
        "class": "tumour",
        "threshold": 0.5,
        "min_um2": 0.0,
        "findings": [
            finding("r1", "accepted", "浸润性癌，切缘阳性"),
            finding("r2", "rejected", '=HYPERLINK("http://evil.example")'),
            finding("r3", "unsure"),
            finding("d4", "accepted", "missed", **drawn),
        ],
    } | changes
    slides = MadeUp(slide or facts())
    found = [region(number) for number in range(1, regions + 1)]
    return Reviewed(slide or facts(), document, merged(document, found), HEAD, "王丽", slides.picture)


__all__ = ["DRAWN", "HEAD", "TUMOUR", "finding", "reviewed"]
