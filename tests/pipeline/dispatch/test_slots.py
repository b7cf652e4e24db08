"""Slots: the picture of their states, and nothing beside it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.dispatch.schedule import GRACE, Floor
from pipeline.dispatch.slots import FILLING, FREE, READY, RUNNING, Batch, Segment, SlotError, SlotPool


def batch(*counts: int, urgent: bool = False) -> Batch:
    """One segment a count, each of a slide of its own."""
    return Batch(tuple(Segment(i, np.arange(n, dtype=np.int32)) for i, n in enumerate(counts)), urgent)


def pool(count: int, reserved: int = 0, floor: float = 0.0, quantum: int = 4) -> SlotPool:
    return SlotPool(count, reserved, Floor(quantum, floor))


def make_ready(slots: SlotPool, urgent: bool = False) -> int:
    made = batch(4, urgent=urgent)
    slot = slots.fill(made)
    slots.ready(slot, made)
    return slot


def test_a_slot_goes_round() -> None:
    """FREE, FILLING, READY, RUNNING, FREE."""
    slots = pool(1)
    made = batch(3)
    slot = slots.fill(made)
    assert slots.states[slot] == FILLING and slots.next_ready() is None
    slots.ready(slot, made)
    assert slots.states[slot] == READY and slots.next_ready() == slot
    assert slots.run(slot) is made and slots.states[slot] == RUNNING
    slots.release(slot)
    assert slots.counts() == {FREE: 1, FILLING: 0, READY: 0, RUNNING: 0} and slots.batches == [None]


def test_a_full_pool_has_no_room() -> None:
    """No slot is handed out twice."""
    slots = pool(2)
    assert {slots.fill(batch(1)), slots.fill(batch(1))} == {0, 1}
    assert not slots.room(urgent=True)
    with pytest.raises(SlotError):
        slots.fill(batch(1))


def test_transitions_beside_the_picture_are_errors() -> None:
    """Each wrong step is caught."""
    slots = pool(2)
    made = batch(1)
    with pytest.raises(SlotError):
        slots.release(0)
    with pytest.raises(SlotError):
        slots.ready(0, made)
    with pytest.raises(SlotError):
        slots.run(0)
    slot = slots.fill(made)
    with pytest.raises(SlotError):
        slots.again(slot, made)
    slots.ready(slot, made)
    with pytest.raises(SlotError):
        slots.release(slot)
    with pytest.raises(SlotError):
        slots.ready(slot, made)


def test_reserved_slots_are_for_urgent_batches() -> None:
    """Routine leaves the last ones alone."""
    slots = pool(3, reserved=1)
    slots.fill(batch(1))
    slots.fill(batch(1))
    assert not slots.room(urgent=False) and slots.room(urgent=True)


def test_urgent_slots_run_first_then_by_age() -> None:
    """An urgent batch overtakes those that were ready before it."""
    slots = pool(4)
    first, second = make_ready(slots), make_ready(slots)
    urgent = make_ready(slots, urgent=True)
    with pytest.raises(SlotError):
        slots.run(second)
    order = []
    while (slot := slots.next_ready()) is not None:
        slots.run(slot)
        order.append(slot)
    assert order == [urgent, first, second]


def test_routine_slots_get_their_floor_of_the_inference() -> None:
    """With urgent batches always ready, every tenth batch that runs is a routine one."""
    slots = pool(12, floor=0.1)
    for _ in range(8):
        make_ready(slots)
    routine = 0
    for _ in range(400):
        while slots.counts()[FREE]:
            make_ready(slots, urgent=True)
        slot = slots.next_ready()
        urgent = slots.run(slot).urgent
        routine += not urgent
        slots.release(slot)
        make_ready(slots, urgent)
    assert 40 - GRACE - 2 <= routine <= 40


def test_routine_batches_wait_for_urgent_ones_that_are_coming() -> None:
    """But for their floor, which holds also where no urgent one is ready for long."""
    slots = pool(3, floor=0.5)
    make_ready(slots)
    assert slots.next_ready(coming=True) is None and slots.next_ready() == 0
    for _ in range(GRACE):
        urgent = make_ready(slots, urgent=True)
        assert slots.next_ready(coming=True) == urgent
        slots.run(urgent)
        slots.release(urgent)
    assert slots.next_ready(coming=True) == 0


def test_a_batch_that_comes_back_is_first_again() -> None:
    """A worker killed from outside costs a batch nothing, not even its place."""
    slots = pool(3)
    first, second = make_ready(slots), make_ready(slots)
    slots.run(first)
    slots.again(first, slots.batches[first])
    assert slots.next_ready() == first
    slots.run(first)
    assert slots.next_ready() == second


@pytest.mark.parametrize("row", range(-1, 8))
def test_splitting_loses_no_row(row: int) -> None:
    """Head and tail together are the batch, in order, without empty segments."""
    whole = batch(2, 1, 3)
    head, tail = whole.split(row)
    assert sum(len(s.patches) for s in head) == min(max(row, 0), 6)
    assert all(len(s.patches) for s in (*head, *tail))
    rows = [(s.slide, p) for s in (*head, *tail) for p in s.patches.tolist()]
    assert rows == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
