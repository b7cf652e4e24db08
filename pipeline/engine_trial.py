"""What an engine is tried on: tissue from slides, labelled pictures, and the reference's answers to them."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from engines.backend import open_plan
from engines.cache import Entry
from engines.calibration import WANTED, Patches, join
from engines.check import prepare
from engines.choose import Trial
from engines.engine import Engine, open_engine
from engines.errors import EngineError
from engines.model import Model
from engines.verify import run
from pipeline.config import Config
from pipeline.labelled import read_labelled
from pipeline.sample import sample

_BATCH = 32


class TrialMaker:
    """Samples and scores with one reference engine, ONNX Runtime in float32. `args` are those of the command line."""

    def __init__(
        self, model: Model, config: Config, args: argparse.Namespace, threads: int, tell: Callable[[str], None]
    ) -> None:
        self._model, self._config, self._args = model, config, args
        self._tell, self._threads = tell, threads
        self._folder = tempfile.TemporaryDirectory(prefix="slidestream-")
        self._engine: Engine | None = None

    def score(self, patches: np.ndarray) -> np.ndarray:
        """Probabilities by the reference. Raises ModelError, EngineError."""
        if self._engine is None:
            folded = Path(self._folder.name) / "folded.onnx"
            prepare(self._model, folded)
            self._engine = open_engine(
                "onnx",
                folded,
                classes=len(self._model.classes),
                patch_px=self._model.patch_px,
                threads=self._threads,
                max_batch=_BATCH,
            )
        return run(self._engine.contexts(1), patches, _BATCH)

    def calibration(self, inputs: Sequence[Path]) -> Patches:
        """Tissue to calibrate with, over the slides and the range of scores."""
        self._tell(f"calibration: choosing {WANTED} patches")
        return sample(inputs, self._model, self._config, WANTED, self._args.seed, score=self.score, tell=self._tell)

    def trial(self, inputs: Sequence[Path]) -> Trial:
        """Patches other than those of `calibration` (another seed), the labelled ones, and the reference's answers."""
        parts: list[Patches] = []
        labels: list[np.ndarray] = []
        if inputs:
            seed = self._args.seed + 1000
            parts.append(sample(inputs, self._model, self._config, self._args.patches, seed, tell=self._tell))
            labels.append(np.full(len(parts[0]), -1))
        if self._args.labelled:
            positive = self._args.positive or self._model.classes[-1]
            found, truth = read_labelled(self._args.labelled, self._model.patch_px, positive)
            parts.append(found)
            labels.append(truth)
        patches = join(parts)
        self._tell(f"reference: ONNX Runtime on {len(patches)} patches")
        reference = self.score(patches.pixels)
        known = np.concatenate(labels) if self._args.labelled else None
        return Trial(patches.pixels, reference, known, bound=self._args.bound)


def opened(entry: Entry) -> Engine:
    """An engine that may not have been verified, on the first GPU. Raises EngineError. See engines.choose.Opener."""
    if entry.identity is None:
        raise EngineError(f"{entry.plan}: {entry.problem}; build it again")
    return open_plan(
        entry.plan,
        classes=entry.identity.classes,
        patch_px=entry.identity.profiles[0]["patch_px"],
        max_batch=max(profile["maximum"] for profile in entry.identity.profiles),
        unverified=True,
    )
