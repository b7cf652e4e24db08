"""Whether a direct source gives OpenSlide's pixels for this slide: a few patches of every level, from both."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from slides.geometry import Geometry
from slides.jpeg_tiles import TileError, shrink_whole
from slides.source import Source
from slides.tile_file import TileFile, TileLevel, Unsuitable

# Patches that must agree: on level 0, and on each level below; tried at most so many each.
_AGREE = (3, 1)
_TRIES = 6
_PATCH = 128
# The tiles with the most bytes have the most to compare.
_RICHEST = 48
# OpenSlide interpolates where a level pixel lies between level-0 pixels, from about 1/256 of a pixel on; then the mean
# difference is held against the tolerance of resampled patches.
_WHOLE = 0.003
_TOLERANCE = 2.0
# Mean grey levels that the decoder's shrinking may differ from averages, on each of so many rich tiles. On tissue it is
# 0.1 to 0.8, and more where chroma is halved on one axis alone.
_SHRINK_TOLERANCE = 1.5
_SHRINK_TILES = 4


def check(source: Source, reference: Source, levels: tuple[TileLevel, ...]) -> None:
    """Unsuitable where the two differ, or nothing can be compared."""
    for level in levels:
        if not level.by_openslide:
            _check_level(source, reference, level)


def _check_level(source: Source, reference: Source, level: TileLevel) -> None:
    downsample = reference.info.level_downsamples[level.number]
    size = min(_PATCH, level.directory.width, level.directory.height)
    geometry = Geometry(size, 1.0, level.number, downsample, (size, size), "none", size, size, size, size, 1, 1)
    wanted = _AGREE[min(level.number, 1)]
    ours, theirs = (np.empty((1, size, size, 3), np.uint8) for _ in range(2))
    compared = 0
    problem = "none of it can be read"
    for x, y in _places(level, downsample, size):
        xy = np.array([[_level_0(x, downsample), _level_0(y, downsample)]], np.int64)
        # A damaged tile is no reason: both may fail, or this source where OpenSlide shows the damage.
        if reference.read(geometry, xy, theirs):
            continue
        if failed := source.read(geometry, xy, ours):
            problem = failed[0]
            continue
        difference = np.abs(ours.astype(np.int16) - theirs)
        exact = _shift(x, downsample) <= _WHOLE and _shift(y, downsample) <= _WHOLE
        if difference.mean() > (0 if exact else _TOLERANCE):
            raise Unsuitable(f"level {level.number} differs from OpenSlide's by up to {difference.max()} grey levels")
        compared += 1
        if compared == wanted:
            return
    if not compared:
        raise Unsuitable(f"level {level.number} cannot be compared with OpenSlide's: {problem}")


def decoder_may_shrink(file: TileFile, level: TileLevel, factor: int) -> bool:
    """Whether tiles of this level may be shrunk by the decoder: on the richest of them it is close enough to averaging.

    Depends on the file alone, so that a slide is read in one way whoever reads it.
    """
    directory, jpeg = level.directory, level.jpeg
    if not jpeg.scales(factor):
        return False
    whole = np.empty((directory.tile_height, directory.tile_width, 3), np.uint8)
    averages, ours = (np.empty((len(whole) // factor, whole.shape[1] // factor, 3), np.uint8) for _ in range(2))
    compared = 0
    for index in _richest(level):
        try:
            stream = file.stream(level, index)
            if stream is None:
                break  # and so are all others
            jpeg.decode(stream, whole)
            jpeg.decode(stream, ours, factor)
        except TileError:
            continue
        shrink_whole(whole, averages)
        if np.abs(ours.astype(np.int16) - averages).mean() > _SHRINK_TOLERANCE:
            return False
        compared += 1
        if compared == _SHRINK_TILES:
            return True
    return compared > 0


def _richest(level: TileLevel) -> list[int]:
    counts = np.where(level.directory.counts > level.longest, 0, level.directory.counts)
    return np.argsort(counts, kind="stable")[::-1][:_RICHEST].tolist()


def _lies(level: TileLevel, x: int, y: int, size: int) -> bool:
    """Whether the index says of a tile there that it has more bytes than can be: OpenSlide ends the process when it
    cannot allocate them."""
    directory = level.directory
    counts = directory.counts.reshape(directory.rows, directory.columns)
    rows = slice(y // directory.tile_height, (y + size) // directory.tile_height + 1)
    columns = slice(x // directory.tile_width, (x + size) // directory.tile_width + 1)
    return bool((counts[rows, columns] > level.longest).any())


def _places(level: TileLevel, downsample: float, size: int) -> Iterator[tuple[int, int]]:
    """Level pixels to compare at: within rich tiles, one over a corner of four, and over the far corner of the level."""
    directory = level.directory
    richest = _richest(level)
    width, height = directory.tile_width, directory.tile_height
    corners = [(index % directory.columns * width, index // directory.columns * height) for index in richest]
    inner = [
        (min(x + max(0, width - size) // 2, directory.width - 1), min(y + max(0, height - size) // 2, directory.height - 1))
        for x, y in corners
    ]
    inner.sort(key=lambda place: max(_shift(v, downsample) for v in place) > _WHOLE)  # stable: richest first
    over_corner = (corners[0][0] + width - size // 2, corners[0][1] + height - size // 2)
    far = (max(0, directory.width - size // 2), max(0, directory.height - size // 2))
    chosen = [inner[0], over_corner, far, *inner[1:]] if level.number == 0 else inner
    yield from [place for place in chosen if not _lies(level, *place, size)][:_TRIES]


def _level_0(place: int, downsample: float) -> int:
    return math.floor(place * downsample + 0.5)


def _shift(place: int, downsample: float) -> float:
    """How far, in level pixels, OpenSlide reads beside a place, as it takes places in level-0 pixels."""
    return abs(_level_0(place, downsample) / downsample - place)
