"""An outline drawn by hand: a polygon in level-0 px."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

POINTS_LEAST, POINTS_MOST = 3, 2000
_RASTER = 2048  # px of the longer side where an area has to be counted


class OutlineError(ValueError):
    """Why a drawn outline cannot be taken, in words for people."""


Point = tuple[float, float]


def parse_outline(value: Any, width: int, height: int) -> list[list[float]]:
    """The points [[x, y], ...] without repeats, to 0.01 px; not closed. OutlineError where they are no area inside the slide."""
    if not isinstance(value, list) or not POINTS_LEAST <= len(value) <= POINTS_MOST:
        raise OutlineError(f"an outline has {POINTS_LEAST} to {POINTS_MOST} points")
    points: list[list[float]] = []
    for point in value:
        if not isinstance(point, list) or len(point) != 2 or not all(_is_number(entry) for entry in point):
            raise OutlineError("a point of the outline is not two finite numbers")
        if not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise OutlineError("the outline leaves the slide")
        rounded = [round(float(point[0]), 2), round(float(point[1]), 2)]
        if not points or points[-1] != rounded:
            points.append(rounded)
    if len(points) > 1 and points[0] == points[-1]:
        points.pop()
    if len(points) < POINTS_LEAST or area_px(points) < 1:
        raise OutlineError("the outline encloses nothing")
    return points


def area_px(points: Sequence[Sequence[float]]) -> float:
    """What an outline encloses, px²: exact where it does not cross itself, else counted (even-odd) to about 0.1 %."""
    if not crosses(points):
        return abs(_shoelace(points))
    import numpy as np

    places = np.asarray(points, np.float64)
    low = places.min(axis=0)
    scale = _RASTER / max(float((places.max(axis=0) - low).max()), 1e-9)
    return float(fill((places - low) * scale, _RASTER, _RASTER).sum()) / scale**2


def fill(points: Any, width: int, height: int) -> Any:
    """The pixels whose centres an outline encloses (even-odd): uint8 (height, width). `points` (n, 2) in pixels, 0 at the corner.

    OpenCV's and Pillow's polygons take the pixels on the border, too, which makes small ones too large.
    """
    import numpy as np

    a = np.asarray(points, np.float64)
    toggles = np.zeros((height, width + 1), np.uint8)
    for (ax, ay), (bx, by) in zip(a, np.roll(a, -1, axis=0), strict=True):
        if ay > by:
            ax, ay, bx, by = bx, by, ax, ay
        rows = np.arange(max(0, math.ceil(ay - 0.5)), min(height, math.ceil(by - 0.5)))
        if len(rows):
            at = ax + (rows + 0.5 - ay) * (bx - ax) / (by - ay)
            toggles[rows, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)] ^= 1
    return np.bitwise_xor.accumulate(toggles, axis=1)[:, :width]


def crosses(points: Sequence[Sequence[float]]) -> bool:
    """Whether two edges of a closed polygon cross properly (touching does not count)."""
    import numpy as np

    a = np.asarray(points, np.float64)
    b = np.roll(a, -1, axis=0)
    along = b - a
    for index in range(len(a) - 1):
        # Which side of this edge the ends of all later ones are on, and the ends of this one of theirs.
        mine = [_cross(along[index], end[index + 1 :] - a[index]) for end in (a, b)]
        theirs = [_cross(along[index + 1 :], end[index] - a[index + 1 :]) for end in (a, b)]
        if bool(((mine[0] * mine[1] < 0) & (theirs[0] * theirs[1] < 0)).any()):
            return True
    return False


def _cross(first: Any, second: Any) -> Any:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _shoelace(points: Sequence[Sequence[float]]) -> float:
    # From the first point on, so that far corners of a large slide lose no digits.
    x0, y0 = points[0]
    total = 0.0
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        total += (ax - x0) * (by - y0) - (bx - x0) * (ay - y0)
    return total / 2


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
