"""Proves a model before it is used: folds it, loads it, and runs it on a few fixed patches."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from engines.errors import EngineError, ModelError, one_line
from engines.fold import DATA_SUFFIX, class_count_error, fold, other_size_remedy, save_folded
from engines.model import Model
from engines.onnx_engine import INPUT, open_session
from engines.torch_reference import Answer, torch_reference

PROBES = 3
# Wide enough for float16 networks and for any order of summation, far below what a network in training mode shows.
ALONE_TOLERANCE = 1e-3
SUM_TOLERANCE = 1e-3
_EVAL = "export it in eval mode with a dynamic batch axis: see docs/models.md"


def check_model(model: Model) -> None:
    """Raises ModelError where `model` cannot give probabilities for its patches. Leaves nothing behind."""
    if not model.has_onnx:
        prove(model, torch_reference(model))
        return
    with tempfile.TemporaryDirectory(prefix="slidestream-") as folder:
        prepare(model, Path(folder) / "folded.onnx")


def prepare(model: Model, folded: Path) -> None:
    """Writes the folded graph of `model` to `folded`, for `open_engine`, and proves it. Overwrites; raises ModelError.

    Where it raises, `folded` is gone. Large weights lie beside it in `<folded>.data`.
    """
    try:
        save_folded(fold(model), folded)
        probe(model, folded)
    except BaseException as error:
        for path in (folded, folded.with_name(folded.name + DATA_SUFFIX)):
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            problem = f"the folded model cannot be written ({error.strerror or error})"
            raise ModelError(folded, problem) from error
        raise


def probe(model: Model, folded: Path) -> None:
    """Loads a folded graph and proves it on the CPU. Raises ModelError."""
    try:
        session = open_session(folded, threads=os.cpu_count() or 1)
    except EngineError as error:
        problem = f"ONNX Runtime cannot load it: {one_line(error.__cause__ or error, 200)}"
        raise _refused(model, problem, "export it with opset 17") from error
    prove(model, lambda rows: session.run(None, {INPUT: rows})[0])


def prove(model: Model, answer: Answer) -> None:
    """Asks for the probabilities of one patch and then of several. Raises ModelError.

    Checked: shape, finite values, sums, and that a patch's answer does not hang on its batch.
    """
    patches = probe_patches(model.patch_px)
    answers: list[np.ndarray] = []
    for rows in (patches[:1], patches):
        try:
            answers.append(answer(rows))
        except Exception as error:  # the exceptions of ONNX Runtime and PyTorch have no base class of their own
            remedy = _EVAL if answers else ""
            problem = f"fails on a batch of {len(rows)}: {one_line(error, 200)}"
            raise _refused(model, problem, remedy) from error
        _check_answer(model, answers[-1], len(rows))
    difference = float(np.abs(answers[1][0] - answers[0][0]).max())
    if difference > ALONE_TOLERANCE:
        problem = f"a patch gets another probability alone than in a batch (by {difference:.3g})"
        raise ModelError(model.network_path, problem, _EVAL)


def probe_patches(patch_px: int) -> np.ndarray:
    """Three fixed patches, uint8 (3, P, P, 3): noise in the colours of H&E, plain white, and ramps from black to white.
    """
    rng = np.random.default_rng(7)
    patches = np.empty((PROBES, patch_px, patch_px, 3), np.uint8)
    colours = np.array([[225, 150, 190], [110, 70, 150]], np.float64)
    share = rng.random((patch_px, patch_px, 1))
    patches[0] = colours[0] * share + colours[1] * (1.0 - share)
    patches[1] = 255
    ramp = np.tile(np.linspace(0, 255, patch_px), (patch_px, 1))
    patches[2] = np.stack([ramp, ramp.T, np.full_like(ramp, 128)], axis=2)
    return patches


def _refused(model: Model, problem: str, remedy: str) -> ModelError:
    """What the network cannot do; at another patch size than its own, it is the size that it does not take."""
    if model.at_other_size:
        problem, remedy = f"does not take patches of {model.patch_px} px: {problem}", other_size_remedy(model)
    return ModelError(model.network_path, problem, remedy)


def _check_answer(model: Model, answer: np.ndarray, rows: int) -> None:
    path, classes = model.network_path, len(model.classes)
    if answer.ndim != 2 or answer.shape[0] != rows:
        shape = tuple(answer.shape)
        raise _refused(model, f"output must be logits ({rows}, {classes}) for {rows} patches, is {shape}", _EVAL)
    if answer.shape[1] != classes:
        raise class_count_error(model, answer.shape[1])
    if not np.isfinite(answer).all():
        problem = "output is NaN or infinite on ordinary patches"
        raise ModelError(path, problem, "its weights are damaged: export it again")
    # What Softmax or Sigmoid gave; a wrong sum would mean that the engine itself computes wrongly.
    wrong = (answer < 0).any() or (answer > 1).any()
    if wrong or (classes > 1 and np.abs(answer.sum(axis=1) - 1.0).max() > SUM_TOLERANCE):
        raise ModelError(path, f"probabilities are not between 0 and 1 with sum 1: {one_line(answer[0], 80)}")
