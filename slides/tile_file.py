"""The stored tiles of a slide's levels: which directory holds which level, and the bytes of a tile."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

from slides.errors import SlideError, one_line
from slides.geometry import SlideInfo
from slides.jpeg_tiles import GRAY, RGB, YCBCR, JpegTiles, TileError
from slides.ndpi import ScaledTiles, Stacks, read_levels
from slides.read_ahead import ReadAhead, Span, groups
from slides.tiff_index import Directory, TiffError, largest_tile, read_index

# The formats of OpenSlide that are plain pyramids of tiles, or of what can be read like tiles: no overlaps, no places of
# their own.
FORMATS = ("aperio", "generic-tiff", "philips", "hamamatsu")

_JPEG = 7
# 48 MB decoded; scanners write 240 to 1024 pixels a side.
_MAX_TILE_PIXELS = 1 << 24
# So many bytes are held of tiles that were read with others, where one read follows the other.
_AHEAD_BYTES = 4 << 20


class Unsuitable(Exception):
    """This slide is not for the direct source; one line, why."""


@dataclass(frozen=True, slots=True, eq=False)
class TileLevel:
    """A level of the slide, the directory that holds it, and the decoder of its tiles.

    `by_openslide`: only OpenSlide knows what this level looks like, as tiles are missing. Else those are background.
    `stacks`: how tiles are put together, where they are not stored as such. `longest`: bytes of the longest tile that
    can be right.
    """

    number: int
    directory: Directory
    jpeg: JpegTiles | ScaledTiles
    by_openslide: bool
    stacks: Stacks | None
    longest: int

    def name(self, index: int) -> str:
        """What to call a tile in a message."""
        row, column = divmod(index, self.directory.columns)
        return f"tile ({column}, {row}) of level {self.number}"

    def box(self, index: int) -> tuple[int, int]:
        """Width and height of the part of a tile that lies on the slide."""
        row, column = divmod(index, self.directory.columns)
        d = self.directory
        return min(d.tile_width, d.width - column * d.tile_width), min(d.tile_height, d.height - row * d.tile_height)


class TileFile:
    """An open slide file. OSError or Unsuitable where it cannot be opened or is not for this way of reading."""

    def __init__(self, info: SlideInfo, preads: int = 1, latency_s: float = 0.0) -> None:
        """`preads`: reads that may be under way at a time; 1: one after the other, when the tiles are wanted.
        `latency_s`: what each read takes longer, for benchmarks.
        """
        self.reads = 0
        self._latency_s = latency_s
        self._background: ReadAhead | None = None
        self._path = info.path
        self._ahead: dict[Hashable, bytes] = {}
        self._fd = os.open(info.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(self._fd)
            self._size = status.st_size
            self._identity = status.st_dev, status.st_ino
            self.levels = _ndpi_levels(info, self._fd) if info.format == "hamamatsu" else _levels(info, self._fd)
            if preads > 1:
                self._background = ReadAhead(self._read, preads)
        except TiffError as error:
            self.close()
            raise Unsuitable(f"as a TIFF, it {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """May be called again."""
        self._ahead.clear()
        if self._background is not None:
            self._background.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def stream(self, level: TileLevel, index: int) -> bytes | None:
        """The stored bytes of a tile, None where the file has none. TileError where they cannot be had; SlideError
        where the file itself has gone."""
        stacks, number = level.stacks, level.number
        here = [self._taken((number, index, part)) for part in range(1 if stacks is None else stacks.parts(index))]
        parts = [part for part in here if part is not None]
        if len(parts) < len(here):
            spans = self._checked(level, index)
            if not spans:
                return None
            parts = [self._part(level, span, data) for span, data in zip(spans, here, strict=True)]
        return parts[0] if stacks is None else stacks.join(index, parts)

    def _taken(self, key: Hashable) -> bytes | None:
        return self._ahead.pop(key, None) if self._background is None else self._background.take(key)

    def _part(self, level: TileLevel, span: Span, data: bytes | None) -> bytes:
        if data is not None:
            return data
        name = level.name(span.key[1])  # type: ignore[index]
        try:
            data = self._read(span.offset, span.count)
        except OSError as error:
            self._check_alive(error)
            raise TileError(f"{name} cannot be read: {error.strerror or error}") from error
        if len(data) < span.count:
            raise TileError(f"{name} is cut short: {len(data)} of {span.count} bytes")
        return data

    def coming(self, level: TileLevel, index: int) -> bool:
        """Whether the bytes of a tile are on their way."""
        return self._background is not None and (level.number, index, 0) in self._background

    def advise(self, level: TileLevel, indices: Iterable[int]) -> None:
        """These tiles will be asked for soon: have them read meanwhile, here or by the kernel."""
        spans = self._spans(level, indices)
        if self._background is not None:
            self._background.want(spans)
            return
        for group in groups(spans):
            begin, end = group[0].offset, max(span.offset + span.count for span in group)
            os.posix_fadvise(self._fd, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def read_ahead(self, level: TileLevel, indices: Iterable[int]) -> None:
        """These tiles are about to be asked for: read those that lie together in one go, within a bound of memory."""
        if self._background is not None:
            self._background.want(self._spans(level, indices))
            return
        self._ahead.clear()
        wanted, total = [], 0
        for span in self._spans(level, indices):
            total += span.count
            if total > _AHEAD_BYTES:
                break
            wanted.append(span)
        for group in groups(wanted):
            begin, end = group[0].offset, max(span.offset + span.count for span in group)
            try:
                data = self._read(begin, end - begin)
            except OSError:
                return  # each tile is tried by itself when it is wanted
            for span in group:
                part = data[span.offset - begin : span.offset - begin + span.count]
                if len(part) == span.count:
                    self._ahead[span.key] = part

    def _spans(self, level: TileLevel, indices: Iterable[int]) -> list[Span]:
        spans: list[Span] = []
        for index in indices:
            try:
                spans += self._checked(level, index)
            except TileError:
                continue  # who asks for it will be told
        return spans

    def _checked(self, level: TileLevel, index: int) -> list[Span]:
        """Where the parts of a tile are, nothing where the file has none. TileError for what cannot be."""
        directory = level.directory
        if level.stacks is None:
            parts = [(int(directory.offsets[index]), int(directory.counts[index]))]
            if not parts[0][1]:
                return []
        else:
            parts = level.stacks.spans(index)
        count = sum([count for _, count in parts])
        if count > level.longest:
            raise TileError(f"{level.name(index)} is damaged: the index says that it has {count} bytes")
        spans = []
        for number, (offset, count) in enumerate(parts):
            if offset > self._size or count > self._size - offset:
                raise TileError(
                    f"{level.name(index)} lies past the end of the file, at bytes {offset} to {offset + count}"
                )
            spans.append(Span((level.number, index, number), offset, count))
        return spans

    def _read(self, offset: int, count: int) -> bytes:
        self.reads += 1
        if self._latency_s:
            time.sleep(self._latency_s)
        data = os.pread(self._fd, count, offset)
        while 0 < len(data) < count and (more := os.pread(self._fd, count - len(data), offset + len(data))):
            data += more
        return data

    def _check_alive(self, error: OSError) -> None:
        try:
            status = os.stat(self._path)
        except OSError as again:
            raise SlideError(
                self._path,
                f"has gone ({again.strerror}) after a read failed ({error.strerror})",
                "check that the file and its disk are still there",
            ) from again
        if (status.st_dev, status.st_ino) != self._identity:
            raise SlideError(self._path, "was replaced by another file while it was read", "run again")


def _levels(info: SlideInfo, fd: int) -> tuple[TileLevel, ...]:
    directories = [directory for directory in read_index(fd) if directory.tiled]
    levels = []
    lacking = False
    for number, size in enumerate(info.level_sizes):
        if info.format == "philips":
            found = [_clipped(directory, size) for directory in directories[number : number + 1]]
        else:
            found = [d for d in directories if (d.width, d.height) == size]
        if not found:
            raise Unsuitable(f"level {number} is not stored as tiles")
        directory = found[0]
        if problem := _problem(directory):
            raise Unsuitable(f"level {number} {problem}")
        try:
            jpeg = JpegTiles(directory.tile_width, directory.tile_height, directory.photometric, directory.tables)
        except TileError as error:
            raise Unsuitable(f"level {number}: {one_line(str(error))}") from error
        # Below the first level, OpenSlide paints what an Aperio slide lacks, there or above, from the levels above.
        lacking = lacking or not directory.counts.all()
        by_openslide = info.format == "aperio" and number > 0 and lacking
        levels.append(TileLevel(number, directory, jpeg, by_openslide, None, largest_tile(directory)))
    return tuple(levels)


def _clipped(directory: Directory, size: tuple[int, int]) -> Directory:
    """The tiles under the top left part of an image: Philips' lower levels are stored with a padding that OpenSlide cuts."""
    width, height = size
    if width > directory.width or height > directory.height or directory.planar != 1:
        raise Unsuitable(f"a level of {width} x {height} pixels is stored as {directory.width} x {directory.height}")
    columns, rows = -(-width // directory.tile_width), -(-height // directory.tile_height)
    offsets, counts = (
        table.reshape(directory.rows, directory.columns)[:rows, :columns].ravel()
        for table in (directory.offsets, directory.counts)
    )
    return replace(directory, width=width, height=height, offsets=offsets, counts=counts)


def _ndpi_levels(info: SlideInfo, fd: int) -> tuple[TileLevel, ...]:
    found = read_levels(fd, info.level_sizes)
    if found[0] is None:
        raise Unsuitable("level 0 has no restart markers that its index tells of")
    nothing = replace(found[0][0], offsets=None, counts=None)
    levels = []
    for number, level in enumerate(found):
        if level is not None and not (problem := _problem(level[0])):
            directory, stacks, scale = level
            jpeg = ScaledTiles(directory.tile_width, directory.tile_height, scale)
            levels.append(TileLevel(number, directory, jpeg, False, stacks, scale * scale * largest_tile(directory)))
        elif number == 0:
            raise Unsuitable(f"level 0 {problem}")
        else:
            levels.append(TileLevel(number, nothing, ScaledTiles(8, 8, 1), True, None, 0))
    return tuple(levels)


def _problem(directory: Directory) -> str:
    """Why tiles of a directory are not for us, or nothing."""
    samples = 1 if directory.photometric == GRAY else 3
    if directory.compression != _JPEG:
        return f"is compressed by method {directory.compression}, not JPEG"
    if directory.photometric not in (GRAY, RGB, YCBCR):
        return f"has colours of kind {directory.photometric}"
    if directory.samples != samples or set(directory.bits) != {8} or (samples > 1 and directory.planar != 1):
        return f"has {directory.samples} samples of {directory.bits} bits, planar {directory.planar}"
    if directory.orientation != 1:
        return f"is turned (orientation {directory.orientation})"
    if directory.tile_width * directory.tile_height > _MAX_TILE_PIXELS:
        return f"has tiles of {directory.tile_width} x {directory.tile_height} pixels"
    return ""
