"""Small pictures ("sprites") of nuclei and of larger structures, drawn once per resolution and stamped many times.

A nucleus is a uint8 image of haematoxylin concentration (255 = stain.FULL_SCALE), 0 outside; stamping takes the
maximum, so that the order of stamping does not matter. A structure (gland, vessel) also says how much eosin it has and
where it covers what lies below.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from slides.noise import smoothstep
from slides.stain import FULL_SCALE

Sprite = np.ndarray


@dataclass(frozen=True, slots=True)
class Structure:
    """haematoxylin, eosin: float32 (h, w) concentrations; cover: float32 (h, w) in 0..1."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    cover: np.ndarray


@dataclass(frozen=True, slots=True)
class NucleusStyle:
    """How the nuclei of a kind look; lengths in micrometres, concentrations as in stain.py."""

    diameter: tuple[float, float]
    elongation: tuple[float, float]
    irregularity: float
    body: tuple[float, float]
    rim: float
    clumps: float
    clump_um: float
    nucleoli: tuple[int, int]
    edge_um: float = 0.35


LYMPHOCYTE = NucleusStyle((4.5, 6.2), (1.0, 1.35), 0.085, (1.45, 2.1), 0.30, 0.48, 0.55, (0, 0))
HISTIOCYTE = NucleusStyle((6.2, 8.6), (1.1, 1.7), 0.08, (0.55, 0.85), 0.45, 0.28, 0.50, (0, 1))
FIBROBLAST = NucleusStyle((3.6, 5.0), (2.2, 4.5), 0.06, (1.1, 1.7), 0.20, 0.25, 0.50, (0, 0))
EPITHELIUM = NucleusStyle((5.2, 6.4), (1.3, 1.8), 0.03, (1.15, 1.45), 0.25, 0.25, 0.55, (0, 0))
VESICULAR = NucleusStyle((7.2, 13.0), (1.0, 1.6), 0.085, (0.40, 0.90), 0.60, 0.30, 0.50, (1, 3), 0.3)
HYPERCHROMATIC = NucleusStyle((6.8, 12.0), (1.05, 1.9), 0.16, (1.05, 1.65), 0.25, 0.42, 0.70, (0, 1))


def _noise(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    field = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), max(sigma, 0.35))
    return field / max(float(field.std()), 1e-6)


def nucleus(style: NucleusStyle, rng: np.random.Generator, um_per_px: float, angle: float | None = None) -> Sprite:
    """One nucleus, uint8 (s, s), centred; angle (radians) of its long axis, random if not given."""
    diameter, elongation = rng.uniform(*style.diameter), rng.uniform(*style.elongation)
    a, b = diameter / 2 * elongation**0.5, diameter / 2 / elongation**0.5
    size = int(np.ceil((2 * a * (1 + 2 * style.irregularity) + 2) / um_per_px)) | 1
    axis = (np.arange(size, dtype=np.float32) - size // 2) * um_per_px
    axis_x, axis_y = axis + rng.uniform(-0.5, 0.5) * um_per_px, axis + rng.uniform(-0.5, 0.5) * um_per_px
    theta = rng.uniform(0, np.pi) if angle is None else angle
    u = axis_x[None, :] * np.cos(theta) + axis_y[:, None] * np.sin(theta)
    v = axis_y[:, None] * np.cos(theta) - axis_x[None, :] * np.sin(theta)
    # A bend makes kidney and crescent shapes of the irregular ones.
    v = v + rng.normal(0, style.irregularity) * u * u / a
    phi = np.arctan2(v / b, u / a)
    outline = np.ones_like(phi)
    for k in range(2, 6):
        outline += rng.normal(0, style.irregularity / k**0.7) * np.cos(k * phi + rng.uniform(0, 2 * np.pi))
    radius = np.hypot(u / a, v / b) / np.maximum(outline, 0.4)
    depth = (1 - radius) * b  # micrometres to the outline, roughly
    inside = smoothstep(-style.edge_um, style.edge_um, depth)
    chromatin = rng.uniform(*style.body) + style.clumps * _noise(rng, size, style.clump_um / um_per_px)
    chromatin += style.rim * np.exp(-((np.maximum(depth - 0.25, 0) / 0.45) ** 2))
    for _ in range(int(rng.integers(style.nucleoli[0], style.nucleoli[1] + 1))):
        along, across, spot = rng.uniform(-0.5, 0.5) * a, rng.uniform(-0.5, 0.5) * b, rng.uniform(0.5, 1.0)
        chromatin += 1.1 * smoothstep(1.3, 0.7, np.hypot(u - along, v - across) / spot)
    value = np.clip(chromatin, 0.15, None) * inside
    return np.clip(value * (255 / FULL_SCALE), 0, 255).astype(np.uint8)


def mitosis(rng: np.random.Generator, um_per_px: float) -> Sprite:
    """A metaphase plate or an anaphase pair: very dark, ragged, without membrane."""
    size = int(np.ceil(13 / um_per_px)) | 1
    axis = (np.arange(size, dtype=np.float32) - size // 2) * um_per_px
    theta, gap = rng.uniform(0, np.pi), rng.choice([0.0, 2.2])
    u = axis[None, :] * np.cos(theta) + axis[:, None] * np.sin(theta)
    v = np.abs(axis[:, None] * np.cos(theta) - axis[None, :] * np.sin(theta)) - gap
    shape = 1 - np.hypot(u / 4.2, v / 1.3) + 0.22 * _noise(rng, size, 0.5 / um_per_px)
    return np.clip(smoothstep(-0.1, 0.15, shape) * (2.6 * 255 / FULL_SCALE), 0, 255).astype(np.uint8)


def gland(rng: np.random.Generator, um_per_px: float) -> Structure:
    """A normal gland: a lumen, one layer of even nuclei in line near the basement membrane, pale cytoplasm."""
    radius, height = rng.uniform(20, 36), rng.uniform(13, 19)
    size = int(np.ceil(2 * (radius * 1.35 + 8) / um_per_px)) | 1
    axis = (np.arange(size, dtype=np.float32) - size // 2) * um_per_px
    phi, distance = np.arctan2(axis[:, None], axis[None, :]), np.hypot(axis[:, None], axis[None, :])
    phases, weights = rng.uniform(0, 2 * np.pi, 4), rng.normal(0, 0.055, 4)

    def outline(p: np.ndarray) -> np.ndarray:
        waves = (w * np.cos(k * p + f) for k, w, f in zip(range(2, 6), weights, phases, strict=True))
        return radius * (1 + sum(waves))

    depth = outline(phi) - distance  # micrometres below the outer edge
    cover = smoothstep(-0.6, 0.6, depth)
    lumen = smoothstep(-1.0, 1.0, depth - height + 0.8 * _noise(rng, size, 2.0 / um_per_px))
    grain = _noise(rng, size, 0.8 / um_per_px)
    eosin = (0.55 + 0.07 * grain + 0.3 * np.exp(-((depth / 0.9) ** 2))) * (1 - lumen) + 0.02
    tone = (0.24 + 0.06 * grain) * (1 - lumen)
    canvas = np.zeros((size, size), np.uint8)
    count = int(2 * np.pi * (radius - height * 0.4) / rng.uniform(5.0, 6.2))
    for k in range(count):
        p = 2 * np.pi * (k + rng.uniform(-0.2, 0.2)) / count
        r = float(outline(np.array(p))) - height * rng.uniform(0.28, 0.45)
        x, y = size // 2 + r * np.cos(p) / um_per_px, size // 2 + r * np.sin(p) / um_per_px
        stamp(canvas, nucleus(EPITHELIUM, rng, um_per_px, angle=p), x, y)
    haematoxylin = np.maximum(tone, canvas.astype(np.float32) * (FULL_SCALE / 255))
    return Structure(haematoxylin.astype(np.float32), eosin.astype(np.float32), cover.astype(np.float32))


def vessel(rng: np.random.Generator, um_per_px: float) -> Structure:
    """A small vessel: a pink wall with flat nuclei and red cells in a pale lumen."""
    a, b, wall = rng.uniform(14, 30), rng.uniform(9, 16), rng.uniform(2.5, 5.5)
    size = int(np.ceil(2 * (a + wall + 6) / um_per_px)) | 1
    axis = (np.arange(size, dtype=np.float32) - size // 2) * um_per_px
    theta = rng.uniform(0, np.pi)
    u = axis[None, :] * np.cos(theta) + axis[:, None] * np.sin(theta)
    v = axis[:, None] * np.cos(theta) - axis[None, :] * np.sin(theta)
    v = v + 0.12 * u * u / a
    depth = (1 - np.hypot(u / a, v / b)) * b + 0.7 * _noise(rng, size, 3 / um_per_px)
    cover = smoothstep(-wall - 0.8, -wall + 0.8, depth)
    lumen = smoothstep(-0.6, 0.6, depth)
    eosin = (0.8 + 0.12 * _noise(rng, size, 1.0 / um_per_px)) * (1 - lumen) + 0.03 * lumen
    haematoxylin = 0.12 * (1 - lumen)
    cells = np.zeros((size, size), np.float32)
    for _ in range(int(rng.uniform(0.0, 1.0) * a * b / 9)):
        r, p = rng.uniform(0, 1) ** 0.5 * 0.85, rng.uniform(0, 2 * np.pi)
        d = np.hypot(u - a * r * np.cos(p), v - b * r * np.sin(p)) / rng.uniform(2.3, 3.2)
        cells = np.maximum(cells, smoothstep(1.1, 0.85, d) * (0.8 + 0.35 * d * (d < 1.1)))
    eosin = eosin + 1.35 * cells * lumen
    canvas = np.zeros((size, size), np.uint8)
    for p in rng.uniform(0, 2 * np.pi, int(rng.integers(4, 10))):
        along, across = (a + wall / 2) * np.cos(p), (b + wall / 2) * np.sin(p)
        across -= 0.12 * along * along / a
        x, y = along * np.cos(theta) - across * np.sin(theta), along * np.sin(theta) + across * np.cos(theta)
        tangent = theta + np.arctan2(b * np.cos(p), -a * np.sin(p))
        x, y = size // 2 + x / um_per_px, size // 2 + y / um_per_px
        stamp(canvas, nucleus(FIBROBLAST, rng, um_per_px, angle=tangent), x, y)
    haematoxylin = np.maximum(haematoxylin, canvas.astype(np.float32) * (FULL_SCALE / 255))
    return Structure(haematoxylin.astype(np.float32), eosin.astype(np.float32), cover.astype(np.float32))


def stamp(canvas: np.ndarray, sprite: Sprite, x: float, y: float) -> None:
    """Stamp a sprite, centred at (x, y), onto a uint8 canvas in place, by maximum; what sticks out is cut off."""
    height, width = sprite.shape
    left, top = round(x) - width // 2, round(y) - height // 2
    if left >= 0 and top >= 0 and left + width <= canvas.shape[1] and top + height <= canvas.shape[0]:
        target = canvas[top : top + height, left : left + width]
        np.maximum(target, sprite, out=target)
        return
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, canvas.shape[1]), min(top + height, canvas.shape[0])
    if x0 < x1 and y0 < y1:
        target = canvas[y0:y1, x0:x1]
        np.maximum(target, sprite[y0 - top : y1 - top, x0 - left : x1 - left], out=target)


def flipped(sprites: list[Sprite], choice: np.ndarray) -> Sprite:
    """One of the sprites, by choice[1], in one of its eight mirror images, by choice[2]; a view."""
    sprite, k = sprites[int(choice[1] * len(sprites))], int(choice[2] * 8)
    sprite = sprite.T if k & 4 else sprite
    return sprite[:: -1 if k & 1 else 1, :: -1 if k & 2 else 1]
