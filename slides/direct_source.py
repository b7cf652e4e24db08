"""Slides whose pixels are JPEG tiles in a TIFF, read without OpenSlide: each tile once from the file, once decoded.

OpenSlide still says what the slide is (levels, spacing, background), so that both sources have one geometry, and is
asked for a few patches at the opening: where its pixels and these differ, the slide is left to it. It also reads levels
that only it knows how to show (of an Aperio slide with missing tiles, which it paints from the levels above).

Pixels are OpenSlide's, with these differences, each on purpose:

- a tile that libjpeg warns of fails, with the patches that touch it, where OpenSlide hands out the damaged pixels;
- on a level whose downsample is no whole number OpenSlide has to shift by up to half a level-0 pixel, and interpolates;
  here the stored pixels come as they are (`Geometry.level_xy` gives whole ones). The self-check allows for it;
- where the wanted spacing is coarser than the level, tiles and regions are, if `exact` is not asked for, shrunk faster
  than by averaging areas, within the tolerances that `slides.direct_check` and `slides.shrink` state.

A patch's pixels depend on its place and the geometry alone: not on the order of reading, the batch or the cache.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openslide

from slides.direct_check import check, decoder_may_shrink
from slides.errors import SlideError
from slides.geometry import Geometry, SlideInfo, resample
from slides.jpeg_tiles import TileError, shrink_whole
from slides.openslide_source import OpenSlideSource, _blocks
from slides.shrink import shrink, shrink_area
from slides.source import UNREADABLE, Source, no_beat
from slides.tiff_index import Directory
from slides.tile_cache import Pixels, shared_cache
from slides.tile_file import FORMATS, TileFile, TileLevel, Unsuitable

# For the OpenSlide handles that describe a slide, check this source, and read what only OpenSlide can: one for all.
_OPENSLIDE_CACHE = 8 << 20

_numbers = itertools.count()


def open_direct(
    path: str | os.PathLike[str],
    mpp: float | None,
    cache_bytes: int,
    exact: bool = True,
    preads: int = 1,
    latency_s: float = 0.0,
    checked: bool = False,
) -> DirectSource:
    """Open a slide, whose pixels are compared with OpenSlide's first unless that was done elsewhere (`checked`).
    `exact`, `preads`, `latency_s`: see `DirectSource`.

    Unsuitable where it must be left to OpenSlide; SlideError where OpenSlide cannot open it either.
    """
    try:
        vendor = openslide.OpenSlide.detect_format(path)
    except (openslide.OpenSlideError, OSError, ValueError):
        vendor = None  # opening it says what is wrong
    if vendor not in (*FORMATS, None):
        raise Unsuitable(f"{vendor} is a format for OpenSlide alone")
    reference = OpenSlideSource(path, mpp, _OPENSLIDE_CACHE)
    try:
        source = DirectSource(reference.info, cache_bytes, exact, preads, latency_s)
        try:
            if not checked:
                source.check(reference)
        except BaseException:
            source.close()
            raise
        return source
    finally:
        reference.close()


class DirectSource:
    """A `slides.source.Source`. `decodes`: tiles decoded so far; `reads`: reads of the file."""

    kind = "direct"

    def __init__(
        self,
        info: SlideInfo,
        cache_bytes: int = 64 << 20,
        exact: bool = True,
        preads: int = 1,
        latency_s: float = 0.0,
    ) -> None:
        """`info`: what OpenSlide says of the slide. `exact`: shrink as `slides.geometry.resample` does; else faster, and
        within a grey level of it on average. `preads`: reads of the file at a time; `latency_s`: added to each, for
        benchmarks. Unsuitable, one line, where the file is none for this source.
        """
        self.info = info
        self._exact = exact
        self.decodes = 0
        self._number = next(_numbers)
        self._cache_bytes = cache_bytes
        self._cache = shared_cache(cache_bytes)
        self._views: tuple[Geometry, _View] | None = None
        self._regions: dict[tuple[int, int], Pixels] = {}
        self._fallback: OpenSlideSource | None = None
        try:
            self._file = TileFile(info, preads, latency_s)
        except OSError as error:
            raise Unsuitable(f"it cannot be opened: {error.strerror or error}") from error
        left = [level.number for level in self._file.levels if level.by_openslide]
        reason = "they have no restart markers" if info.format == "hamamatsu" else "tiles are missing"
        self.notice = f"levels {left} are read by OpenSlide, as {reason}" if left else ""

    def check(self, reference: Source) -> None:
        """Unsuitable where the pixels are not those of a reference, for a few patches of every level."""
        check(self, reference, self._file.levels)
        self._cache.discard(self._number)
        self.decodes = self._file.reads = 0

    @property
    def reads(self) -> int:
        return self._file.reads

    def tile_size(self, level: int) -> tuple[int, int]:
        """Width and height of what is decoded in one go, in pixels of the level."""
        directory = self._file.levels[level].directory
        return directory.tile_width, directory.tile_height

    @property
    def levels(self) -> tuple[TileLevel, ...]:
        """Where each level of the slide is stored."""
        return self._file.levels

    def stored(self, level: TileLevel, index: int) -> bytes | None:
        """The stored bytes of a tile, None where the file has none; from any thread. TileError; SlideError: the file is gone."""
        return self._file.stream(level, index)

    def overview(self, max_px: int, beat: Callable[[], None] = no_beat) -> Pixels:
        """See `slides.source.Source`: the same blocks, shrunk in the same way, as those of `OpenSlideSource`."""
        if max_px < 1:
            raise ValueError(f"max_px must be 1 or more, not {max_px}")
        sizes = self.info.level_sizes
        enough = [level for level, size in enumerate(sizes) if max(size) >= max_px]
        number = min(enough, key=lambda i: max(sizes[i])) if enough else max(range(len(sizes)), key=lambda i: sizes[i])
        level = self._file.levels[number]
        self._begin()
        if level.by_openslide:
            return self._openslide().overview(max_px, beat)
        width, height = sizes[number]
        scale = min(1.0, max_px / max(width, height))
        out = np.empty((max(1, round(height * scale)), max(1, round(width * scale)), 3), np.uint8)
        tally = _Tally(beat)
        for top, bottom, y0, y1 in _blocks(out.shape[0], height):
            for left, right, x0, x1 in _blocks(out.shape[1], width):
                block = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
                view = _whole(level, x1 - x0, y1 - y0)
                self._file.read_ahead(level, self._missing(view, [[x0, y0]]))
                self._region(view, x0, y0, block, tally)
                out[top:bottom, left:right] = shrink_area(block, right - left, bottom - top)
        if not tally.good:
            raise SlideError(self.info.path, f"no part of it can be read: {tally.reason}")
        self._cache.discard(self._number)
        return out

    def read(
        self,
        geometry: Geometry,
        xy: npt.NDArray[np.int64],
        out: Pixels,
        beat: Callable[[], None] = no_beat,
    ) -> dict[int, str]:
        """See `slides.source.Source`."""
        patch_px = geometry.patch_px
        if out.shape != (len(xy), patch_px, patch_px, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous uint8 ({len(xy)}, {patch_px}, {patch_px}, 3), not {out.shape}")
        self._begin()
        if self._file.levels[geometry.level].by_openslide:
            return self._openslide().read(geometry, xy, out, beat)
        view = self._view(geometry)
        places = geometry.level_xy(xy).tolist()
        missing = self._missing(view, places)
        if len(missing) > 1:
            self._file.read_ahead(view.level, missing)
        reasons: dict[int, str] = {}
        for i, (x, y) in enumerate(places):
            try:
                self._patch(geometry, view, x, y, out[i])
            except TileError as error:
                reasons[i] = str(error)
                out[i] = self.info.background
            beat()
        return reasons

    def advise(self, geometry: Geometry, xy: npt.NDArray[np.int64]) -> None:
        """See `slides.source.Source`."""
        self._begin()
        if not self._file.levels[geometry.level].by_openslide:
            view = self._view(geometry)
            self._file.advise(view.level, self._missing(view, geometry.level_xy(xy).tolist()))

    def close(self) -> None:
        """See `slides.source.Source`."""
        self._file.close()
        self._cache.discard(self._number)
        self._regions.clear()
        if self._fallback is not None:
            self._fallback.close()
            self._fallback = None

    # ------------------------------------------------------------ patches

    def _begin(self) -> None:
        if self._file.closed:
            raise ValueError(f"{self.info.path}: is closed")
        self._cache = shared_cache(self._cache_bytes)

    def _openslide(self) -> OpenSlideSource:
        if self._fallback is None:
            self._fallback = OpenSlideSource(self.info.path, self.info.mpp_x, _OPENSLIDE_CACHE)
        return self._fallback

    def _view(self, geometry: Geometry) -> _View:
        if self._views is None or self._views[0] != geometry:
            level = self._file.levels[geometry.level]
            factor = _factor(geometry, level.directory)
            share = geometry.patch_width * geometry.patch_height / (geometry.step_x * geometry.step_y)
            width, height = geometry.region_px
            scaled = factor > 1 and not self._exact and decoder_may_shrink(self._file, level, factor)
            self._views = geometry, _View(level, factor, scaled, width // factor, height // factor, share)
        return self._views[1]

    def _patch(self, geometry: Geometry, view: _View, x: int, y: int, out: Pixels) -> None:
        if x % view.factor or y % view.factor:  # beside the grid of the geometry, in which tiles are shrunk
            view = _whole(view.level, *geometry.region_px)
        if view.width == view.height == geometry.patch_px:
            self._region(view, x // view.factor, y // view.factor, out)
            return
        region = self._scratch(view.height, view.width)
        self._region(view, x, y, region)
        (resample if self._exact else shrink)(region, geometry.patch_px, out)

    def _region(self, view: _View, x: int, y: int, out: Pixels, tally: _Tally | None = None) -> None:
        """Cut a region whose top left is (x, y) out of the tiles. What cannot be read is an error, or, with a tally,
        painted as such."""
        directory = view.level.directory
        width, height = view.tile_width, view.tile_height
        right, bottom = x + view.width, y + view.height
        columns = range(max(0, x // width), min(directory.columns, -(-right // width)))
        rows = range(max(0, y // height), min(directory.rows, -(-bottom // height)))
        if x < 0 or y < 0 or right > directory.columns * width or bottom > directory.rows * height:
            out[:] = self.info.background
        elif view.once and len(columns) == len(rows) == 1 and out.shape[:2] == (height, width) and tally is None:
            self._one_tile(view, rows[0] * directory.columns + columns[0], out)
            return
        for row in rows:
            tile_y = row * height
            y0, y1 = max(y, tile_y), min(bottom, tile_y + height)
            for column in columns:
                tile_x = column * width
                x0, x1 = max(x, tile_x), min(right, tile_x + width)
                try:
                    tile = self._tile(view, row * directory.columns + column, (x1 - x0) * (y1 - y0))
                except TileError as error:
                    if tally is None:
                        raise
                    tally.bad(str(error))
                    out[y0 - y : y1 - y, x0 - x : x1 - x] = UNREADABLE
                else:
                    out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - tile_y : y1 - tile_y, x0 - tile_x : x1 - tile_x]
                    if tally is not None:
                        tally.well()

    def _scratch(self, height: int, width: int) -> Pixels:
        """A buffer for what is decoded or cut only to be shrunk; the next call for the same size gives it again."""
        region = self._regions.get((height, width))
        if region is None:
            if len(self._regions) >= 4:
                self._regions.clear()
            region = self._regions[height, width] = np.empty((height, width, 3), np.uint8)
        return region

    # ------------------------------------------------------------ tiles

    def _missing(self, view: _View, places: list[list[int]]) -> list[int]:
        """The tiles under regions at these places that are neither here nor on their way, in the order of their use."""
        level, factor = view.level, view.factor
        width, height, columns = view.tile_width * factor, view.tile_height * factor, level.directory.columns
        wanted: dict[int, None] = {}
        for x, y in places:
            right, bottom = x + view.width * factor, y + view.height * factor
            for row in range(max(0, y // height), min(level.directory.rows, -(-bottom // height))):
                first, last = max(0, x // width), min(columns, -(-right // width))
                wanted.update(dict.fromkeys(range(row * columns + first, row * columns + last)))
        number, cache, coming = self._number, self._cache, self._file.coming
        return [i for i in wanted if (number, level.number, factor, i) not in cache and not coming(level, i)]

    def _one_tile(self, view: _View, index: int, out: Pixels) -> None:
        """A patch that is exactly one tile, wanted once: decoded straight to its place."""
        tile = self._cache.get((self._number, view.level.number, view.factor, index), out.shape[0] * out.shape[1])
        if tile is not None:
            out[:] = tile
        else:
            self._decode(view, index, out)

    def _tile(self, view: _View, index: int, pixels: int) -> Pixels:
        """A tile, reduced by the view's factor, of which so many pixels are wanted now; valid until the next call."""
        key = self._number, view.level.number, view.factor, index
        tile = self._cache.get(key, pixels)
        if tile is None:
            tile = self._cache.buffer(view.tile_height, view.tile_width)
            try:
                self._decode(view, index, tile)
            except BaseException:
                self._cache.give_back(tile)
                raise
            self._cache.put(key, tile, view.wanted, pixels)
        return tile

    def _decode(self, view: _View, index: int, out: Pixels) -> None:
        """Decode a tile to `out`, background where it is missing or lies outside of the slide."""
        level = view.level
        stream = self._file.stream(level, index)
        if stream is None:
            out[:] = self.info.background
            return
        self.decodes += 1
        width, height = level.box(index)
        inside = (width, height) == (level.directory.tile_width, level.directory.tile_height)
        shrunk = view.scaled and inside
        whole = (
            out
            if view.factor == 1 or shrunk
            else self._scratch(level.directory.tile_height, level.directory.tile_width)
        )
        try:
            level.jpeg.decode(stream, whole, view.factor if shrunk else 1)
        except TileError as error:
            raise TileError(f"{level.name(index)} {error}") from error
        if not inside:
            whole[:, width:] = self.info.background
            whole[height:, :width] = self.info.background
        if whole is not out:
            shrink_whole(whole, out)


@dataclass(frozen=True, slots=True)
class _View:
    """How a region comes from a level: `width` x `height` pixels of tiles that are shrunk by a whole `factor` on
    decoding, by the decoder itself if `scaled`. `share`: how many regions cover a pixel, on average."""

    level: TileLevel
    factor: int
    scaled: bool
    width: int
    height: int
    share: float

    @property
    def tile_width(self) -> int:
        return self.level.directory.tile_width // self.factor

    @property
    def tile_height(self) -> int:
        return self.level.directory.tile_height // self.factor

    @property
    def wanted(self) -> int:
        """How many pixels of a tile the patches of the whole grid want in all. (Fewer beyond the slide's edge: those
        tiles stay in the cache until they are the oldest.)"""
        return int(self.tile_width * self.tile_height * self.share)

    @property
    def once(self) -> bool:
        """No two regions overlap."""
        return self.share <= 1


class _Tally:
    """How the tiles of an overview fared."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self.good = 0
        self.reason = ""
        self._beat = beat

    def well(self) -> None:
        self.good += 1
        self._beat()

    def bad(self, reason: str) -> None:
        self.reason = reason
        self._beat()


def _whole(level: TileLevel, width: int, height: int) -> _View:
    return _View(level, 1, False, width, height, 1.0)


def _factor(geometry: Geometry, directory: Directory) -> int:
    """The whole factor by which tiles, instead of regions, can be shrunk: where it divides the tiles and every place of
    the geometry's grid, so that no pixel of a patch needs two tiles. Else 1."""
    width, height = geometry.region_px
    factor = width // geometry.patch_px
    if geometry.resampling != "area" or factor < 2 or (width, height) != (factor * geometry.patch_px,) * 2:
        return 1
    unit = factor * geometry.level_downsample
    places = (geometry.origin_x, geometry.origin_y, geometry.step_x, geometry.step_y)
    if unit != int(unit) or any(place % int(unit) for place in places):
        return 1
    return 1 if directory.tile_width % factor or directory.tile_height % factor else factor
