"""An engine that computes nothing: for benchmarks, which find with it how fast everything around a model is.

Every class gets the same probability. It looks at no pixel, so whatever time a run takes is that of the readers, the
batcher and the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

VERSION = "1"


class NullEngine:
    """See engines.engine.Engine."""

    name = "null"

    def __init__(self, folded: Path, *, classes: int, patch_px: int, threads: int, max_batch: int) -> None:
        self._classes = classes
        self._shape = (patch_px, patch_px, 3)
        self._threads = threads
        self._max_batch = max_batch

    def describe(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "version": VERSION,
            "provider": "none",
            "precision": "none",
            "threads": self._threads,
            "max_batch": self._max_batch,
        }

    def telemetry(self) -> dict[str, float]:
        return {}

    def attach(self, memory: np.ndarray) -> None:
        """Nothing to do: no pixel is read."""

    def contexts(self, n: int) -> list[NullContext]:
        return [NullContext(self._shape, self._classes, self._max_batch) for _ in range(n)]

    def close(self) -> None:
        """Nothing to give back."""


class NullContext:
    """See engines.engine.Context."""

    def __init__(self, shape: tuple[int, int, int], classes: int, max_batch: int) -> None:
        self._shape = shape
        self._classes = classes
        self._max_batch = max_batch
        self._rows = 0

    def submit(self, patches: np.ndarray) -> None:
        if self._rows:
            raise ValueError("submit on a busy context: take its result first")
        if patches.dtype != np.uint8 or patches.shape[1:] != self._shape:
            raise ValueError(f"patches must be uint8 (n, {', '.join(map(str, self._shape))}), not {patches.shape}")
        if not 1 <= len(patches) <= self._max_batch:
            raise ValueError(f"a batch holds 1 to {self._max_batch} patches, not {len(patches)}")
        self._rows = len(patches)

    def consumed(self) -> bool:
        return self._rows > 0

    def done(self) -> bool:
        return self._rows > 0

    def wait(self, seconds: float) -> bool:
        return self._rows > 0

    def result(self) -> np.ndarray:
        rows, self._rows = self._rows, 0
        if not rows:
            raise ValueError("result of an idle context: submit first")
        return np.full((rows, self._classes), 1 / self._classes, np.float32)
