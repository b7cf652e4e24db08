"""Whose turn it is: urgent first, routine's floor, fair shares within a class."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.dispatch.schedule import Floor, Schedule
from pipeline.dispatch.slidework import SlideWork


def slide(number: int, patches: int, urgent: bool = False) -> SlideWork:
    made = SlideWork(number, str(number), "", {}, urgent)
    made.begin(np.zeros((patches, 2), np.int32))
    return made


def draw(schedule: Schedule, urgent: bool, rows: int) -> Counter:
    drawn: Counter = Counter()

    def take(work: SlideWork, count: int) -> int:
        got = len(work.take(count))
        drawn[work.number] += got
        return got

    schedule.draw(urgent, rows, take)
    return drawn


def share(floor: Floor, batches: int, urgent: bool = True, routine: bool = True) -> list[bool | None]:
    """The classes of the next so many full batches of 4."""
    turns = []
    for _ in range(batches):
        turns.append(floor.due(urgent, routine))
        if turns[-1] is not None:
            floor.charge(turns[-1], 4)
    return turns


def test_urgent_goes_first_without_a_floor() -> None:
    """A floor of nothing lets routine wait for ever; nobody waiting is nobody's turn."""
    assert share(Floor(4, 0.0), 50) == [True] * 50
    assert share(Floor(4, 0.0), 2, urgent=False) == [False] * 2
    assert share(Floor(4, 0.5), 1, urgent=False, routine=False) == [None]


@pytest.mark.parametrize("floor", [0.1, 0.25, 0.5])
def test_routine_gets_its_floor_and_no_more(floor: float) -> None:
    """Of the rows that are drawn while both wait, routine gets its share to within a batch."""
    routine = share(Floor(4, floor), 400).count(False)
    assert abs(routine - 400 * floor) <= 2


def test_the_first_batch_is_urgent() -> None:
    """The floor is paid afterwards, never in advance."""
    assert share(Floor(4, 0.1), 9) == [True] * 9


def test_routine_is_owed_nothing_for_the_time_that_it_was_not_there() -> None:
    """After hours of urgent work alone, the first routine slide does not hold up the next urgent one."""
    floor = Floor(4, 0.1)
    share(floor, 1000, routine=False)
    assert share(floor, 9) == [True] * 9


def test_debts_do_not_grow_while_routine_has_no_room() -> None:
    """Urgent batches that go instead of routine ones for want of room are not paid back one by one later."""
    floor = Floor(4, 0.1)
    for _ in range(1000):
        floor.due(True, True)
        floor.charge(True, 4)
    assert share(floor, 12).count(False) <= 2


def test_a_short_batch_costs_what_it_holds() -> None:
    """Routine batches of one row count as one row."""
    floor = Floor(4, 0.5)
    rows = {True: 0, False: 0}
    for _ in range(300):
        urgent = floor.due(True, True)
        rows[urgent] += 4 if urgent else 1
        floor.charge(urgent, 4 if urgent else 1)
    assert abs(rows[True] - rows[False]) <= 8


def test_slides_of_a_class_share_fairly() -> None:
    """A slide of a million patches gets no more than its turn beside a biopsy."""
    schedule = Schedule(8)
    big, small, other = slide(1, 100_000), slide(2, 80), slide(3, 80)
    for work in (big, small, other):
        schedule.add(work)
    total: Counter = Counter()
    for _ in range(30):
        total += draw(schedule, False, 8)
    assert total == {1: 80, 2: 80, 3: 80}


def test_batches_mix_slides_and_are_full() -> None:
    """Where one slide ends, the next one fills the batch up."""
    schedule = Schedule(8)
    for work in (slide(1, 3), slide(2, 3), slide(3, 10)):
        schedule.add(work)
    assert draw(schedule, False, 8) == {1: 3, 2: 3, 3: 2}
    assert draw(schedule, False, 8) == {3: 8}
    assert not schedule.waiting(False) and draw(schedule, False, 8) == {}


def test_shares_are_fair_in_short_batches_too() -> None:
    """The deficit carries over what did not fit: shares differ by a turn at most, at any moment."""
    schedule = Schedule(8)
    slides = [slide(n, 10_000) for n in range(4)]
    for work in slides:
        schedule.add(work)
    total = Counter(dict.fromkeys(range(4), 0))
    for i in range(200):
        total += draw(schedule, False, 1 + i % 7)
        assert max(total.values()) - min(total[n] for n in range(4)) <= 16


def test_classes_do_not_mix() -> None:
    """A batch is of one class."""
    schedule = Schedule(8)
    schedule.add(slide(1, 3, urgent=True))
    schedule.add(slide(2, 30))
    assert draw(schedule, True, 8) == {1: 3}
    assert schedule.waiting(False) and not schedule.waiting(True)


def test_adding_twice_and_removing() -> None:
    """Adding a slide again does not give it a second turn, and a removed one has none."""
    schedule = Schedule(4)
    first, second = slide(1, 100), slide(2, 100)
    for work in (first, first, second, first):
        schedule.add(work)
    assert [list(draw(schedule, False, 4)) for _ in range(4)] == [[1], [2], [1], [2]]
    schedule.remove(first)
    schedule.remove(first)
    assert [list(draw(schedule, False, 4)) for _ in range(2)] == [[2], [2]]


def test_a_slide_that_got_patches_back_is_served_again() -> None:
    """Exhausted, given back, added: its turn comes."""
    schedule = Schedule(4)
    work = slide(1, 4)
    schedule.add(work)
    assert draw(schedule, False, 4) == {1: 4} and not schedule.waiting(False)
    work.give_back(np.arange(2, dtype=np.int32))
    schedule.add(work)
    assert schedule.waiting(False) and draw(schedule, False, 4) == {1: 2}
