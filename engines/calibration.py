"""Patches to calibrate or to verify with: which ones, and what is to be known of them afterwards.

Where the candidates come from is not known here (pipeline.sample reads them from slides): each has a group, its slide, and a
score of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WANTED = 500
SCORE_BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """uint8 (n, P, P, 3), and the slide of each: `groups` int (n,) into `names`."""

    pixels: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]
    seed: int

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def sha256(self) -> str:
        """Over the pixels, in their order."""
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels))
        return digest.hexdigest()

    def shortcomings(self, wanted: int = WANTED) -> list[str]:
        """What makes them a poor sample."""
        slides = len(np.unique(self.groups))
        problems = []
        if len(self) < wanted:
            problems.append(f"only {len(self)} patches, at least {wanted} are wanted")
        if slides < 2:
            problems.append("all patches come from one slide")
        return problems

    def to_dict(self, wanted: int = WANTED) -> dict[str, Any]:
        """For a sidecar."""
        return {
            "sha256": self.sha256,
            "patches": len(self),
            "slides": len(np.unique(self.groups)),
            "seed": self.seed,
            "warnings": self.shortcomings(wanted),
        }


def pick(groups: np.ndarray, scores: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """Indices of at most `wanted` candidates, spread over groups and over the range of scores (0 to 1), sorted.

    Every (range of scores, group) that occurs is served in turn until there are enough: a rare score is not crowded out by
    the many patches that the model finds easy. Which ones within it is left to the seed.
    """
    bins = np.clip((np.nan_to_num(scores) * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
    order = np.random.default_rng(seed).permutation(len(groups))
    # Rank of each candidate within its cell, in random order; then all first ones, all second ones, ...
    cells = bins * (int(groups.max(initial=0)) + 1) + groups
    ranks = np.empty(len(groups), np.int64)
    seen: dict[int, int] = {}
    for index in order:
        cell = int(cells[index])
        ranks[index] = seen[cell] = seen.get(cell, -1) + 1
    shuffled = order[np.argsort(ranks[order], kind="stable")]
    return np.sort(shuffled[:wanted])


def join(parts: Sequence[Patches]) -> Patches:
    """All patches of several samples, each group under its own name. Raises ValueError where there is none."""
    if not parts:
        raise ValueError("no patches")
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    groups = [np.array([names.index(name) for name in part.names])[part.groups] for part in parts]
    return Patches(np.concatenate([part.pixels for part in parts]), np.concatenate(groups), names, parts[0].seed)
