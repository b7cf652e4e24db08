"""What is known about a synthetic slide: where its tissue and its tumour are.

Two files lie beside the slide: `<stem>.truth.png` (a small mask: 0 background, 128 normal tissue, 255 tumour; one pixel
stands for cell_px x cell_px pixels of level 0) and `<stem>.truth.geojson` (a FeatureCollection of the tumour regions in
level-0 pixels, which QuPath opens as annotations; its member "slidestream" holds the numbers). The mask is the truth;
the polygons are drawn around it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from slides.errors import SlideError

_NAMESPACE = uuid.UUID("6c1a7ab2-8a6c-4b0e-9d57-0d5a4f6f3f10")
_TUMOUR_COLOUR = [200, 0, 0]
_ENLARGE = 4
"""Contours run through pixel centres; on a mask enlarged so much, they lie within 1/8 cell of the true border."""


@dataclass(frozen=True)
class Truth:
    """tissue, tumour: bool (rows, columns), one element for cell_px x cell_px pixels of level 0."""

    width: int
    height: int
    mpp: float
    cell_px: int
    seed: int
    tissue: np.ndarray
    tumour: np.ndarray

    @property
    def tissue_share(self) -> float:
        """The part of the slide's area that is tissue."""
        return self._area(self.tissue) / (self.width * self.height)

    @property
    def tumour_share(self) -> float:
        """The part of the tissue's area that is tumour; 0 without tissue."""
        return self._area(self.tumour) / max(self._area(self.tissue), 1e-9)

    def _area(self, mask: np.ndarray) -> float:
        return float(_box_sums(_integral(mask), self.cell_px, 0, 0, self.width, self.height))

    def tumour_fraction(self, x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """The fraction of each level-0 box that is tumour, float32, exact for the mask; outside the slide is no tumour.

        x, y: top-left; all in level-0 pixels, broadcast together. Raises ValueError for a box without area.
        """
        return self._fraction(self.tumour, x, y, width, height)

    def tissue_fraction(self, x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """The fraction of each level-0 box that is tissue, float32."""
        return self._fraction(self.tissue, x, y, width, height)

    def _fraction(self, mask: np.ndarray, x: Any, y: Any, width: Any, height: Any) -> np.ndarray:
        x, y, width, height = (np.asarray(v, np.float64) for v in (x, y, width, height))
        if (width <= 0).any() or (height <= 0).any():
            raise ValueError("a box without area has no tumour fraction")
        x0, x1 = (np.clip(v, 0, self.width) for v in (x, x + width))
        y0, y1 = (np.clip(v, 0, self.height) for v in (y, y + height))
        sums = _box_sums(_integral(mask), self.cell_px, x0, y0, x1, y1)
        return np.clip(sums / (width * height), 0, 1).astype(np.float32)


def _integral(mask: np.ndarray) -> np.ndarray:
    return cv2.integral(mask.astype(np.uint8), sdepth=cv2.CV_64F)


def _box_sums(integral: np.ndarray, cell: int, x0: Any, y0: Any, x1: Any, y1: Any) -> np.ndarray:
    """Masked area, in level-0 pixels, of the boxes; the integral image is bilinear inside a cell, so this is exact."""

    def at(x: Any, y: Any) -> np.ndarray:
        u, v = np.asarray(x, np.float64) / cell, np.asarray(y, np.float64) / cell
        i = np.clip(np.floor(u).astype(np.intp), 0, integral.shape[1] - 2)
        j = np.clip(np.floor(v).astype(np.intp), 0, integral.shape[0] - 2)
        fu, fv = np.clip(u - i, 0, 1), np.clip(v - j, 0, 1)
        top = integral[j, i] * (1 - fu) + integral[j, i + 1] * fu
        bottom = integral[j + 1, i] * (1 - fu) + integral[j + 1, i + 1] * fu
        return top * (1 - fv) + bottom * fv

    return (at(x1, y1) - at(x0, y1) - at(x1, y0) + at(x0, y0)) * (cell * cell)


def truth_paths(slide: Path) -> tuple[Path, Path]:
    """Where the truth of a slide lies: the GeoJSON file and the mask."""
    return slide.with_name(f"{slide.stem}.truth.geojson"), slide.with_name(f"{slide.stem}.truth.png")


def polygons(truth: Truth) -> list[list[list[list[float]]]]:
    """The tumour regions as GeoJSON polygons (outer ring, then holes; closed rings) in level-0 pixels."""
    big = cv2.resize(truth.tumour.astype(np.uint8), None, fx=_ENLARGE, fy=_ENLARGE, interpolation=cv2.INTER_NEAREST)
    contours, tree = cv2.findContours(big, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return []

    def ring(contour: np.ndarray) -> list[list[float]]:
        points = cv2.approxPolyDP(contour, _ENLARGE * 0.55, True)[:, 0, :].astype(np.float64)
        if len(points) < 3:
            return []
        points = (points + 0.5) * (truth.cell_px / _ENLARGE)
        points = np.clip(points, 0, [truth.width, truth.height])
        return [[round(float(x), 1), round(float(y), 1)] for x, y in [*points, points[0]]]

    shapes = []
    for index, contour in enumerate(contours):
        if tree[0][index][3] >= 0:  # a hole; its outer ring brings it along
            continue
        rings = [ring(contour)]
        hole = tree[0][index][2]
        while hole >= 0:
            rings.append(ring(contours[hole]))
            hole = tree[0][hole][0]
        if rings[0]:
            shapes.append([r for r in rings if r])
    return shapes


def write_truth(truth: Truth, slide: Path) -> None:
    """Write both files beside the slide, each whole or not at all."""
    geojson, png = truth_paths(slide)
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(_NAMESPACE, f"{truth.seed}/{truth.width}x{truth.height}/{number}")),
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {
                "objectType": "annotation",
                "name": f"tumour {number}",
                "classification": {"name": "Tumor", "color": _TUMOUR_COLOUR},
                "isLocked": True,
            },
        }
        for number, rings in enumerate(polygons(truth), start=1)
    ]
    numbers = {
        "width": truth.width,
        "height": truth.height,
        "mpp": truth.mpp,
        "cell_px": truth.cell_px,
        "seed": truth.seed,
        "tissue": round(truth.tissue_share, 6),
        "tumour": round(truth.tumour_share, 6),
        "mask": png.name,
    }
    document = {"type": "FeatureCollection", "features": features, "slidestream": numbers}
    mask = np.where(truth.tumour, 255, np.where(truth.tissue, 128, 0)).astype(np.uint8)
    encoded = cv2.imencode(".png", mask)[1].tobytes()
    replace_file(png, lambda temporary: temporary.write_bytes(encoded))
    text = json.dumps(document, separators=(",", ":"))
    replace_file(geojson, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_truth(path: Path | str) -> Truth:
    """The truth of the slide at path (or of a .truth.geojson itself). Raises SlideError if missing or damaged."""
    path = Path(path)
    geojson = path if path.name.endswith(".truth.geojson") else truth_paths(path)[0]
    try:
        numbers = json.loads(geojson.read_text(encoding="utf-8"))["slidestream"]
        sizes = [int(numbers[key]) for key in ("width", "height", "cell_px", "seed")]
        mpp, mask_name = float(numbers["mpp"]), str(numbers["mask"])
    except FileNotFoundError:
        remedy = "slides made by `slidestream make-slide` have one"
        raise SlideError(geojson, "no truth beside this slide", remedy) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SlideError(geojson, f"not a slide's truth ({error})", "make the slide again") from error
    width, height, cell, seed = sizes
    mask_path = geojson.with_name(Path(mask_name).name)
    mask = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE) if mask_path.is_file() else None
    if mask is None or mask.shape != (-(-height // cell), -(-width // cell)):
        raise SlideError(mask_path, "the truth's mask is missing or of another size", "make the slide again")
    return Truth(width, height, mpp, cell, seed, mask >= 64, mask >= 192)


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Have a temporary file in the same folder written, and put it in place of path once it is whole and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
