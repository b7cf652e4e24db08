"""One slide of the worklist, and where such slides come from."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from review.errors import Refused

if TYPE_CHECKING:
    from review.heat import Table
    from review.regions import Region


@dataclass(frozen=True, slots=True)
class Entry:
    """One slide of the worklist. `slide` is its id within its folder of results `out`; `version` changes with its result.

    `route`: whose results these are, where a service has several; `id` begins with it then.

    `size` (width, height) in level-0 px, `mpp` (x, y) in µm; None where the slide never opened. `path` is as the pipeline
    knew it: only `Catalogue.file` says whether it may be opened.
    """

    key: str
    id: str
    slide: str
    model: str
    out: Path
    path: str
    state: str
    reason: str | None
    urgency: str
    score: float | None
    tumour_mm2: float | None
    tissue_mm2: float | None
    planned: int
    inferred: int
    failed: int
    arrived: str | None
    finished: str | None
    version: str
    classes: tuple[str, ...]
    heatmap_class: str | None
    size: tuple[int, int] | None = None
    mpp: tuple[float, float] | None = None
    grid: Mapping[str, Any] | None = field(default=None, compare=False)
    route: str = ""

    @property
    def own_id(self) -> str:
        """The id without the route: what the slide is called whatever else the service does with it."""
        return self.id.removeprefix(f"{self.route}/") if self.route else self.id

    def to_row(self) -> dict[str, Any]:
        """As the worklist shows it, without what reviewers did."""
        return {
            "key": self.key,
            "id": self.id,
            "model": self.model or None,
            "state": self.state,
            "reason": self.reason,
            "urgency": self.urgency,
            "score": self.score,
            "tumour_mm2": self.tumour_mm2,
            "tissue_mm2": self.tissue_mm2,
            "patches": {"planned": self.planned, "inferred": self.inferred, "failed": self.failed},
            "arrived": self.arrived,
            "finished": self.finished,
        }


class Shelf(Protocol):
    """Slides of one results folder (`review.catalogue`) or of several (`review.library`). From any thread; may block."""

    def look(self, patience_s: float = ...) -> Mapping[str, Entry]:
        """All slides by key, not older than `patience_s` where the disk allows. It is not changed afterwards."""

    def entry(self, key: str, fresh: bool = True) -> Entry:
        """The slide of a key. Refused (404). `fresh=False`: as it was at the last look, if it was there."""

    def running_model(self, entry: Entry) -> dict[str, Any]:
        """What is known of the model that a slide is being inferred with; empty where nothing is."""

    def file(self, entry: Entry) -> Path:
        """The slide's own file, resolved. Refused (404) where it is not there, or lies where it may not be read."""

    def patches(self, key: str) -> Table:
        """The patches of a slide. Refused (404)."""

    def regions(self, key: str, label: str | None, threshold: float, min_um2: float) -> list[Region]:
        """The suspicious regions of a slide. Refused (404, 422)."""


def pick(key: str, known: Mapping[str, Entry], look: Callable[[], Mapping[str, Entry]]) -> Entry:
    """The slide of a key: from `known`, else from a new look. Refused (404) where there is none."""
    found = known.get(key) or look().get(key)
    if found is None:
        raise Refused(404, "no_slide", "there is no such slide")
    return found


def iso(time_s: float) -> str:
    """A time since the epoch as the API writes it: ISO 8601, UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
