from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1.5])
def test_a_value_that_is_no_probability_is_refused(make_record, value):
    """An inferred patch with NaN, infinity or a number outside of 0..1 never becomes a record."""
    record = make_record()
    probabilities = record.probabilities.copy()
    probabilities[3, 1] = value
    with pytest.raises(ValueError, match="1 inferred patches have a value that is no probability"):
        make_record(probabilities=probabilities)


def test_the_probabilities_of_a_failed_patch_do_not_matter(make_record):
    """A failed patch's row may hold anything."""
    assert make_record(failed=(2,)).counts() == (20, 19, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("probabilities", np.zeros((20, 3), np.float32)),
        ("probabilities", np.zeros((20, 2), np.float64)),
        ("rows", np.zeros(19, np.int32)),
        ("state", np.full(20, 7, np.uint8)),
        ("columns", np.arange(-1, 19, dtype=np.int32)),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(make_record, name, value):
    """A wrong shape, type, state or place is a ValueError that names the slide."""
    with pytest.raises(ValueError, match="ward/slide 1"):
        make_record(**{name: value})


def test_two_patches_in_one_place_are_refused(make_record):
    """Nothing is doubled: one cell of the grid, one patch."""
    with pytest.raises(ValueError, match="same place"):
        make_record(columns=np.zeros(20, np.int32), rows=np.zeros(20, np.int32))


def test_a_pending_patch_means_not_finished(make_record):
    """planned = inferred + failed, or there are no counts."""
    state = np.ones(20, np.uint8)
    state[5] = 0
    with pytest.raises(ValueError, match="1 of 20 patches are pending"):
        make_record(state=state).counts()


def test_a_failed_patch_needs_a_reason(make_record):
    """A patch cannot fail in silence."""
    with pytest.raises(ValueError, match="no reason, first patch 4"):
        make_record(failed=(4,), reasons={}).counts()


@pytest.mark.parametrize(
    ("cells", "failed", "outcome"),
    [(20, (), "complete"), (0, (), "complete"), (20, (1,), "partial"), (2, (0, 1), "failed")],
)
def test_outcome(make_record, cells, failed, outcome):
    """Complete without failures (also without tissue), partial with some, failed when nothing was inferred."""
    assert make_record(cells=cells, failed=failed).outcome() == outcome


def test_grid_order_is_row_by_row(make_record):
    """Files are sorted by grid row, then column, whatever the read order was."""
    record = make_record()
    order = record.grid_order()
    places = list(zip(record.rows[order], record.columns[order], strict=True))
    assert places == sorted(places)
    assert record.minx(order)[0] == record.columns[order[0]] * 448
