"""Overview and mask of an unfinished slide, kept between the tissue filter and the writer, for minutes.

<folder>/overview.npy   as it is: packing it would save half of the room, and take longer than anything that is done with it
<folder>/mask.png       a thousandth of its size
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from results.atomic import write_atomic
from results.png import decode_png, encode_png


def save_pictures(folder: Path, overview: np.ndarray, mask: np.ndarray) -> None:
    """Write `overview` uint8 (h, w, 3) and `mask` bool (h, w), each whole or not at all. OSError names the file."""
    write_atomic(folder / "overview.npy", lambda file: np.lib.format.write_array(file, overview, allow_pickle=False))
    packed = encode_png(mask.view(np.uint8) * np.uint8(255))
    write_atomic(folder / "mask.png", lambda file: file.write(packed))


def load_pictures(folder: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Overview and mask as they were saved; None for what is missing or damaged."""
    overview = mask = None
    try:
        overview = np.load(folder / "overview.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        pass
    try:
        mask = decode_png((folder / "mask.png").read_bytes()) > 0
    except (OSError, ValueError):
        pass
    return overview, mask
