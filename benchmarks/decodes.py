"""How often a stored tile is decoded when several readers share a slide: a count, without a pixel or a clock.

    python -m benchmarks.decodes                      1 to 16 readers, batches of 32 and 64, tiles of 240 and 256 px
    python -m benchmarks.decodes --slides 4           so many slides, of which `--abreast` are read side by side (`slides.ahead`)

What deals out the patches is the batcher's own code (`pipeline.dispatch`), what keeps decoded tiles is the readers' own
(`slides.tile_cache`), with their default limit; readers take a random time for each lease, so that no order is kept by
luck. "Decodes per tile" is over the tiles that the patches touch at all, so 1.00 is the least. "wide" is a slide that is
all tissue, "pieces" one with a few pieces of it, as biopsies lie.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from benchmarks import table
from pipeline.dispatch.schedule import Schedule
from pipeline.dispatch.slidework import SlideWork
from slides.geometry import SlideInfo, geometry
from slides.plan import plan
from slides.tile_cache import TileCache

CREDIT = 2
PATCH_PX = 224


@dataclass(frozen=True, slots=True)
class Sharing:
    """What is counted: tiles of `tile` pixels a side, `cache_mb` of them kept by each reader."""

    readers: int
    batch: int
    tile: int
    slides: int = 1
    cache_mb: int = 64
    abreast: int = 4


def planned(patches: int, tissue: str) -> np.ndarray:
    """Corners of the patches of a slide, in read order, int64 (n, 2)."""
    mask = np.ones((300, 400), np.uint8)
    share = 1.0
    if tissue == "pieces":
        mask[:] = 0
        rng = np.random.default_rng(1)
        for _ in range(9):
            centre = tuple(int(v) for v in rng.uniform((40, 40), (360, 260)))
            axes = tuple(int(v) for v in rng.uniform(15, 60, 2))
            cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        share = float(mask.mean())
    height = int(PATCH_PX * (patches / share * 3 / 4) ** 0.5)
    width = height * 4 // 3
    info = SlideInfo("", "aperio", width, height, ((width, height),), (1.0,), 0.25, 0.25, "slide")
    grid = geometry(info, PATCH_PX, 0.25)
    found = plan(mask.astype(bool), info, grid, 0.5)
    return grid.xy(found.columns, found.rows)


def tiles_of(corners: np.ndarray, tile: int) -> Iterator[tuple[int, int, int]]:
    """Column and row of the tiles under each patch, and how many pixels of them it takes."""
    for x, y in corners.tolist():
        for row in range(y // tile, -(-(y + PATCH_PX) // tile)):
            high = min(y + PATCH_PX, (row + 1) * tile) - max(y, row * tile)
            for column in range(x // tile, -(-(x + PATCH_PX) // tile)):
                yield column, row, high * (min(x + PATCH_PX, (column + 1) * tile) - max(x, column * tile))


class Reader:
    """Counts what a reader would decode. A tile is three bytes here, so that a cache holds as many as a real one."""

    def __init__(self, tile: int, cache_mb: int):
        self._tile = tile
        self._cache = TileCache((cache_mb << 20) // (tile * tile * 3) * 3)
        self.decodes = 0

    def read(self, slide: int, corners: np.ndarray) -> None:
        for column, row, pixels in tiles_of(corners, self._tile):
            key = slide, 0, column, row
            if self._cache.get(key, pixels) is None:
                self.decodes += 1
                self._cache.put(key, self._cache.buffer(1, 1), self._tile * self._tile, pixels)


def count(sharing: Sharing, corners: np.ndarray, seed: int = 0) -> float:
    """Decodes per tile over all slides, each of which has these patches."""
    rng = random.Random(seed)
    schedule = Schedule(sharing.batch, sharing.abreast)
    for number in range(sharing.slides):
        slide = SlideWork(number, str(number), "", {})
        slide.begin(corners.astype(np.int32))
        schedule.add(slide)
    readers = [Reader(sharing.tile, sharing.cache_mb) for _ in range(sharing.readers)]
    held: list[list[tuple[int, np.ndarray]]] = [[] for _ in readers]
    done = [(0.0, number) for number in range(sharing.readers) for _ in range(CREDIT)]

    while done:
        now, number = heapq.heappop(done)
        if held[number]:
            for slide, patches in held[number].pop(0):
                readers[number].read(slide, corners[patches])
        if not schedule.waiting(False):
            continue
        lease: list = []

        def take(work: SlideWork, rows: int, name: str = f"reader-{number}", lease: list = lease) -> int:
            patches = work.take(rows, name)
            lease.append((work.number, patches))
            return len(patches)

        schedule.draw(False, sharing.batch, take, f"reader-{number}")
        held[number].append(lease)
        after = max([now, *(at for at, other in done if other == number)])
        heapq.heappush(done, (after + rng.uniform(0.7, 1.3), number))
    touched = {(column, row) for column, row, _ in tiles_of(corners, sharing.tile)}
    return sum(reader.decodes for reader in readers) / (len(touched) * sharing.slides)


def main() -> int:
    parser = table.parser("decodes", __doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=12_000, help="of each slide (default: %(default)s)")
    parser.add_argument("--slides", type=int, default=1, help="read in turns (default: %(default)s)")
    parser.add_argument("--abreast", type=int, default=4, help="slides read side by side (default: %(default)s)")
    parser.add_argument("--cache-mb", type=int, default=64, help="of each reader (default: %(default)s)")
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N")
    parser.add_argument("--tissue", nargs="+", choices=["wide", "pieces"], default=["wide", "pieces"])
    arguments = parser.parse_args()
    machine = table.facts()
    rows = []
    for tissue in arguments.tissue:
        corners = planned(arguments.patches, tissue)
        for tile in (240, 256):
            for batch in (32, 64):
                sharings = [
                    Sharing(n, batch, tile, arguments.slides, arguments.cache_mb, arguments.abreast)
                    for n in arguments.readers
                ]
                rows.append([f"{tissue}, tiles of {tile} px, batch {batch}", *(count(c, corners) for c in sharings)])
    table.emit(
        arguments.json,
        f"Decodes per tile: {arguments.slides} slides of about {arguments.patches:,} patches of {PATCH_PX} px",
        ["", *(f"{n} readers" for n in arguments.readers)],
        rows,
        machine=machine,
        most=max(figure for row in rows for figure in row[1:]),
        aim=1.15,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
