"""Small pyramidal TIFFs, lossless, that OpenSlide opens as generic-tiff, and ways to damage them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tifffile

TILE = 64


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise, uint8 (height, width, 3): every pixel differs from its neighbours."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_tiff(path: Path, levels: list[np.ndarray], mpp: tuple[float, float] | None = (0.5, 0.5)) -> Path:
    """Write the levels, largest first, in tiles of TILE pixels."""
    with tifffile.TiffWriter(path) as tiff:
        for i, level in enumerate(levels):
            resolution = {} if mpp is None else {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": 3}
            tiff.write(
                level,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="rgb",
                metadata=None,
                subfiletype=1 if i else 0,
                **(resolution if i == 0 else {}),
            )
    return path


def halved(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)


def destroy_tiles(path: Path, tiles: list[int], level: int = 0) -> None:
    """Overwrite stored tiles with zeros; reading them then fails."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        spots = [(page.dataoffsets[i], page.databytecounts[i]) for i in tiles]
    with open(path, "r+b") as file:
        for offset, size in spots:
            file.seek(offset)
            file.write(bytes(size))
