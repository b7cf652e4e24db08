"""`slidestream bench read --latency-ms`: what a slow share costs, and which settings hide it."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from slides.errors import SlideError
from slides.geometry import Geometry, geometry
from slides.source import Source, open_source

_RUN = 8  # rows that a reader process reads between two looks at the clock (stages/reader.py)
# Patches of a lease, and (slides.preads, reader.credit) that are tried where reads have latency.
_LEASE = 32
_SETTINGS = ((1, 2), (4, 2), (8, 4), (16, 8))


@dataclass(frozen=True, slots=True)
class Slow:
    """Direct reading with latency: clock and processor seconds per patch, and the clock's over the best of all settings
    without latency."""

    preads: int
    credit: int
    latency_ms: float
    wall_s: float
    cpu_s: float
    cost: float


def slow_reads(args: argparse.Namespace, xy: np.ndarray) -> list[Slow]:
    """Direct reading of patches at `xy`, at native spacing, as a reader process does it: lease after lease, the tiles of the
    leases that wait in line read meanwhile; without latency and with it. Empty where the slide is not read directly."""
    leases = [xy[start : start + _LEASE] for start in range(0, len(xy), _LEASE)]
    out = np.zeros((_RUN, args.patch_px, args.patch_px, 3), np.uint8)
    best: dict[tuple[int, int, float], tuple[float, float]] = {}
    for _ in range(args.rounds):
        for preads, credit in _SETTINGS:
            for latency_ms in (0.0, args.latency_ms):
                slow = {"preads": preads, "latency_s": latency_ms / 1000}
                try:
                    source = open_source(args.slide, args.mpp, "direct", args.cache_mb << 20, **slow)
                except SlideError:
                    return []
                try:
                    grid = geometry(source.info, args.patch_px, source.info.mpp_x)
                    times = _in_leases(source, grid, leases, credit, out)
                finally:
                    source.close()
                setting = preads, credit, latency_ms
                best[setting] = min(times, best.get(setting, times))
    quick = min(wall for (_, _, latency_ms), (wall, _) in best.items() if not latency_ms)
    return [Slow(*setting, wall / len(xy), cpu / len(xy), wall / quick) for setting, (wall, cpu) in best.items()]


def _in_leases(
    source: Source, grid: Geometry, leases: list[np.ndarray], credit: int, out: np.ndarray
) -> tuple[float, float]:
    """Clock and processor seconds from the first lease to the last; a new one comes in for each that is done."""
    wall, cpu = time.perf_counter(), time.process_time()
    for lease in leases[:credit]:
        source.advise(grid, lease)
    for number, lease in enumerate(leases):
        for start in range(0, len(lease), _RUN):
            part = lease[start : start + _RUN]
            source.read(grid, part, out[: len(part)])
        for coming in leases[number + credit : number + credit + 1]:
            source.advise(grid, coming)
    return time.perf_counter() - wall, time.process_time() - cpu


def slow_text(figures: list[Slow]) -> list[str]:
    """Lines for people."""
    lines = [f"{'direct reading of slow storage':34}{'patches/s by the clock':>24}{'CPU ms each':>13}{'time':>8}"]
    for figure in figures:
        name = f"{figure.latency_ms:g} ms, preads {figure.preads}, credit {figure.credit}"
        lines.append(f"{name:34}{1 / figure.wall_s:>24,.0f}{figure.cpu_s * 1e3:>13.3f}{figure.cost:>7.2f}x")
    return lines
