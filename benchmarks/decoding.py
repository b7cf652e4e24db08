"""libjpeg-turbo alone: how fast so many processes decode a slide's tiles, each bound to a core of its own, with nothing else.

    python -m benchmarks.decoding --processes 1 4 8 16 [--slide FILE]

No reader of JPEG tiles can be faster than this on the same cores; a patch of 224 px needs 0.77 tiles of 256 px where each is
decoded once (`patches/s`). Tiles are read before the clock starts, from all over level 0 (`kB`: their mean size): take a slide
full of tissue. By default it is a block of those that benchmarks.whole reads.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.mosaic import blocks
from slides.jpeg_tiles import JpegTiles
from slides.tiff_index import read_index

PATCH_PX = 224
MOST = 500  # tiles that a process goes round
LOOKS = 20  # tiles between two looks at the clock


def tiles(slide: Path) -> tuple[JpegTiles, tuple[int, int], list[bytes]]:
    """The decoder of level 0, (height, width) of its tiles, and the streams of MOST of them, from all over it."""
    fd = os.open(slide, os.O_RDONLY)
    try:
        directory = read_index(fd)[0]
        stored = np.flatnonzero(directory.counts)
        chosen = stored[:: -(-len(stored) // MOST)]
        streams = [os.pread(fd, int(directory.counts[i]), int(directory.offsets[i])) for i in chosen]
    finally:
        os.close(fd)
    side = directory.tile_height, directory.tile_width
    return JpegTiles(side[1], side[0], directory.photometric, directory.tables), side, streams


def _decode(slide: Path, core: int, seconds: float, ready: Barrier, rates: Any) -> None:
    os.sched_setaffinity(0, {core})
    jpeg, side, streams = tiles(slide)
    out = np.zeros((*side, 3), np.uint8)
    endless = itertools.cycle(streams)
    ready.wait()
    began, cpu, done = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        for stream in itertools.islice(endless, LOOKS):
            jpeg.decode(stream, out)
        done += LOOKS
    rates.put((done / elapsed, (time.process_time() - cpu) / done))


def together(slide: Path, cores: list[int], seconds: float) -> tuple[float, float]:
    """Tiles/s of one process on each of these cores, and processor seconds of a tile."""
    rates = multiprocessing.Queue()
    ready = multiprocessing.Barrier(len(cores))
    workers = [
        multiprocessing.Process(target=_decode, args=(slide, core, seconds, ready, rates), daemon=True)
        for core in cores
    ]
    for worker in workers:
        worker.start()
    found = [rates.get(timeout=60 + seconds) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rate for rate, _ in found), statistics.fmean(cpu for _, cpu in found)


def main() -> int:
    parser = table.parser("decoding", __doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--slide", type=Path, help="of JPEG tiles (default: a block of benchmarks.mosaic)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="(default 1 2 4 8 16)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each (default 1)")
    args = parser.parse_args()
    cores, machine, rows = sorted(os.sched_getaffinity(0)), table.facts(), []
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        slide = args.slide or blocks(Path(name))[0]
        _, side, streams = tiles(slide)
        share = PATCH_PX**2 / (side[0] * side[1])
        for count in [count for count in args.processes if count <= len(cores)]:
            rate, cpu = together(slide, cores[:count], args.seconds)
            rows.append((count, round(rate), round(1e3 * cpu, 3), round(rate / share)))
    columns = ("processes", "tiles/s", "CPU ms a tile", "patches/s")
    mean = round(statistics.fmean(len(stream) for stream in streams) / 1000, 1)
    table.emit(args.json, "JPEG tiles by libjpeg-turbo alone", columns, rows, machine=machine, tile=list(side), kB=mean)
    return 0


if __name__ == "__main__":
    sys.exit(main())
