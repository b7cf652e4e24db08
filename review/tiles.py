"""The pixels of a slide for the viewer: stored JPEG tiles as they are, and what has to be made.

Where the slide is JPEG tiles in a TIFF, and shows the pixels that OpenSlide shows (`slides.direct_source` compares them), a
tile is its stored bytes with the tables spliced in: nothing is decoded. Tiles at the right and lower edge are cut to the
slide, as in Deep Zoom, and so decoded. All else is read by OpenSlide in levels that halve, as its Deep Zoom does. Label and
macro images are no levels and never come here.

What cannot be read is hatched: it must not look like glass.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import simplejpeg
from PIL import Image, ImageCms

from review.errors import Refused
from slides.direct_source import DirectSource, open_direct
from slides.errors import SlideError
from slides.geometry import LEVEL_TOLERANCE, Geometry, SlideInfo, resample
from slides.jpeg_tiles import JpegTiles, TileError
from slides.openslide_source import OpenSlideSource
from slides.source import UNREADABLE
from slides.tile_file import TileLevel, Unsuitable

Pixels = npt.NDArray[np.uint8]

TILE = 256
# Stored tiles of these sizes are passed through: larger ones would be slow to come and to draw.
_STORED_TILES = (64, 1024)
# From one level to the next at most so much coarser: the viewer would fetch the square of it in tiles for one.
_MAX_GAP = 4.5
# The coarsest level is whole within this.
_WHOLE = 512
# Pixels along a side of what is read in one go; what would need more is cut out of an overview.
_MAX_READ = 4096
# A handle that read more at once is not kept: its buffer would be kept with it. Nor more handles of a slide than this.
_SMALL_READ, _IDLE_MOST = 2048, 4
_OVERVIEW = 2048
# Of a region with damage, so many reads may fail (each costs an opening of the slide); what is left then counts as lost.
_FAILURES_MOST = 128
# Chroma is not halved: on H&E that alone costs 5 grey levels on average.
_QUALITY, _CHROMA = 90, "444"
# Of decoded tiles, by all OpenSlide handles together; the direct source decodes only to compare.
_OPENSLIDE_CACHE, _DIRECT_CACHE = 64 << 20, 4 << 20
# What a slide without a known spacing is opened with: nothing here is measured in µm.
_ANY_MPP = 1.0
_MAX_PROFILE = 16 << 20


@dataclass(frozen=True, slots=True)
class Level:
    """One level as the viewer sees it: `width` x `height` pixels in tiles of `tile` squared, each `downsample` level-0
    pixels wide. `stored`: the slide's level whose tiles are passed through; None: they are made."""

    width: int
    height: int
    tile: int
    downsample: float
    stored: int | None = None

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile)

    def box(self, column: int, row: int) -> tuple[int, int]:
        """Width and height of the part of a tile that lies on the slide."""
        return min(self.tile, self.width - column * self.tile), min(self.tile, self.height - row * self.tile)

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return {
            "width": self.width,
            "height": self.height,
            "tile": self.tile,
            "downsample": self.downsample,
            "passthrough": self.stored is not None,
        }


def plan_levels(info: SlideInfo, stored: Mapping[int, int]) -> tuple[Level, ...]:
    """The levels of a viewer, from full resolution down. `stored`: tile size by level, of those that can be passed through.

    Where full resolution can, the slide's own levels are kept, and gaps between them filled; else all are made by halving.
    """
    levels = [Level(info.width, info.height, stored.get(0, TILE), 1.0, 0 if 0 in stored else None)]
    own = list(zip(info.level_sizes, info.level_downsamples, strict=True))
    for number, (size, downsample) in enumerate(own):
        if number and number in stored and 0 in stored and downsample > levels[-1].downsample:
            _fill(levels, info, downsample)
            levels.append(Level(*size, stored[number], downsample, number))
    while max(levels[-1].width, levels[-1].height) > _WHOLE:
        levels.append(_made(info, levels[-1].downsample * 2))
    return tuple(levels)


def _fill(levels: list[Level], info: SlideInfo, downsample: float) -> None:
    while downsample / levels[-1].downsample > _MAX_GAP:
        levels.append(_made(info, levels[-1].downsample * 4))


def _made(info: SlideInfo, downsample: float) -> Level:
    return Level(
        max(1, math.ceil(info.width / downsample)), max(1, math.ceil(info.height / downsample)), TILE, downsample
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG. `problem`: why parts of it are hatched; empty where none is."""

    jpeg: bytes
    problem: str = ""


class OpenedSlide:
    """A slide that is open for viewers, from any thread. SlideError where OpenSlide cannot open it.

    `levels` as in `plan_levels`; `icc`: whether it has a profile of colours that can be honoured.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._overview_lock = threading.Lock()
        self._overview: Pixels | None = None
        self._idle: list[OpenSlideSource] = [OpenSlideSource(path, _ANY_MPP, _OPENSLIDE_CACHE)]
        self.info = self._idle[0].info
        self._direct = self._open_direct()
        self.levels = plan_levels(self.info, self._passable())
        self._transform = _transform(path)

    @property
    def passthrough(self) -> bool:
        """Whether the tiles of full resolution are passed through."""
        return self.levels[0].stored is not None

    @property
    def icc(self) -> bool:
        return self._transform is not None

    def close(self) -> None:
        """Let go of the file. Nobody may be reading."""
        while self._idle:
            self._idle.pop().close()
        if self._direct is not None:
            self._direct.close()

    # ------------------------------------------------------------ what is asked for

    def tile(self, number: int, column: int, row: int, icc: bool = False) -> Picture:
        """A tile of a level. Refused (404) where there is none; SlideError where the slide is lost."""
        if not 0 <= number < len(self.levels):
            raise Refused(404, "no_tile", "the slide has no such level")
        level = self.levels[number]
        if not (0 <= column < level.columns and 0 <= row < level.rows):
            raise Refused(404, "no_tile", "the level has no such tile")
        if level.stored is not None and self._direct is not None:
            return self._stored(self._direct, level, column, row, icc)
        side = level.tile * level.downsample
        pixels, problem = self._square(round(column * side), round(row * side), side, level.tile)
        width, height = level.box(column, row)
        return self._picture(pixels[:height, :width], problem, icc)

    def is_stored(self, number: int, column: int, row: int, icc: bool) -> bool:
        """Whether a tile costs no more than a read of the file."""
        level = self.levels[number] if 0 <= number < len(self.levels) else None
        return (
            level is not None and level.stored is not None and not icc and level.box(column, row) == (level.tile,) * 2
        )

    def overview(self, icc: bool = False) -> Picture:
        """The whole slide, 1024 pixels along its longer side at most."""
        whole = self._whole()
        scale = min(1.0, 1024 / max(whole.shape[:2]))
        size = max(1, round(whole.shape[1] * scale)), max(1, round(whole.shape[0] * scale))
        lost = bool(_unreadable(whole).any())
        shown = _hatch(whole.copy(), _unreadable(whole)) if lost else whole
        shown = shown if scale == 1.0 else cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
        return self._picture(shown, "parts of the slide cannot be read" if lost else "", icc)

    def region(self, x: int, y: int, width: int, height: int, px: int, icc: bool = False) -> Picture:
        """A part of the slide in level-0 pixels, `px` along its longer side, never enlarged."""
        side = max(width, height)
        px = max(1, min(px, side))
        pixels, problem = self._square(x, y, side, px)
        scale = px / side
        return self._picture(pixels[: max(1, round(height * scale)), : max(1, round(width * scale))], problem, icc)

    # ------------------------------------------------------------ stored tiles

    def _open_direct(self) -> DirectSource | None:
        if self.info.format not in ("aperio", "generic-tiff", "philips"):
            return None
        try:
            return open_direct(self._path, _ANY_MPP, _DIRECT_CACHE)
        except (Unsuitable, SlideError):
            return None

    def _passable(self) -> dict[int, int]:
        """Tile sizes of the levels whose tiles can be passed through."""
        found = {}
        for level in self._direct.levels if self._direct is not None else ():
            size = level.directory.tile_width
            square = size == level.directory.tile_height and _STORED_TILES[0] <= size <= _STORED_TILES[1]
            if square and level.stacks is None and not level.by_openslide:
                found[level.number] = size
        return found

    def _stored(self, direct: DirectSource, level: Level, column: int, row: int, icc: bool) -> Picture:
        stored = direct.levels[level.stored or 0]
        box = level.box(column, row)
        whole = box == (level.tile, level.tile)
        try:
            stream = direct.stored(stored, row * stored.directory.columns + column)
            if stream is None:
                pixels = np.empty((box[1], box[0], 3), np.uint8)
                pixels[:] = self.info.background
                return self._picture(pixels, "", icc)
            if whole and not (icc and self._transform is not None):
                return Picture(_jpeg_of(stored).complete(stream))
            pixels = np.empty((level.tile, level.tile, 3), np.uint8)
            _jpeg_of(stored).decode(stream, pixels)
        except TileError as error:
            return self._picture(_hatched(*box), str(error), icc)
        return self._picture(pixels[: box[1], : box[0]], "", icc)

    # ------------------------------------------------------------ made

    def _square(self, x: int, y: int, side: float, px: int) -> tuple[Pixels, str]:
        """`side` level-0 pixels squared from (x, y) on, shown as uint8 (px, px, 3), and what was wrong."""
        limit = side / px * (1 + LEVEL_TOLERANCE)
        downsamples = self.info.level_downsamples
        number = max((i for i, d in enumerate(downsamples) if d <= limit), key=lambda i: downsamples[i], default=0)
        region = max(1, round(side / downsamples[number]))
        if region > _MAX_READ:
            return self._cut(x, y, side, px)
        resampling = "none" if region == px else "area" if region > px else "bilinear"
        whole = max(1, round(side))
        geometry = Geometry(
            px, 1.0, number, downsamples[number], (region, region), resampling, whole, whole, whole, whole, 1, 1
        )  # fmt: skip
        out = np.empty((1, px, px, 3), np.uint8)
        source = self._take()
        try:
            reasons = source.read(geometry, np.array([[x, y]], np.int64), out)
            shown = out[0], ""
            if reasons:
                lost = np.zeros((px, px), bool)
                left = self._in_parts(source, geometry, (x, y), out[0], lost)
                shown = _hatch(out[0], lost), reasons[0] if left else f"parts of it cannot be read: {reasons[0]}"
        except BaseException:
            source.close()
            raise
        self._give_back(source, region)
        return shown

    def _in_parts(
        self, source: OpenSlideSource, whole: Geometry, at: tuple[int, int], out: Pixels, lost: npt.NDArray[np.bool_]
    ) -> bool:
        """Fill `out` with what can be read of a region that cannot be read in one piece, and mark the rest in `lost`: along
        the slide's own tiles where OpenSlide tells of them. True if nothing could be read."""
        region, (left, top) = whole.region_px[0], whole.level_xy(np.array([at], np.int64))[0].tolist()
        pixels = np.empty((region, region, 3), np.uint8)
        bad = np.zeros((region, region), np.uint8)
        waiting, failures = _quarters(left, top, region, region, source.tile_size(whole.level)), 1
        while waiting:
            x, y, width, height = waiting.pop()
            here = slice(y - top, y - top + height), slice(x - left, x - left + width)
            part = source.level_pixels(whole.level, x, y, width, height) if failures < _FAILURES_MOST else None
            if part is not None:
                pixels[here] = part
                continue
            failures += 1
            parts = _quarters(x, y, width, height, source.tile_size(whole.level))
            if parts and failures < _FAILURES_MOST:
                waiting += parts
            else:
                pixels[here], bad[here] = UNREADABLE, 1
        if region == out.shape[0]:
            out[:], lost[:] = pixels, bad
        else:
            resample(pixels, out.shape[0], out)
            lost[:] = cv2.resize(bad * 255, lost.shape[::-1], interpolation=cv2.INTER_AREA) > 0
        return bool(bad.all())

    def _cut(self, x: int, y: int, side: float, px: int) -> tuple[Pixels, str]:
        """The same out of an overview."""
        whole = self._whole()
        scale = np.array([whole.shape[1] / self.info.width, whole.shape[0] / self.info.height])
        step = side * scale / px
        matrix = np.array(
            [[step[0], 0, x * scale[0] + (step[0] - 1) / 2], [0, step[1], y * scale[1] + (step[1] - 1) / 2]]
        )
        out = cv2.warpAffine(
            whole, matrix, (px, px), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT, borderValue=self.info.background,
        )  # fmt: skip
        lost = _unreadable(out)
        return (_hatch(out, lost), "parts of it cannot be read") if lost.any() else (out, "")

    def _whole(self) -> Pixels:
        with self._overview_lock:  # one thread makes it, the others wait for it
            if self._overview is None:
                source = self._take()
                try:
                    self._overview = source.overview(_OVERVIEW)
                except BaseException:
                    source.close()
                    raise
                self._give_back(source, 0)
            return self._overview

    def _take(self) -> OpenSlideSource:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return OpenSlideSource(self._path, _ANY_MPP, _OPENSLIDE_CACHE)

    def _give_back(self, source: OpenSlideSource, region: int) -> None:
        """Keep it for the next reader; not many of them, and none whose buffer has grown by a large `region`."""
        with self._lock:
            if len(self._idle) < _IDLE_MOST and region <= _SMALL_READ:
                self._idle.append(source)
                return
        source.close()

    def _picture(self, pixels: Pixels, problem: str, icc: bool) -> Picture:
        if icc and self._transform is not None:
            pixels = self._transform(pixels)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _QUALITY, "RGB", _CHROMA)
        return Picture(data, problem)


def _jpeg_of(level: TileLevel) -> JpegTiles:
    if not isinstance(level.jpeg, JpegTiles):
        raise TileError("is not stored as a tile")
    return level.jpeg


def _transform(path: Path) -> Callable[[Pixels], Pixels] | None:
    """From the slide's colours to sRGB, by its ICC profile (TIFF's tag 34675, and what OpenSlide knows of other formats);
    None where it has none that can be used."""
    try:
        with openslide.OpenSlide(path) as slide:
            profile = slide.color_profile
        if profile is None:
            return None
        data = profile.tobytes()
        if len(data) > _MAX_PROFILE:
            return None
        ours = ImageCms.ImageCmsProfile(io.BytesIO(data))
        transform = ImageCms.buildTransform(
            ours, ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.getDefaultIntent(ours)
        )
    except (openslide.OpenSlideError, ImageCms.PyCMSError, OSError, ValueError):
        return None

    def convert(pixels: Pixels) -> Pixels:
        # Threads may share a transform: LCMS works on a copy of its cache.
        return np.asarray(ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(pixels)), transform))

    return convert


def _unreadable(pixels: Pixels) -> npt.NDArray[np.bool_]:
    return (pixels == np.array(UNREADABLE, np.uint8)).all(axis=-1)


def _quarters(x: int, y: int, width: int, height: int, tile: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """A box of level pixels in two or four, cut between tiles where it holds more than one; none where it is one tile or
    less."""
    across, down = _halves(x, width, tile[0]), _halves(y, height, tile[1])
    boxes = [(x0, y0, w, h) for y0, h in down for x0, w in across]
    return boxes if len(boxes) > 1 else []


def _halves(begin: int, length: int, tile: int) -> list[tuple[int, int]]:
    first, last = begin // tile, (begin + length - 1) // tile
    if first == last:
        return [(begin, length)]
    middle = (first + last + 1) // 2 * tile
    return [(begin, middle - begin), (middle, begin + length - middle)]


def _hatch(pixels: Pixels, where: npt.NDArray[np.bool_]) -> Pixels:
    height, width = where.shape
    stripes = (np.add.outer(np.arange(height), np.arange(width)) // 8) % 2
    pixels[where] = np.where(stripes[..., None], np.uint8(225), np.uint8(70))[where]
    return pixels


def _hatched(width: int, height: int) -> Pixels:
    return _hatch(np.empty((height, width, 3), np.uint8), np.ones((height, width), bool))
