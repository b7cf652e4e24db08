"""Synthetic slides: a pyramidal, JPEG-tiled TIFF of H&E-like tissue with tumour in known places.

The file is what OpenSlide calls generic-tiff: one page a level, tiled, each tile a whole JPEG stream (YCbCr), and
resolution tags in pixels a centimetre (from which OpenSlide tells mpp). It is rendered strip by strip, so that no level
is ever whole in memory; the same settings give the same file.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from slides.layout import Layout, cell_size, make_layout
from slides.noise import hash_unit
from slides.scene import Scene
from slides.stain import Stain
from slides.texture import CHUNK, check_resolution, render
from slides.tiff_writer import Page, TiffWriter
from slides.truth import Truth, read_truth, replace_file, write_truth

__all__ = ["SyntheticSlide", "Truth", "add_arguments", "from_arguments", "make_slide", "parse_size", "read_truth"]

_SAMPLING = {
    "444": (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, (1, 1)),
    "422": (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422, (2, 1)),
    "420": (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, (2, 2)),
}
_SMALLEST_LEVEL = 1024
_BLANKS = 8
_MARGIN_CELLS = 4


@dataclass(frozen=True, slots=True)
class SyntheticSlide:
    """How a synthetic slide shall be. Raises ValueError (one line, naming the setting) for what cannot be made."""

    width: int
    height: int
    mpp: float = 0.25
    tissue: float = 0.4
    """Fraction of the slide's area."""
    tumour: float = 0.15
    """Fraction of the tissue's area."""
    subsampling: str = "420"
    quality: int = 80
    tile: int = 256
    downsample: int = 4
    """From each level to the next, until the longer side is below 1024 pixels."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (64 <= self.width <= 1_000_000 and 64 <= self.height <= 1_000_000):
            raise ValueError(f"size: {self.width}x{self.height} is outside 64..1000000 pixels a side")
        try:
            check_resolution(self.mpp)
        except ValueError as error:
            raise ValueError(f"mpp: {error}") from None
        for name in ("tissue", "tumour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not a fraction; give 0 to 1")
        if self.subsampling not in _SAMPLING:
            raise ValueError(f"subsampling: {self.subsampling!r} is unknown; give one of {', '.join(_SAMPLING)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality: {self.quality} is outside 1..100")
        if self.tile not in (64, 128, 256, 512, 1024):
            raise ValueError(f"tile: {self.tile} is not one of 64, 128, 256, 512, 1024")
        if self.downsample not in (2, 4):
            raise ValueError(f"downsample: {self.downsample} is neither 2 nor 4")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: {self.seed} is outside 0..2147483647")

    def level_sizes(self) -> list[tuple[int, int]]:
        """Width and height of every level."""
        sizes = [(self.width, self.height)]
        while max(sizes[-1]) >= _SMALLEST_LEVEL:
            sizes.append((max(1, sizes[-1][0] // self.downsample), max(1, sizes[-1][1] // self.downsample)))
        return sizes


class _Encoder:
    """RGB tiles to JPEG streams; blank tiles are encoded once, in a few variants of noise."""

    def __init__(self, settings: SyntheticSlide, scene: Scene) -> None:
        sampling = _SAMPLING[settings.subsampling][0]
        self._flags = [cv2.IMWRITE_JPEG_QUALITY, settings.quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        self.white = np.array(scene.stain.white, np.uint8)
        rng = np.random.default_rng([settings.seed, 9])
        shape = (settings.tile, settings.tile, 3)
        noisy = (np.clip(np.round(self.white + rng.normal(0, 1.6, shape)), 0, 255) for _ in range(_BLANKS))
        self._blanks = [self.encode(tile.astype(np.uint8)) for tile in noisy]
        self._seed = settings.seed

    def encode(self, tile: np.ndarray) -> bytes:
        return cv2.imencode(".jpg", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR), self._flags)[1].tobytes()

    def blank(self, column: int, row: int) -> bytes:
        return self._blanks[int(hash_unit(self._seed, np.array([column]), np.array([row]))[0] * _BLANKS)]


class _Level:
    """A level below level 0: takes strips from above as they come; keeps one row of tiles, and the streams."""

    def __init__(self, settings: SyntheticSlide, encoder: _Encoder, sizes: list[tuple[int, int]]) -> None:
        self.width, self.height = sizes[0]
        self.streams: list[bytes] = []
        self._tile, self._factor, self._encoder = settings.tile, settings.downsample, encoder
        columns = -(-self.width // self._tile) * self._tile
        self._strip = np.empty((self._tile, columns, 3), np.uint8)
        self._strip[:] = encoder.white
        self._filled, self._rows = 0, 0
        self._below = _Level(settings, encoder, sizes[1:]) if len(sizes) > 1 else None

    def levels(self) -> list[_Level]:
        return [self, *(self._below.levels() if self._below else [])]

    def push(self, rows: np.ndarray) -> None:
        """Take the next rows of this level, uint8 (n, >= width, 3)."""
        rows = rows[: self.height - self._rows]
        self._rows += len(rows)
        while len(rows):
            n = min(len(rows), self._tile - self._filled)
            self._strip[self._filled : self._filled + n, : self.width] = rows[:n, : self.width]
            self._filled, rows = self._filled + n, rows[n:]
            if self._filled == self._tile or self._rows == self.height and not len(rows):
                self._flush()

    def _flush(self) -> None:
        for x in range(0, self._strip.shape[1], self._tile):
            self.streams.append(self._encoder.encode(self._strip[:, x : x + self._tile]))
        if self._below is not None:
            self._below.push(_shrink(self._strip, self._factor))
        self._strip[:] = self._encoder.white
        self._filled = 0


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Area average of factor x factor pixels; the sides of the image are multiples of factor."""
    return cv2.resize(image, (image.shape[1] // factor, image.shape[0] // factor), interpolation=cv2.INTER_AREA)


class _Painter:
    """Renders chunks of level 0 and encodes their tiles; used by several threads."""

    def __init__(self, settings: SyntheticSlide, layout: Layout) -> None:
        rng = np.random.default_rng([settings.seed, 1])
        self.settings = settings
        self.scene = Scene(settings.seed, layout, Stain.random(rng))
        self.encoder = _Encoder(settings, self.scene)
        self.columns, self.rows = -(-settings.width // CHUNK), -(-settings.height // CHUNK)
        self._cell = cell_size(settings.width, settings.height)
        near = cv2.dilate(layout.tissue.astype(np.uint8), np.ones((2 * _MARGIN_CELLS + 1,) * 2, np.uint8))
        self._near = cv2.integral(near)

    def is_blank(self, x: int, y: int, size: int) -> bool:
        """Whether the square has nothing but background (tissue's ragged edge included)."""
        limit_y, limit_x = (n - 1 for n in self._near.shape)
        x0, y0 = min(x // self._cell, limit_x), min(y // self._cell, limit_y)
        x1, y1 = min(-(-(x + size) // self._cell), limit_x), min(-(-(y + size) // self._cell), limit_y)
        return int(self._near[y1, x1] - self._near[y0, x1] - self._near[y1, x0] + self._near[y0, x0]) == 0

    def chunk(self, column: int, row: int) -> tuple[list[list[bytes]], np.ndarray | None]:
        """The streams of the chunk's tiles, by row, and the chunk one level down (None: all background)."""
        s, tile = self.settings, self.settings.tile
        left, top = column * CHUNK, row * CHUNK
        empty = self.is_blank(left, top, CHUNK)
        image = None if empty else render(self.scene, left, top, CHUNK, CHUNK, s.mpp)
        streams: list[list[bytes]] = []
        for y in range(top, min(top + CHUNK, s.height), tile):
            streams.append([])
            for x in range(left, min(left + CHUNK, s.width), tile):
                if image is None or self.is_blank(x, y, tile):
                    stream = self.encoder.blank(x // tile, y // tile)
                else:
                    stream = self.encoder.encode(image[y - top : y - top + tile, x - left : x - left + tile])
                streams[-1].append(stream)
        return streams, None if image is None else _shrink(image, s.downsample)


def _level_0(
    painter: _Painter, below: _Level | None, threads: int, progress: Callable[[float], None] | None
) -> Generator[bytes, None, None]:
    """The tiles of level 0, row by row; feeds the level below on the way."""
    small = CHUNK // painter.settings.downsample
    places = deque((column, row) for row in range(painter.rows) for column in range(painter.columns))
    with ThreadPoolExecutor(threads, thread_name_prefix="paint") as pool:
        ahead: deque[Future[tuple[list[list[bytes]], np.ndarray | None]]] = deque()
        try:
            for row in range(painter.rows):
                strip = np.empty((small, painter.columns * small, 3), np.uint8) if below else None
                chunks = []
                for column in range(painter.columns):
                    while places and len(ahead) < 2 * threads:
                        ahead.append(pool.submit(painter.chunk, *places.popleft()))
                    streams, image = ahead.popleft().result()
                    chunks.append(streams)
                    if strip is not None:
                        square = painter.encoder.white if image is None else image
                        strip[:, column * small : (column + 1) * small] = square
                    if progress is not None:
                        progress((row * painter.columns + column + 1) / (painter.rows * painter.columns))
                if below is not None:  # before the tiles: whoever takes the last one may never ask again
                    below.push(strip)
                for tile_row in range(len(chunks[0])):
                    for streams in chunks:
                        yield from streams[tile_row]
        finally:
            for future in ahead:
                future.cancel()


def make_slide(
    path: Path | str,
    settings: SyntheticSlide,
    progress: Callable[[float], None] | None = None,
    threads: int | None = None,
) -> Truth:
    """Make a slide at path (.tif) and its truth beside it (truth.py), each whole or not at all; return the truth.

    progress is called with the part that is done, 0..1. threads: as many as this process has CPUs, at most 8, if None.
    Raises OSError where the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    threads = threads or min(8, len(os.sched_getaffinity(0)))
    layout = make_layout(settings.width, settings.height, settings.mpp, settings.tissue, settings.tumour, settings.seed)
    cell = cell_size(settings.width, settings.height)
    truth = Truth(settings.width, settings.height, settings.mpp, cell, settings.seed, layout.tissue, layout.tumour)
    painter, sizes = _Painter(settings, layout), settings.level_sizes()
    below = _Level(settings, painter.encoder, sizes[1:]) if len(sizes) > 1 else None

    tiles = _level_0(painter, below, threads, progress)

    def write(temporary: Path) -> None:
        # A JPEG of noisy tissue has up to 1.2 bytes a pixel below quality 95; classic TIFF ends at 4 GiB.
        big = settings.width * settings.height * (1.6 if settings.quality < 95 else 4.0) > 2**32 - 2**25
        sampling = _SAMPLING[settings.subsampling][1]
        with open(temporary, "w+b") as file:
            tiff = TiffWriter(file, big)
            streams: Iterator[bytes] = tiles
            for number, (width, height) in enumerate(sizes):
                per_cm = 1e4 / settings.mpp * width / settings.width
                page = Page(width, height, settings.tile, sampling, (per_cm, per_cm), number > 0, "slidestream")
                tiff.add(page, streams)
                if below is not None and number + 1 < len(sizes):
                    streams = iter(below.levels()[number].streams)

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the chunks are the parallel work
    try:
        replace_file(path, write)
    finally:
        tiles.close()  # ends its threads
        cv2.setNumThreads(before)
    write_truth(truth, path)
    return truth


def parse_size(text: str) -> tuple[int, int]:
    """"20000x15000" to (20000, 15000). Raises ValueError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size: {text!r} is not WIDTHxHEIGHT in pixels, such as 20000x15000")
    return int(width), int(height)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options that from_arguments reads."""
    parser.add_argument("--size", default="12000x9000", metavar="WxH", help="pixels of level 0 (default %(default)s)")
    parser.add_argument("--mpp", type=float, default=0.25, help="micrometres a pixel (default %(default)s)")
    parser.add_argument("--tissue", type=float, default=0.4, help="fraction of the slide (default %(default)s)")
    parser.add_argument("--tumour", type=float, default=0.15, help="fraction of the tissue (default %(default)s)")
    chroma = "chroma of the JPEG tiles (default %(default)s)"
    parser.add_argument("--subsampling", choices=sorted(_SAMPLING), default="420", help=chroma)
    parser.add_argument("--quality", type=int, default=80, help="of the JPEG tiles, 1 to 100 (default %(default)s)")
    parser.add_argument("--tile", type=int, default=256, help="pixels a side of a stored tile (default %(default)s)")
    step = "from level to level (default %(default)s)"
    parser.add_argument("--downsample", type=int, choices=(2, 4), default=4, help=step)
    parser.add_argument("--seed", type=int, default=0, help="another seed, another slide (default %(default)s)")


def from_arguments(arguments: argparse.Namespace) -> SyntheticSlide:
    """The settings that a command line asks for. Raises ValueError (one line, naming the setting)."""
    width, height = parse_size(arguments.size)
    names = ("mpp", "tissue", "tumour", "subsampling", "quality", "tile", "downsample", "seed")
    return SyntheticSlide(width, height, **{name: getattr(arguments, name) for name in names})
