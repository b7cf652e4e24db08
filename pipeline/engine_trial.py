"""What an engine is tried on: tissue from slides, labelled pictures, and the reference's answers to them."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engines.aoti_flavour import FLAVOUR as AOTI
from engines.backend import open_plan
from engines.cache import Entry
from engines.calibration import WANTED, Patches, join
from engines.check import prepare
from engines.check import prove as prove_model
from engines.choose import Trial
from engines.engine import Engine, open_engine
from engines.errors import EngineError
from engines.fresh import LIMIT_S, prove
from engines.model import Model
from engines.torch_reference import Answer, in_batches, torch_reference
from engines.verify import run
from pipeline.config import Config
from pipeline.engine_options import tell
from pipeline.labelled import read_labelled
from pipeline.sample import sample

_BATCH = 32


class TrialMaker:
    """Samples and scores with one reference in float32: ONNX Runtime, or PyTorch where the model has no ONNX. `args` are
    those of the command line.
    """

    def __init__(
        self, model: Model, config: Config, args: argparse.Namespace, threads: int, tell: Callable[[str], None]
    ) -> None:
        self._model, self._config, self._args = model, config, args
        self._tell, self._threads = tell, threads
        self._folder = tempfile.TemporaryDirectory(prefix="slidestream-")
        self._answers: dict[int, Answer] = {}

    def score(self, patches: np.ndarray) -> np.ndarray:
        """Probabilities of uint8 (n, P, P, 3) by the reference. Raises ModelError, EngineError."""
        patch_px = int(patches.shape[1])
        if patch_px not in self._answers:
            self._answers[patch_px] = self._answer(patch_px)
        return self._answers[patch_px](patches)

    def _answer(self, patch_px: int) -> Answer:
        model = self._model.at(patch_px)
        if not model.has_onnx:
            answer = torch_reference(model)
            prove_model(model, answer)
            return lambda patches: in_batches(answer, patches, _BATCH)
        folded = Path(self._folder.name) / f"folded-{patch_px}.onnx"
        prepare(model, folded)
        shape = {"classes": len(model.classes), "patch_px": patch_px, "max_batch": _BATCH}
        engine = open_engine("onnx", folded, threads=self._threads, **shape)
        return lambda patches: run(engine.contexts(1), patches, _BATCH)

    def calibration(self, inputs: Sequence[Path]) -> Patches:
        """Tissue to calibrate with, over the slides and the range of scores."""
        self._tell(f"calibration: choosing {WANTED} patches")
        return sample(inputs, self._model, self._config, WANTED, self._args.seed, score=self.score, tell=self._tell)

    def trial(self, inputs: Sequence[Path], sizes: Sequence[int]) -> Trial:
        """Patches other than those of `calibration` (another seed), the labelled ones, and the reference's answers.

        At each of the patch sizes, the model's own first.
        """
        first, *others = sorted(set(sizes), key=lambda size: (size != self._model.patch_px, size))
        return replace(self._at(inputs, first), others=tuple(self._at(inputs, size) for size in others))

    def _at(self, inputs: Sequence[Path], patch_px: int) -> Trial:
        model = self._model.at(patch_px)
        parts: list[Patches] = []
        labels: list[np.ndarray] = []
        if inputs:
            seed = self._args.seed + 1000
            parts.append(sample(inputs, model, self._config, self._args.patches, seed, tell=self._tell))
            labels.append(np.full(len(parts[0]), -1))
        if self._args.labelled:
            positive = self._args.positive or self._model.classes[-1]
            found, truth = read_labelled(self._args.labelled, patch_px, positive)
            parts.append(found)
            labels.append(truth)
        patches = join(parts)
        runtime = "ONNX Runtime" if model.has_onnx else "PyTorch"
        self._tell(f"reference: {runtime} on {len(patches)} patches of {patch_px} px")
        reference = self.score(patches.pixels)
        known = np.concatenate(labels) if self._args.labelled else None
        return Trial(patches.pixels, reference, known, bound=self._args.bound)


def opened(entry: Entry, patch_px: int) -> Engine:
    """An engine that may not have been verified, on the first GPU. Raises EngineError. See engines.choose.Opener."""
    if entry.identity is None:
        raise EngineError(f"{entry.plan}: {entry.problem}; build it again")
    shape = {
        "classes": entry.identity.classes,
        "patch_px": patch_px,
        "max_batch": max((p["maximum"] for p in entry.identity.profiles if p["patch_px"] == patch_px), default=1),
    }
    if entry.identity.backend == AOTI:  # PyTorch has much to load, and has it where it built the package
        tell(f"{entry.plan.name}: a new process runs a batch, in {LIMIT_S:g} s at most")
        prove(entry.plan, **shape)
    return open_plan(entry.plan, **shape, unverified=True)
