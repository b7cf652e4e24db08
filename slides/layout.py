"""The layout of a synthetic slide on a coarse raster: pieces of tissue of a wanted area, regions of tumour in them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from slides.noise import smoothstep, value_noise
from slides.scene import Mix

_MAX_CELLS = 2048
_MIN_CELL_PX = 16


def cell_size(width: int, height: int) -> int:
    """Level-0 pixels along one side of a raster cell: a power of two; the longer side has at most 2048 cells."""
    cell = _MIN_CELL_PX
    while -(-max(width, height) // cell) > _MAX_CELLS:
        cell *= 2
    return cell


@dataclass(frozen=True)
class Layout:
    """tissue, tumour: bool (rows, columns), one element a cell; is the Regions of the slide's scene (see scene.py)."""

    cell_um: float
    tissue: np.ndarray
    tumour: np.ndarray
    soft: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    """tissue, tumour, lymphoid, fat: float32 rasters, the first two blurred a little to be borders at 0.5."""

    def mix(self, x: np.ndarray, y: np.ndarray) -> Mix:
        x, y = np.broadcast_arrays(x, y)
        shape = x.shape  # cv2 wants two dimensions
        u, v = ((a / self.cell_um - 0.5).astype(np.float32).reshape(-1, shape[-1]) for a in (x, y))
        borders = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REPLICATE, cv2.BORDER_REPLICATE)
        planes = (_sample(raster, u, v, border) for raster, border in zip(self.soft, borders, strict=True))
        return Mix(*(plane.reshape(shape) for plane in planes))


def _sample(raster: np.ndarray, u: np.ndarray, v: np.ndarray, border: int) -> np.ndarray:
    if u.size == 0:
        return np.zeros(u.shape, np.float32)
    out = np.empty(u.shape, np.float32)
    for start in range(0, u.shape[1], 16384):  # cv2.remap takes at most 32767 columns
        part = slice(start, start + 16384)
        at = np.ascontiguousarray(u[:, part]), np.ascontiguousarray(v[:, part])
        out[:, part] = cv2.remap(raster, *at, cv2.INTER_LINEAR, borderMode=border)
    return out


def make_layout(width: int, height: int, mpp: float, tissue: float, tumour: float, seed: int) -> Layout:
    """Lay out a slide: tissue is a fraction of the area, tumour a fraction of the tissue (each 0..1)."""
    cell = cell_size(width, height)
    rows, columns = -(-height // cell), -(-width // cell)
    x, y = (np.arange(columns) + 0.5)[None, :], (np.arange(rows) + 0.5)[:, None]
    short = min(rows, columns)
    tissue_mask = _tissue(x, y, rows, columns, tissue, seed)
    tumour_mask = _tumour(x, y, tissue_mask, tumour, seed)

    def um(wavelength: float) -> float:
        return min(wavelength / (cell * mpp), 0.6 * short)

    rng = np.random.default_rng([seed, 3])
    lymphoid = _share(value_noise(x, y, um(900), seed * 7 + 11, 3), tissue_mask, rng.uniform(0.25, 0.6), 0.25)
    # Fat is nearly white: it has a rim of other tissue, so that the tissue's outline can be seen.
    depth_um = cv2.distanceTransform(np.pad(tissue_mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1] * (cell * mpp)
    fat = _share(value_noise(x, y, um(800), seed * 7 + 12, 3), tissue_mask, rng.uniform(0.0, 0.08), 0.05)
    fat = fat * smoothstep(40, 70, depth_um)
    masks = (tissue_mask, tumour_mask)
    blurred = [cv2.GaussianBlur(m.astype(np.float32), (0, 0), 1.1, borderType=cv2.BORDER_REPLICATE) for m in masks]
    # Fat under tumour would only be painted over.
    fat = fat * (1 - cv2.GaussianBlur(tumour_mask.astype(np.float32), (0, 0), 4))
    return Layout(cell * mpp, tissue_mask, tumour_mask, (blurred[0], blurred[1], lymphoid, fat.astype(np.float32)))


def _share(noise: np.ndarray, tissue: np.ndarray, share: float, softness: float) -> np.ndarray:
    """1 where the noise is highest, in that share of the tissue; 0 elsewhere, soft between."""
    threshold = np.quantile(noise[tissue], 1 - share) if tissue.any() else 0.0
    return smoothstep(-softness, softness, noise - np.float32(threshold))


def _tissue(x: np.ndarray, y: np.ndarray, rows: int, columns: int, share: float, seed: int) -> np.ndarray:
    if share <= 0 or share >= 1:
        return np.full((rows, columns), share >= 1)
    short = min(rows, columns)
    u, v = (x / columns - 0.5) * 2, (y / rows - 0.5) * 2
    inwards = 1 - (np.abs(u) ** 2.6 + np.abs(v) ** 2.6)
    potential = 0.55 * inwards + value_noise(x, y, 0.55 * short, seed * 7 + 1, 2) * 0.9
    potential += 0.16 * value_noise(x, y, 0.09 * short, seed * 7 + 2, 4)
    # Tissue seldom reaches the edge of the glass.
    edge = np.minimum(np.minimum(x, columns - x), np.minimum(y, rows - y))
    edge = edge + 0.05 * short * value_noise(x, y, 0.2 * short, seed * 7 + 3, 3)
    potential = potential - 1.2 * smoothstep(0.14 * short, 0.0, edge)
    return potential > np.quantile(potential, 1 - share)


def _tumour(x: np.ndarray, y: np.ndarray, tissue: np.ndarray, share: float, seed: int) -> np.ndarray:
    area = int(tissue.sum())
    if share <= 0 or share >= 1 or area == 0:
        return tissue & (share >= 1)
    scale = max(0.42 * np.sqrt(area), 24.0)
    depth = cv2.distanceTransform(tissue.astype(np.uint8), cv2.DIST_L2, 5)
    potential = value_noise(x, y, scale, seed * 7 + 4, 2) + 0.25 * np.minimum(depth / (0.2 * scale), 1)
    potential = np.where(tissue, potential, -np.inf).astype(np.float32)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))

    def region(threshold: float) -> np.ndarray:
        mask = (potential > threshold).astype(np.uint8)
        # This takes away necks and cracks that are too thin to be a region (and would cross in a polygon).
        mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc), cv2.MORPH_OPEN, disc)
        return (mask > 0) & tissue

    low, high = float(potential[tissue].min()), float(potential[tissue].max())
    for _ in range(14):  # cleaning changes the area a little: search for the threshold that leaves the wanted one
        middle = (low + high) / 2
        low, high = (middle, high) if region(middle).sum() > share * area else (low, middle)
    return region((low + high) / 2)
