"""Where the tiles of a TIFF lie: classic TIFF and BigTIFF, both byte orders.

Written from the TIFF 6.0 specification (Adobe, 1992) and the BigTIFF design (http://www.simplesystems.org/libtiff/,
"BigTIFF"). Nothing in the file is believed: every offset is held against the file's size before it is followed, every
count against a limit before anything is allocated, and a chain of directories that returns to itself ends. Only the
tags that a reader of tiles needs are looked at, and only directories of tiles keep their tables.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A scanner's file has a dozen directories with some twenty tags.
MAX_DIRECTORIES = 512
MAX_ENTRIES = 1024
# Of all directories together: 16 bytes each, so 64 MB. A slide of 200,000 x 200,000 pixels in tiles of 128 has 3.3 million.
MAX_TILES = 1 << 22
# Tables of a JPEG stream have at most 4 quantization tables of 130 bytes and 8 Huffman tables of 273.
MAX_TABLES_BYTES = 1 << 16

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _TILE_WIDTH, _TILE_LENGTH = 274, 277, 284, 322, 323
_TILE_OFFSETS, _TILE_COUNTS, _JPEG_TABLES = 324, 325, 347
_SCALARS = (_WIDTH, _LENGTH, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _TILE_WIDTH, _TILE_LENGTH)
_WANTED = {*_SCALARS, _BITS, _TILE_OFFSETS, _TILE_COUNTS, _JPEG_TABLES}

# Unsigned integers by the type codes of TIFF: BYTE, SHORT, LONG, LONG8.
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_BYTES = (1, 7)  # BYTE, UNDEFINED


class TiffError(Exception):
    """The file is no TIFF, or its index is not to be trusted. One line."""


@dataclass(frozen=True, slots=True, eq=False)
class Directory:
    """One image of a TIFF. `offsets` and `counts` uint64, one element a tile in row order, are None where the image is
    not tiled; they are as stored, and may point anywhere. `tables` is the JPEGTables tag as stored."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: int
    photometric: int
    bits: tuple[int, ...]
    samples: int
    planar: int
    orientation: int
    offsets: npt.NDArray[np.uint64] | None
    counts: npt.NDArray[np.uint64] | None
    tables: bytes | None

    @property
    def tiled(self) -> bool:
        return self.offsets is not None

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.height // self.tile_height)


def read_index(fd: int) -> tuple[Directory, ...]:
    """The directories of the TIFF behind a file descriptor, in the order of their chain (SubIFDs are not followed).

    TiffError where there is no TIFF, or one whose index cannot be right; OSError where the file cannot be read.
    """
    return _Reader(fd).directories()


# Tag: (type, count, value field) of one directory.
Entry = tuple[int, int, bytes]


class Entries:
    """The chain of directories of a TIFF, entry by entry. TiffError where there is none that can be right."""

    def __init__(self, fd: int, wanted: Collection[int], wide: bool = False) -> None:
        """`wanted`: the tags that are of interest; others are passed over. `wide`: Hamamatsu's variant, see `slides.ndpi`."""
        self._fd = fd
        self._wanted = wanted
        self._size = os.fstat(fd).st_size
        head = self._read(0, min(16, self._size))
        self._order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        if not self._order or len(head) < 8:
            raise TiffError("is not a TIFF")
        version = self._unpack("H", head[2:4])
        if version == 43 and len(head) == 16 and self._unpack("HH", head[4:8]) == (8, 0):
            self._big, self._first = True, self._unpack("Q", head[8:16])
        elif version == 42:
            self._big, self._first = False, self._unpack("I", head[4:8])
        else:
            raise TiffError("is not a TIFF")
        self._wide = wide and not self._big
        if self._wide:
            if len(head) < 12:
                raise TiffError("is not a TIFF")
            self._first = self._unpack("Q", head[4:12])

    def chain(self) -> Iterator[dict[int, Entry]]:
        """The wanted entries of each directory, from the first to the last."""
        seen: set[int] = set()
        offset = self._first
        while offset:
            if offset in seen:
                raise TiffError(f"its chain of directories returns to byte {offset}")
            if len(seen) == MAX_DIRECTORIES:
                raise TiffError(f"has more than {MAX_DIRECTORIES} directories")
            seen.add(offset)
            entries, offset = self._entries(offset)
            yield entries
        if not seen:
            raise TiffError("has no directory")

    def _entries(self, offset: int) -> tuple[dict[int, Entry], int]:
        """The wanted entries and the offset of the next directory."""
        head, row, link = ("Q", "HHQ8s", "Q") if self._big else ("H", "HHI4s", "Q" if self._wide else "I")
        count = self._unpack(head, self._read(offset, struct.calcsize("=" + head)))
        if not 1 <= count <= MAX_ENTRIES:
            raise TiffError(f"a directory at byte {offset} has {count} entries")
        layout = struct.Struct(self._order + row)
        start = offset + struct.calcsize("=" + head)
        table, after = count * layout.size, struct.calcsize("=" + link)
        data = self._read(start, table + after)
        # Only files that need high halves are sure to have them.
        high = (
            self._read(start + table + after, 4 * count) if self._wide and self._size >= 1 << 32 else bytes(4 * count)
        )
        entries: dict[int, Entry] = {}
        for number in range(count):
            tag, kind, values, field = layout.unpack_from(data, number * layout.size)
            if tag in self._wanted:
                if tag in entries:
                    raise TiffError(f"tag {tag} comes twice in the directory at byte {offset}")
                entries[tag] = (kind, values, field + high[4 * number : 4 * number + 4] if self._wide else field)
        return entries, self._unpack(link, data[table:])

    def _integers(self, tag: int, entry: Entry, most: int) -> list[int]:
        kind, count, field = entry
        if kind not in _INTEGERS or not 1 <= count <= most:
            raise TiffError(f"tag {tag} has {count} values of type {kind}")
        dtype = np.dtype(self._order + _INTEGERS[kind])
        return np.frombuffer(self._value(count * dtype.itemsize, field), dtype).tolist()

    def _value(self, size: int, field: bytes) -> bytes:
        """The bytes of a value: in its field where they fit, else where the field points."""
        if size <= (8 if self._big else 4):
            return field[:size]
        return self._read(self._unpack("Q" if len(field) == 8 else "I", field), size)

    def _unpack(self, layout: str, data: bytes) -> int | tuple[int, ...]:
        values = struct.unpack(self._order + layout, data)
        return values[0] if len(values) == 1 else values

    def _read(self, offset: int, size: int) -> bytes:
        if offset > self._size or size > self._size - offset:
            raise TiffError(f"its index points past the end of the file, to bytes {offset} to {offset + size}")
        data = os.pread(self._fd, size, offset)
        if len(data) < size:
            raise TiffError(f"ends at byte {offset + len(data)}, within its index")
        return data


class _Reader(Entries):
    def __init__(self, fd: int) -> None:
        super().__init__(fd, _WANTED)
        self._tiles = 0

    def directories(self) -> tuple[Directory, ...]:
        return tuple(self._directory(entries) for entries in self.chain())

    def _directory(self, entries: dict[int, Entry]) -> Directory:
        values = {tag: self._integers(tag, entries[tag], 1)[0] for tag in _SCALARS if tag in entries}
        width, height = values.get(_WIDTH, 0), values.get(_LENGTH, 0)
        if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
            raise TiffError(f"a directory says that its image has {width} x {height} pixels")
        samples = values.get(_SAMPLES, 1)
        bits = tuple(self._integers(_BITS, entries[_BITS], 16)) if _BITS in entries else (1,)
        tile_width, tile_height = values.get(_TILE_WIDTH, 0), values.get(_TILE_LENGTH, 0)
        offsets = counts = tables = None
        if _TILE_OFFSETS in entries:
            if not (0 < tile_width < 1 << 31 and 0 < tile_height < 1 << 31):
                raise TiffError(f"a directory says that its tiles have {tile_width} x {tile_height} pixels")
            tiles = -(-width // tile_width) * -(-height // tile_height)
            if values.get(_PLANAR, 1) == 2:
                tiles *= samples
            self._tiles += tiles
            if self._tiles > MAX_TILES:
                raise TiffError(f"has more than {MAX_TILES} tiles")
            if _TILE_COUNTS not in entries:
                raise TiffError("a directory does not say how long its tiles are")
            offsets = self._table(_TILE_OFFSETS, entries[_TILE_OFFSETS], tiles)
            counts = self._table(_TILE_COUNTS, entries[_TILE_COUNTS], tiles)
            tables = self._bytes(_JPEG_TABLES, entries.get(_JPEG_TABLES))
        return Directory(
            width=width,
            height=height,
            tile_width=tile_width,
            tile_height=tile_height,
            compression=values.get(_COMPRESSION, 1),
            photometric=values.get(_PHOTOMETRIC, -1),
            bits=bits,
            samples=samples,
            planar=values.get(_PLANAR, 1),
            orientation=values.get(_ORIENTATION, 1),
            offsets=offsets,
            counts=counts,
            tables=tables,
        )

    def _table(self, tag: int, entry: Entry, tiles: int) -> npt.NDArray[np.uint64]:
        kind, count, field = entry
        if count != tiles:
            raise TiffError(f"tag {tag} has {count} values for {tiles} tiles")
        if kind not in _INTEGERS:
            raise TiffError(f"tag {tag} has values of type {kind}")
        dtype = np.dtype(self._order + _INTEGERS[kind])
        return np.frombuffer(self._value(count * dtype.itemsize, field), dtype).astype(np.uint64)

    def _bytes(self, tag: int, entry: Entry | None) -> bytes | None:
        if entry is None:
            return None
        kind, count, field = entry
        if kind not in _BYTES or not 1 <= count <= MAX_TABLES_BYTES:
            raise TiffError(f"tag {tag} has {count} values of type {kind}")
        return self._value(count, field)


def largest_tile(directory: Directory) -> int:
    """Bytes of the longest stored tile that can be right: longer ones are lies.

    JPEG at its worst takes about 1.5 bytes a sample; four times that, and headers, are allowed.
    """
    return math.ceil(directory.tile_width * directory.tile_height * max(1, directory.samples) * 6) + MAX_TABLES_BYTES
