"""Suspicious regions: neighbouring patches at or over a threshold, joined. Pure: numpy and OpenCV.

A patch stands for one step of the grid, in the middle of what it covers: without overlap that is the patch itself; with
overlap, patches would be counted twice otherwise. Patches are neighbours also over a corner, so that a thin strand is one
region. What has failed, or waits, is in no region.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from results.record import INFERRED
from review.heat import Table

# Regions are ranked by their highest probability in steps of this, the larger first within a step: a single patch of
# 0.999 must not come before a square millimetre of 0.998.
RANK_STEP = 0.05

# To the right, down, to the left, up; and from a cell's top left, the corner where its edge in that direction begins.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))

Ring = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Region:
    """`id`: of its class and patches, the same wherever it is computed. `area_um2` and `outline` are cut to the slide.

    `box` (x, y, width, height), `outline` and `holes` are in level-0 pixels; rings are not closed (the last point is not the
    first again), are simple, and run clockwise as seen, holes the other way round.
    """

    id: str
    rank: int
    label: str
    highest: float
    mean: float
    area_um2: float
    patches: int
    box: tuple[int, int, int, int]
    outline: Ring
    holes: list[Ring]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "rank": self.rank,
            "class": self.label,
            "max": round(self.highest, 6),
            "mean": round(self.mean, 6),
            "area_um2": round(self.area_um2, 2),
            "patches": self.patches,
            "bbox": list(self.box),
            "outline": [list(point) for point in self.outline],
            "holes": [[list(point) for point in ring] for ring in self.holes],
        }


def find(
    table: Table, label: str, threshold: float, min_um2: float, size: tuple[int, int], mpp: tuple[float, float]
) -> list[Region]:
    """The regions of a class, ranked from 1. `size`: width and height of the slide in level-0 pixels; `mpp`: µm of one.

    ValueError for a class that the table has not.
    """
    number = table.classes.index(label)
    values = table.probabilities[:, number]
    chosen = np.flatnonzero((table.states == INFERRED) & (values >= np.float32(threshold)))
    if not len(chosen):
        return []
    edges = _edges(table, size)
    labels, sums = _join(table.columns[chosen], table.rows[chosen])
    order = np.argsort(labels, kind="stable")
    found = []
    for members in np.split(chosen[order], np.cumsum(sums)[:-1]):
        columns, rows = table.columns[members], table.rows[members]
        area = _area(columns, rows, edges) * mpp[0] * mpp[1]
        if area < min_um2:
            continue
        own = values[members]
        found.append((float(own.max()), area, columns, rows, float(own.mean(dtype=np.float64))))
    found.sort(key=lambda one: (-math.floor(one[0] / RANK_STEP + 1e-6), -one[1], int(one[3].min()), int(one[2].min())))
    return [_region(rank, label, *one, edges) for rank, one in enumerate(found, 1)]


def _region(
    rank: int,
    label: str,
    highest: float,
    area: float,
    columns: npt.NDArray[np.int32],
    rows: npt.NDArray[np.int32],
    mean: float,
    edges: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
) -> Region:
    x, y = edges
    rings = [[(int(x[c]) + dx, int(y[r]) + dy) for c, r, dx, dy in ring] for ring in _trace(columns, rows)]
    # Of the rings around joined cells one encloses all others: that of the largest area.
    rings.sort(key=lambda ring: -abs(area_of(ring)))
    left, top = int(x[columns.min()]), int(y[rows.min()])
    right, bottom = int(x[columns.max() + 1]), int(y[rows.max() + 1])
    box = (left, top, right - left, bottom - top)
    return Region(
        identity(label, columns, rows), rank, label, highest, mean, area, len(columns), box, rings[0], rings[1:]
    )


def identity(label: str, columns: npt.NDArray[np.int32], rows: npt.NDArray[np.int32]) -> str:
    """16 hexadecimal digits of a region's class and patches."""
    order = np.lexsort((columns, rows))
    digest = hashlib.sha256(label.encode("utf-8", "surrogateescape") + b"\0")
    digest.update(columns[order].astype("<i4").tobytes() + rows[order].astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def area_of(ring: Ring) -> float:
    """Signed area of a ring (the shoelace formula), above 0 where it runs clockwise as seen, y being down."""
    x, y = np.array(ring, np.float64).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def _edges(table: Table, size: tuple[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the cells of the grid begin on each axis, level-0 px, and where the last one ends; cut to the slide."""
    grid = table.grid
    return (
        _axis(grid, "x", "columns", "patch_width", table.columns, size[0]),
        _axis(grid, "y", "rows", "patch_height", table.rows, size[1]),
    )


def _axis(
    grid: dict[str, Any], axis: str, count: str, side: str, places: npt.NDArray[np.int32], limit: int
) -> npt.NDArray[np.int64]:
    step, patch, begin = grid[f"step_{axis}"], grid[side], grid.get(f"origin_{axis}") or 0
    n = max(int(grid.get(count) or 0), int(places.max()) + 1)
    edges = begin + (patch - step) // 2 + np.arange(n + 1, dtype=np.int64) * step
    edges[0], edges[n] = begin, begin + (n - 1) * step + patch
    # With overlap, what the last patches stand for may lie beyond the slide's edge, which they do not: a pixel is left.
    return np.maximum(np.minimum(edges, limit - np.arange(n, -1, -1)), np.arange(n + 1))


def _area(
    columns: npt.NDArray[np.int32], rows: npt.NDArray[np.int32], edges: tuple[npt.NDArray[np.int64], ...]
) -> float:
    """Level-0 pixels of these cells that lie on the slide."""
    widths, heights = np.diff(edges[0]), np.diff(edges[1])
    return float(np.sum(widths[columns].astype(np.float64) * heights[rows]))


def _join(columns: npt.NDArray[np.int32], rows: npt.NDArray[np.int32]) -> tuple[npt.NDArray, npt.NDArray]:
    """The number of each cell's component, from 1, and how many cells each has."""
    left, top = int(columns.min()), int(rows.min())
    cells = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), np.uint8)
    cells[rows - top, columns - left] = 1
    count, image = cv2.connectedComponents(cells, connectivity=8, ltype=cv2.CV_32S)
    labels = image[rows - top, columns - left]
    return labels, np.bincount(labels, minlength=count)[1:]


def _trace(columns: npt.NDArray[np.int32], rows: npt.NDArray[np.int32]) -> list[list[tuple[int, int, int, int]]]:
    """The rings around cells, each corner as column and row of the grid, and a nudge that keeps the ring simple.

    They run along the edges between a cell and none, the cell on the right hand. Where two cells meet at a corner alone,
    the ring goes over to the other one, so that joined cells have one outline. Rings come through there twice, each time
    nudged by a pixel to the empty side: a neck, as a polygon must not touch itself.
    """
    left, top = int(columns.min()) - 1, int(rows.min()) - 1
    cells = np.zeros((int(rows.max()) - top + 2, int(columns.max()) - left + 2), bool)
    cells[rows - top, columns - left] = True
    leaving: dict[tuple[int, int], list[int]] = {}
    inner = cells[1:-1, 1:-1]
    neighbours = cells[:-2, 1:-1], cells[1:-1, 2:], cells[2:, 1:-1], cells[1:-1, :-2]
    for direction, (neighbour, (dx, dy)) in enumerate(zip(neighbours, _CORNERS, strict=True)):
        for row, column in zip(*(index.tolist() for index in np.nonzero(inner & ~neighbour)), strict=True):
            leaving.setdefault((column + dx, row + dy), []).append(direction)
    starts = sorted(leaving, key=lambda point: (point[1], point[0]))
    crossings = {point for point, ways in leaving.items() if len(ways) > 1}
    rings = [_walk(start, leaving) for start in starts if start in leaving]
    return [
        [(x + left + 1, y + top + 1, *(nudge if (x, y) in crossings else (0, 0))) for (x, y), nudge in ring]
        for ring in rings
    ]


def _walk(
    start: tuple[int, int], leaving: dict[tuple[int, int], list[int]]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The corners of one ring, whose edges are taken out of `leaving`, and the way outwards from each left turn."""
    ring: list[tuple[tuple[int, int], tuple[int, int]]] = []
    first = direction = leaving[start][0]
    point = start
    while True:
        ways = leaving[point]
        way = (direction - 1) % 4 if len(ways) > 1 else ways[0]  # at a crossing to the left: over to the other cell
        ways.remove(way)
        if not ways:
            del leaving[point]
        if way != direction:
            (x0, y0), (x1, y1) = _STEPS[direction], _STEPS[way]
            ring.append((point, (x1 - x0, y1 - y0)))
        direction = way
        point = point[0] + _STEPS[way][0], point[1] + _STEPS[way][1]
        if point == start:
            if direction != first:
                ring.append((point, (0, 0)))
            return ring
