"""Slides through OpenSlide: every format it knows.

OpenSlide gives premultiplied ARGB in native byte order (https://openslide.org/api/openslide_8h.html). Pixels are read
into a buffer of our own and converted once: on the common opaque region that is one pass, several times faster than by
way of an RGBA image.

A read error puts an OpenSlide handle into an error state for good: even its dimensions cannot be asked any more. So
`info` is kept here, and after an error the handle is closed and the slide opened anew.

OpenSlide reports tiles that are missing, cut short or no image at all. It does not report what its decoders only warn
of: bits that flipped within a JPEG's coefficients give pixels that are wrong, which nobody can tell by this interface.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import math
import os
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import numpy.typing as npt
import openslide
from openslide import lowlevel

from slides.errors import SlideError
from slides.geometry import Geometry, SlideInfo, check_mpp, resample
from slides.shrink import shrink_area
from slides.source import UNREADABLE, no_beat

# The overview is read in blocks of about this many level pixels a side: 16 MB each, and few tiles decoded twice.
_BLOCK = 2048
# An overview block that cannot be read is halved down to this, about one stored tile.
_SMALL_BLOCK = 256
# Where so many small blocks failed and none could be read, the slide is given up.
_HOPELESS = 64
# Beyond so many, blocks are no longer halved: every failure costs an opening of the slide.
_MANY = 512

_MPP_REMEDY = "give the true value with --set slides.mpp=..."


class OpenSlideSource:
    """A `slides.source.Source`. All sources of a process with the same `cache_bytes` share one cache of decoded tiles."""

    kind = "openslide"

    def __init__(self, path: str | os.PathLike[str], mpp: float | None = None, cache_bytes: int = 64 << 20) -> None:
        self._path = os.fsdecode(path)
        self._slide: openslide.OpenSlide | None = None
        self._buffer = np.empty(0, np.uint32)
        self._cache = _shared_cache(cache_bytes)
        _check_file(self._path)
        try:
            slide = self._open()
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise SlideError(self._path, "is not a slide in a format that OpenSlide knows") from error
        except openslide.OpenSlideError as error:
            raise SlideError(self._path, f"OpenSlide cannot open it: {error}") from error
        try:
            self.info = _info(self._path, slide, mpp)
            self._identity = slide.properties.get("openslide.quickhash-1")
            self._tiles = tuple(_tile_size(slide.properties, level) for level in range(slide.level_count))
        except (openslide.OpenSlideError, ValueError, KeyError) as error:
            slide.close()
            raise SlideError(self._path, f"OpenSlide cannot describe it: {error}") from error
        except SlideError:
            slide.close()
            raise
        self._slide = slide

    def overview(self, max_px: int, beat: Callable[[], None] = no_beat) -> npt.NDArray[np.uint8]:
        """See `slides.source.Source`. Block borders are rounded to level pixels, so places are right to half of one."""
        if max_px < 1:
            raise ValueError(f"max_px must be 1 or more, not {max_px}")
        sizes = self.info.level_sizes
        enough = [level for level, size in enumerate(sizes) if max(size) >= max_px]
        level = min(enough, key=lambda i: max(sizes[i])) if enough else max(range(len(sizes)), key=lambda i: sizes[i])
        width, height = sizes[level]
        scale = min(1.0, max_px / max(width, height))
        out = np.empty((max(1, round(height * scale)), max(1, round(width * scale)), 3), np.uint8)
        tally = _Tally()
        for top, bottom, y0, y1 in _blocks(out.shape[0], height):
            for left, right, x0, x1 in _blocks(out.shape[1], width):
                block = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
                self._overview_block(level, x0, y0, block, tally, beat)
                out[top:bottom, left:right] = shrink_area(block, right - left, bottom - top)
        if not tally.read:
            raise SlideError(self._path, f"no part of it can be read: {tally.reason}")
        return out

    def read(
        self,
        geometry: Geometry,
        xy: npt.NDArray[np.int64],
        out: npt.NDArray[np.uint8],
        beat: Callable[[], None] = no_beat,
    ) -> dict[int, str]:
        """See `slides.source.Source`."""
        patch_px = geometry.patch_px
        if out.shape != (len(xy), patch_px, patch_px, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous uint8 ({len(xy)}, {patch_px}, {patch_px}, 3), not {out.shape}")
        width, height = geometry.region_px
        region = None if geometry.resampling == "none" else np.empty((height, width, 3), np.uint8)
        reasons: dict[int, str] = {}
        for i, (x, y) in enumerate(geometry.level_xy(xy).tolist()):
            try:
                self._region(geometry.level, x, y, out[i] if region is None else region)
            except openslide.OpenSlideError as error:
                reasons[i] = SlideError("", str(error)).reason
                out[i] = self.info.background
                self._reopen(error)
            else:
                if region is not None:
                    resample(region, patch_px, out[i])
            beat()
        return reasons

    def advise(self, geometry: Geometry, xy: npt.NDArray[np.int64]) -> None:
        """See `slides.source.Source`: OpenSlide does not say where the bytes are."""

    def tile_size(self, level: int) -> tuple[int, int]:
        """Width and height of the stored tiles of a level, as OpenSlide tells; else of blocks that are small enough."""
        return self._tiles[level]

    def level_pixels(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8] | None:
        """uint8 (height, width, 3) from level pixel (x, y) on; None where they cannot be read. SlideError as `read`."""
        out = np.empty((height, width, 3), np.uint8)
        try:
            self._region(level, x, y, out)
        except openslide.OpenSlideError as error:
            self._reopen(error)
            return None
        return out

    def close(self) -> None:
        """See `slides.source.Source`."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None

    def _open(self) -> openslide.OpenSlide:
        slide = openslide.OpenSlide(self._path)
        slide.set_cache(self._cache)
        return slide

    def _reopen(self, error: openslide.OpenSlideError) -> None:
        self.close()
        try:
            slide = self._open()
            same = (
                slide.level_dimensions == self.info.level_sizes
                and slide.properties.get("openslide.quickhash-1") == self._identity
            )
        except openslide.OpenSlideError as again:
            raise SlideError(
                self._path,
                f"cannot be opened again ({again}) after a read failed ({error})",
                "check that the file and its disk are still there",
            ) from again
        if not same:
            slide.close()
            raise SlideError(self._path, "was replaced by another slide while it was read", "run again")
        self._slide = slide

    def _region(self, level: int, x: int, y: int, out: npt.NDArray[np.uint8]) -> None:
        """Read the region of `out`'s size whose top left is level pixel (x, y) over the background colour."""
        if self._slide is None:
            raise ValueError(f"{self._path}: is closed")
        height, width = out.shape[:2]
        if self._buffer.size < width * height:
            self._buffer = np.empty(width * height, np.uint32)
        argb = self._buffer[: width * height]
        downsample = self.info.level_downsamples[level]
        x0, y0 = math.floor(x * downsample + 0.5), math.floor(y * downsample + 0.5)
        _read_argb(self._slide, x0, y0, level, width, height, argb)
        bgra = argb.view(np.uint8).reshape(height, width, 4)  # little endian, as all platforms of OpenSlide's wheels
        cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGB, dst=out)
        if argb.min() < 0xFF000000:
            _composite(bgra[..., 3], out, self.info.background)

    def _overview_block(
        self, level: int, x: int, y: int, out: npt.NDArray[np.uint8], tally: _Tally, beat: Callable[[], None]
    ) -> None:
        """Read a block, or those of its parts that can be read."""
        try:
            # In one piece: `out` may be a part of a larger block, and OpenCV writes only to what is contiguous.
            piece = np.empty(out.shape, np.uint8)
            self._region(level, x, y, piece)
        except openslide.OpenSlideError as error:
            self._reopen(error)
            beat()
            height, width = out.shape[:2]
            if max(height, width) > _SMALL_BLOCK and tally.failed < _MANY:
                if width >= height:
                    parts = (x, y, out[:, : width // 2]), (x + width // 2, y, out[:, width // 2 :])
                else:
                    parts = (x, y, out[: height // 2]), (x, y + height // 2, out[height // 2 :])
                for part_x, part_y, part in parts:
                    self._overview_block(level, part_x, part_y, part, tally, beat)
                return
            out[...] = UNREADABLE
            tally.failed += 1
            tally.reason = str(error)
            if tally.failed >= _HOPELESS and not tally.read:
                raise SlideError(self._path, f"no part of it can be read: {error}") from error
        else:
            out[...] = piece
            tally.read += 1
            beat()


@functools.cache
def _shared_cache(size: int) -> openslide.OpenSlideCache:
    """A cache for each slide would take `size` bytes for each slide that is held open."""
    return openslide.OpenSlideCache(size)


class _Tally:
    """How the blocks of an overview fared."""

    def __init__(self) -> None:
        self.read = 0
        self.failed = 0
        self.reason = ""


def _blocks(out_size: int, level_size: int) -> list[tuple[int, int, int, int]]:
    """Cut an axis into (out begin, out end, level begin, level end) of about _BLOCK level pixels."""
    factor = level_size / out_size
    step = max(1, int(_BLOCK / factor))
    edges = [*range(0, out_size, step), out_size]
    return [(a, b, round(a * factor), round(b * factor)) for a, b in itertools.pairwise(edges)]


def _read_argb(
    slide: openslide.OpenSlide, x: int, y: int, level: int, width: int, height: int, argb: npt.NDArray[np.uint32]
) -> None:
    pointer = argb.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
    lowlevel._read_region(slide._osr, pointer, x, y, level, width, height)


def _composite(alpha: npt.NDArray[np.uint8], rgb: npt.NDArray[np.uint8], background: tuple[int, int, int]) -> None:
    """Lay premultiplied `rgb` over the background, in place."""
    missing = 255 - alpha.astype(np.uint16)
    for channel, value in enumerate(background):
        mixed = rgb[..., channel] + (missing * value + 127) // 255
        rgb[..., channel] = np.minimum(mixed, 255)


def _check_file(path: str) -> None:
    """Say plainly what OpenSlide would only call an unsupported file."""
    try:
        with open(path, "rb") as file:
            first = file.read(1)
    except FileNotFoundError as error:
        raise SlideError(path, "does not exist") from error
    except IsADirectoryError as error:
        raise SlideError(path, "is a folder, not a slide") from error
    except PermissionError as error:
        raise SlideError(path, "may not be read (permission denied)", "check its owner and mode") from error
    except (OSError, ValueError) as error:
        raise SlideError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not first:
        raise SlideError(path, "is empty (0 bytes)", "copy it again")


def _info(path: str, slide: openslide.OpenSlide, mpp: float | None) -> SlideInfo:
    properties = slide.properties
    mpp_x, mpp_y, source = _mpp(path, properties, mpp)
    width, height = slide.dimensions
    bounds = [_number(properties.get(f"openslide.bounds-{key}")) for key in ("x", "y", "width", "height")]
    colour = properties.get("openslide.background-color", "FFFFFF")
    power = _number(properties.get("openslide.objective-power"))
    return SlideInfo(
        path=path,
        format=properties["openslide.vendor"],
        width=width,
        height=height,
        level_sizes=tuple(slide.level_dimensions),
        level_downsamples=tuple(slide.level_downsamples),
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        mpp_source=source,
        background=(int(colour[0:2], 16), int(colour[2:4], 16), int(colour[4:6], 16)),
        bounds=None if None in bounds else tuple(map(int, bounds)),  # type: ignore[arg-type]
        objective_power=power,
    )


def _tile_size(properties: Mapping[str, str], level: int) -> tuple[int, int]:
    sides = [_number(properties.get(f"openslide.level[{level}].tile-{side}")) for side in ("width", "height")]
    width, height = (int(side) if side and side >= 1 else _SMALL_BLOCK for side in sides)
    return width, height


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _mpp(path: str, properties: Mapping[str, str], configured: float | None) -> tuple[float, float, str]:
    """(x, y, where from): the configuration, else the file `<slide>.mpp` beside it, else the slide itself."""
    if configured is not None:
        value = check_mpp(configured, path)
        return value, value, "configuration"
    sidecar = path + ".mpp"
    try:
        with open(sidecar, encoding="utf-8") as file:
            words = file.read(1000).replace(",", " ").split()
        if len(words) not in (1, 2):
            raise ValueError(f"{len(words)} numbers")
        x, y = float(words[0]), float(words[-1])
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        # A slide whose own name is as long as the file system allows cannot have a sidecar.
        if getattr(error, "errno", None) != errno.ENAMETOOLONG:
            problem = f"must hold one or two numbers, µm per pixel ({error})"
            raise SlideError(sidecar, problem, "correct it or remove it") from error
    else:
        return check_mpp(x, sidecar), check_mpp(y, sidecar), "sidecar"
    text_x, text_y = properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")
    if not text_x and not text_y:
        raise SlideError(path, "does not say its µm per pixel (mpp)", _MPP_REMEDY)
    return check_mpp(text_x or text_y, path), check_mpp(text_y or text_x, path), "slide"  # type: ignore[arg-type]
