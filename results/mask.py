"""``masks/<slide>.png``: where the tissue is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from results.atomic import write_atomic
from results.png import encode_png
from results.record import SlideRecord


def write_mask(record: SlideRecord, path: Path) -> None:
    """Write the tissue mask as 8-bit grey PNG of the overview's size: 255 tissue, 0 not.

    Raises ValueError where the record has no mask, OSError where it cannot be written.
    """
    if record.mask is None:
        raise ValueError(f"{record.slide}: the record has no tissue mask")
    encoded = encode_png(record.mask.astype(np.uint8) * np.uint8(255))
    write_atomic(path, lambda file: file.write(encoded))
