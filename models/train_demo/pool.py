"""A fixed pool of augmented views with the teacher's answers: the teacher is too slow to ask in every epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.train_demo import augment
from models.train_demo.data import PATCH_PX, Image
from models.train_demo.teacher import FEATURES, Teacher

# Views of each kind in a hundred. Lymphoid tissue counts much: in a lymph node it is what tumour must be told from.
SHARES = {"tumour": 17, "node_tumour": 17, "node_normal": 8, "lymphoid": 13, "stroma": 9, "mucosa": 8, "skin": 8,
          "complex": 6, "debris": 5, "adipose": 3, "empty": 2}  # fmt: skip
MOSAIC_SHARE = 8


@dataclass(slots=True)
class Pool:
    """n views: `pixels` uint8 (n, 112, 112, 3); `label` float32 (n,), the tumour's share of the view, NaN where
    unknown; `teacher` float32 (n,) and `feature` float16 (n, 1024), its score and features; `kind` (n,) names;
    `validation` bool (n,)."""

    pixels: np.ndarray
    label: np.ndarray
    teacher: np.ndarray
    feature: np.ndarray
    kind: np.ndarray
    validation: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> Pool:
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in cls.__slots__})

    def take(self, rows: np.ndarray) -> Pool:
        return Pool(*(getattr(self, name)[rows] for name in self.__slots__))

    @staticmethod
    def join(pools: list[Pool]) -> Pool:
        return Pool(*(np.concatenate([getattr(p, name) for p in pools]) for name in Pool.__slots__))


def stained(pixels: np.ndarray, rng: np.random.Generator, targets: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Stain and scanner augmentation of one view, drawn at random."""
    if rng.random() < 0.6:
        pixels = augment.restain(pixels, targets[rng.integers(len(targets))], rng.uniform(0.4, 1.0))
    if rng.random() < 0.8:
        pixels = augment.jitter_stain(pixels, rng)
    return augment.degrade(pixels, rng)


def empty(count: int) -> Pool:
    """A pool to be filled."""
    half = PATCH_PX // 2
    return Pool(np.zeros((count, half, half, 3), np.uint8), np.zeros(count, np.float32), np.zeros(count, np.float32),
                np.zeros((count, FEATURES), np.float16), np.zeros(count, "U12"), np.zeros(count, bool))  # fmt: skip


def stain_targets(images: list[Image]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The colours that views are moved to: up to eight images of every kind, so that no source's colours prevail."""
    kinds = sorted({i.kind for i in images} - {"empty", "adipose"})
    return [augment.lab_statistics(i.pixels) for kind in kinds for i in [j for j in images if j.kind == kind][:8]]


def fill(pool: Pool, draw: Callable[[int], np.ndarray], teacher: Teacher, what: str) -> Pool:
    """Fills pixels, score and features; draw(row) gives the view, uint8 (PATCH_PX, PATCH_PX, 3), and fills the rest."""
    count = len(pool.pixels)
    for start in range(0, count, 64):
        rows = range(start, min(start + 64, count))
        views = np.stack([draw(row) for row in rows])
        pool.pixels[start : rows.stop] = np.stack([augment.halve(v) for v in views])
        pool.teacher[start : rows.stop], pool.feature[start : rows.stop] = teacher(views)
        print(f"{what}: {rows.stop} of {count} views", flush=True)
    return pool


def make_real(images: list[Image], count: int, teacher: Teacher, rng: np.random.Generator) -> Pool:
    """`count` augmented views of real tissue. Views of train and validation images never meet in a mosaic."""
    groups: dict[tuple[str, bool], list[Image]] = defaultdict(list)
    for image in images:
        groups[image.kind, image.split == "validation"].append(image)
    kinds, shares = list(SHARES), np.array(list(SHARES.values()), float) / sum(SHARES.values())
    colours, pool = stain_targets(images), empty(count)

    def draw(row: int) -> np.ndarray:
        kind = kinds[rng.choice(len(kinds), p=shares)]
        both = groups[kind, False] + groups[kind, True]
        image = both[rng.integers(len(both))]
        validation = image.split == "validation"
        pixels, label = augment.view(image, rng), np.nan if image.tumour is None else float(image.tumour)
        if rng.random() < MOSAIC_SHARE / 100:
            other_kind = kinds[rng.choice(len(kinds), p=shares)]
            others = groups[other_kind, validation] or groups[kind, validation]
            other = others[rng.integers(len(others))]
            pixels, share = augment.mosaic(pixels, augment.view(other, rng), rng)
            label = label * share + (np.nan if other.tumour is None else float(other.tumour)) * (1 - share)
            kind = "mosaic"
        pool.label[row], pool.kind[row], pool.validation[row] = label, kind, validation
        return stained(pixels, rng, colours)

    return fill(pool, draw, teacher, "real")
