"""The reviewed findings as a table."""

from __future__ import annotations

import csv
import io

from review.export import Reviewed

COLUMNS = (
    "slide",
    "finding",
    "kind",
    "class",
    "verdict",
    "comment",
    "max",
    "mean",
    "area_um2",
    "x",
    "y",
    "width",
    "height",
    "by",
    "at",
    "review_state",
    "signed_by",
    "signed_at",
    "model",
    "model_sha256",
    "log_head",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def make(reviewed: Reviewed, language: str) -> bytes:
    """One line for each finding, in UTF-8 with a byte order mark (spreadsheets take other bytes for the local code page).

    x, y, width, height: the bounding box in level-0 px. A slide without findings has a header and no line.
    """
    facts, document = reviewed.facts, reviewed.document
    signed = document["signed"] or {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for finding in reviewed.findings:
        x, y, width, height = finding["bbox"]
        line = (
            facts.id,
            finding["id"],
            finding["kind"],
            finding["class"],
            finding["verdict"] or "",
            finding["comment"],
            finding["max"],
            finding["mean"],
            finding["area_um2"],
            x,
            y,
            width,
            height,
            finding["by"],
            finding["at"],
            document["state"],
            signed.get("by"),
            signed.get("at"),
            facts.model.get("name"),
            facts.model.get("sha256"),
            reviewed.head,
        )
        writer.writerow([safe(value) for value in line])
    return text.getvalue().encode("utf-8-sig", "replace")


def safe(value: object) -> object:
    """Text that a spreadsheet would compute (OWASP, CSV injection) is marked as text with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
