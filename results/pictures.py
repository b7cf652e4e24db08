"""Overview and mask of an unfinished slide, kept as PNG between the tissue filter and the writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from results.atomic import write_atomic
from results.png import decode_png, encode_png


def save_png(path: Path, image: np.ndarray) -> None:
    """Write uint8 (h, w) or RGB (h, w, 3), whole or not at all. OSError names `path`."""
    encoded = encode_png(image)
    write_atomic(path, lambda file: file.write(encoded))


def load_png(path: Path) -> np.ndarray | None:
    """uint8 (h, w) or RGB (h, w, 3) as it was saved; None where it is missing or damaged."""
    try:
        return decode_png(path.read_bytes())
    except (OSError, ValueError):
        return None
