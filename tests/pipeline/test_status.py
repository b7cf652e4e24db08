"""What is said of a run: speed, time left."""

from __future__ import annotations

import pytest

from pipeline.status import StageStatus, Status, duration, eta_s, patches_left, rate, shares


def test_rate_counts_failed_patches_too():
    """Patches a second between two snapshots: a failed patch is done as well."""
    before = Status(1, patches_inferred=100, elapsed_s=1.0)
    after = Status(1, patches_inferred=190, patches_failed=10, elapsed_s=3.0)
    assert rate(before, after) == 50.0


def test_rate_without_time_is_zero():
    """One snapshot has no speed."""
    status = Status(1, patches_inferred=100, elapsed_s=1.0)
    assert rate(status, status) == 0.0


def test_time_left_for_planned_slides():
    """With all slides planned, the time left is what is left of the patches over the speed."""
    status = Status(1, patches_planned=1000, patches_inferred=400, active=(("a", 400, 1000),))
    assert eta_s(status, 100.0) == 6.0


def test_time_left_guesses_slides_not_yet_planned():
    """Slides without a plan count as the average of those that have one."""
    status = Status(4, slides_done=1, patches_planned=2000, patches_inferred=1500, active=(("b", 500, 1000),))
    assert patches_left(status) == 500 + 2 * 1000


def test_failed_slides_do_not_lower_the_average():
    """A slide that could not be opened never had patches."""
    status = Status(3, slides_done=1, slides_failed=1, patches_planned=1000, patches_inferred=1000)
    assert patches_left(status) == 1000


@pytest.mark.parametrize("status", [Status(3), Status(3, slides_failed=1)])
def test_time_left_is_unknown_at_the_start(status: Status):
    """Before any slide is planned, nothing can be said."""
    assert eta_s(status, 100.0) is None


def test_time_left_is_unknown_when_nothing_moves():
    """With work left and no speed, nothing can be said; with no work left it is zero."""
    assert eta_s(Status(1, patches_planned=10, active=(("a", 0, 10),)), 0.0) is None
    assert eta_s(Status(1, slides_done=1, patches_planned=10, patches_inferred=10), 0.0) == 0.0


def test_shares_are_of_the_time_between():
    """The shares of a stage are those since the older snapshot; a replaced worker never makes them negative."""
    older, newer = StageStatus("reader", 2, 10, 10, 0), StageStatus("reader", 2, 13, 10, 1)
    assert shares(newer, older) == (0.75, 0.0, 0.25)
    assert shares(older, newer) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (59.7, "1:00"), (3661, "1:01:01")])
def test_duration(seconds: float, text: str):
    """Seconds as a clock shows them."""
    assert duration(seconds) == text
