"""The probabilities of several models side by side, as they travel and lie in a journal; and one model's share of them.

A patch that could not be read, or not be run, has failed for all models. One that a model answers with something that is
no number has failed for that model alone: its row keeps what the others said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from results.record import FAILED, INFERRED

NOT_A_NUMBER = "the model's output is not a number"


class Share(NamedTuple):
    """The patches of a slide as one model knows them, as in SlideRecord."""

    states: np.ndarray
    probabilities: np.ndarray
    reasons: dict[int, str]


def columns(classes: Sequence[int]) -> list[slice]:
    """Where each model's columns lie; `classes` has their numbers, in the order of the models."""
    ends = np.cumsum(classes).tolist()
    return [slice(end - count, end) for end, count in zip(ends, classes, strict=True)]


def unanswered(probabilities: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """bool (n,): the rows of float32 (n, sum of classes) in which no model gave numbers alone."""
    finite = np.isfinite(probabilities)
    return np.logical_and.reduce([~finite[:, part].all(axis=1) for part in columns(classes)])


def share(states: np.ndarray, probabilities: np.ndarray, reasons: dict[int, str], part: slice) -> Share:
    """What one model knows of the patches: uint8 (n,), float32 (n, all classes), reasons by patch; `part`: its columns."""
    own = np.ascontiguousarray(probabilities[:, part])
    silent = (states == INFERRED) & ~np.isfinite(own).all(axis=1)
    if not silent.any():
        return Share(states, own, reasons)
    found = states.copy()
    found[silent] = FAILED
    return Share(found, own, reasons | dict.fromkeys(np.flatnonzero(silent).tolist(), NOT_A_NUMBER))
