"""Every kind of slide that is read directly: does it give OpenSlide's pixels, and how fast?

One synthetic slide of each kind is written (by the writers of the tests), read in the order of a plan by OpenSlide's
read_region and by the direct source, and compared patch by patch: at the spacing of level 0 and at coarser ones, with
overlapping patches, over the edges of the slide. Processor time, as the machine may be busy; the best of three.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openslide

from benchmarks import table
from slides.direct_source import DirectSource
from slides.geometry import Geometry, SlideInfo, geometry
from slides.openslide_source import OpenSlideSource
from slides.plan import plan
from slides.source import open_source
from tests.slides.jpeg_tiffs import APERIO, FLAVOURS, Flavour, tissue, write_jpeg_tiff, write_philips
from tests.slides.ndpi_files import KINDS, write_ndpi

_SIZE = 2816, 2304
_MPP = 0.5
_RUN = 64
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """A way of storing a slide. `write` writes one of these levels."""

    name: str
    write: Callable[[Path, Sequence[np.ndarray]], Path]


@dataclass(frozen=True, slots=True)
class Result:
    """`reader`: direct or openslide; differences in grey levels, of level 0 the largest, of coarser spacings the largest
    mean of a patch; `ratio`: processor time of read_region over that of our source, native spacing, patches of 224."""

    kind: str
    format: str
    reader: str
    level_0: int
    coarser: float
    ratio: float


def kinds() -> Iterator[Kind]:
    """All of them."""
    for name, flavour in FLAVOURS.items():
        yield Kind(f"TIFF, {name}", lambda path, levels, f=flavour: write_jpeg_tiff(path, levels, f))
    for name, flavour in (("420", Flavour()), ("RGB, tables", FLAVOURS["RGB, tables"])):
        yield Kind(f"Aperio SVS, {name}", lambda path, levels, f=flavour: write_jpeg_tiff(path, levels, f, APERIO))
    for name, description in (("TIFF", ""), ("Aperio SVS", APERIO)):
        yield Kind(
            f"{name}, missing tiles",
            lambda path, levels, d=description: write_jpeg_tiff(path, levels, description=d, change=_sparse),
        )
    yield Kind("Philips TIFF, tiles of 512", lambda path, levels: write_philips(path, levels, Flavour(tile=(512, 512))))
    yield Kind("Philips TIFF, missing tiles", lambda path, levels: write_philips(path, levels, change=_sparse))
    for name, kind in KINDS.items():
        yield Kind(f"NDPI, {name}", lambda path, levels, k=kind: write_ndpi(path, levels, k))


def _sparse(_: int, tiles: list[bytes]) -> list[bytes]:
    return [b"" if i % 4 == 1 else tile for i, tile in enumerate(tiles)]


def measure(kind: Kind, levels: Sequence[np.ndarray], folder: Path) -> Result:
    """Write a slide of a kind, read it both ways, remove it."""
    path = kind.write(folder / "slide.tif", levels)
    try:
        ours, theirs = open_source(path, None), OpenSlideSource(path)
        native = geometry(ours.info, 224, _MPP)
        apart = _apart(ours, theirs, native), _apart(ours, theirs, geometry(ours.info, 150, _MPP, 0.3))
        coarser = [_apart(ours, theirs, geometry(ours.info, 96, _MPP * f)).mean((1, 2, 3)).max() for f in (1.4, 2, 4)]
        xy = _places(ours.info, native)
        ratio = _plain_s(path, native, xy) / _ours_s(path, native, xy)
        reader = "direct" if isinstance(ours, DirectSource) else "openslide"
        largest = int(max(a.max() for a in apart))
        ours.close()
        theirs.close()
        return Result(kind.name, ours.info.format, reader, largest, float(max(coarser)), ratio)
    finally:
        path.unlink()


def _places(info: SlideInfo, grid: Geometry) -> np.ndarray:
    chosen = plan(np.ones((32, 32), bool), info, grid, 0.0)
    return grid.xy(chosen.columns, chosen.rows)


def _apart(ours: DirectSource | OpenSlideSource, theirs: OpenSlideSource, grid: Geometry) -> np.ndarray:
    """Absolute differences, int16 (n, P, P, 3), over the whole slide."""
    xy = _places(ours.info, grid)
    a, b = (np.empty((len(xy), grid.patch_px, grid.patch_px, 3), np.uint8) for _ in range(2))
    for source, out in ((ours, a), (theirs, b)):
        if failed := source.read(grid, xy, out):
            raise SystemExit(f"{source.info.path}: patches fail: {next(iter(failed.values()))}")
    return np.abs(a.astype(np.int16) - b)


def _ours_s(path: Path, grid: Geometry, xy: np.ndarray) -> float:
    best = float("inf")
    out = np.empty((_RUN, grid.patch_px, grid.patch_px, 3), np.uint8)
    for _ in range(_ROUNDS):
        source = open_source(path, None)
        began = time.process_time()
        for start in range(0, len(xy), _RUN):
            part = xy[start : start + _RUN]
            source.read(grid, part, out[: len(part)])
        best = min(best, time.process_time() - began)
        source.close()
    return best


def _plain_s(path: Path, grid: Geometry, xy: np.ndarray) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        with openslide.OpenSlide(path) as slide:
            began = time.process_time()
            for place in xy.tolist():
                np.asarray(slide.read_region(tuple(place), grid.level, grid.region_px).convert("RGB"))
            best = min(best, time.process_time() - began)
    return best


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a kind is not read directly, or its level-0 pixels differ."""
    made = table.parser("slide_kinds", __doc__.splitlines()[0])  # type: ignore[union-attr]
    args = made.parse_args(arguments)
    cv2.setNumThreads(1)
    facts = table.facts()
    image = tissue(*_SIZE)
    half = cv2.resize(image, (_SIZE[0] // 2, _SIZE[1] // 2), interpolation=cv2.INTER_AREA)
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(kind, [image, half], Path(folder)) for kind in kinds()]
    rows = [(r.kind, r.format, r.reader, r.level_0, round(r.coarser, 2), round(r.ratio, 1)) for r in results]
    columns = ("kind", "OpenSlide's format", "read by", "largest, level 0", "mean, coarser", "ratio")
    table.emit(args.json, "kinds of slides", columns, rows, machine=facts, kinds=len(rows))
    return int(any(r.reader != "direct" or r.level_0 for r in results))


if __name__ == "__main__":
    sys.exit(main())
