"""Writes pyramidal, JPEG-tiled TIFF from tiles that are encoded already (TIFF 6.0, and BigTIFF for files over 4 GiB).

Libraries that write TIFF want a JPEG encoder of their own for this, of 80 MB; here the tiles only need their index.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

_ASCII, _SHORT, _LONG, _RATIONAL, _LONG8 = 2, 3, 4, 5, 16
_SIZE = {_ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _LONG8: 8}
JPEG, YCBCR, CENTIMETRE, REDUCED = 7, 6, 3, 1


@dataclass(frozen=True, slots=True)
class Page:
    """One level: sides in pixels, side of its tiles, chroma subsampling (horizontal, vertical), pixels per centimetre."""

    width: int
    height: int
    tile: int
    subsampling: tuple[int, int]
    per_cm: tuple[float, float]
    reduced: bool
    software: str


class TiffWriter:
    """Appends pages to a seekable file. `big`: BigTIFF, with 8-byte offsets."""

    def __init__(self, file: BinaryIO, big: bool):
        self._file = file
        self._big = big
        self._offset = "Q" if big else "I"
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else struct.pack("<2sHI", b"II", 42, 0))
        self._link = 8 if big else 4  # where the offset of the next directory goes

    def add(self, page: Page, tiles: Iterable[bytes]) -> None:
        """Write a level; `tiles` are whole JPEG streams, row by row. ValueError where their number is not the level's."""
        places, sizes = [], []
        for tile in tiles:
            places.append(self._file.tell())
            sizes.append(len(tile))
            self._file.write(tile + b"\0" * (len(tile) % 2))
        wanted = -(-page.width // page.tile) * -(-page.height // page.tile)
        if len(places) != wanted:
            raise ValueError(f"{len(places)} tiles for a level of {wanted}")
        offset_type = _LONG8 if self._big else _LONG
        tags = [
            (254, _LONG, [REDUCED if page.reduced else 0]),
            (256, _LONG, [page.width]),
            (257, _LONG, [page.height]),
            (258, _SHORT, [8, 8, 8]),
            (259, _SHORT, [JPEG]),
            (262, _SHORT, [YCBCR]),
            (277, _SHORT, [3]),
            (282, _RATIONAL, [page.per_cm[0]]),
            (283, _RATIONAL, [page.per_cm[1]]),
            (284, _SHORT, [1]),
            (296, _SHORT, [CENTIMETRE]),
            (305, _ASCII, page.software.encode("ascii") + b"\0"),
            (322, _LONG, [page.tile]),
            (323, _LONG, [page.tile]),
            (324, offset_type, places),
            (325, _LONG, sizes),
            (530, _SHORT, list(page.subsampling)),
        ]
        self._directory(tags)

    def _directory(self, tags: list[tuple[int, int, list | bytes]]) -> None:
        room = 8 if self._big else 4
        entries = b""
        for number, kind, values in tags:
            data = _pack(kind, values)
            if len(data) > room:
                place = self._file.tell()
                self._file.write(data + b"\0" * (len(data) % 2))
                data = struct.pack(f"<{self._offset}", place)
            entries += struct.pack(f"<HH{self._offset}", number, kind, len(values)) + data.ljust(room, b"\0")
        start = self._file.tell()
        self._file.write(struct.pack("<Q" if self._big else "<H", len(tags)) + entries)
        end = self._file.tell()
        self._file.write(struct.pack(f"<{self._offset}", 0))
        self._file.seek(self._link)
        self._file.write(struct.pack(f"<{self._offset}", start))
        self._file.seek(0, 2)
        self._link = end


def _pack(kind: int, values: list | bytes) -> bytes:
    if isinstance(values, bytes):
        return values
    if kind == _RATIONAL:
        # A denominator of 1000 keeps mpp to seven digits for all resolutions that microscopes have.
        return b"".join(struct.pack("<II", round(value * 1000), 1000) for value in values)
    return np.asarray(values, {_SHORT: "<u2", _LONG: "<u4", _LONG8: "<u8"}[kind]).tobytes()
