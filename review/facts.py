"""What the acts and the exports need to know of a slide; the catalogue gives it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

KEY_DIGITS = 20

T = TypeVar("T")
UNFINISHED = frozenset(("waiting", "running"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One slide as it is now.

    `path` is empty where the file is not there or may not be read. `width`, `height` in level-0 px (0 where unknown), `mpp_x`, `mpp_y` in µm per level-0 px (0 where unknown), `bounds`: the
    scanned area (x, y, width, height) or None. `patches` has planned, inferred, failed. `model` and `engine` are the summary's.
    `result`: SHA-256 (hex) of the summary's bytes, "" while there is none: which result it is that a person signs.
    """

    key: str
    id: str
    path: str
    state: str
    reason: str | None = None
    width: int = 0
    height: int = 0
    mpp_x: float = 0.0
    mpp_y: float = 0.0
    bounds: tuple[int, int, int, int] | None = None
    classes: tuple[str, ...] = ()
    heatmap_class: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    result: str = ""


class Slides(Protocol):
    """The slides of a results folder. Every method may block; none is called in the event loop."""

    def facts(self, key: str) -> Facts | None:
        """A slide, or None where there is none of this key."""

    def regions(self, key: str, name: str, threshold: float, min_um2: float) -> list[dict[str, Any]]:
        """The regions of a class, ranked: id, rank, class, max, mean, area_um2, patches, bbox, outline (level-0 px)."""

    def picture(self, key: str, x: int, y: int, w: int, h: int, px: int) -> bytes:
        """JPEG of a place (level-0 px), its longest side `px`. Raises SlideError where it cannot be read."""

    def bounded(self, key: str, work: Callable[[], T]) -> T:
        """What `work`, which reads the slide's file, gives. Refused (503) where the slide's storage does not answer."""

    def defaults(self, key: str) -> tuple[str, float, float]:
        """Class, threshold and smallest area (µm²) where nobody has set them."""


def slide_key(slide: str) -> str:
    """The key under which URLs and the log name a slide: 20 hex digits of SHA-256 of its id."""
    return hashlib.sha256(slide.encode("utf-8", "surrogateescape")).hexdigest()[:KEY_DIGITS]
