"""Where the patches of a slide are: pending, in flight, recorded, settled; always one of them."""

from __future__ import annotations

import numpy as np
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
    st.integers(0, 30), st.lists(st.tuples(st.sampled_from(["take", "back", "record", "settle"]), st.integers(1, 9)))
)
def test_counters_always_add_up(n: int, steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: the counts add up to what is planned, and no patch is in two places."""
    slide = reading(n)
    flying: list[np.ndarray] = []
    recorded: list[np.ndarray] = []
    done: list[int] = []
    for step, count in steps:
        if step == "take" and slide.has_pending:
            part = slide.take(count)
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
