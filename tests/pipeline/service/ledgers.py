"""Deliveries for tests of the ledger."""

from __future__ import annotations

import hashlib
from typing import Any

from pipeline.service.records import Delivery


def delivery(name: str = "S1", content: str = "", **more: Any) -> Delivery:
    """A delivery of a slide whose content is told by `content` (by its name if there is none)."""
    fingerprint = hashlib.sha256((content or name).encode()).hexdigest()
    values: dict[str, Any] = {
        "path": b"/scans/" + name.encode("utf-8", "surrogateescape") + b".svs",
        "folder": "/scans",
        "name": name,
        "stamp": "1",
        "fingerprint": fingerprint,
        "bytes": 1000,
        "files": 1,
        "seen": 1.0,
        "rested": 2.0,
        "routes": ("tumour",),
    }
    return Delivery(**{**values, **more})
