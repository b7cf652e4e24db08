"""A scene: which tissue is where, in which style and stain. Pure description; texture.py draws it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from slides.stain import Stain


@dataclass(frozen=True, slots=True)
class Mix:
    """What tissue there is at some points, float32 arrays in 0..1; tissue and tumour have their border at 0.5."""

    tissue: np.ndarray
    tumour: np.ndarray
    lymphoid: np.ndarray
    fat: np.ndarray


class Regions(Protocol):
    """Where the tissues of a scene are."""

    def mix(self, x: np.ndarray, y: np.ndarray) -> Mix:
        """The tissue at the points (x, y), broadcast together, in micrometres."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """One tissue everywhere; lymphoid and fat are weights, what remains is stroma."""

    tissue: float = 1.0
    tumour: float = 0.0
    lymphoid: float = 0.0
    fat: float = 0.0

    def mix(self, x: np.ndarray, y: np.ndarray) -> Mix:
        shape = np.broadcast(x, y).shape
        return Mix(*(np.full(shape, v, np.float32) for v in (self.tissue, self.tumour, self.lymphoid, self.fat)))


@dataclass(frozen=True, slots=True)
class Style:
    """What differs from one piece of tissue to the next besides the stain; lengths in micrometres, shares in 0..1."""

    fibre_angle: float
    fibre: float
    cracks: float
    lymphoid_pitch: float
    histiocytes: float
    stroma_cells: float
    glands: float
    vessels: float
    tumour_pitch: float
    dark_tumour: float
    nests: float
    lymphocytes_in_tumour: float
    cytoplasm: tuple[float, float]
    pallor: float
    blur_um: float

    @staticmethod
    def random(rng: np.random.Generator) -> Style:
        """A plausible style."""
        u = rng.uniform
        return Style(
            fibre_angle=u(0, np.pi),
            fibre=u(0.45, 0.95),
            cracks=u(0.9, 1.8),
            lymphoid_pitch=u(6.2, 8.0),
            histiocytes=u(0.04, 0.22),
            stroma_cells=u(0.3, 0.9),
            glands=u(0.0, 0.55),
            vessels=u(0.15, 0.5),
            tumour_pitch=u(11.8, 15.8),
            dark_tumour=u(0.0, 1.0) ** 2.2,
            nests=u(-0.75, -0.3),
            lymphocytes_in_tumour=u(0.0, 0.35),
            cytoplasm=(u(0.12, 0.32), u(0.45, 0.8)),
            pallor=u(0.06, 0.22),
            blur_um=u(0.10, 0.24),
        )


@dataclass(frozen=True)
class Scene:
    """An endless piece of stained tissue, the same for the same seed, regions, stain and style (by seed if None)."""

    seed: int
    regions: Regions
    stain: Stain = field(default_factory=Stain.reference)
    style: Style | None = None

    def look(self) -> Style:
        """The style, drawn from the seed where none was given."""
        return self.style or Style.random(np.random.default_rng([self.seed, 77]))
