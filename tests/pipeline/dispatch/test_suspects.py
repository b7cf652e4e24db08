"""Finding the patches that kill: all of them, no other, and at a bounded price."""

from __future__ import annotations

from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dispatch.slots import Batch, Segment
from pipeline.dispatch.suspects import Suspects


def batch(n: int, urgent: bool = False, slide: int = 1, suspect: bool = False) -> Batch:
    return Batch((Segment(slide, np.arange(n, dtype=np.int32)),), urgent, suspect=suspect)


def patches(segments: list[Segment] | tuple[Segment, ...]) -> set[tuple[int, int]]:
    return {(s.slide, p) for s in segments for p in s.patches.tolist()}


def trial(suspects: Suspects, killers: dict[tuple[int, int], str]) -> tuple[set, set, int]:
    """Try until nobody is suspect: who is innocent, who quarantined, how many died of it."""
    innocent: set = set()
    quarantined: set = set()
    deaths = 0
    while len(suspects):
        tried = suspects.next(suspects.waiting(True))
        deadly = patches(tried.segments) & killers.keys()
        if deadly:
            deaths += 1
            quarantined |= patches(suspects.blame(tried, killers[min(deadly)]))
        else:
            innocent |= patches(tried.segments)
    return innocent, quarantined, deaths


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.dictionaries(
        st.tuples(st.integers(0, 3), st.integers(0, 11)), st.sampled_from(["reader", "inference"]), max_size=6
    ),
)
def test_exactly_the_guilty_are_quarantined(counts: list[int], killers: dict[tuple[int, int], str]) -> None:
    """Any set of poisonous patches in any batch is found, and every innocent one runs."""
    made = Batch(tuple(Segment(i, np.arange(n, dtype=np.int32)) for i, n in enumerate(counts)))
    everyone = patches(made.segments)
    suspects = Suspects()
    assert suspects.blame(made, "reader") == []
    innocent, quarantined, deaths = trial(suspects, killers)
    assert quarantined == everyone & killers.keys()
    assert innocent == everyone - killers.keys()
    # Each guilty patch costs a death for every batch around it that is tried, and two of its own.
    assert deaths <= len(quarantined) * (ceil(log2(sum(counts))) + 2)


@pytest.mark.parametrize("n", [1, 2, 32, 256, 1000])
def test_one_guilty_patch_costs_a_logarithm_of_deaths(n: int) -> None:
    """One in the batch itself, one for every halving, two of its own."""
    suspects = Suspects()
    suspects.blame(batch(n), "inference")
    _, quarantined, deaths = trial(suspects, {(1, n // 3): "inference"})
    assert len(quarantined) == 1 and 1 + deaths <= 3 + ceil(log2(n))


def test_an_accident_costs_nobody() -> None:
    """A death in company and a death alone are no proof against a single patch: it takes two alone."""
    suspects = Suspects()
    assert suspects.blame(batch(1), "reader") == []
    assert suspects.blame(suspects.next(False), "reader") == []
    assert len(suspects) == 1 and patches(suspects.blame(suspects.next(False), "reader")) == {(1, 0)}


def test_deaths_of_different_kinds_do_not_add_up() -> None:
    """A reader's death and an inference worker's do not make two of either."""
    suspects = Suspects()
    suspects.blame(batch(1), "reader")
    assert suspects.blame(suspects.next(False), "reader") == []
    assert suspects.blame(suspects.next(False), "inference") == []
    assert patches(suspects.blame(suspects.next(False), "inference")) == {(1, 0)}


def test_a_trial_that_did_not_take_place_is_next_again() -> None:
    """What was put back goes first, unchanged."""
    suspects = Suspects()
    suspects.blame(batch(8), "reader")
    suspects.blame(batch(3), "reader")
    tried = suspects.next(False)
    suspects.put_back(tried)
    assert suspects.next(False) is tried


def test_classes_wait_apart() -> None:
    """Urgent suspects need not wait for routine ones."""
    suspects = Suspects()
    suspects.blame(batch(8), "reader")
    suspects.blame(batch(2, urgent=True), "reader")
    assert len(suspects) == 2 and suspects.waiting(True) and suspects.waiting(False)
    assert suspects.next(True).urgent and not suspects.waiting(True)
    assert len(list(suspects)) == 1


def test_halves_forget_the_failures_of_the_whole() -> None:
    """Rows are read again in each trial: failures of an earlier reading name rows that have moved."""
    suspects = Suspects()
    made = batch(4, suspect=True)
    made.failures[3] = "bad tile"
    suspects.blame(made, "inference")
    assert [tried.failures for tried in suspects] == [{}, {}]
