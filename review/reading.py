"""What the acts and exports ask of a slide (`review.facts.Slides`), and the routes of the slide itself, from the catalogue."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

from results.layout import output_path
from results.summary import read_head
from review import regions
from review.entry import Entry, Shelf
from review.errors import Refused
from review.facts import Facts
from review.patience import Readers
from review.slide_pool import SlidePool
from review.tiles import Picture
from slides.errors import SlideError

THRESHOLD = 0.5
# No region is left out by its size unless somebody wants that: a metastasis may be one patch.
MIN_UM2 = 0.0
# Beyond so many nobody steps through them: the threshold is too low.
REGIONS_MOST = 2000
_DIGESTS = 256
# Beside the pictures: where a file lies, and all that an export reads of it.
_FILE_S, _EXPORT_S = 2.0, 120.0

T = TypeVar("T")


class Reading:
    """The slides of a results folder: a `review.facts.Slides`. Every method may block; from any thread."""

    def __init__(self, catalogue: Shelf, pool: SlidePool) -> None:
        self.catalogue = catalogue
        self.pool = pool
        # Also on two cores one slide is read by two at a time, and others meanwhile.
        self.readers = Readers(max(4, min(8, os.cpu_count() or 4)))
        self._digests: dict[tuple[str, str], str] = {}

    def bounded(self, key: str, work: Callable[[], T]) -> T:
        """See `Slides`."""
        return self.readers.call(key, work, _EXPORT_S)

    def facts(self, key: str) -> Facts | None:
        """See `Slides`."""
        entry = self.catalogue.look().get(key)
        if entry is None:
            return None
        summary = self._summary(entry)
        width, height = entry.size or (0, 0)
        mpp_x, mpp_y = entry.mpp or (0.0, 0.0)
        bounds = summary.get("bounds")
        return Facts(
            key=key,
            id=entry.own_id,
            path=self._allowed(entry),
            state=entry.state,
            reason=entry.reason,
            width=width,
            height=height,
            mpp_x=mpp_x,
            mpp_y=mpp_y,
            bounds=tuple(bounds) if bounds else None,
            classes=entry.classes,
            heatmap_class=entry.heatmap_class,
            model=summary.get("model") or self.catalogue.running_model(entry),
            engine=summary.get("engine") or {},
            patches={"planned": entry.planned, "inferred": entry.inferred, "failed": entry.failed},
            result=self._digest(entry) if summary else "",
        )

    def _allowed(self, entry: Entry) -> str:
        try:
            return self.readers.call(entry.key, lambda: str(self.catalogue.file(entry)), _FILE_S)
        except Refused:  # nothing may be read there, or its storage does not answer
            return ""

    def regions(self, key: str, name: str, threshold: float, min_um2: float) -> list[dict[str, Any]]:
        """See `Slides`."""
        return [region.to_dict() for region in self.found(key, name, threshold, min_um2)[:REGIONS_MOST]]

    def found(self, key: str, name: str | None, threshold: float, min_um2: float) -> list[regions.Region]:
        """All of them; those of a slide that has no table yet are none. Refused as by `Catalogue.regions`."""
        try:
            return self.catalogue.regions(key, name, threshold, min_um2)
        except Refused as refusal:
            if refusal.code == "no_table" and self.catalogue.entry(key).state in ("waiting", "running"):
                return []
            raise

    def picture(self, key: str, x: int, y: int, w: int, h: int, px: int) -> bytes:
        """See `Slides`."""
        entry = self.catalogue.entry(key)
        try:
            return self.readers.call(key, lambda: self.region(entry, x, y, w, h, px, False)).jpeg
        except Refused as refusal:
            raise SlideError(entry.path, refusal.message) from refusal

    def defaults(self, key: str) -> tuple[str, float, float]:
        """See `Slides`."""
        entry = self.catalogue.entry(key)
        return entry.heatmap_class or "", THRESHOLD, MIN_UM2

    def region(self, entry: Entry, x: int, y: int, w: int, h: int, px: int, icc: bool) -> Picture:
        """A part of a slide, level-0 px. Refused where it cannot be shown."""
        what = ("region", x, y, w, h, px, icc)
        return self.pool.picture(self.catalogue.file(entry), what, lambda slide: slide.region(x, y, w, h, px, icc))

    def shown(self, entry: Entry) -> dict[str, Any]:
        """How the slide can be looked at; with `levels` empty, and a `problem`, where it cannot."""
        try:
            return self.readers.call(entry.key, lambda: self._shown(entry))
        except Refused as refusal:
            width, height = entry.size or (None, None)
            return {
                "width": width,
                "height": height,
                "levels": [],
                "tiles": None,
                "icc": False,
                "objective_power": None,
                "bounds": None,
                "problem": {"error": refusal.message, "code": refusal.code},
            }

    def _shown(self, entry: Entry) -> dict[str, Any]:
        with self.pool.slide(self.catalogue.file(entry)) as slide:
            return {
                "width": slide.info.width,
                "height": slide.info.height,
                "levels": [level.to_dict() for level in slide.levels],
                "tiles": "passthrough" if slide.passthrough else "rendered",
                "icc": slide.icc,
                "objective_power": slide.info.objective_power,
                "bounds": list(slide.info.bounds) if slide.info.bounds else None,
                "problem": None,
            }

    def detail(self, key: str) -> dict[str, Any]:
        """All that is known of a slide but its review and who looks at it. Refused (404)."""
        entry = self.catalogue.entry(key)
        summary = self._summary(entry)
        return {
            **entry.to_row(),
            **self.shown(entry),
            # One number where the axes agree, as they do but for odd scanners.
            "mpp": sum(entry.mpp) / 2 if entry.mpp else None,
            "mpp_xy": list(entry.mpp) if entry.mpp else None,
            "classes": list(entry.classes),
            "heatmap_class": entry.heatmap_class,
            "model": summary.get("model") or self.catalogue.running_model(entry) or None,
            "engine": summary.get("engine"),
            "grid": grid(entry),
            "defaults": {"class": entry.heatmap_class, "threshold": THRESHOLD, "min_um2": MIN_UM2},
        }

    def identity(self, entry: Entry) -> dict[str, Any]:
        """Model and engine of a slide, for the patch under the pointer."""
        summary = self._summary(entry)
        model = summary.get("model") or self.catalogue.running_model(entry)
        engine = summary.get("engine") or {}
        return {"model": model.get("name"), "engine": engine.get("engine") or engine.get("name")}

    def _summary(self, entry: Entry) -> dict[str, Any]:
        """The summary that the entry is made of, without failed patches; empty while there is none."""
        if entry.finished is None or not entry.version.startswith("summary"):
            return {}
        try:
            return read_head(entry.out / output_path(entry.slide, "summary"))
        except (OSError, ValueError):
            return {}

    def _digest(self, entry: Entry) -> str:
        """SHA-256 of the summary, in hex; of a long one not for every request."""
        place = entry.key, entry.version
        known = self._digests.get(place)
        if known is None:
            try:
                with open(entry.out / output_path(entry.slide, "summary"), "rb") as file:
                    known = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                return ""
            if len(self._digests) >= _DIGESTS:
                self._digests.clear()
            self._digests[place] = known
        return known


def grid(entry: Entry) -> dict[str, int] | None:
    """Where patches lie, level-0 px."""
    if entry.grid is None:
        return None
    names = ("columns", "rows", "origin_x", "origin_y", "step_x", "step_y", "patch_width", "patch_height")
    return {name: int(entry.grid.get(name) or 0) for name in names}
