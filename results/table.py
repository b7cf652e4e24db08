"""Columns of numbers turned into text by the million: the common ground of CSV and GeoJSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Rows in memory as text at a time: enough to amortise the calls, 20-30 MB of GeoJSON.
CHUNK_ROWS = 1 << 16


def chunks(index: np.ndarray) -> Iterator[np.ndarray]:
    """``index`` in pieces of CHUNK_ROWS."""
    for start in range(0, len(index), CHUNK_ROWS):
        yield index[start : start + CHUNK_ROWS]


def integers(values: np.ndarray) -> pa.Array:
    """Decimal text of an integer array."""
    return pc.cast(pa.array(values), pa.string())


def floats(values: np.ndarray) -> pa.Array:
    """Shortest decimal text that gives the same float32 back (at most 9 significant digits).

    Whole numbers keep a point (``1.0``), so that a reader which guesses types never takes a column for integers.
    """
    text = pc.cast(pa.array(np.ascontiguousarray(values, dtype=np.float32)), pa.string())
    text = pc.if_else(pc.equal(text, "1"), "1.0", text)
    return pc.if_else(pc.or_(pc.equal(text, "0"), pc.equal(text, "-0")), "0.0", text)


def join(*pieces: pa.Array | str) -> memoryview:
    """Each row's pieces one after another, all rows one after another, as UTF-8 bytes."""
    array = pc.binary_join_element_wise(*pieces, "")
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)
    return memoryview(array.buffers()[2])[: offsets[array.offset + len(array)]]


def write_rows(file: BinaryIO, rows: Iterator[memoryview], separator: bytes = b"") -> None:
    """Write pieces that each end in ``separator``, leaving the very last separator out."""
    held = None
    for piece in rows:
        if held is not None:
            file.write(held)
        held = piece
    if held is not None:
        file.write(held[: len(held) - len(separator)])
