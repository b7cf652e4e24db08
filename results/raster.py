"""Patch probabilities laid out as an image: one pixel a step of the grid."""

from __future__ import annotations

import math

import numpy as np

from results.record import FAILED, INFERRED, SlideRecord

# A neighbour's patch must reach over at least this share of a pixel to give it a value.
MIN_COVER = 0.5


def probability_raster(record: SlideRecord, classes: list[int]) -> np.ndarray:
    """Float32 (len(classes), rows, columns); NaN where nothing was inferred.

    Pixel (r, c) is the square of step_x x step_y level-0 px at (origin_x + c step_x, origin_y + r step_y). Without
    overlap it is the patch there. With overlap it is the mean of the patches that cover it, each weighted by the share
    of the pixel that it covers; a pixel of which no inferred patch covers half stays NaN.
    """
    geometry = record.geometry
    rows, columns = int(geometry["rows"]), int(geometry["columns"])
    index = np.flatnonzero(record.state == INFERRED)
    r, c = record.rows[index], record.columns[index]
    shares_y = _shares(int(geometry["patch_height"]), int(geometry["step_y"]))
    shares_x = _shares(int(geometry["patch_width"]), int(geometry["step_x"]))
    weight = np.zeros((rows, columns), np.float32)
    cover = np.zeros((rows, columns), np.float32)
    total = np.zeros((len(classes), rows, columns), np.float32)
    for dy, share_y in enumerate(shares_y):
        for dx, share_x in enumerate(shares_x):
            share = np.float32(share_y * share_x)
            inside = (r + dy < rows) & (c + dx < columns)
            # No cell occurs twice within one shift, so plain indexing adds each patch once.
            cells = (r[inside] + dy, c[inside] + dx)
            weight[cells] += share
            cover[cells] = np.maximum(cover[cells], share)
            for layer, number in enumerate(classes):
                total[layer][cells] += share * record.probabilities[index[inside], number]
    with np.errstate(invalid="ignore", divide="ignore"):
        total /= weight
    total[:, cover < MIN_COVER] = np.nan
    return total


def failed_cells(record: SlideRecord) -> tuple[np.ndarray, np.ndarray]:
    """Grid rows and columns of the failed patches."""
    index = np.flatnonzero(record.state == FAILED)
    return record.rows[index], record.columns[index]


def halve(raster: np.ndarray) -> np.ndarray:
    """The next level of a pyramid: float32 (layers, ceil(h/2), ceil(w/2)), each pixel the mean of its numbers.

    NaN only where all four are NaN, so that a lone patch stays visible from afar.
    """
    layers, height, width = raster.shape
    padded = np.full((layers, height + height % 2, width + width % 2), np.nan, np.float32)
    padded[:, :height, :width] = raster
    quads = padded.reshape(layers, padded.shape[1] // 2, 2, padded.shape[2] // 2, 2)
    known = ~np.isnan(quads)
    count = known.sum(axis=(2, 4), dtype=np.float32)
    total = np.where(known, quads, 0).sum(axis=(2, 4), dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32)


def _shares(patch: int, step: int) -> list[float]:
    """What share of each of the following pixels a patch covers along one axis, its own pixel first."""
    return [min(1.0, patch / step - shift) for shift in range(max(1, math.ceil(patch / step - 1e-9)))]
