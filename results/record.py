"""Everything that is known about one finished slide: the only thing the writers read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

PENDING, INFERRED, FAILED = 0, 1, 2
STATE_NAMES = ("pending", "inferred", "failed")

# A softmax in half precision may miss 1 by a few units of its last place; anything further off is not a probability.
PROBABILITY_SLACK = 1e-2

# In a model's description: the patch size that it was made for, where it was used at another one.
OWN_PATCH_PX = "own_patch_px"

# Six decimal digits each: GeoJSON writes a patch's row and column into its UUID.
GRID_LIMIT = 1_000_000


class Counts(NamedTuple):
    """Patches of a slide; planned = inferred + failed, always."""

    planned: int
    inferred: int
    failed: int


@dataclass(frozen=True, slots=True, eq=False)
class SlideRecord:
    """One slide with the fate of each of its ``n`` planned patches, in read order (a patch's index is its place there).

    ``info`` is ``SlideInfo.to_dict()``, ``geometry`` is ``Geometry.to_dict()``. ``model`` has ``name``, ``sha256``,
    ``classes``, ``patch_px``, ``spacing`` (um/px), and perhaps OWN_PATCH_PX. ``columns`` and ``rows`` (int32, n) place a
    patch on the grid, ``fraction`` (float32, n) is the share of it that is tissue, ``state`` (uint8, n) one of PENDING, INFERRED,
    FAILED, ``probabilities`` float32 (n, classes); a row that was not inferred may hold anything and is never read.
    ``reasons`` maps the index of every failed patch to one line. ``tissue`` has ``method``, ``threshold``,
    ``area_mm2``, ``um_per_px``. ``seconds`` is time per stage. ``key`` (``fingerprint``, ``model``,
    ``configuration``) says what the result was computed from. ``overview`` uint8 (h, w, 3), ``mask`` bool (h', w').

    Raises ValueError where shapes, types or values contradict each other: a wrong record never becomes a file.
    """

    slide: str
    path: str
    info: dict[str, Any]
    geometry: dict[str, Any]
    model: dict[str, Any]
    engine: dict[str, Any]
    columns: np.ndarray
    rows: np.ndarray
    fraction: np.ndarray
    state: np.ndarray
    probabilities: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    tissue: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    key: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    overview: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.columns)
        classes = len(self.model["classes"])
        if classes == 0 or len(set(self.model["classes"])) != classes:
            raise ValueError(f"{self.slide}: the model has no classes, or two of the same name")
        if self.probabilities.shape != (n, classes) or self.probabilities.dtype != np.float32:
            raise ValueError(
                f"{self.slide}: probabilities are {self.probabilities.dtype} {self.probabilities.shape}, "
                f"not float32 ({n}, {classes})"
            )
        for name in ("columns", "rows", "fraction", "state"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{self.slide}: {name} has the shape {getattr(self, name).shape}, not ({n},)")
        if n and int(self.state.max()) > FAILED:
            raise ValueError(f"{self.slide}: unknown patch state {int(self.state.max())}")
        inferred = self.probabilities[self.state == INFERRED]
        # Written so that NaN fails the comparison too.
        good = (inferred >= -PROBABILITY_SLACK) & (inferred <= 1 + PROBABILITY_SLACK)
        if not good.all():
            raise ValueError(
                f"{self.slide}: {int((~good).any(axis=1).sum())} inferred patches have a value that is no probability"
            )
        if n and self._cells_repeat():
            raise ValueError(f"{self.slide}: two patches have the same place on the grid")

    def _cells_repeat(self) -> bool:
        for place in (self.columns, self.rows):
            if int(place.min()) < 0 or int(place.max()) >= GRID_LIMIT:
                raise ValueError(f"{self.slide}: a patch lies outside of every grid (0 to {GRID_LIMIT - 1})")
        cells = np.sort(self.rows.astype(np.int64) * GRID_LIMIT + self.columns)
        return bool((cells[1:] == cells[:-1]).any())

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the columns of ``probabilities``."""
        return tuple(self.model["classes"])

    def counts(self) -> Counts:
        """How many patches were planned, inferred and failed.

        Raises ValueError while a patch is pending or a failed one has no reason: such a slide is not finished.
        """
        inferred = int(np.count_nonzero(self.state == INFERRED))
        failed = np.flatnonzero(self.state == FAILED)
        planned = len(self.state)
        if planned != inferred + len(failed):
            pending = planned - inferred - len(failed)
            raise ValueError(f"{self.slide}: {pending} of {planned} patches are pending; the slide is not finished")
        silent = [int(i) for i in failed if not self.reasons.get(int(i))]
        if silent:
            raise ValueError(f"{self.slide}: {len(silent)} failed patches have no reason, first patch {silent[0]}")
        return Counts(planned, inferred, len(failed))

    def outcome(self) -> str:
        """``complete`` (no patch failed; also a slide without tissue), ``partial``, or ``failed`` (none inferred)."""
        counts = self.counts()
        if counts.failed == 0:
            return "complete"
        return "partial" if counts.inferred else "failed"

    def grid_order(self) -> np.ndarray:
        """Indices (int64, n) that sort the patches by grid row, then column: the order of every file."""
        return np.lexsort((self.columns, self.rows))

    def inferred_order(self) -> np.ndarray:
        """``grid_order`` of the inferred patches alone: the rows of CSV and GeoJSON."""
        order = self.grid_order()
        return order[self.state[order] == INFERRED]

    def minx(self, index: np.ndarray) -> np.ndarray:
        """Left edge of the patches ``index``, level-0 px, int64."""
        return int(self.geometry["origin_x"]) + self.columns[index].astype(np.int64) * int(self.geometry["step_x"])

    def miny(self, index: np.ndarray) -> np.ndarray:
        """Top edge of the patches ``index``, level-0 px, int64."""
        return int(self.geometry["origin_y"]) + self.rows[index].astype(np.int64) * int(self.geometry["step_y"])
