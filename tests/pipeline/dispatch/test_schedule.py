"""Whose turn it is: urgent first, routine's floor, fair shares within a class."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.dispatch.schedule import GRACE, SITTING, Floor, Schedule
from pipeline.dispatch.slidework import SlideWork


def slide(number: int, patches: int, urgent: bool = False) -> SlideWork:
    made = SlideWork(number, str(number), "", {}, urgent)
    made.begin(np.zeros((patches, 2), np.int32))
    return made


def draw(schedule: Schedule, urgent: bool, rows: int, reader: str = "") -> Counter:
    drawn: Counter = Counter()

    def take(work: SlideWork, count: int) -> int:
        got = len(work.take(count))
        drawn[work.number] += got
        return got

    schedule.draw(urgent, rows, take, reader)
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
    """Of the rows that are drawn while both wait, routine gets its share, less what it is owed at first."""
    routine = share(Floor(4, floor), 800).count(False)
    assert 800 * floor - GRACE - 2 <= routine <= 800 * floor


def test_the_first_batches_are_urgent() -> None:
    """The floor is paid afterwards, never in advance, and a small urgent slide is done before that."""
    assert share(Floor(4, 0.1), 9 * GRACE) == [True] * 9 * GRACE
    assert False in share(Floor(4, 0.1), 10 * GRACE)


def test_what_routine_is_owed_is_not_forgotten_between_urgent_slides() -> None:
    """Many small ones in a row, with a routine batch now and then in between, leave it its share too."""
    floor, turns = Floor(4, 0.25), []
    for _ in range(100):
        turns += share(floor, GRACE) + share(floor, 1, urgent=False)
    assert turns.count(False) >= 0.25 * len(turns) - GRACE - 2


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
    assert abs(rows[True] - rows[False]) <= 4 * (GRACE + 2)


def test_slides_of_a_class_share_fairly() -> None:
    """A slide of a million patches gets no more than its turn beside a biopsy."""
    schedule = Schedule(8, 4)
    for work in (slide(1, 100_000), slide(2, 80), slide(3, 80)):
        schedule.add(work)
    total: Counter = Counter()
    for _ in range(2 * SITTING + 20):
        total += draw(schedule, False, 8)
    assert total == {1: 2 * SITTING * 8, 2: 80, 3: 80}


def test_a_big_slide_is_not_starved_by_small_ones() -> None:
    """Its turn comes however many small slides follow each other."""
    schedule = Schedule(8, 2)
    schedule.add(slide(0, 100_000))
    total: Counter = Counter()
    for number in range(1, 101):
        schedule.add(slide(number, SITTING * 8))
        for _ in range(SITTING):
            total += draw(schedule, False, 8)
    assert 0.3 < total[0] / total.total() < 0.7


def test_batches_mix_slides_and_are_full() -> None:
    """Where one slide ends, the next one fills the batch up."""
    schedule = Schedule(8, 1)
    for work in (slide(1, 3), slide(2, 3), slide(3, 10)):
        schedule.add(work)
    assert draw(schedule, False, 8) == {1: 3, 2: 3, 3: 2}
    assert draw(schedule, False, 8) == {3: 8}
    assert not schedule.waiting(False) and draw(schedule, False, 8) == {}


def test_shares_are_fair_in_short_batches_too() -> None:
    """What did not fit is carried over: shares differ by a few turns at most, at any moment."""
    schedule = Schedule(8, 4)
    slides = [slide(n, 10_000) for n in range(4)]
    for work in slides:
        schedule.add(work)
    total = Counter(dict.fromkeys(range(4), 0))
    for i in range(1000):
        total += draw(schedule, False, 1 + i % 7)
        assert max(total.values()) - min(total[n] for n in range(4)) <= 3 * SITTING * 8


def test_readers_spread_over_the_slides_and_stay() -> None:
    """With as many slides as readers, each has its own, whose tiles nobody else decodes."""
    schedule = Schedule(8, 4)
    for number in range(4):
        schedule.add(slide(number, 1000))
    seen: dict[str, Counter] = {name: Counter() for name in "abcd"}
    for _ in range(SITTING):
        for name, counts in seen.items():
            counts += draw(schedule, False, 8, name)
    assert sorted(list(counts) for counts in seen.values()) == [[0], [1], [2], [3]]


def test_readers_divide_themselves_evenly() -> None:
    """A small slide has as many readers as a large one, and when it ends they go to those that are left."""
    schedule = Schedule(8, 4)
    schedule.add(slide(1, 100_000))
    schedule.add(slide(2, 8 * 8))
    first = Counter()
    for name in "abcdefgh":
        first += draw(schedule, False, 8, name)
    assert first == {1: 32, 2: 32}
    for name in "abcdefgh":
        first += draw(schedule, False, 8, name)
    assert first == {1: 64, 2: 64}
    assert {name: list(draw(schedule, False, 8, name)) for name in "abcdefgh"} == {name: [1] for name in "abcdefgh"}


def test_no_more_slides_than_configured_are_read_side_by_side() -> None:
    """The others stay untouched: for them, the next ones need not be opened yet."""
    schedule = Schedule(8, 2)
    works = [slide(number, 8 * 20) for number in range(5)]
    for work in works:
        schedule.add(work)
    for name in "abcdefgh":
        draw(schedule, False, 8, name)
    assert [work.touched for work in works] == [True, True, False, False, False]
    while any(work.has_pending for work in works):
        for name in "abcdefgh":
            draw(schedule, False, 8, name)
        assert sum(work.touched and work.has_pending for work in works) <= 2


def test_urgent_slides_are_all_begun_at_once() -> None:
    """No urgent slide waits for another one."""
    schedule = Schedule(8, 1)
    works = [slide(number, 100, urgent=True) for number in range(3)]
    for work in works:
        schedule.add(work)
    for name in "abc":
        draw(schedule, True, 8, name)
    assert all(work.touched for work in works)


def test_a_reader_that_is_gone_takes_no_seat() -> None:
    """A slide is not thought served by the dead."""
    schedule = Schedule(8, 2)
    for number in (1, 2):
        schedule.add(slide(number, 1000))
    assert draw(schedule, False, 8, "a") == {1: 8} and draw(schedule, False, 8, "b") == {2: 8}
    schedule.leave("a")
    assert draw(schedule, False, 8, "c") == {1: 8}


def test_classes_do_not_mix() -> None:
    """A batch is of one class."""
    schedule = Schedule(8, 4)
    schedule.add(slide(1, 3, urgent=True))
    schedule.add(slide(2, 30))
    assert draw(schedule, True, 8) == {1: 3}
    assert schedule.waiting(False) and not schedule.waiting(True)


def test_adding_twice_and_removing() -> None:
    """Adding a slide again does not give it a second turn, and a removed one has none."""
    schedule = Schedule(4, 4)
    first, second = slide(1, 1000), slide(2, 1000)
    for work in (first, first, second, first):
        schedule.add(work)
    rows = SITTING * 4
    assert [list(draw(schedule, False, rows)) for _ in range(5)] == [[1], [2], [1], [2], [1]]
    schedule.remove(first)
    schedule.remove(first)
    assert [list(draw(schedule, False, rows)) for _ in range(2)] == [[2], [2]]


def test_a_slide_that_got_patches_back_is_served_again() -> None:
    """Exhausted, given back, added: its turn comes."""
    schedule = Schedule(4, 4)
    work = slide(1, 4)
    schedule.add(work)
    assert draw(schedule, False, 4) == {1: 4} and not schedule.waiting(False)
    work.give_back(np.arange(2, dtype=np.int32))
    schedule.add(work)
    assert schedule.waiting(False) and draw(schedule, False, 4) == {1: 2}
