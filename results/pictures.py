"""Overview and mask of an unfinished slide, kept as PNG between the tissue filter and the writer."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from results.atomic import write_atomic

# Kept for minutes, so speed before size: less than half the time of compression level 1 alone, and no larger.
FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # OpenCV 4.12 and later
    FAST += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]


def save_png(path: Path, image: np.ndarray) -> None:
    """Write uint8 (h, w) or RGB (h, w, 3), whole or not at all. OSError names `path`."""
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".png", pixels, FAST)[1]
    write_atomic(path, lambda file: file.write(encoded.tobytes()))


def load_png(path: Path) -> np.ndarray | None:
    """uint8 (h, w) or RGB (h, w, 3) as it was saved; None where it is missing or damaged."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
