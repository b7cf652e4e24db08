"""Is an engine right? Its answers to real patches, compared with ONNX Runtime's in float32.

The loss is the largest of: the mean absolute difference of probabilities, the share of patches whose class changes, and,
where patches have labels, what the area under the ROC curve loses. An engine passes when its loss is within the bound. An
answer that is not a number never passes.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from engines.engine import Context, Engine

BOUND = 0.005
MIN_PATCHES = 256
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Verification:
    """What a comparison found. Numbers are None where there is none to give (no labels, or an answer that is NaN)."""

    passed: bool
    reason: str
    """Why not, or a warning; empty where there is nothing to say."""
    bound: float
    loss: float | None
    patches: int
    max_difference: float | None
    mean_difference: float | None
    flips: int | None
    auc_reference: float | None = None
    auc: float | None = None
    labelled: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Verification:
        """Of what `to_dict` gave, other keys being left alone. Raises TypeError where one is missing."""
        return cls(**{field.name: raw[field.name] for field in fields(cls) if field.name in raw})

    def show(self) -> str:
        if self.loss is None:
            return self.reason
        parts = [
            f"loss {self.loss:.3%} of at most {self.bound:.3%}",
            f"difference at most {self.max_difference:.2g}, on average {self.mean_difference:.2g}",
            f"{self.flips} of {self.patches} patches change class",
        ]
        if self.auc is not None:
            parts.append(f"AUC {self.auc:.4f} for {self.auc_reference:.4f} on {self.labelled} labelled patches")
        return "; ".join(parts) + (f"; {self.reason}" if self.reason else "")


def compare(
    reference: np.ndarray,
    answer: np.ndarray,
    *,
    bound: float = BOUND,
    labels: np.ndarray | None = None,
    positive: int = -1,
) -> Verification:
    """Compares probabilities (n, classes) of an engine with the reference's.

    `labels`: per patch 1 or True for the class `positive` (default: the last), 0 for others, -1 for unknown. Raises
    ValueError: shapes that do not go together, or a reference that is itself not finite.
    """
    if reference.shape != answer.shape or reference.ndim != 2 or not len(reference):
        raise ValueError(f"cannot compare answers of shape {answer.shape} with a reference of {reference.shape}")
    if not np.isfinite(reference).all():
        raise ValueError("the reference itself is not finite")
    n = len(reference)
    bad = int((~np.isfinite(answer).all(axis=1)).sum())
    if bad:
        reason = f"the answer is NaN or infinite for {bad} of {n} patches"
        return Verification(False, reason, bound, None, n, None, None, None)
    difference = np.abs(answer.astype(np.float64) - reference.astype(np.float64))
    flips = int((decide(reference) != decide(answer)).sum())
    losses = [float(difference.mean()), flips / n]
    auc_reference = auc_answer = None
    labelled = 0
    if labels is not None:
        known = np.asarray(labels) >= 0
        labelled, truth = int(known.sum()), np.asarray(labels)[known] > 0
        auc_reference, auc_answer = (auc(p[known, positive], truth) for p in (reference, answer))
        if auc_reference is not None and auc_answer is not None:
            losses.append(auc_reference - auc_answer)
    loss = max(losses)
    reason = "" if loss <= bound else f"its loss is {loss:.3%}, more than {bound:.3%}"
    if not reason and n < MIN_PATCHES:
        reason = f"only {n} patches were compared, {MIN_PATCHES} are wanted"
    return Verification(
        passed=loss <= bound,
        reason=reason,
        bound=bound,
        loss=loss,
        patches=n,
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        flips=flips,
        auc_reference=auc_reference,
        auc=auc_answer,
        labelled=labelled,
    )


def verify(
    engine: Engine,
    reference: Engine,
    patches: np.ndarray,
    *,
    bound: float = BOUND,
    labels: np.ndarray | None = None,
    positive: int = -1,
    batch: int = 32,
    contexts: int = 1,
) -> Verification:
    """Runs both engines over uint8 (n, P, P, 3) patches and compares. Raises EngineError (one of them failed),
    ValueError (the reference gives NaN).
    """
    expected = run(reference.contexts(1), patches, batch)
    found = run(engine.contexts(contexts), patches, batch)
    return compare(expected, found, bound=bound, labels=labels, positive=positive)


def run(contexts: list[Context], patches: np.ndarray, batch: int) -> np.ndarray:
    """Probabilities float32 (n, classes) of all patches, `batch` at a time, over all contexts. Raises EngineError."""
    idle, busy = deque(contexts), deque[tuple[Context, int]]()
    answers: dict[int, np.ndarray] = {}
    for start in range(0, len(patches), batch):
        if not idle:
            context, begun = busy.popleft()
            answers[begun] = context.result()
            idle.append(context)
        context = idle.popleft()
        context.submit(patches[start : start + batch])
        busy.append((context, start))
    answers.update((begun, context.result()) for context, begun in busy)
    return np.concatenate([answers[start] for start in sorted(answers)])


def decide(probabilities: np.ndarray) -> np.ndarray:
    """Per row its class: the most probable one, or whether the only one is more likely than not."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > _HALF).astype(np.int64)
    return probabilities.argmax(axis=1)


def auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Area under the ROC curve, by ranks (Mann-Whitney), ties counting half; None where only one class occurs."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    value = (ranks[truth].sum() - positives * (positives + 1) / 2.0) / (positives * negatives)
    return float(value) if math.isfinite(value) else None
