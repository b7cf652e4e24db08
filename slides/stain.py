"""Haematoxylin and eosin: from stain concentrations to colours, by the Beer-Lambert law.

Stain directions in optical density are those of Ruifrok and Johnston (2001) and Macenko et al. (2009, the usual
reference matrix), between which laboratories lie; a seeded stain is drawn from around the line that joins them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FULL_SCALE = 3.2
"""The concentration (natural-log optical density along the stain's unit vector) that a byte of 255 stands for."""

_HAEMATOXYLIN = (np.array([0.650, 0.704, 0.286]), np.array([0.5626, 0.7201, 0.4062]))
_EOSIN = (np.array([0.072, 0.990, 0.105]), np.array([0.2159, 0.8012, 0.5581]))


@dataclass(frozen=True, slots=True)
class Stain:
    """What a laboratory and a scanner make of tissue: stain vectors (unit, RGB optical density), strengths, white."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    haematoxylin_gain: float
    eosin_gain: float
    white: tuple[int, int, int]

    @staticmethod
    def reference() -> Stain:
        """Macenko's reference directions, unit gains, a slightly warm white."""
        h, e = (tuple(float(c) for c in v[1] / np.linalg.norm(v[1])) for v in (_HAEMATOXYLIN, _EOSIN))
        return Stain(h, e, 1.0, 1.0, (243, 242, 244))

    @staticmethod
    def random(rng: np.random.Generator) -> Stain:
        """A plausible stain: another laboratory, another day, another scanner."""

        def direction(ends: tuple[np.ndarray, np.ndarray], low: float, jitter: float) -> tuple[float, float, float]:
            t = rng.uniform(low, 1.15)
            v = np.clip(ends[0] * (1 - t) + ends[1] * t + rng.normal(0, jitter, 3), 0.02, None)
            r, g, b = v / np.linalg.norm(v)
            return float(r), float(g), float(b)

        haematoxylin, eosin = direction(_HAEMATOXYLIN, 0.2, 0.02), direction(_EOSIN, 0.55, 0.02)
        gains = rng.uniform(0.75, 1.2), rng.uniform(0.7, 1.35)
        level = rng.integers(232, 249)
        r, g, b = (int(np.clip(level + d, 0, 252)) for d in rng.integers(-3, 4, 3))
        return Stain(haematoxylin, eosin, float(gains[0]), float(gains[1]), (r, g, b))

    def colour(self, haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
        """RGB uint8 (h, w, 3) of two concentration images uint8 (h, w), 255 being FULL_SCALE."""
        steps = np.arange(256) * (FULL_SCALE / 255)
        planes = []
        for c in range(3):
            h_table = np.round(self.white[c] * np.exp(-steps * self.haematoxylin_gain * self.haematoxylin[c]))
            e_table = np.round(255 * np.exp(-steps * self.eosin_gain * self.eosin[c]))
            h_plane, e_plane = cv2.LUT(haematoxylin, h_table.astype(np.uint8)), cv2.LUT(eosin, e_table.astype(np.uint8))
            planes.append(cv2.multiply(h_plane, e_plane, scale=1 / 255))
        return cv2.merge(planes)
