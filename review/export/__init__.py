"""The reviewed result of a slide in other people's formats: GeoJSON for QuPath, CSV, a PDF report, DICOM SEG and SR."""

from __future__ import annotations

import importlib
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from review.facts import Facts

Picture = Callable[[str, int, int, int, int, int], bytes]


class NotInstalled(Exception):
    """A library of an extra is missing; says which."""


class CannotSay(Exception):
    """This slide cannot be said in this format; says why."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """Everything an export needs: the slide, its review document, all findings in order (`merged`), the log's head."""

    facts: Facts
    document: Mapping[str, Any]
    findings: Sequence[Mapping[str, Any]]
    head: str
    exported_by: str
    picture: Picture | None = None


def merged(document: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Findings and the regions that nobody has judged, as findings without a verdict; by rank, then as they were made."""
    judged = {finding["id"]: dict(finding) for finding in document["findings"]}
    found = []
    for region in regions:
        finding = judged.pop(region["id"], None)
        if finding is None:
            finding = {
                "id": region["id"],
                "kind": "region",
                "verdict": None,
                "comment": "",
                "outline": [[float(x), float(y)] for x, y in region["outline"]],
                "bbox": [float(value) for value in region["bbox"]],
                "area_um2": float(region["area_um2"]),
                "class": region["class"],
                "max": float(region["max"]),
                "mean": float(region["mean"]),
                "by": None,
                "at": None,
            }
        found.append({**finding, "rank": len(found) + 1})
    # Judged at another threshold, or drawn: still said.
    return found + [{**finding, "rank": None} for finding in judged.values()]


@dataclass(frozen=True, slots=True)
class Form:
    """A format: where its maker is (loaded at its first use), its media type and the end of its file's name."""

    module: str
    function: str
    media_type: str
    suffix: str

    def make(self, reviewed: Reviewed, language: str) -> bytes:
        """The file. NotInstalled, CannotSay."""
        return getattr(importlib.import_module(self.module), self.function)(reviewed, language)


FORMS = {
    "geojson": Form("review.export.geojson", "make", "application/geo+json", "geojson"),
    "csv": Form("review.export.csv", "make", "text/csv; charset=utf-8", "csv"),
    "pdf": Form("review.export.pdf", "make", "application/pdf", "pdf"),
    "dicom-seg": Form("review.export.dicom", "segmentation", "application/dicom", "seg.dcm"),
    "dicom-sr": Form("review.export.dicom", "report", "application/dicom", "sr.dcm"),
}


def disposition(facts: Facts, form: Form) -> str:
    """Content-Disposition with a file name that every system takes, and the slide's own beside it (RFC 6266)."""
    own = facts.id.rpartition("/")[2]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", own).strip("._") or facts.key
    quoted = urllib.parse.quote(f"{own}.review.{form.suffix}", safe="", errors="replace")
    return f"attachment; filename=\"{plain}.review.{form.suffix}\"; filename*=UTF-8''{quoted}"
