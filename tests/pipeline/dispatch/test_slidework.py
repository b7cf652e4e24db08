"""Where the patches of a slide are: pending, in flight, recorded, settled; always one of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dispatch.slidework import SlideState, SlideWork


def reading(n: int, states: list[int] | None = None) -> SlideWork:
    slide = SlideWork(1, "a", "/a", {})
    slide.begin(np.zeros((n, 2), np.int32), None if states is None else np.array(states, np.uint8))
    return slide


def test_patches_are_taken_in_order() -> None:
    """Neighbours first, no more than asked for, until nothing is left."""
    slide = reading(5)
    assert slide.take(2).tolist() == [0, 1] and slide.take(9).tolist() == [2, 3, 4] and slide.take(1).tolist() == []
    assert slide.in_flight == 5 and not slide.has_pending


def test_what_the_journal_holds_is_not_read_again() -> None:
    """Only pending patches are handed out; the others are counted as what they are."""
    slide = reading(5, [1, 0, 2, 0, 1])
    assert (slide.inferred, slide.failed, slide.pending) == (2, 1, 2)
    assert slide.take(9).tolist() == [1, 3]


def test_returned_patches_come_first() -> None:
    """Last given back, first taken, in parts if need be."""
    slide = reading(8)
    first, second = slide.take(3), slide.take(3)
    slide.give_back(second)
    slide.give_back(first)
    assert slide.pending == 8
    assert [slide.take(2).tolist() for _ in range(5)] == [[0, 1], [2], [3, 4], [5], [6, 7]]


def test_each_reader_goes_on_where_it_was() -> None:
    """The first has the whole plan, the next one the second half of the longest stretch; neighbours stay together."""
    slide = reading(100)
    assert slide.take(10, "a").tolist() == [*range(10)]
    assert slide.take(10, "b").tolist() == [*range(55, 65)]
    assert slide.take(10, "a").tolist() == [*range(10, 20)]
    assert slide.take(10, "b").tolist() == [*range(65, 75)]
    assert slide.take(10, "c").tolist() == [*range(38, 48)]


def test_returned_patches_go_to_whoever_comes() -> None:
    """They are first in line for every reader, and nobody's stretch."""
    slide = reading(100)
    slide.give_back(slide.take(5, "a"))
    assert slide.take(5, "b").tolist() == [*range(5)]
    assert slide.take(5, "b").tolist() == [*range(53, 58)] and slide.take(5, "a").tolist() == [*range(5, 10)]


def test_nobody_idles_at_the_end() -> None:
    """Who has nothing left takes from the longest stretch, down to the last patch, at least as many as it can use."""
    slide = reading(40)
    slide.take(4, "a")
    assert slide.take(8, "b").tolist() == [*range(22, 30)]
    assert slide.take(10, "b").tolist() == [*range(30, 40)]
    assert slide.take(8, "b").tolist() == [*range(13, 21)]  # the second half of what "a" has, 4 to 21
    assert slide.take(8, "c").tolist() == [*range(5, 13)]  # half of the rest would be too few
    assert sorted([*slide.take(8, "c").tolist(), *slide.take(8, "c").tolist()]) == [4, 21] and not slide.has_pending


def test_the_stretch_of_a_reader_that_is_gone_is_read_by_the_others() -> None:
    """No patch waits for a reader of that name."""
    slide = reading(64)
    slide.take(8, "dead")
    taken = []
    while slide.has_pending:
        part = slide.take(8, "alive").tolist()
        assert part
        taken += part
    assert sorted(taken) == list(range(8, 64))


@pytest.mark.parametrize("readers", [2, 3, 5, 16])
def test_stretches_stay_long(readers: int) -> None:
    """However many readers share a slide, most of what one gets goes on where its last batch ended."""
    slide = reading(12_800)
    ends: dict[int, int] = {}
    jumps = batches = 0
    while slide.has_pending:
        for reader in range(readers):
            part = slide.take(32, str(reader))
            if len(part):
                batches += 1
                jumps += ends.get(reader) != part[0] - 1
                ends[reader] = int(part[-1])
    assert batches <= 400 + 3 * readers and jumps <= 6 * readers


def test_a_slide_without_patches_is_settled_at_once() -> None:
    """Nothing planned, nothing to wait for."""
    slide = reading(0)
    assert slide.settled and not slide.has_pending


def test_only_a_slide_being_read_has_pending_patches() -> None:
    """Before and after, the schedule gets nothing from it."""
    slide = reading(3)
    slide.state = SlideState.WRITING
    assert not slide.has_pending
    assert not SlideWork(1, "a", "/a", {}).has_pending


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 30),
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "back", "record", "settle"]), st.integers(1, 9), st.sampled_from("abc")
        )
    ),
)
def test_counters_always_add_up(n: int, steps: list[tuple[str, int, str]]) -> None:
    """Whatever happens in whatever order: the counts add up to what is planned, and no patch is in two places."""
    slide = reading(n)
    flying: list[np.ndarray] = []
    recorded: list[np.ndarray] = []
    done: list[int] = []
    for step, count, reader in steps:
        if step == "take" and slide.has_pending:
            part = slide.take(count, reader)
            assert 0 < len(part) <= count
            flying.append(part)
        elif step == "back" and flying:
            slide.give_back(flying.pop(count % len(flying)))
        elif step == "record" and flying:
            recorded.append(flying.pop(count % len(flying)))
            slide.record(len(recorded[-1]))
        elif step == "settle" and recorded:
            part = recorded.pop(count % len(recorded))
            slide.settle(len(part) - 1, 1)
            done += part.tolist()
        assert slide.in_flight == sum(map(len, flying)) and slide.recorded == sum(map(len, recorded))
        assert slide.pending + slide.in_flight + slide.recorded + slide.inferred + slide.failed == slide.planned == n
        assert slide.has_pending == (slide.pending > 0)
    places = [p for part in (*flying, *recorded) for p in part.tolist()] + done
    while slide.has_pending:
        places += slide.take(4).tolist()
    assert sorted(places) == list(range(n))
