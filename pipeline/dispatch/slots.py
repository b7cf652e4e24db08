"""Slots: the places in shared memory where batches of patches lie, and the states that they go through.

    FREE ──fill lease──▶ FILLING ──filled──▶ READY ──run lease──▶ RUNNING ──consumed or inferred──▶ FREE
                            │                 │ ▲                     │
                            └─ reader died ─▶ FREE ◀─ cancelled       └─ worker was killed from outside ─▶ READY

One lease at a time touches a slot, so no two processes ever share one. Only the batcher changes states, here, in plain
code without sockets, clock or shared memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from pipeline.dispatch.schedule import Floor

FREE, FILLING, READY, RUNNING = "free", "filling", "ready", "running"


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Patches of one slide in consecutive rows of a slot: `patches` int32 (n,), indices into the slide's plan."""

    slide: int
    patches: np.ndarray


@dataclass(slots=True, eq=False)
class Batch:
    """What lies in a slot. `suspect`: to be tried alone; `strikes`: the kinds of workers that died of it so; `killed`: their
    names, and of those that died with it before (suspects.py)."""

    segments: tuple[Segment, ...]
    urgent: bool = False
    strikes: tuple[str, ...] = ()
    suspect: bool = False
    failures: dict[int, str] = field(default_factory=dict)
    killed: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return sum(len(segment.patches) for segment in self.segments)

    def split(self, row: int) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
        """The segments before `row` and those from it on."""
        head: list[Segment] = []
        tail: list[Segment] = []
        for segment in self.segments:
            cut = min(max(row, 0), len(segment.patches))
            if cut:
                head.append(Segment(segment.slide, segment.patches[:cut]))
            if cut < len(segment.patches):
                tail.append(Segment(segment.slide, segment.patches[cut:]))
            row -= len(segment.patches)
        return tuple(head), tuple(tail)


class SlotError(Exception):
    """A transition that the picture above does not have: always a fault of ours."""


class SlotPool:
    """The states of `count` slots, and the queue of those that are ready: urgent first but for routine's floor, then in
    order of arrival."""

    def __init__(self, count: int, reserved: int, floor: Floor):
        """`reserved` free slots are left to urgent batches."""
        self.states = [FREE] * count
        self.batches: list[Batch | None] = [None] * count
        self._reserved = reserved
        self._floor = floor
        self._free = deque(range(count))
        self._ready: dict[bool, deque[int]] = {True: deque(), False: deque()}

    def _move(self, slot: int, before: str, after: str) -> None:
        if self.states[slot] != before:
            raise SlotError(f"slot {slot} is {self.states[slot]}, not {before}")
        self.states[slot] = after

    def room(self, urgent: bool) -> bool:
        """Whether a batch of this class may take a slot."""
        return len(self._free) > (0 if urgent else self._reserved)

    def fill(self, batch: Batch) -> int:
        """FREE → FILLING; the slot's number."""
        if not self._free:
            raise SlotError("no slot is free")
        slot = self._free.popleft()
        self._move(slot, FREE, FILLING)
        self.batches[slot] = batch
        return slot

    def ready(self, slot: int, batch: Batch) -> None:
        """FILLING → READY, with what really was filled."""
        self._move(slot, FILLING, READY)
        self.batches[slot] = batch
        self._ready[batch.urgent].append(slot)

    def next_ready(self, coming: bool = False) -> int | None:
        """`coming`: routine ones are to wait as if urgent ones were ready."""
        urgent = self._floor.due(coming or bool(self._ready[True]), bool(self._ready[False]))
        return self._ready[urgent][0] if urgent is not None and self._ready[urgent] else None

    @property
    def contended(self) -> bool:
        """Whether both classes were ready when the next slot was last asked for."""
        return self._floor.contended

    def run(self, slot: int) -> Batch:
        """READY → RUNNING for the first of the ready ones."""
        batch = self.batches[slot]
        if batch is None or not self._ready[batch.urgent] or self._ready[batch.urgent][0] != slot:
            raise SlotError(f"slot {slot} is not the next that is ready")
        self._move(slot, READY, RUNNING)
        self._ready[batch.urgent].popleft()
        self._floor.charge(batch.urgent, batch.count)
        return batch

    def again(self, slot: int, batch: Batch) -> None:
        """RUNNING → READY, first in its queue: the worker died, but not of this batch. Its pixels are as they were."""
        self._move(slot, RUNNING, READY)
        self.batches[slot] = batch
        self._ready[batch.urgent].appendleft(slot)

    def refile(self, slot: int, batch: Batch | None) -> None:
        """A batch that is READY is of another class now, last in that one's queue; or None: its slot is FREE."""
        old = self.batches[slot]
        if self.states[slot] != READY or old is None:
            raise SlotError(f"slot {slot} is {self.states[slot]}, not {READY}")
        if batch is None or batch.urgent != old.urgent:
            self._ready[old.urgent].remove(slot)
            if batch is not None:
                self._ready[batch.urgent].append(slot)
        self.batches[slot] = batch
        if batch is None:
            self.states[slot] = FREE
            self._free.append(slot)

    @property
    def ready_slots(self) -> list[int]:
        return [*self._ready[True], *self._ready[False]]

    def release(self, slot: int) -> None:
        """FILLING or RUNNING → FREE."""
        if self.states[slot] not in (FILLING, RUNNING):
            raise SlotError(f"slot {slot} is {self.states[slot]}, nothing to release")
        self.states[slot] = FREE
        self.batches[slot] = None
        self._free.append(slot)

    def counts(self) -> dict[str, int]:
        return {state: self.states.count(state) for state in (FREE, FILLING, READY, RUNNING)}

    @property
    def anything_ready(self) -> bool:
        return bool(self._ready[True] or self._ready[False])
