"""Tissue that looks like haematoxylin and eosin, rendered at any place of an endless scene.

A scene has two quantities at every point: how much haematoxylin and how much eosin. The ground is painted first
(ground.py), then glands and vessels, then nuclei (nuclei.py), each at a hashed place of its own; the Beer-Lambert law
makes colours of them (stain.py). Tumour differs from normal tissue by what a pathologist looks for: large, irregular,
crowded nuclei of uneven size with nucleoli, and little stroma between them. Colour alone does not tell, because the
stain varies from scene to scene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock

import cv2
import numpy as np

from slides import nuclei
from slides.ground import Canvas, Ground, paint
from slides.noise import seamless, smoothstep, value_noise, window
from slides.nuclei import flipped, stamp
from slides.scene import Regions, Scene, Style, Uniform
from slides.stain import FULL_SCALE, Stain

CHUNK = 1024
"""A scene is rendered in aligned squares of so many pixels; windows are cut from them and so show the same pixels."""

_TO_BYTE = 255 / FULL_SCALE
_ANGLES = 24
_lock = Lock()


@dataclass(frozen=True, slots=True)
class _Bank:
    """What is drawn once for a resolution: sprites, and the fine textures."""

    lymphocytes: list[np.ndarray]
    histiocytes: list[np.ndarray]
    fibroblasts: list[list[np.ndarray]]
    vesicular: list[np.ndarray]
    dark: list[np.ndarray]
    mitoses: list[np.ndarray]
    glands: list[nuclei.Structure]
    vessels: list[nuclei.Structure]
    grain: np.ndarray
    sensor: np.ndarray


@lru_cache(maxsize=6)
def _make_bank(s: float) -> _Bank:
    rng = np.random.default_rng(20240)

    def many(style: nuclei.NucleusStyle, n: int) -> list[np.ndarray]:
        return [nuclei.nucleus(style, rng, s) for _ in range(n)]

    def spindles(angle: float) -> list[np.ndarray]:
        return [nuclei.nucleus(nuclei.FIBROBLAST, rng, s, angle=angle) for _ in range(6)]

    sensor = np.clip(np.random.default_rng(8).normal(0, 1.6, (509, 509, 3)), -6, 6)
    return _Bank(
        lymphocytes=many(nuclei.LYMPHOCYTE, 120),
        histiocytes=many(nuclei.HISTIOCYTE, 60),
        fibroblasts=[spindles(np.pi * k / _ANGLES) for k in range(_ANGLES)],
        vesicular=many(nuclei.VESICULAR, 140),
        dark=many(nuclei.HYPERCHROMATIC, 140),
        mitoses=[nuclei.mitosis(rng, s) for _ in range(12)],
        glands=[nuclei.gland(rng, s) for _ in range(6)],
        vessels=[nuclei.vessel(rng, s) for _ in range(8)],
        grain=1 + 0.13 * np.clip(seamless((640, 640), 0.45 / s, 0.45 / s, 3), -2.5, 2.5),
        sensor=np.round(sensor).astype(np.int16),
    )


def _bank(um_per_px: float) -> _Bank:
    with _lock:  # two threads must not draw the same bank twice
        return _make_bank(round(um_per_px, 4))


def _at(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return image[y.astype(np.intp), x.astype(np.intp)]


Layers = tuple[np.ndarray, np.ndarray, np.ndarray]


def _structures(c: Canvas, bank: _Bank, f: int, layers: Layers) -> None:
    """Put vessels and glands into normal tissue, in place; layers = haematoxylin, eosin, cover, at full resolution."""
    kinds = ((bank.vessels, 165.0, c.style.vessels, 3, 30.0), (bank.glands, 128.0, c.style.glands, 2, 48.0))
    ring = [(0.0, 0.0)] + [(np.cos(a), np.sin(a)) for a in np.arange(8) * (np.pi / 4)]
    for structures, pitch, share, channel, radius in kinds:
        sites = c.sites(pitch, 0.20, channel, reach_um=70)
        x, y = (sites.x + c.x0) * c.s, (sites.y + c.y0) * c.s
        # They come in groups, unless they are wanted everywhere.
        chance = share * (1 + (1.4 - 1.4 * share) * np.sign(value_noise(x, y, 700, c.scene.seed * 31 + 40 + channel)))
        for dx, dy in ring:  # the whole of it must lie in normal tissue
            there = c.scene.regions.mix(x + dx * radius, y + dy * radius)
            chance *= (there.tumour < 0.4) & (there.tissue > 0.55) & (there.fat < 0.4)
            chance *= 1 - 0.16 * there.lymphoid
        for k in np.flatnonzero(sites.choice[:, 0] < chance):
            choice = sites.choice[k]
            parts = structures[int(choice[1] * len(structures))]
            height, width = parts.cover.shape
            left, top = int(sites.x[k] * f) - width // 2, int(sites.y[k] * f) - height // 2
            x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + width, c.width * f), min(top + height, c.height * f)
            if x0 >= x1 or y0 >= y1:
                continue
            here, cut = (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
            cover = parts.cover[cut]
            for layer, value in zip(layers, (parts.haematoxylin[cut], parts.eosin[cut], 1.0), strict=True):
                layer[here] += cover * (value - layer[here])


def _nuclei(c: Canvas, ground: Ground, bank: _Bank, f: int, covered: np.ndarray) -> np.ndarray:
    """All nuclei of the canvas: haematoxylin, uint8, full resolution."""
    style = c.style
    canvas = np.zeros((c.height * f, c.width * f), np.uint8)

    def free(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (_at(covered, x * f, y * f) < 0.3) & (_at(ground.tissue, x, y) > 0.5)

    if ground.tumour_cells is not None:
        x, y, choice = ground.tumour_cells.x, ground.tumour_cells.y, ground.tumour_cells.choice
        dark = smoothstep(-0.25, 0.25, _at(c.full(c.slow(260, 6)), x, y) + style.dark_tumour - 0.5)
        here = (_at(ground.tumour, x, y) > 0.5) & (_at(ground.nests, x, y) > 0.5) & (choice[:, 0] > 0.04) & free(x, y)
        for k in np.flatnonzero(here):
            roll = choice[k, 0]
            sprites = bank.mitoses if roll > 0.992 else bank.dark if (roll * 7.3) % 1 < dark[k] else bank.vesicular
            stamp(canvas, flipped(sprites, choice[k]), x[k] * f, y[k] * f)

    sites = c.sites(style.lymphoid_pitch, 0.30, 4)
    x, y, choice = sites.x, sites.y, sites.choice
    in_tumour, in_nest = _at(ground.tumour, x, y) > 0.5, _at(ground.nests, x, y) > 0.5
    crowd_tumour = np.where(in_nest, 0.02, 0.5) * style.lymphocytes_in_tumour
    infiltrate = 0.03 + 0.4 * smoothstep(0.25, 0.6, _at(c.full(c.slow(170, 12, 2)), x, y))
    crowd = np.where(in_tumour, crowd_tumour, infiltrate + (0.86 - infiltrate) * _at(ground.lymphoid, x, y))
    crowd = crowd * (1 + 0.5 * _at(c.full(c.slow(55, 7)), x, y)) * (_at(ground.fat, x, y) < 0.5) * free(x, y)
    for k in np.flatnonzero(choice[:, 0] < crowd):
        pale = (choice[k, 0] * 91.7) % 1 < style.histiocytes and not in_tumour[k]
        stamp(canvas, flipped(bank.histiocytes if pale else bank.lymphocytes, choice[k]), x[k] * f, y[k] * f)

    sites = c.sites(15.0, 0.42, 5)
    x, y, choice = sites.x, sites.y, sites.choice
    stroma = (1 - _at(ground.lymphoid, x, y)) * style.stroma_cells
    spindle = np.where(_at(ground.tumour, x, y) > 0.5, 1 - _at(ground.nests, x, y), 1.0) * stroma
    if ground.membrane_um is not None:
        spindle = np.where(_at(ground.fat, x, y) > 0.5, 0.35 * (_at(ground.membrane_um, x, y) < 2.5), spindle)
    cos, sin = (_at(c.full(part(2 * ground.fibre_angle)), x, y) for part in (np.cos, np.sin))
    step = np.round((np.arctan2(sin, cos) / 2 % np.pi) * (_ANGLES / np.pi)).astype(int)
    for k in np.flatnonzero(choice[:, 0] < spindle * free(x, y)):
        sprites = bank.fibroblasts[(step[k] + int(choice[k, 2] * 3) - 1) % _ANGLES]
        stamp(canvas, sprites[int(choice[k, 1] * len(sprites))], x[k] * f, y[k] * f)
    return canvas


_E_UNDER_NUCLEI = np.round(255 * (1 - np.minimum(np.arange(256) * (0.22 / _TO_BYTE), 0.45))).astype(np.uint8)


def _render(scene: Scene, x0: int, y0: int, width: int, height: int, um_per_px: float) -> np.ndarray:
    """Render one window in one piece; memory about 60 bytes a pixel."""
    f = 2 if um_per_px < 0.35 else 1
    gx0, gy0 = x0 // f, y0 // f
    c = Canvas(scene, gx0, gy0, -(-(x0 + width) // f) - gx0, -(-(y0 + height) // f) - gy0, um_per_px * f)
    bank, ground = _bank(um_per_px), paint(c)
    size = (c.width * f, c.height * f)
    layers = [cv2.resize(a, size, interpolation=cv2.INTER_LINEAR) for a in (ground.haematoxylin, ground.eosin)]
    covered = np.zeros(size[::-1], np.float32)
    _structures(c, bank, f, (layers[0], layers[1], covered))
    dark = _nuclei(c, ground, bank, f, covered)

    left, top = c.margin * f + x0 - gx0 * f, c.margin * f + y0 - gy0 * f
    inner = (slice(top, top + height), slice(left, left + width))
    grain = window(bank.grain, x0, y0, width, height)
    layers = [cv2.convertScaleAbs(cv2.multiply(a[inner], grain), alpha=_TO_BYTE) for a in layers]
    dark = np.ascontiguousarray(dark[inner])
    haematoxylin = cv2.add(layers[0], dark)
    eosin = cv2.multiply(layers[1], cv2.LUT(dark, _E_UNDER_NUCLEI), scale=1 / 255)
    blur = max(c.style.blur_um / um_per_px, 0.3)
    haematoxylin, eosin = (cv2.GaussianBlur(a, (0, 0), blur) for a in (haematoxylin, eosin))
    rgb = scene.stain.colour(haematoxylin, eosin)
    return cv2.add(rgb, window(bank.sensor, x0, y0, width, height), dtype=cv2.CV_8U)


def render(scene: Scene, x0: int, y0: int, width: int, height: int, um_per_px: float) -> np.ndarray:
    """Render the window with top-left (x0, y0), in pixels of um_per_px micrometres: RGB uint8 (height, width, 3).

    The scene is endless and fixed: every window shows the same pixels at the same place. Windows aligned to CHUNK cost
    least. Raises ValueError for an empty window, or a resolution at which nuclei cannot be drawn.
    """
    if width < 1 or height < 1:
        raise ValueError(f"window is {width} x {height} pixels; both must be 1 or more")
    check_resolution(um_per_px)
    out = np.empty((height, width, 3), np.uint8)
    for top in range(y0 // CHUNK * CHUNK, y0 + height, CHUNK):
        for left in range(x0 // CHUNK * CHUNK, x0 + width, CHUNK):
            chunk = _render(scene, left, top, CHUNK, CHUNK, um_per_px)
            ax, ay, bx, by = max(x0, left), max(y0, top), min(x0 + width, left + CHUNK), min(y0 + height, top + CHUNK)
            out[ay - y0 : by - y0, ax - x0 : bx - x0] = chunk[ay - top : by - top, ax - left : bx - left]
    return out


def check_resolution(um_per_px: float) -> None:
    """Raise ValueError where tissue cannot be drawn."""
    if not 0.1 <= um_per_px <= 2:
        raise ValueError(f"{um_per_px} micrometres a pixel: tissue can be drawn between 0.1 and 2")


KINDS = ("lymphoid", "stroma", "gland", "fat", "tumour", "background")
"""What patch() can draw, besides "normal" (the first four, and mixtures of them)."""


def patch(kind: str, seed: int | np.random.Generator, um_per_px: float = 0.25, size_px: int = 224) -> np.ndarray:
    """One patch of a kind of tissue with a stain and a style of its own: RGB uint8 (size_px, size_px, 3).

    kind is one of KINDS, or "normal". The same seed gives the same patch. Raises ValueError for an unknown kind.
    """
    check_resolution(um_per_px)
    rng = np.random.default_rng(seed)
    style, stain = Style.random(rng), Stain.random(rng)
    if kind == "normal":
        kind = str(rng.choice(["lymphoid", "stroma", "gland", "fat", "mixed"], p=[0.38, 0.24, 0.18, 0.06, 0.14]))
    regions: Regions
    if kind == "mixed":
        regions = Uniform(lymphoid=float(rng.uniform(0.3, 0.7)), fat=float(rng.uniform(0, 0.5)))
    elif kind == "gland":
        style, regions = replace(style, glands=1.0), Uniform(lymphoid=float(rng.choice([0.0, 0.2])))
    elif kind == "tumour":
        regions = Uniform(tumour=1.0, lymphoid=float(rng.random() < 0.4))
    elif kind in KINDS:
        weights = {"lymphoid": {"lymphoid": 1.0}, "fat": {"fat": 1.0}, "background": {"tissue": 0.0}}
        regions = Uniform(**weights.get(kind, {}))
    else:
        raise ValueError(f"unknown kind of tissue {kind!r}; known: normal, {', '.join(KINDS)}")
    scene = Scene(int(rng.integers(1 << 30)), regions, stain, style)
    x0, y0 = (int(v) for v in rng.integers(0, 1 << 16, 2))
    return _render(scene, x0, y0, size_px, size_px, um_per_px)
