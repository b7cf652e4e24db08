"""Where patches lie on a slide and how their pixels come about. Pure: no files are touched here.

Three grids meet here: *level-0 pixels* (the slide's full resolution, in which places are given), *level pixels* (the
level that is read) and *patch pixels* (what the model sees). Spacing and mpp are µm per pixel.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slides.errors import SlideError

# Scanners give 0.1 (100x, oil) to 4 (2.5x); outside of this a number is a mistake in the file, such as 72 dpi.
MPP_MIN = 0.05
MPP_MAX = 20.0

# A level counts as fine enough when it is coarser by no more than this: 0.505 serves for 0.5.
LEVEL_TOLERANCE = 0.02

# One read holds 4 bytes a pixel, so this is 256 MB. Beyond, the slide lacks the level that the spacing wants.
REGION_MAX_PIXELS = 64 << 20

# Cells of a grid, each some 40 bytes where the plan is made. Of 224 px at 0.25 µm/px, a slide of 100,000 x 100,000 px has
# 200,000, and 20 million with an overlap of nine tenths: beyond, a spacing or an overlap is mistaken.
GRID_MAX_CELLS = 24 << 20


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What was learnt on opening a slide.

    `mpp_x`, `mpp_y`: µm per level-0 pixel; `mpp_source`: "slide", "sidecar" or "configuration".
    `level_sizes`: (width, height) of each level; `level_downsamples`: level-0 pixels per level pixel.
    `background`: RGB of places without pixels. `bounds`: (x, y, width, height) in level-0 pixels of the part that
    was scanned, where the format says so.
    """

    path: str
    format: str
    width: int
    height: int
    level_sizes: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    mpp_x: float
    mpp_y: float
    mpp_source: str
    background: tuple[int, int, int] = (255, 255, 255)
    bounds: tuple[int, int, int, int] | None = None
    objective_power: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for messages and JSON."""
        values = asdict(self)
        values["level_sizes"] = [list(size) for size in self.level_sizes]
        values["level_downsamples"] = list(self.level_downsamples)
        values["background"] = list(self.background)
        values["bounds"] = None if self.bounds is None else list(self.bounds)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SlideInfo:
        """Inverse of `to_dict`; TypeError where a key is missing or unknown."""
        values = dict(values)
        values["level_sizes"] = tuple((int(w), int(h)) for w, h in values["level_sizes"])
        values["level_downsamples"] = tuple(float(d) for d in values["level_downsamples"])
        r, g, b = values["background"]
        values["background"] = (int(r), int(g), int(b))
        if values["bounds"] is not None:
            x, y, w, h = values["bounds"]
            values["bounds"] = (int(x), int(y), int(w), int(h))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The grid of patches over a slide, and how one is read.

    A patch covers `patch_width` x `patch_height` level-0 pixels, is read as `region_px` (width, height) pixels of
    `level`, and resampled ("none", "area" or "bilinear") to `patch_px` squared. Column c, row r has its top left at
    level-0 (origin_x + c * step_x, origin_y + r * step_y). The last column and row may overhang the slide.
    """

    patch_px: int
    spacing: float
    level: int
    level_downsample: float
    region_px: tuple[int, int]
    resampling: str
    patch_width: int
    patch_height: int
    step_x: int
    step_y: int
    columns: int
    rows: int
    origin_x: int = 0
    origin_y: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for messages and JSON."""
        values = asdict(self)
        values["region_px"] = list(self.region_px)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Geometry:
        """Inverse of `to_dict`; TypeError where a key is missing or unknown."""
        values = dict(values)
        w, h = values["region_px"]
        values["region_px"] = (int(w), int(h))
        return cls(**values)

    def xy(self, columns: npt.ArrayLike, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Top left of each patch in level-0 pixels, int64 (n, 2)."""
        x = np.asarray(columns, np.int64) * self.step_x + self.origin_x
        y = np.asarray(rows, np.int64) * self.step_y + self.origin_y
        return np.stack([x, y], axis=-1).reshape(-1, 2)

    def level_xy(self, xy: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The level pixel nearest to each level-0 place, int64 (n, 2); its region is read from there.

        Between two pixels a reader would have to interpolate, and patches would differ in sharpness by their place.
        Rounded half up, so that neighbours keep their distance.
        """
        return np.floor(np.asarray(xy, np.float64) / self.level_downsample + 0.5).astype(np.int64)


def check_mpp(value: float, path: str = "") -> float:
    """`value` if it can be the µm per pixel of a slide's level 0, else SlideError."""
    try:
        mpp = float(value)
    except (TypeError, ValueError):
        mpp = math.nan
    if not MPP_MIN <= mpp <= MPP_MAX:
        raise SlideError(
            path,
            f"{value!r} µm per pixel cannot be right (expected {MPP_MIN:g} to {MPP_MAX:g})",
            "give the true value with --set slides.mpp=...",
        )
    return mpp


def geometry(info: SlideInfo, patch_px: int, spacing: float, overlap: float = 0.0) -> Geometry:
    """The grid for a model that wants `patch_px` squared at `spacing` µm/px; neighbours share `overlap` of a side.

    The patch's size on the slide is WSInfer's: round(patch_px * spacing / mpp) level-0 pixels. The level is the
    coarsest that is not coarser than `spacing` (within LEVEL_TOLERANCE); where even level 0 is, level 0 is enlarged.
    Every level-0 pixel lies in a patch, and every patch touches the slide.

    ValueError for arguments out of range; SlideError where the slide's levels cannot serve the spacing, or the grid
    has too many cells.
    """
    if patch_px < 1:
        raise ValueError(f"patch_px must be 1 or more, not {patch_px}")
    if not (math.isfinite(spacing) and spacing > 0):
        raise ValueError(f"spacing must be above 0, not {spacing}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be from 0 to below 1, not {overlap}")
    width = max(1, round(patch_px * spacing / info.mpp_x))
    height = max(1, round(patch_px * spacing / info.mpp_y))
    level = _level(info, spacing)
    downsample = info.level_downsamples[level]
    region = (max(1, round(width / downsample)), max(1, round(height / downsample)))
    if region[0] * region[1] > REGION_MAX_PIXELS:
        raise SlideError(
            info.path,
            f"a patch of {patch_px} px at {spacing:g} µm/px covers {region[0]}x{region[1]} px of level {level}, "
            "too many to read at once",
            "check slides.mpp and the model's spacing, or give the slide its missing levels",
        )
    if region == (patch_px, patch_px):
        resampling = "none"
    else:
        resampling = "area" if min(region) >= patch_px else "bilinear"
    step_x = max(1, round(width * (1 - overlap)))
    step_y = max(1, round(height * (1 - overlap)))
    columns, rows = _steps(info.width, width, step_x), _steps(info.height, height, step_y)
    if columns * rows > GRID_MAX_CELLS:
        raise SlideError(
            info.path,
            f"{columns} x {rows} patches, each {width} px wide on the slide and {step_x} px from the next, are too many "
            f"({GRID_MAX_CELLS:,} at most)",
            "check slides.mpp, tissue.overlap and the model's spacing",
        )
    return Geometry(
        patch_px=patch_px,
        spacing=float(spacing),
        level=level,
        level_downsample=downsample,
        region_px=region,
        resampling=resampling,
        patch_width=width,
        patch_height=height,
        step_x=step_x,
        step_y=step_y,
        columns=columns,
        rows=rows,
    )


def _level(info: SlideInfo, spacing: float) -> int:
    limit = spacing * (1 + LEVEL_TOLERANCE) / max(info.mpp_x, info.mpp_y)
    fine = [level for level, downsample in enumerate(info.level_downsamples) if downsample <= limit]
    return max(fine, key=lambda level: info.level_downsamples[level], default=0)


def _steps(size: int, patch: int, step: int) -> int:
    return 1 if size <= patch else -(-(size - patch) // step) + 1


def resample(region: npt.NDArray[np.uint8], patch_px: int, out: npt.NDArray[np.uint8]) -> None:
    """Bring `region` (h, w, 3) to `out` (patch_px, patch_px, 3): the one resampling function of all sources.

    Shrinking averages the covered area (antialiased), enlarging is bilinear; each axis by itself where they differ.
    ValueError where `out` cannot be written in place.
    """
    import cv2  # here, as the batcher needs geometry but never a pixel, and OpenCV takes a tenth of a second to load

    if out.shape != (patch_px, patch_px, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 ({patch_px}, {patch_px}, 3), not {out.dtype} {out.shape}")
    height, width = region.shape[:2]
    if (height, width) == (patch_px, patch_px):
        np.copyto(out, region)
        return
    if (height > patch_px) != (width > patch_px) and patch_px not in (height, width):
        region = cv2.resize(region, (min(width, patch_px), min(height, patch_px)), interpolation=cv2.INTER_AREA)
    shrink = min(height, width) >= patch_px
    cv2.resize(region, (patch_px, patch_px), dst=out, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
