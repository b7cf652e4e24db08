"""``heatmaps/<slide>.png``: the picture that a person looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from results.atomic import write_atomic
from results.colours import heatmap_class
from results.legend import Legend, draw_emptiness, draw_footer, draw_header, draw_legend, layout
from results.png import encode_png
from results.raster import failed_cells, halve, probability_raster
from results.record import SlideRecord

# Sides of the slide's picture: a small overview is enlarged until it can be read, a huge one is taken as it is.
MIN_SIDE, MAX_SIDE = 1000, 4096

# A failed patch is drawn at least so big (px, and as a share of the picture's longer side): it must catch the eye.
FAILED_MIN_PX, FAILED_MIN_SHARE = 7, 1 / 220

BAND_ROWS = 256

# Share of the tissue that must lie outside of all patches to be worth a word in the legend.
MIN_UNREAD = 0.005


@dataclass(frozen=True, slots=True)
class Look:
    """How colour is laid over a slide.

    The colours are matplotlib's inferno (perceptually uniform, its lightness rises all the way: safe for colour-blind
    eyes) from ``low`` to ``high`` of it: its ends would vanish in the background. ``opacity`` is the share of the
    colour over the tissue; the rest lets the tissue's structure through.
    """

    low: float
    high: float
    opacity: float
    outline: tuple[int, int, int]

    def colours(self) -> np.ndarray:
        """RGB of the probabilities 0, 1/255, ... 1: uint8 (256, 3)."""
        ramp = np.linspace(self.low * 255, self.high * 255, 256).round().astype(np.uint8)
        return cv2.applyColorMap(ramp[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1].copy()


BRIGHT = Look(low=0.14, high=0.86, opacity=0.62, outline=(70, 70, 70))
DARK = Look(low=0.26, high=0.94, opacity=0.78, outline=(150, 150, 150))


def write_heatmap_png(record: SlideRecord, path: Path, wanted: str | None = None) -> None:
    """Write the overview with each patch coloured by its probability of one class (``wanted``, see results.colours).

    Failed patches are hatched, tissue is outlined, so that tissue without colour is tissue that was not analysed;
    colour bar, scale bar, names and counts stand around the picture. Raises ValueError for an unknown class, OSError.
    """
    number = heatmap_class(record.classes, wanted)
    encoded = encode_png(draw(record, number), {"Title": record.slide, "Software": "slidestream"})
    write_atomic(path, lambda file: file.write(encoded))


def draw(record: SlideRecord, number: int) -> np.ndarray:
    """The whole picture for class ``number``, uint8 (h, w, 3)."""
    pixels, colours, unread = _slide_picture(record, number)
    legend = Legend(record, number, colours, hatching, unread)
    places = layout(pixels.shape[1], pixels.shape[0])
    image = Image.new("RGB", places.size, (255, 255, 255))
    pen = ImageDraw.Draw(image)
    x, y = places.picture
    width, height = places.picture_size
    pen.rectangle((x - 1, y - 1, x + width, y + height), outline=(150, 150, 150))
    draw_header(pen, places, legend)
    draw_legend(image, pen, places, legend)
    draw_footer(pen, places, legend)
    if len(record.state) == 0:
        image.paste(Image.fromarray(pixels), places.picture)
        draw_emptiness(pen, places)
        return np.array(image)
    whole = np.array(image)  # pixels go in here: on their way through Pillow they would be copied four times
    whole[y : y + height, x : x + width] = pixels
    return whole


def hatching(height: int, width: int, period: int, top: int = 0) -> np.ndarray:
    """Black and white diagonal stripes, uint8 (height, width, 3); ``top`` keeps pieces of one picture in step."""
    y = np.arange(top, top + height)[:, None]
    x = np.arange(width)[None, :]
    stripe = ((x + y) % period) < period / 2
    return np.repeat(np.where(stripe, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _slide_picture(record: SlideRecord, number: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int] | None]:
    """The slide without its surroundings, RGB; the colours as they look there; tissue that was not analysed."""
    canvas = _background(record)
    height, width = canvas.shape[:2]
    dark = bool(np.median(canvas[::8, ::8]) < 100)
    look = DARK if dark else BRIGHT
    _fade(canvas, dark)
    colours = look.colours()
    known, over = _on_canvas(probability_raster(record, [number]), colours, record, height, width)
    seen = canvas[::8, ::8][known[::8, ::8]]
    below = np.median(seen, axis=0) if len(seen) else np.full(3, 40.0 if dark else 220.0)
    for band in _bands(height):
        cv2.copyTo(_blend(canvas[band], over[band], look), known[band].view(np.uint8), canvas[band])
    unread = None
    if record.mask is not None:
        mask = cv2.resize(record.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        left_out = (mask > 0) & ~known
        if np.count_nonzero(left_out) > MIN_UNREAD * np.count_nonzero(mask):
            red, green, blue = np.median(canvas[left_out], axis=0).round().astype(int).tolist()
            unread = (red, green, blue)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(canvas, contours, -1, look.outline, max(1, round(max(height, width) / 1000)), cv2.LINE_AA)
    _hatch_failed(canvas, record)
    ground = np.broadcast_to(below.round().astype(np.uint8), colours.shape)
    return canvas, _blend(np.ascontiguousarray(ground), colours, look), unread


def _blend(below: np.ndarray, colours: np.ndarray, look: Look) -> np.ndarray:
    """Colours laid over what is below, both uint8 (n, m) or (h, w, 3)."""
    return cv2.addWeighted(below, 1 - look.opacity, colours, look.opacity, 0)


def _background(record: SlideRecord) -> np.ndarray:
    """The overview in the picture's size; plain background colour in the slide's shape where there is none."""
    if record.overview is not None:
        overview = record.overview
    else:
        scale = MIN_SIDE / max(record.info["width"], record.info["height"])
        size = [max(1, round(record.info[side] * scale)) for side in ("height", "width")]
        overview = np.full((*size, 3), record.info.get("background", (255, 255, 255)), np.uint8)
    height, width = overview.shape[:2]
    scale = min(max(MIN_SIDE / max(height, width), 1.0), MAX_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return overview.copy()
    return cv2.resize(overview, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _fade(canvas: np.ndarray, dark: bool) -> None:
    """Take most of the colour out, in place, so that the heatmap's own colours are the only strong ones.

    A dark (fluorescence) slide is brightened until its brightest hundredth is near white, a bright one is made paler.
    """
    gain = 1.0
    if dark:
        brightest = float(np.percentile(cv2.cvtColor(canvas[::4, ::4], cv2.COLOR_RGB2GRAY), 99))
        gain = min(4.0, 220 / max(1.0, brightest))
    for band in _bands(len(canvas)):
        grey = cv2.cvtColor(cv2.cvtColor(canvas[band], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        scale, lift = (gain, 0.0) if dark else (0.8, 0.2 * 255)
        canvas[band] = cv2.addWeighted(grey, 0.75 * scale, canvas[band], 0.25 * scale, lift)


def _bands(height: int) -> Iterator[slice]:
    """Rows in pieces: floating point copies of a whole large picture would take hundreds of MB."""
    return (slice(start, start + BAND_ROWS) for start in range(0, height, BAND_ROWS))


def _on_canvas(
    raster: np.ndarray, colours: np.ndarray, record: SlideRecord, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the picture has a probability, bool (height, width), and its colour there, uint8 (height, width, 3).

    `raster`: the probabilities (1, rows, columns); `colours`: of 0, 1/255, ... 1.
    """
    geometry, factor = record.geometry, 1
    pixel = max(record.info["width"] / width, record.info["height"] / height)
    # A step smaller than a pixel would be skipped by picking the nearest; average until it is not.
    while min(geometry["step_x"], geometry["step_y"]) * factor * 2 <= pixel:
        raster, factor = halve(raster), factor * 2
    columns = _cells(width, record.info["width"], geometry["origin_x"], geometry["step_x"] * factor)
    rows = _cells(height, record.info["height"], geometry["origin_y"], geometry["step_y"] * factor)
    # A rim of nothing, for pixels beside the grid.
    values = np.pad(raster[0], 1, constant_values=np.nan)
    columns = np.clip(columns + 1, 0, values.shape[1] - 1)
    rows = np.clip(rows + 1, 0, values.shape[0] - 1)
    known = ~np.isnan(values)
    painted = np.empty((*values.shape, 4), np.uint8)
    painted[..., :3] = colours[(np.clip(np.where(known, values, 0), 0, 1) * 255).round().astype(np.uint8)]
    painted[..., 3] = known
    # Whole pixels are picked several times faster than channels.
    picked = painted.view(np.uint32)[..., 0].take(rows, axis=0).take(columns, axis=1)
    picked = picked.view(np.uint8).reshape(height, width, 4)
    return cv2.extractChannel(picked, 3).view(bool), cv2.cvtColor(picked, cv2.COLOR_RGBA2RGB)


def _cells(size: int, level0: int, origin: int, step: int) -> np.ndarray:
    centres = (np.arange(size) + 0.5) * (level0 / size)
    return np.floor((centres - origin) / step).astype(np.int64)


def _hatch_failed(canvas: np.ndarray, record: SlideRecord) -> None:
    """Hatch each failed patch with a rim around it; one that is tiny here is drawn bigger than it is."""
    height, width = canvas.shape[:2]
    geometry = record.geometry
    scale_x, scale_y = width / record.info["width"], height / record.info["height"]
    failed = np.zeros((height, width), np.uint8)
    least = max(FAILED_MIN_PX, round(max(height, width) * FAILED_MIN_SHARE))
    left, top = geometry["origin_x"], geometry["origin_y"]
    for row, column in zip(*failed_cells(record), strict=True):
        x0, x1 = _span(left + int(column) * geometry["step_x"], geometry["patch_width"], scale_x, width, least)
        y0, y1 = _span(top + int(row) * geometry["step_y"], geometry["patch_height"], scale_y, height, least)
        failed[y0:y1, x0:x1] = 1
    if not failed.any():
        return
    period = hatch_period(height, width)
    for band in _bands(height):
        here = failed[band] > 0
        canvas[band][here] = hatching(len(here), width, period, top=band.start)[here]
    rim = cv2.morphologyEx(failed, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    canvas[rim] = (0, 0, 0)


def hatch_period(height: int, width: int) -> int:
    """Pixels from stripe to stripe: visible whether the picture is looked at whole or close up."""
    return max(8, 2 * round(max(height, width) / 320))


def _span(start: int, length: int, scale: float, size: int, least: int) -> tuple[int, int]:
    first, last = start * scale, min((start + length) * scale, size)
    if last - first < least:
        first = (first + last - least) / 2
        last = first + least
    return max(0, round(first)), min(size, round(last))
