"""Which patches of a slide are worth reading, and in which order. Pure.

The tissue fraction of a patch is the area-weighted mean of the mask under it: the mask is stretched over the slide, box
edges fall between mask pixels where they fall, and the sum comes from an integral image (Crow 1984, "Summed-area
tables"), interpolated linearly, which is exact for a picture of flat pixels. As both axes of the grid are regular, one
axis is taken after the other, at a cost of the mask plus the grid, however many mask pixels a patch covers.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from slides.geometry import Geometry, SlideInfo

# Patches are read in blocks of so many grid cells squared: neighbours share stored tiles, which a cache of a few dozen
# megabytes then decodes once.
BLOCK = 8

_HEADER = struct.Struct("<4sII")
_MAGIC = b"SPL1"
_ROW_BYTES = 12


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Patches in read order: grid column and row, int32 (n,), and tissue fraction 0 to 1, float32 (n,)."""

    columns: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    fraction: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if not self.columns.shape == self.rows.shape == self.fraction.shape == (len(self.columns),):
            raise ValueError("columns, rows and fraction of a plan must be of one length")

    def __len__(self) -> int:
        return len(self.columns)

    def to_bytes(self) -> bytes:
        """Compact: "SPL1", count u32, CRC-32 of the rest u32 (little endian), then deflated columns and rows (each as
        the difference to the one before, i32) and fractions (f32)."""
        parts = (_differences(self.columns), _differences(self.rows), self.fraction.astype("<f4"))
        packed = zlib.compress(b"".join(part.tobytes() for part in parts), 1)
        return _HEADER.pack(_MAGIC, len(self), zlib.crc32(packed)) + packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Inverse of `to_bytes`; ValueError for anything that it did not write."""
        if len(data) < _HEADER.size:
            raise ValueError("a plan is cut short")
        magic, count, checksum = _HEADER.unpack_from(data)
        packed = memoryview(data)[_HEADER.size :]
        if magic != _MAGIC or zlib.crc32(packed) != checksum:
            raise ValueError("a plan is damaged")
        inflate = zlib.decompressobj()
        size = count * _ROW_BYTES
        try:
            values = inflate.decompress(packed, size + 1)
        except zlib.error as error:
            raise ValueError(f"a plan is damaged: {error}") from error
        if len(values) != size or not inflate.eof or inflate.unused_data:
            raise ValueError(f"a plan of {count} patches must hold {size} bytes")
        differences = np.frombuffer(values, "<i4", 2 * count).reshape(2, count)
        columns, rows = np.cumsum(differences, axis=1, dtype=np.int32)
        return cls(columns, rows, np.frombuffer(values, "<f4", count, offset=8 * count).astype(np.float32))


def plan(mask: npt.NDArray[np.bool_], info: SlideInfo, geometry: Geometry, min_fraction: float) -> Plan:
    """The patches with a tissue fraction of `min_fraction` or more, in read order.

    `mask` (h, w), of any size, covers the whole slide. What a patch overhangs the slide counts as no tissue. The
    fraction is rounded to 1e-6, so that a patch full of tissue has 1.0. With `min_fraction` 0 every patch is planned.

    Read order: blocks of BLOCK x BLOCK cells, the first row of blocks from left to right, the next from right to left,
    and so on; within a block row by row.
    """
    fraction = tissue_fractions(mask, info, geometry)
    rows, columns = np.nonzero(fraction >= min_fraction)
    order = read_order(columns, rows, geometry.columns)
    columns, rows = columns[order], rows[order]
    return Plan(columns.astype(np.int32), rows.astype(np.int32), fraction[rows, columns].astype(np.float32))


def tissue_fractions(mask: npt.NDArray[np.bool_], info: SlideInfo, geometry: Geometry) -> npt.NDArray[np.float64]:
    """Tissue fraction of every patch of the grid, float64 (rows, columns), rounded to 1e-6."""
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"a tissue mask must be (h, w), not {mask.shape}")
    x = np.arange(geometry.columns) * geometry.step_x + geometry.origin_x
    y = np.arange(geometry.rows) * geometry.step_y + geometry.origin_y
    table = cv2.integral(np.ascontiguousarray(mask).view(np.uint8), sdepth=cv2.CV_64F)  # (h + 1, w + 1)
    across = _sums(table.T, x, geometry.patch_width, info.width).T  # (h + 1, columns)
    area = _sums(across, y, geometry.patch_height, info.height)  # (rows, columns), level-0 pixels of tissue
    area /= geometry.patch_width * geometry.patch_height  # in place, as a grid may have millions of cells
    return np.round(np.clip(area, 0, 1, out=area), 6, out=area)


def read_order(columns: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], grid_columns: int) -> npt.NDArray[np.int64]:
    """Indices that put patches into read order."""
    block_row, block_column = rows // BLOCK, columns // BLOCK
    blocks = -(-grid_columns // BLOCK)
    block_column = np.where(block_row % 2, blocks - 1 - block_column, block_column)
    key = (block_row * blocks + block_column) * BLOCK + rows % BLOCK
    return np.argsort(key * BLOCK + columns % BLOCK, kind="stable")


def _sums(table: npt.NDArray, begin: npt.NDArray[np.int64], length: int, size: int) -> npt.NDArray[np.float64]:
    """Integrals over boxes along the first axis, of what `table` (n + 1, m) sums up for n flat pixels that are stretched
    over `size`; (boxes, m)."""
    pixels = table.shape[0] - 1
    scale = size / pixels

    def upto(place: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        position = np.clip(place, 0, size) / scale
        whole = np.minimum(position.astype(np.int64), pixels - 1)
        part = (position - whole)[:, None]
        return table[whole] * (1 - part) + table[whole + 1] * part

    return (upto(begin + length) - upto(begin)) * scale


def _differences(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return np.diff(values, prepend=np.int32(0)).astype("<i4")
