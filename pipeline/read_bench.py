"""`slidestream bench read`: how fast slides are read here, by which reader, and what a tile costs.

Every reader gets the same patches in the same order, in one process on one core, one reader after the other and all of
that again; the best of the rounds counts. Two times are taken: processor time, which a busy machine hardly changes and
ratios are made of, and the clock's. "Tile order" is the order of a plan; "random order" is that, shuffled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import openslide

from pipeline.machine import detect
from pipeline.slow_bench import Slow, slow_reads, slow_text
from slides.direct_source import DirectSource
from slides.errors import SlideError
from slides.geometry import Geometry, geometry, resample
from slides.plan import plan
from slides.source import Source, open_source

# Rows that a reader process reads between two looks at the clock (stages/reader.py).
_RUN = 8
_ORDERS = ("tile", "random")
MOST_PROCESSES = 1024
_SPACINGS = {"native": 1.0, "a factor of 2": 2.0}

_DIRECT = "our source, direct"
# By (kind, exact) of `slides.source.open_source`. The last shrinks faster; without shrinking it is the one before.
_OURS = {
    "our source, openslide": ("openslide", True),
    _DIRECT: ("direct", True),
    "our source, fast shrinking": ("direct", False),
}

Read = Callable[[np.ndarray, np.ndarray], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """One reader's figures: processor and clock seconds per patch, the clock's with the file not in memory, stored tiles
    decoded per tile touched, and how often as fast as read_region in processor time. None: not known."""

    reader: str
    spacing: str
    order: str
    patches: int
    cpu_s: float
    wall_s: float
    cold_wall_s: float | None
    decodes_per_tile: float | None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is read: places `xy` int64 (n, 2) of a grid."""

    path: str
    grid: Geometry
    xy: np.ndarray
    mpp: float | None
    cache_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `slidestream bench read`."""
    parser.add_argument("slide", type=Path, metavar="SLIDE")
    parser.add_argument("--patches", type=int, default=512, help="patches of each measurement (default %(default)s)")
    parser.add_argument("--patch-px", type=int, default=224, help="pixels a side (default %(default)s)")
    parser.add_argument("--mpp", type=float, help="µm per pixel, where the slide does not say")
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts (default %(default)s)")
    parser.add_argument("--cache-mb", type=int, default=64, help="of decoded tiles (default %(default)s)")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="scale to N processes (default: the cores; 1: do not)"
    )
    parser.add_argument(
        "--latency-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="also read with so much added to each read of the file, as on a network share, with several settings",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit code. SlideError for a slide that cannot be read."""
    if min(args.patches, args.patch_px, args.rounds, args.cache_mb) < 1:
        raise SlideError(args.slide, "patches, patch-px, rounds and cache-mb must be 1 or more")
    if not 0 <= args.latency_ms <= 1000:
        raise SlideError(args.slide, "latency-ms must be between 0 and 1000")
    if not 0 <= (args.processes or 0) <= MOST_PROCESSES:
        raise SlideError(args.slide, f"processes must be between 0 (as many as cores) and {MOST_PROCESSES}")
    cv2.setNumThreads(1)
    before = os.getloadavg()[0]
    source = open_source(args.slide, args.mpp, "auto", args.cache_mb << 20)
    info, notice = source.info, source.notice
    source.close()
    geometry(info, args.patch_px, info.mpp_x)  # SlideError where even that cannot be
    figures: list[Figure] = []
    for name, factor in _SPACINGS.items():
        try:
            grid = geometry(info, args.patch_px, info.mpp_x * factor)
        except SlideError:
            continue
        for order in _ORDERS:
            xy = places(grid, info, args.patches, order)
            task = Task(info.path, grid, xy, args.mpp, args.cache_mb << 20)
            figures += measure(task, name, order, args.rounds)
    ratios = _ratios(figures)
    cores = args.processes or detect().cores
    scaling = scale(args, cores) if cores > 1 else {}
    xy = places(geometry(info, args.patch_px, info.mpp_x), info, args.patches, "tile")
    slow = slow_reads(args, xy) if args.latency_ms else []
    record = {
        "slide": info.path,
        "size": [info.width, info.height],
        "format": info.format,
        "notice": notice,
        "patch_px": args.patch_px,
        "cores": detect().cores,
        "load_before": round(before, 2),
        "figures": [asdict(figure) for figure in figures],
        "ratios": ratios,
        "patches_per_s_by_processes": scaling,
        "slow_reads": [asdict(figure) for figure in slow],
    }
    print(json.dumps(record, indent=2) if args.json else _text(record, figures, scaling, slow))
    return 0


def places(grid: Geometry, info: Any, count: int, order: str) -> np.ndarray:
    """`count` patches (or all there are) that lie within the slide, from its middle, int64 (n, 2)."""
    whole = plan(np.ones((64, 64), bool), info, grid, 0.999)
    if not len(whole):
        whole = plan(np.ones((64, 64), bool), info, grid, 0.0)
    xy = grid.xy(whole.columns, whole.rows)
    if order == "random":
        return np.random.default_rng(0).permutation(xy)[:count]
    start = max(0, (len(xy) - count) // 2)
    return xy[start : start + count]


def measure(task: Task, spacing: str, order: str, rounds: int) -> list[Figure]:
    """Figures of every reader that is installed and takes the slide, in turns."""
    best: dict[str, tuple[float, float]] = {}
    cold: dict[str, float] = {}
    decodes: dict[str, float] = {}
    for number in range(rounds):
        for name, opened in _readers(task):
            if number == 0:
                _forget(task.path)
            with opened as reader:
                cpu, wall = _time(task, reader.read)
                if number == 0:
                    cold[name] = wall
                    if rounds > 1:
                        continue  # the first round also loads what is loaded once
                if isinstance(reader.source, DirectSource):
                    decodes[name] = reader.source.decodes / _touched(task, reader.source.tile_size(task.grid.level))
            if name not in best or cpu < best[name][0]:
                best[name] = cpu, wall
    count = len(task.xy)
    plain = best["OpenSlide read_region"][0]
    return [
        Figure(
            reader=name,
            spacing=spacing,
            order=order,
            patches=count,
            cpu_s=cpu / count,
            wall_s=wall / count,
            cold_wall_s=cold[name] / count,
            decodes_per_tile=decodes.get(name),
            ratio=plain / cpu,
        )
        for name, (cpu, wall) in best.items()
    ]


def _ratios(figures: list[Figure]) -> dict[str, float]:
    """Processor time of each reader over that of our direct source, which reads in the order of the plan: what a run
    takes against what a script takes that reads in that order, or at random."""
    ours = {f.spacing: f.cpu_s for f in figures if f.reader == _DIRECT and f.order == "tile"}
    return {
        f"{f.reader}, {f.spacing}, {f.order} order": f.cpu_s / ours[f.spacing]
        for f in figures
        if f.spacing in ours and f.reader != _DIRECT
    }


class _Reader:
    """Something that fills patches; a context manager."""

    def __init__(self, read: Read, close: Callable[[], None], source: Source | None = None) -> None:
        self.read = read
        self.source = source
        self._close = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _readers(task: Task) -> Iterator[tuple[str, _Reader]]:
    yield "OpenSlide read_region", _plain(task)
    for name, (kind, exact) in _OURS.items():
        if not exact and task.grid.resampling != "area":
            continue
        try:
            source = open_source(task.path, task.mpp, kind, task.cache_bytes, exact)
        except SlideError:
            continue
        yield name, _Reader(_by_source(source, task), source.close, source)
    for name, make in (("fastslide", _fastslide), ("cuCIM", _cucim)):
        try:
            reader = make(task)
        except (ImportError, RuntimeError, OSError, ValueError, AttributeError):
            continue  # not installed, not for this processor, or not for this slide
        yield name, reader


def _by_source(source: Source, task: Task) -> Read:
    def read(xy: np.ndarray, out: np.ndarray) -> None:
        if failed := source.read(task.grid, xy, out):
            raise SlideError(task.path, f"cannot be measured, patches fail: {next(iter(failed.values()))}")

    return read


def _plain(task: Task) -> _Reader:
    """What everybody writes."""
    slide = openslide.OpenSlide(task.path)

    def read(xy: np.ndarray, out: np.ndarray) -> None:
        for place, patch in zip(xy.tolist(), out, strict=True):
            region = slide.read_region(tuple(place), task.grid.level, task.grid.region_px).convert("RGB")
            resample(np.asarray(region), task.grid.patch_px, patch)

    return _Reader(read, slide.close)


def _fastslide(task: Task) -> _Reader:
    import fastslide

    slide = fastslide.FastSlide.from_file_path(task.path)

    def read(xy: np.ndarray, out: np.ndarray) -> None:
        for place, patch in zip(task.grid.level_xy(xy).tolist(), out, strict=True):
            region = slide.read_region(tuple(place), task.grid.level, task.grid.region_px).numpy()
            resample(np.ascontiguousarray(region[..., :3]), task.grid.patch_px, patch)

    return _Reader(read, slide.close)


def _cucim(task: Task) -> _Reader:
    from cucim import CuImage

    slide = CuImage(task.path)

    def read(xy: np.ndarray, out: np.ndarray) -> None:
        for place, patch in zip(xy.tolist(), out, strict=True):
            region = slide.read_region(tuple(place), task.grid.region_px, task.grid.level, num_workers=1)
            resample(np.ascontiguousarray(np.asarray(region)[..., :3]), task.grid.patch_px, patch)

    return _Reader(read, slide.close)


def _time(task: Task, read: Read) -> tuple[float, float]:
    """Processor and clock seconds of reading all patches, in runs."""
    out = np.zeros((_RUN, task.grid.patch_px, task.grid.patch_px, 3), np.uint8)
    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, len(task.xy), _RUN):
        part = task.xy[start : start + _RUN]
        read(part, out[: len(part)])
    return time.process_time() - cpu, time.perf_counter() - wall


def _forget(path: str) -> None:
    """Ask the kernel to drop the file from memory, as far as it will."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _touched(task: Task, tile: tuple[int, int]) -> int:
    """How many tiles of this size the patches touch."""
    width, height = tile
    seen: set[tuple[int, int]] = set()
    for x, y in task.grid.level_xy(task.xy).tolist():
        columns = range(x // width, -(-(x + task.grid.region_px[0]) // width))
        seen.update((c, r) for c in columns for r in range(y // height, -(-(y + task.grid.region_px[1]) // height)))
    return len(seen)


# ------------------------------------------------------------ several processes


def scale(args: argparse.Namespace, most: int) -> dict[int, float]:
    """Patches a second by the clock, of 1, 2, 4 ... processes that read parts of one slide at the same time."""
    counts = sorted({1, *(1 << k for k in range(1, most.bit_length())), most})
    return {count: _together(args, count) for count in counts if count <= most}


def _together(args: argparse.Namespace, count: int) -> float:
    command = [sys.executable, "-m", "pipeline.read_bench", str(args.slide), str(args.patches), str(args.patch_px)]
    command += [str(args.cache_mb << 20), str(args.mpp or "")]
    workers = []
    try:
        for number in range(count):
            pipe = subprocess.PIPE
            workers.append(subprocess.Popen([*command, f"{number}/{count}"], stdin=pipe, stdout=pipe, text=True))
        for worker in workers:
            if worker.stdout.readline() != "ready\n":  # type: ignore[union-attr]
                raise SlideError(args.slide, "a process of the benchmark could not read it")
        began = time.perf_counter()
        for worker in workers:
            worker.stdin.write("go\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
        read = sum(int(worker.stdout.readline() or 0) for worker in workers)  # type: ignore[union-attr]
        return read / (time.perf_counter() - began)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _worker(path: str, patches: str, patch_px: str, cache_bytes: str, mpp: str, part: str) -> None:
    """Read every n-th block of runs of a plan: ready, wait for a line, read, say how many."""
    cv2.setNumThreads(1)
    number, count = map(int, part.split("/"))
    wanted = float(mpp) if mpp else None
    source = open_source(path, wanted, "auto", int(cache_bytes))
    grid = geometry(source.info, int(patch_px), source.info.mpp_x)
    xy = places(grid, source.info, int(patches) * count, "tile")
    mine = np.array_split(xy, count)[number]
    task = Task(path, grid, mine, wanted, int(cache_bytes))
    _time(Task(path, grid, mine[:_RUN], wanted, int(cache_bytes)), _by_source(source, task))
    print("ready", flush=True)
    sys.stdin.readline()
    _time(task, _by_source(source, task))
    print(len(mine), flush=True)


# ------------------------------------------------------------ for people


def _text(record: dict[str, Any], figures: list[Figure], scaling: dict[int, float], slow: list[Slow]) -> str:
    width, height = record["size"]
    lines = [
        f"{record['slide']}: {record['format']}, {width} x {height} pixels, patches of {record['patch_px']} px",
        f"{record['cores']} cores, load {record['load_before']:g} before the start",
    ]
    if record["notice"]:
        lines.append(record["notice"])
    head = f"{'reader':28}{'patches/s of CPU':>18}{'by the clock':>14}{'cold':>10}{'decodes/tile':>14}{'ratio':>8}"
    spot = None
    for figure in figures:
        if spot != (figure.spacing, figure.order):
            spot = figure.spacing, figure.order
            lines += ["", f"spacing: {figure.spacing}; {figure.order} order; {figure.patches} patches", head]
        cold = "-" if figure.cold_wall_s is None else f"{1 / figure.cold_wall_s:,.0f}"
        decodes = "-" if figure.decodes_per_tile is None else f"{figure.decodes_per_tile:.2f}"
        lines.append(
            f"{figure.reader:28}{1 / figure.cpu_s:>18,.0f}{1 / figure.wall_s:>14,.0f}{cold:>10}{decodes:>14}"
            f"{figure.ratio or 0:>7.1f}x"
        )
    if record["ratios"]:
        lines += ["", "times the processor time of our direct source (exact) in tile order:"]
        lines += [f"  {name}: {ratio:.1f}" for name, ratio in record["ratios"].items()]
    if scaling:
        lines += [
            "",
            "processes, native spacing, tile order: " + ", ".join(f"{n}: {v:,.0f}/s" for n, v in scaling.items()),
        ]
    if slow:
        lines += ["", *slow_text(slow)]
    return "\n".join(lines)


if __name__ == "__main__":
    _worker(*sys.argv[1:])
