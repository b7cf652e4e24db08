"""Where the parts of Hamamatsu's NDPI lie: each level is one JPEG of the whole slide, cut by restart markers.

The format is a TIFF with 8-byte offsets in the places of 4-byte ones, the high halves of its values after each directory
(https://openslide.org/formats/hamamatsu/, and tifffile's notes on NDPI). A level's restart intervals are a row of JPEG units
high and some thousand pixels wide; a table (McuStarts) says where each begins. OpenSlide decodes them one by one. Here
eight that lie below each other are joined to one stream, a stack, which is read and decoded like a tile: the pixels are the
same, as chroma is never halved down the image (OpenSlide reads no others), so that nothing crosses from one to the next.

Levels that OpenSlide makes of a stored one by decoding it smaller are made in the same way.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slides.jpeg_tiles import YCBCR, JpegTiles, TileError, marker_at, segment_end
from slides.tiff_index import MAX_TILES, Directory, Entries, Entry, TiffError

# Intervals of a stack: as restart markers are counted from 0 to 7, those of a stack that is a piece of the file are right.
STACK = 8

_WIDTH, _LENGTH, _COMPRESSION, _STRIP, _STRIP_BYTES = 256, 257, 259, 273, 279
_LENS, _PLANE, _STARTS, _STARTS_HIGH = 65421, 65424, 65426, 65432
_WANTED = {_WIDTH, _LENGTH, _COMPRESSION, _STRIP, _STRIP_BYTES, _LENS, _PLANE, _STARTS, _STARTS_HIGH}
_LONG, _SLONG, _FLOAT = 4, 9, 11

# Tables, JFIF and a comment: 660 bytes.
_MAX_HEAD = 1 << 16
# What the decoder takes as a side.
_MAX_SIDE = 65500
_SCALES = (1, 2, 4, 8)
_FRAME, _INTERVAL, _SCAN = 0xC0, 0xDD, 0xDA


@dataclass(frozen=True, slots=True, eq=False)
class Stacks:
    """A level's restart intervals: `columns` to a row, `starts` uint64 in the file, one more than there are intervals.
    `head`: what comes before the data in a stream of one stack."""

    head: bytes
    starts: npt.NDArray[np.uint64]
    columns: int

    def parts(self, index: int) -> int:
        """In how many pieces a stack lies."""
        return 1 if self.columns == 1 else len(self._intervals(index))

    def spans(self, index: int) -> list[tuple[int, int]]:
        """Offsets and lengths of what a stack needs of the file."""
        intervals = self._intervals(index)
        first, last = intervals[0], intervals[-1]
        if self.columns == 1:
            begin, end = self.starts[first], self.starts[last + 1]
            return [(int(begin), int(end - begin))]
        begins = self.starts[first : last + 1 : self.columns].tolist()
        ends = self.starts[first + 1 : last + 2 : self.columns].tolist()
        return [(begin, end - begin) for begin, end in zip(begins, ends, strict=True)]

    def join(self, index: int, parts: Sequence[bytes]) -> bytes:
        """The stream of a stack, from what `spans` named. TileError where a marker is not in its place."""
        intervals = self._intervals(index)
        if self.columns == 1:
            if len(intervals) == STACK:
                _check_end(parts[0])
                return b"".join((self.head, parts[0][:-2], b"\xff\xd9"))
            edges = (self.starts[intervals[0] : intervals[-1] + 2] - self.starts[intervals[0]]).tolist()
            parts = [parts[0][begin:end] for begin, end in itertools.pairwise(edges)]
        joined = [self.head]
        # The last stack may have fewer intervals: what is missing lies outside of the slide.
        for number, part in enumerate((*parts, *(parts[-1],) * (STACK - len(parts)))):
            _check_end(part)
            joined += (part[:-2], bytes((0xFF, 0xD0 + number)))
        joined[-1] = b"\xff\xd9"
        return b"".join(joined)

    def _intervals(self, index: int) -> range:
        row, column = divmod(index, self.columns)
        first = row * STACK * self.columns + column
        return range(first, min(first + STACK * self.columns, len(self.starts) - 1), self.columns)


class ScaledTiles:
    """A `slides.jpeg_tiles.JpegTiles` whose tiles are shown smaller than they are stored."""

    def __init__(self, tile_width: int, tile_height: int, scale: int) -> None:
        self._scale = scale
        self._jpeg = JpegTiles(tile_width * scale, tile_height * scale, YCBCR, None)

    def decode(self, stream: bytes, out: npt.NDArray[np.uint8], factor: int = 1) -> None:
        """See `JpegTiles.decode`."""
        self._jpeg.decode(stream, out, factor * self._scale)

    def scales(self, factor: int) -> bool:
        """See `JpegTiles.scales`."""
        return self._jpeg.scales(factor * self._scale)


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """A directory of the pyramid: the JPEG is `count` bytes at `offset`; `starts` as stored, relative to that."""

    width: int
    height: int
    offset: int
    count: int
    starts: npt.NDArray[np.uint64]


def read_levels(fd: int, sizes: Sequence[tuple[int, int]]) -> list[tuple[Directory, Stacks, int] | None]:
    """For each level of these sizes: its tiles, where they lie, and how much smaller than stored it is shown.

    None for one that is not stored in restart intervals. TiffError where the index cannot be right; OSError.
    """
    reader = _Reader(fd)
    images = reader.images()
    stored = {(image.width, image.height): _stacks(reader, image) for image in reversed(images)}
    levels: list[tuple[Directory, Stacks, int] | None] = []
    for width, height in sizes:
        # OpenSlide makes a level of the smallest stored image that can give it.
        scales = [scale for scale in _SCALES if (width * scale, height * scale) in stored]
        stacks = stored[width * scales[0], height * scales[0]] if scales else None
        levels.append(stacks and (_directory(width, height, stacks, scales[0]), stacks, scales[0]))
    return levels


def _directory(width: int, height: int, stacks: Stacks, scale: int) -> Directory:
    columns, lengths = stacks.columns, np.diff(stacks.starts).reshape(-1, stacks.columns)
    counts = np.add.reduceat(lengths, np.arange(0, len(lengths), STACK), axis=0).ravel()
    tile_width, tile_height = width // columns, STACK * 8 // scale
    zeros = np.zeros(len(counts), np.uint64)
    return Directory(width, height, tile_width, tile_height, 7, YCBCR, (8, 8, 8), 3, 1, 1, zeros, counts, None)


def _stacks(reader: _Reader, image: _Image) -> Stacks | None:
    """The restart intervals of an image, or None where it has none that can be joined."""
    starts = image.starts
    if len(starts) < 2 or not 0 < starts[0] <= _MAX_HEAD:
        return None
    ends = np.append(starts, np.uint64(image.count))
    if (ends[1:] <= ends[:-1]).any():
        raise TiffError("its restart intervals do not follow each other")
    head = reader.bytes_at(image.offset, int(starts[0]))
    try:
        frame, unit, interval = _read_head(head)
    except TileError as error:
        raise TiffError(f"has a level that {error}") from error
    width, rows = unit * interval, image.height // 8
    if not frame or not width or image.width % width or image.height % 8 or width > _MAX_SIDE:
        return None
    columns = image.width // width
    if columns * rows != len(starts):
        raise TiffError(f"has {len(starts)} restart intervals where {columns * rows} must be")
    sized = head[: frame + 5] + struct.pack(">HH", STACK * 8, width) + head[frame + 9 :]
    return Stacks(sized, ends + np.uint64(image.offset), columns)


def _read_head(head: bytes) -> tuple[int, int, int]:
    """Where the frame of a JPEG's head stands (0: none that is read here), the width of its units in pixels, and how
    many of them make an interval. TileError where it is no head."""
    if head[:2] != b"\xff\xd8":
        raise TileError("is damaged: it is no JPEG stream")
    frame = unit = interval = 0
    at = 2
    while True:
        marker, after = marker_at(head, at)
        end = segment_end(head, after)
        segment = head[after + 2 : end]
        if marker == _FRAME and len(segment) == 15 and segment[5] == 3:
            across, down = segment[7] >> 4, segment[7] & 15
            if down == 1 and segment[10] == segment[13] == 0x11 and 1 <= across <= 4:
                frame, unit = after - 2, 8 * across
        elif marker == _INTERVAL and len(segment) == 2:
            interval = int.from_bytes(segment)
        elif marker == _SCAN:
            if end != len(head):
                raise TileError("is damaged: its first restart interval is not where its data begins")
            return frame, unit, interval
        at = end


def _check_end(part: bytes) -> None:
    if part[-2:-1] != b"\xff" or not 0xD0 <= part[-1] <= 0xD9 or part[-1] == 0xD8:
        raise TileError("is damaged: a restart interval does not end where the index says")


class _Reader(Entries):
    def __init__(self, fd: int) -> None:
        super().__init__(fd, _WANTED, wide=True)
        self._total = 0

    def images(self) -> list[_Image]:
        """The stored images of the pyramid in the plane of focus."""
        return [image for entries in self.chain() if (image := self._image(entries)) is not None]

    def bytes_at(self, offset: int, size: int) -> bytes:
        """A piece of the file."""
        return self._read(offset, size)

    def _image(self, entries: dict[int, Entry]) -> _Image | None:
        if not {_WIDTH, _LENGTH, _STRIP, _STRIP_BYTES, _LENS, _PLANE} <= entries.keys():
            return None  # the map of focus
        lens = self._number(_LENS, entries[_LENS], _FLOAT, "f")
        if not lens > 0 or self._number(_PLANE, entries[_PLANE], _SLONG, "i") != 0:
            return None
        width, height = (self._integers(tag, entries[tag], 1)[0] for tag in (_WIDTH, _LENGTH))
        if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
            raise TiffError(f"a directory says that its image has {width} x {height} pixels")
        starts = np.zeros(0, np.uint64)
        if _STARTS in entries:
            starts = self._table(_STARTS, entries[_STARTS])
            if _STARTS_HIGH in entries:
                high = self._table(_STARTS_HIGH, entries[_STARTS_HIGH])
                if len(high) != len(starts) or (high >> np.uint64(31)).any():
                    raise TiffError(f"tag {_STARTS_HIGH} has {len(high)} values for {len(starts)} intervals")
                starts = starts | high << np.uint64(32)
        offset, count = (self._long(tag, entries[tag]) for tag in (_STRIP, _STRIP_BYTES))
        if offset >> 62 or count >> 62:
            raise TiffError(f"its index points past the end of the file, to bytes {offset} to {offset + count}")
        return _Image(width, height, offset, count, starts)

    def _long(self, tag: int, entry: Entry) -> int:
        """A LONG that has a high half."""
        kind, count, field = entry
        if (kind, count) != (_LONG, 1):
            raise TiffError(f"tag {tag} has {count} values of type {kind}")
        return self._unpack("Q", field)  # type: ignore[return-value]

    def _number(self, tag: int, entry: Entry, kind: int, letter: str) -> float:
        if entry[:2] != (kind, 1):
            raise TiffError(f"tag {tag} has {entry[1]} values of type {entry[0]}")
        return self._unpack(letter, entry[2][:4])  # type: ignore[return-value]

    def _table(self, tag: int, entry: Entry) -> npt.NDArray[np.uint64]:
        kind, count, field = entry
        self._total += count
        if kind != _LONG or not count or self._total > MAX_TILES:
            raise TiffError(f"tag {tag} has {count} values of type {kind}")
        return np.frombuffer(self._value(4 * count, field), self._order + "u4").astype(np.uint64)
