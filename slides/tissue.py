"""Where the tissue is, from the overview. Pure: numpy and OpenCV.

Brightfield: tissue is coloured, glass is not. The overview is cleaned of single pixels (median, as in WSInfer's and
CLAM's masks) and balanced to the colour of its glass; chroma, the largest less the smallest of R, G and B (saturation
times value of HSV), is cut at Otsu's threshold (Otsu 1979, "A threshold selection method from gray-level histograms").
Chroma rather than saturation, for that is noise where a picture is dark: so a black scan border, grey dust and black
ink do not count. Otsu always divides, also what is all glass or all tissue, hence the limits to its threshold.

Fluorescence: tissue shines, the background is dark. The brightest channel, averaged over a cell's width, is cut at
Otsu's threshold of its logarithm, since a few bright nuclei outshine everything else a hundredfold; again with limits.

Both end with closing, filling of holes and removal of small pieces (connected components).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from slides.geometry import SlideInfo
from slides.shrink import shrink_area

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.uint8]

METHODS = ("auto", "brightfield", "fluorescence", "none")
MIN_AREA_MM2 = 0.01
MAX_HOLE_MM2 = 0.01

# No finer than this is worked: cells need not be told apart, and kernels stay small. Brightfield at 4 µm per pixel gives
# the mask of 2 µm to 98 % and more (intersection over union) in an eighth of the time; fluorescence would lose its rim.
_WORK_UM_PER_PX = {"brightfield": 4.0, "fluorescence": 2.0}

# Chroma of 0 to 255. JPEG noise on glass stays below 8; pale stroma and fat lie above 20 on any stain worth the name.
_CHROMA_LIMITS = (8, 20)

# Brightness of 0 to 255 above a background of up to _DARKEST: less is noise, more is signal whatever Otsu says.
_GLOW_LIMITS = (5, 15)
_DARKEST = 40


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """`mask` bool (h, w), of the overview's size; `method` as used; `threshold` of chroma or brightness, 0 to 255."""

    mask: Mask
    method: str
    threshold: float


def overview_um_per_px(info: SlideInfo, shape: tuple[int, ...]) -> float:
    """µm per pixel of an overview of `shape` (h, w, ...), the geometric mean of both axes: right for areas."""
    return math.sqrt(info.mpp_x * info.width / shape[1] * info.mpp_y * info.height / shape[0])


def tissue_mask(
    overview: Image,
    um_per_px: float,
    method: str = "auto",
    min_area_mm2: float = MIN_AREA_MM2,
    max_hole_mm2: float = MAX_HOLE_MM2,
) -> TissueMask:
    """The tissue of an overview, uint8 (h, w, 3).

    `method` "auto" tells brightfield from fluorescence; "none" takes everything for tissue. Pieces below
    `min_area_mm2` are dropped, holes up to `max_hole_mm2` filled. A slide without tissue has an empty mask.
    ValueError for an unknown method or a picture of another kind.
    """
    if overview.ndim != 3 or overview.shape[2] != 3 or overview.dtype != np.uint8 or 0 in overview.shape:
        raise ValueError(f"an overview must be uint8 (h, w, 3), not {overview.dtype} {overview.shape}")
    if method not in METHODS:
        raise ValueError(f"the tissue method must be one of {', '.join(METHODS)}, not {method!r}")
    height, width = overview.shape[:2]
    if method == "none":
        return TissueMask(np.ones((height, width), bool), "none", 0.0)
    image, um = _shrunk(overview, um_per_px, "brightfield")
    if method == "auto":
        method = "fluorescence" if is_fluorescence(image) else "brightfield"
    if method == "brightfield":
        mask, threshold = _brightfield(image, um)
        mask = _closed(mask, 12 / um)
    else:
        image, um = _shrunk(overview, um_per_px, "fluorescence")
        mask, threshold = _fluorescence(image, um)
        mask = _closed(mask, 20 / um)
    mask = _without_small(mask, min_area_mm2, max_hole_mm2, um)
    if mask.shape != (height, width):
        mask = cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).view(bool)
    return TissueMask(mask, method, threshold)


def is_fluorescence(image: Image) -> bool:
    """Whether a picture, uint8 (h, w, 3), is mostly dark as fluorescence is, and not for a black border alone.

    Brightfield within a black border is bright in all channels wherever it is not black; fluorescence has one
    channel or every shade between.
    """
    darkest, value = _extremes(image)
    lit = value >= 64
    count = np.count_nonzero(lit)
    if 2 * count < value.size:
        bright = np.count_nonzero(value >= 150)
        pale = np.count_nonzero(darkest >= 100)
        return not (bright > 0.8 * count and pale > 0.5 * count)
    return bool(_median(value) < 90)


def _shrunk(overview: Image, um_per_px: float, method: str) -> tuple[Image, float]:
    factor = um_per_px / _WORK_UM_PER_PX[method]
    if not factor < 1:
        return overview, um_per_px
    height, width = (max(1, round(size * factor)) for size in overview.shape[:2])
    um = um_per_px * math.sqrt(overview.shape[0] * overview.shape[1] / (height * width))
    return shrink_area(overview, width, height), um


def _brightfield(image: Image, um: float) -> tuple[Mask, float]:
    image = cv2.medianBlur(np.ascontiguousarray(image), _odd(14 / um, 3, 7))
    low, high = _extremes(_balanced(image))
    chroma = high - low
    threshold = float(np.clip(_otsu(chroma), *_CHROMA_LIMITS))
    return (chroma > threshold) & ~_pen(image, um), threshold


def _balanced(image: Image) -> Image:
    """Bring the colour of the glass, if any is seen, to white: a tint of the lamp is no tissue."""
    some = np.ascontiguousarray(image[::2, ::2])
    low, high = _extremes(some)
    glass = ((low >= 180) & (high - low <= 12)).view(np.uint8)
    if 100 * np.count_nonzero(glass) < low.size:
        return image
    scale = 255 / np.array([_median(channel, glass) for channel in cv2.split(some)])
    table = np.minimum(np.arange(256)[:, None] * scale + 0.5, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])


def _median(values: Image, chosen: Image | None = None) -> float:
    """The median of uint8 `values` (h, w), of those that are not 0 in `chosen` (at least one): `np.median`'s number, from
    the histogram, in a tenth of its time."""
    below = np.cumsum(cv2.calcHist([values], [0], chosen, [256], [0, 256]), dtype=np.float64)
    middle = (below[-1] - 1) / 2
    return float(np.searchsorted(below, [np.floor(middle), np.ceil(middle)], side="right").mean())


def _pen(image: Image, um: float) -> Mask:
    """Green and blue pen: broad strokes of a colour purer than any stain's.

    Thresholds are ours, with room for haematoxylin (hue about 245 to 265 degrees) and the blues of trichrome and
    Alcian blue (saturation below 0.7). Red pen is not told from eosin.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in units of 2 degrees
    pure = cv2.inRange(hsv, (40, 178, 50), (113, 255, 255)).view(bool)
    pure = pure | cv2.inRange(hsv, (114, 204, 90), (122, 255, 255)).view(bool)
    if not pure.any():
        return pure
    size = _odd(150 / um, 3, 151)
    broad = cv2.blur(pure.astype(np.float32), (size, size), borderType=cv2.BORDER_REPLICATE) > 0.6
    near = cv2.dilate(broad.view(np.uint8), np.ones((size, size), np.uint8)).view(bool)
    return near & cv2.dilate(pure.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)


def _fluorescence(image: Image, um: float) -> tuple[Mask, float]:
    size = _odd(14 / um, 3, 7)
    value = cv2.blur(cv2.medianBlur(_extremes(image)[1], 3), (size, size))
    dark = float(np.percentile(value, 5))
    if dark > _DARKEST:  # no background to be seen
        dark = 0.0
    table = (np.log2(np.arange(256) + 1.0) * 31.875 + 0.5).astype(np.uint8)
    otsu = 2 ** (_otsu(cv2.LUT(value, table)) / 31.875) - 1
    threshold = float(np.clip(otsu, dark + _GLOW_LIMITS[0], dark + _GLOW_LIMITS[1]))
    return value > threshold, threshold


def _extremes(image: Image) -> tuple[Image, Image]:
    """The smallest and the largest channel of each pixel; several times faster than numpy along a short axis."""
    r, g, b = cv2.split(image)
    return cv2.min(cv2.min(r, g), b), cv2.max(cv2.max(r, g), b)


def _otsu(values: Image) -> float:
    return float(cv2.threshold(values, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0])


def _closed(mask: Mask, radius: float) -> Mask:
    """Close gaps of up to twice `radius` px; the frame of the picture counts as neither tissue nor gap."""
    size = 2 * max(1, round(radius)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_CLOSE, kernel).view(bool)


def _without_small(mask: Mask, min_area_mm2: float, max_hole_mm2: float, um: float) -> Mask:
    """Fill small holes, then drop small pieces. Tissue touches across corners, so holes do not."""
    mm2 = um * um / 1e6
    labels, pixels = _pieces(~mask, 4)
    fill = pixels * mm2 <= max_hole_mm2
    fill[0] = False
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    fill[border] = False
    if fill.any():
        mask = mask | fill[labels]
    labels, pixels = _pieces(mask, 8)
    keep = pixels * mm2 >= min_area_mm2
    if keep[1:].all():
        return mask
    keep[0] = False
    return keep[labels]


def _pieces(mask: Mask, connectivity: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The number of each pixel's connected component, 0 where there is none, and the pixels of each. (Less than half of the
    time of OpenCV's function with statistics, of which areas alone are wanted.)"""
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=connectivity)
    return labels, np.bincount(labels.ravel(), minlength=count)


def _odd(size: float, low: int, high: int) -> int:
    """The odd number nearest to `size`, from `low` to `high`."""
    return int(np.clip(2 * round((size - 1) / 2) + 1, low, high))
