"""Synthetic tissue for training and judging: patches of one tissue, of a tumour's border, and of the tissue's edge.

Seeds: training uses stains, styles and places of its own; the `validation` part and evaluate.py's patches use others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.train_demo.data import PATCH_PX, SPACING_UM, Image
from models.train_demo.pool import Pool, empty, fill, stain_targets, stained
from models.train_demo.teacher import Teacher
from slides import texture
from slides.scene import Mix, Scene, Style
from slides.stain import Stain

KINDS = {"tumour": 0.42, "normal": 0.36, "border": 0.16, "edge": 0.04, "background": 0.02}


@dataclass(frozen=True, slots=True)
class HalfPlane:
    """Two tissues on two sides of a straight line through (x, y) in um; with `edge`, the second side is empty glass."""

    x: float
    y: float
    angle: float
    tumour: bool
    lymphoid: float
    edge: bool

    def mix(self, x: np.ndarray, y: np.ndarray) -> Mix:
        distance = (x - self.x) * np.cos(self.angle) + (y - self.y) * np.sin(self.angle)
        side = np.clip(0.5 + distance / 20, 0, 1).astype(np.float32)
        one, zero = np.ones_like(side), np.zeros_like(side)
        tumour = zero if not self.tumour else one if self.edge else side
        return Mix(side if self.edge else one, tumour, np.float32(self.lymphoid) * one, zero)


def border(rng: np.random.Generator, edge: bool) -> tuple[np.ndarray, float]:
    """A patch across a border, uint8 (PATCH_PX, PATCH_PX, 3), and the tumour's share of it (of its tissue: `edge`)."""
    x0, y0 = (int(v) for v in rng.integers(0, 1 << 16, 2))
    inside = (np.array([x0, y0]) + rng.uniform(0, PATCH_PX, 2)) * SPACING_UM
    tumour = not edge or bool(rng.random() < 0.5)
    regions = HalfPlane(*inside, rng.uniform(0, 2 * np.pi), tumour, float(rng.choice([0.0, 1.0])), edge)
    scene = Scene(int(rng.integers(1 << 30)), regions, Stain.random(rng), Style.random(rng))
    # render() draws whole chunks of 1024 px, which is twenty times the work for one patch.
    pixels = texture._render(scene, x0, y0, PATCH_PX, PATCH_PX, SPACING_UM)
    at = (np.arange(PATCH_PX) + 0.5) * SPACING_UM
    mix = regions.mix((x0 * SPACING_UM + at)[None, :], (y0 * SPACING_UM + at)[:, None])
    return pixels, float(mix.tumour.mean())


def draw(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """One patch of a kind in KINDS, and the tumour's share of it."""
    if kind in ("border", "edge"):
        return border(rng, kind == "edge")
    return texture.patch(kind, rng, SPACING_UM, PATCH_PX), float(kind == "tumour")


def make_synthetic(images: list[Image], count: int, teacher: Teacher, rng: np.random.Generator) -> Pool:
    """`count` augmented patches; most take the colours of real `images`. The last tenth is for validation."""
    pool, colours = empty(count), stain_targets(images)
    pool.kind[:] = rng.choice(np.array(list(KINDS)), count, p=list(KINDS.values()))
    pool.validation[:] = np.arange(count) >= 0.9 * count

    def view(row: int) -> np.ndarray:
        pixels, pool.label[row] = draw(str(pool.kind[row]), rng)
        return pixels if rng.random() < 0.2 else stained(pixels, rng, colours)

    return fill(pool, view, teacher, "synthetic")


def plain_views(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` patches as they are, half tumour: uint8 (count, PATCH_PX, PATCH_PX, 3) and bool (count,)."""
    tumour = np.arange(count) % 2 == 0
    return np.stack([draw("tumour" if t else "normal", rng)[0] for t in tumour]), tumour
