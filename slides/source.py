"""What every source of pixels offers, and the choice of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slides.errors import SlideError
from slides.geometry import Geometry, SlideInfo

KINDS = ("auto", "openslide", "direct")

# Parts of an overview that cannot be read get this colour, which every tissue mask takes for tissue: their patches are
# then tried one by one and listed with a reason, where white would drop them silently.
UNREADABLE = (200, 80, 160)


def no_beat() -> None:
    """For callers that nobody watches."""


class Source(Protocol):
    """An open slide. Not for sharing between threads."""

    info: SlideInfo

    kind: str
    """Who decodes: "openslide" or "direct"."""

    notice: str
    """Why the slide is not read directly, where that was to be tried; else empty."""

    def overview(self, max_px: int, beat: Callable[[], None] = no_beat) -> npt.NDArray[np.uint8]:
        """The whole slide, uint8 (h, w, 3), longest side `max_px` or the slide's own if that is less.

        Made from the pyramid in bounded memory, never from the label or other associated images. Parts that cannot
        be read are UNREADABLE in colour. `beat` is called after every read. SlideError where nothing can be read.
        """
        ...

    def read(
        self,
        geometry: Geometry,
        xy: npt.NDArray[np.int64],
        out: npt.NDArray[np.uint8],
        beat: Callable[[], None] = no_beat,
    ) -> dict[int, str]:
        """Fill `out` uint8 (n, P, P, 3) with the patches whose top left is `xy` int64 (n, 2), level-0 pixels.

        Gives the reason of each patch that failed, by index; its pixels are then the background. `beat` is called
        after every patch. SlideError where the slide is lost altogether.
        """
        ...

    def advise(self, geometry: Geometry, xy: npt.NDArray[np.int64]) -> None:
        """The patches at `xy` will be read soon. Changes nothing but how long that takes."""
        ...

    def close(self) -> None:
        """Let go of the file. May be called again."""
        ...


def open_source(
    path: str | os.PathLike[str],
    mpp: float | None,
    kind: str = "auto",
    cache_bytes: int = 64 << 20,
    exact: bool = True,
    preads: int = 1,
    latency_s: float = 0.0,
    checked: bool = False,
) -> Source:
    """Open a slide; `mpp` overrides the slide's own µm per level-0 pixel.

    "openslide" reads by OpenSlide; "direct" decodes the tiles itself, or refuses the slide; "auto" is direct where that
    gives the same pixels, and else OpenSlide, with the reason in `notice`. Where patches are shrunk and `exact` is not
    asked for, direct reading does it faster, within a grey level on average. It has up to `preads` reads of the file under
    way while it decodes (1: none); `latency_s` is added to each, for benchmarks. `checked`: another process has compared
    this slide's pixels with OpenSlide's already.

    SlideError where it cannot be opened, or has no usable mpp. ValueError for an unknown `kind`.
    """
    if kind not in KINDS:
        raise ValueError(f"source must be one of {', '.join(KINDS)}, not {kind!r}")
    from slides.openslide_source import OpenSlideSource

    reason = ""
    if kind != "openslide":
        try:
            from slides.direct_source import Unsuitable, open_direct
        except ImportError as error:  # a decoder that is missing or broken must not cost a slide
            reason = f"the JPEG decoder cannot be loaded: {error}"
        else:
            try:
                return open_direct(path, mpp, cache_bytes, exact, preads, latency_s, checked)
            except Unsuitable as error:
                reason = str(error)
    if kind == "direct":
        remedy = "set slides.source to auto, or to openslide"
        raise SlideError(path, f"cannot be read tile by tile: {reason}", remedy)
    source = OpenSlideSource(path, mpp, cache_bytes)
    source.notice = f"read by OpenSlide: {reason}" if reason else ""
    return source
