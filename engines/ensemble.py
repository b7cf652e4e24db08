"""Several models as one engine: each batch goes through all of them, their probabilities come side by side.

On a GPU every context of the ensemble is one context of each engine, on its own stream, so the models compute beside
each other; the pixels of a slot are copied once for each, and the slot is free when the last copy is done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.configured import open_configured
from engines.engine import Context, Engine
from engines.errors import EngineError

MODELS = "models"  # in `describe`: what each model's own engine says, by the model's name
_WHOLE_GPU = "gpu_"  # figures of this beginning are of the GPU, and the same whichever engine tells them
_SHARED = ("seconds", "batches", "rows", "busy_seconds", "fill")  # every batch goes through every model


class Ensemble:
    """See engines.engine.Engine. `parts`: engines by the name of their model, in the order of the columns.

    The engines belong to it from now on. They must take the same patches and the same largest batch.
    """

    name = "ensemble"

    def __init__(self, parts: dict[str, Engine]) -> None:
        if len(parts) < 2:
            raise ValueError("an ensemble has at least two models")
        self._parts = parts

    def describe(self) -> dict[str, Any]:
        """What all have in common, where they differ joined by " + "; and under "models" each one's own description."""
        each = {name: part.describe() for name, part in self._parts.items()}
        common = ("engine", "version", "provider", "precision")
        return {
            **{key: " + ".join(dict.fromkeys(str(about.get(key)) for about in each.values())) for key in common},
            "threads": max(about["threads"] for about in each.values()),
            "max_batch": min(about["max_batch"] for about in each.values()),
            MODELS: each,
        }

    def telemetry(self) -> dict[str, float]:
        """Every figure of the engines, the largest of them (a batch is as slow as its slowest model), and as
        "<model>: <figure>" each model's own.
        """
        largest: dict[str, float] = {}
        own: dict[str, float] = {}
        for model, part in self._parts.items():
            for name, value in part.telemetry().items():
                largest[name] = max(value, largest.get(name, value))
                if name not in _SHARED and not name.startswith(_WHOLE_GPU):
                    own[f"{model}: {name}"] = value
        return largest | own

    def attach(self, memory: np.ndarray) -> None:
        for part in self._parts.values():
            part.attach(memory)

    def contexts(self, n: int) -> list[EnsembleContext]:
        made: list[list[Context]] = []
        for name, part in self._parts.items():
            with _about(name):
                made.append(part.contexts(n))
        return [EnsembleContext(each) for each in zip(*made, strict=True)]

    def close(self) -> None:
        for part in self._parts.values():
            part.close()


class EnsembleContext:
    """See engines.engine.Context: busy until every model has answered."""

    def __init__(self, parts: Sequence[Context]) -> None:
        self._parts = tuple(parts)

    def submit(self, patches: np.ndarray) -> None:
        for part in self._parts:
            part.submit(patches)

    def consumed(self) -> bool:
        return all(part.consumed() for part in self._parts)

    def done(self) -> bool:
        return all(part.done() for part in self._parts)

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        return all(part.wait(max(0.0, until - time.monotonic())) for part in self._parts)

    def result(self) -> np.ndarray:
        """The models' columns side by side. Where one of them failed, the batch has failed; all are idle again."""
        columns: list[np.ndarray] = []
        errors: list[EngineError] = []
        for part in self._parts:
            try:
                columns.append(part.result())
            except EngineError as error:
                errors.append(error)
        if errors:
            raise next((error for error in errors if error.fatal), errors[0])
        return np.concatenate(columns, axis=1)


def open_models(
    inference: dict[str, Any],
    models: Sequence[dict[str, Any]],
    *,
    folded: Sequence[Path],
    plans: Sequence[Path],
    max_batch: int,
) -> Engine:
    """The engine of one model, or the ensemble of several; each is opened as by engines.configured.open_configured.

    `models`: what Model.describe() says. `folded` and, on a GPU, `plans` are theirs, in the same order; without plans the
    run is on a CPU. Raises EngineError, naming the model where there are several.
    """
    parts: dict[str, Engine] = {}

    def opened(number: int) -> Engine:
        model = models[number]
        return open_configured(
            inference,
            folded=folded[number],
            plan=plans[number] if plans else None,
            classes=len(model["classes"]),
            patch_px=model["patch_px"],
            max_batch=max_batch,
        )

    if len(models) == 1:
        return opened(0)
    try:
        for number, model in enumerate(models):
            with _about(model["name"]):
                parts[model["name"]] = opened(number)
    except EngineError:
        for part in parts.values():
            part.close()
        raise
    return Ensemble(parts)


@contextlib.contextmanager
def _about(model: str) -> Iterator[None]:
    """EngineErrors say which model they are about."""
    try:
        yield
    except EngineError as error:
        raise EngineError(f"model {model}: {error.problem}", fatal=error.fatal) from error
