"""Columns of several models: who they belong to, and whose failure a NaN is."""

from __future__ import annotations

import numpy as np

from results.columns import NOT_A_NUMBER, columns, share, unanswered
from results.record import FAILED, INFERRED

NAN = float("nan")


def test_columns_follow_each_other() -> None:
    """In the order of the models, none left out."""
    assert columns([2]) == [slice(0, 2)]
    assert columns([2, 1, 3]) == [slice(0, 2), slice(2, 3), slice(3, 6)]


def test_a_row_is_unanswered_where_no_model_gave_numbers() -> None:
    """One value that is none spoils its own model's answer, not the others'."""
    rows = np.array([[0.5, 0.5, 1], [NAN, 0.5, 1], [0.5, 0.5, np.inf], [0.5, NAN, NAN]], np.float32)
    assert unanswered(rows, [2, 1]).tolist() == [False, False, False, True]
    assert unanswered(rows, [3]).tolist() == [False, True, True, True]
    assert unanswered(rows[:0], [2, 1]).tolist() == []


def test_a_patch_without_numbers_has_failed_for_that_model_alone() -> None:
    """And what has failed for all keeps its reason."""
    states = np.array([INFERRED, INFERRED, FAILED], np.uint8)
    rows = np.array([[0.25, 0.75, 1], [NAN, NAN, 0.5], [NAN, NAN, NAN]], np.float32)
    reasons = {2: "cannot be read"}
    first, second = (share(states, rows, reasons, part) for part in columns([2, 1]))
    assert first.states.tolist() == [INFERRED, FAILED, FAILED]
    assert first.reasons == {1: NOT_A_NUMBER, 2: "cannot be read"}
    assert second.states.tolist() == states.tolist() and second.reasons == reasons
    assert second.probabilities.tolist()[:2] == [[1.0], [0.5]] and first.probabilities.flags.c_contiguous
    assert states.tolist() == [INFERRED, INFERRED, FAILED] and reasons == {2: "cannot be read"}
