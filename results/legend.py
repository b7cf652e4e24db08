"""What stands around the heatmap picture: title, colour bar, legend, scale bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from results import text
from results.record import INFERRED, OWN_PATCH_PX, SlideRecord

INK = (34, 34, 34)
SOFT = (96, 96, 96)


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything goes, px: ``unit`` is the height of normal text, ``picture`` the slide's top left."""

    size: tuple[int, int]
    unit: int
    picture: tuple[int, int]
    picture_size: tuple[int, int]
    legend: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Legend:
    """What there is to say. ``colours`` uint8 (256, 3) as they look in the picture; ``unread``: how tissue that was
    not analysed looks, None where there is none to speak of."""

    record: SlideRecord
    number: int
    colours: np.ndarray
    hatching: Callable[[int, int, int], np.ndarray]
    unread: tuple[int, int, int] | None


def layout(width: int, height: int) -> Places:
    """Places around a slide picture of ``width`` x ``height`` px: title above, legend right, scale bar below."""
    unit = int(min(max(math.sqrt(width * height) / 44, max(width, height) / 75, 18), 72))
    margin = unit
    top = margin + round(4.6 * unit)
    panel = round(13 * unit)
    # The title needs some room even above a slide that is a narrow strip.
    inner = max(width + margin + panel, 34 * unit)
    left = margin + inner - panel - margin - width
    bottom = max(height + round(3.4 * unit), round(27 * unit))
    return Places(
        size=(inner + 2 * margin, top + bottom),
        unit=unit,
        picture=(margin + (left - margin) // 2, top),
        picture_size=(width, height),
        legend=(margin + inner - panel, top),
    )


def scale_bar(um_per_px: float, room_px: float) -> tuple[float, str]:
    """Length in px and words of the longest round bar (1, 2 or 5 x 10^n um) that is not longer than ``room_px``."""
    exponent = math.floor(math.log10(room_px * um_per_px))
    steps = [digit * 10.0**power for power in (exponent - 1, exponent) for digit in (1, 2, 5)]
    um = max(step for step in steps if step <= room_px * um_per_px * (1 + 1e-9))
    # Always in mm: Pillow's own font, the one that looks the same everywhere, has no micro sign.
    return um / um_per_px, f"{um / 1000:g} mm"


def draw_header(pen: ImageDraw.ImageDraw, places: Places, legend: Legend) -> None:
    """Slide name, then model, resolution and how many patches stand behind the picture."""
    record, unit = legend.record, places.unit
    room = places.size[0] - 2 * unit
    counts = record.counts()
    title, font = text.shorten(record.slide, round(1.5 * unit), room)
    pen.text((unit, unit), title, INK, font, anchor="lt")
    if counts.planned == 0:
        patches = "no tissue found: no patch analysed"
    else:
        patches = f"{_number(counts.inferred)} patches analysed"
        patches += f", {_number(counts.failed)} FAILED" if counts.failed else ", none failed"
    model = f"model {record.model['name']}, {record.geometry['patch_px']} px at {record.geometry['spacing']:.3g} mpp"
    if OWN_PATCH_PX in record.model:
        model += f" (made for {record.model[OWN_PATCH_PX]} px)"
    for line, (words, ink) in enumerate(((patches, INK), (model, SOFT))):
        drawn, font = text.shorten(words, unit, room)
        pen.text((unit, unit + round((2.0 + 1.3 * line) * unit)), drawn, ink, font, anchor="lt")


def draw_emptiness(pen: ImageDraw.ImageDraw, places: Places) -> None:
    """Say across the picture that there was nothing to analyse, lest it be taken for a picture without findings."""
    width, height = places.picture_size
    drawn, font = text.shorten("no tissue found", 2 * places.unit, width)
    at = (places.picture[0] + width // 2, places.picture[1] + height // 2)
    pen.text(at, drawn, SOFT, font, anchor="mm", stroke_width=max(1, places.unit // 8), stroke_fill=(255, 255, 255))


def draw_legend(image: Image.Image, pen: ImageDraw.ImageDraw, places: Places, legend: Legend) -> None:
    """Class name, colour bar from 0 to 1 with the range of this slide beside it, and what else is in the picture."""
    unit, (x, y) = places.unit, places.legend
    record = legend.record
    room = places.size[0] - x - unit
    name, font = text.shorten(record.classes[legend.number], round(1.15 * unit), room)
    pen.text((x, y), "probability of", SOFT, text.builtin(round(0.85 * unit)), anchor="lt")
    pen.text((x, y + round(1.15 * unit)), name, INK, font, anchor="lt")
    y += round(3.3 * unit)
    y = _bar(image, pen, legend, x, y, unit)
    y = _range(pen, legend, x, y, unit, room)
    for swatch, words in _swatches(record, legend, unit):
        image.paste(swatch, (x, y))
        pen.rectangle((x, y, x + swatch.width - 1, y + swatch.height - 1), outline=INK)
        drawn, font = text.shorten(words, round(0.85 * unit), room - 2.1 * unit)
        pen.text((x + round(2.1 * unit), y + swatch.height // 2), drawn, INK, font, anchor="lm")
        y += round(1.9 * unit)


def draw_footer(pen: ImageDraw.ImageDraw, places: Places, legend: Legend) -> None:
    """The scale bar, below the picture where it hides no tissue."""
    unit, record = places.unit, legend.record
    x, y = places.picture[0], places.picture[1] + places.picture_size[1] + unit
    um_per_px = record.info["mpp_x"] * record.info["width"] / places.picture_size[0]
    length, words = scale_bar(um_per_px, max(places.picture_size[0] / 4, 2 * unit))
    height = max(3, unit // 4)
    pen.rectangle((x, y, x + round(length) - 1, y + height - 1), fill=INK)
    drawn, font = text.fitting(words, unit)
    pen.text((x, y + height + unit // 3), drawn, INK, font, anchor="lt")


def _bar(image: Image.Image, pen: ImageDraw.ImageDraw, legend: Legend, x: int, y: int, unit: int) -> int:
    width, height = round(1.7 * unit), round(11 * unit)
    shades = legend.colours[np.linspace(255, 0, height).round().astype(int)]
    image.paste(Image.fromarray(np.repeat(shades[:, None], width, axis=1)), (x, y))
    pen.rectangle((x, y, x + width - 1, y + height - 1), outline=INK)
    font = text.builtin(round(0.9 * unit))
    for tick in (0, 0.25, 0.5, 0.75, 1):
        at = y + round((1 - tick) * (height - 1))
        pen.line((x + width, at, x + width + unit // 3, at), INK, max(1, unit // 14))
        pen.text((x + width + round(0.6 * unit), at), f"{tick:g}", INK, font, anchor="lm")
    return y + height + round(1.2 * unit)


def _range(pen: ImageDraw.ImageDraw, legend: Legend, x: int, y: int, unit: int, room: float) -> int:
    values = legend.record.probabilities[legend.record.state == INFERRED, legend.number]
    if len(values):
        share = float((values >= 0.5).mean())
        for words in (f"highest {values.max():.2f}, mean {values.mean():.2f}", f"{_percent(share)} of patches >= 0.5"):
            drawn, font = text.shorten(words, round(0.85 * unit), room)
            pen.text((x, y), drawn, INK, font, anchor="lt")
            y += round(1.25 * unit)
    return y + round(0.6 * unit)


def _swatches(record: SlideRecord, legend: Legend, unit: int) -> list[tuple[Image.Image, str]]:
    width, height = round(1.7 * unit), round(1.2 * unit)
    found = []
    failed = record.counts().failed
    if failed:
        stripes = legend.hatching(height, width, max(6, unit // 3))
        found.append((Image.fromarray(stripes), f"failed, no result ({_number(failed)})"))
    if legend.unread is not None:
        found.append((Image.new("RGB", (width, height), legend.unread), "tissue, not analysed"))
    if record.mask is not None and record.mask.any():
        outline = Image.new("RGB", (width, height), (255, 255, 255))
        pen = ImageDraw.Draw(outline)
        box = (width // 4, height // 5, width * 3 // 4, height * 4 // 5)
        pen.ellipse(box, outline=(70, 70, 70), width=max(1, unit // 12))
        found.append((outline, "edge of the tissue"))
    return found


def _number(value: int) -> str:
    return f"{value:,}"


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{share * 100:.1f} %"
