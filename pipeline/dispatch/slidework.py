"""The work that one slide still needs: where it stands, and where each of its patches is.

Every planned patch is in exactly one place: pending here, in a lease or slot, recorded (its result is on the way to the
journal), or settled (the journal has it, inferred or failed).

Pending patches lie in stretches of the plan, each of which one reader goes through from its start: neighbours share
stored tiles, and a reader that gets every n-th batch would decode what the others decode too. A reader that has nothing
left takes the second half of the longest stretch, as idle threads steal work (Blumofe and Leiserson, 1999): stretches
are long as long as there is much to do, and no reader idles at the end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

INFERRED, FAILED = 1, 2  # as in the journal; 0 is pending

_NOBODY = ""


class SlideState(Enum):
    ASKING = "asking"  # what does the journal hold?
    WAITING = "waiting"  # for a reader to open it
    OPENING = "opening"
    MASKING = "masking"
    BEGINNING = "beginning"  # its journal is being started
    READING = "reading"  # planned; patches are read, inferred, journalled
    WRITING = "writing"  # every patch is settled; results are being written
    CANCELLED = "cancelled"  # nothing more is done for it; what is in flight is awaited, and dropped
    DONE = "done"


@dataclass(slots=True, eq=False)
class SlideWork:
    """One submitted slide. `key` names slide content, model and configuration: another key is another scan epoch."""

    number: int
    id: str
    path: str
    key: dict
    urgent: bool = False
    retry: bool = False
    problem: str = ""
    unwanted: bool = False  # cancelled too late: its results are being written
    source: str = ""  # who decodes it, as the reader found that opened it
    place: str = ""  # of the copy that is read instead, if there is one
    state: SlideState = SlideState.ASKING
    strikes: int = 0
    info: dict | None = None
    geometry: dict | None = None
    header: dict | None = None
    xy: np.ndarray | None = None  # int32 (n, 2), level-0 corners, in read order
    overview_slot: int | None = None
    in_flight: int = 0  # patches in leases and slots
    recorded: int = 0  # patches in records that the journal has not acknowledged
    inferred: int = 0
    failed: int = 0
    touched: bool = False  # some of its patches have been leased
    turn: int = 0  # pipeline.dispatch.schedule
    seconds: dict[str, float] = field(default_factory=dict)
    _order: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    _stretches: dict[str, tuple[int, int]] = field(default_factory=dict)  # by reader: from, to, in _order; never empty
    _returned: deque[np.ndarray] = field(default_factory=deque)

    def begin(self, xy: np.ndarray, states: np.ndarray | None = None) -> None:
        """Start reading: `xy` int32 (n, 2); `states` uint8 (n,) says what the journal holds already."""
        self.xy = xy
        if states is None:
            states = np.zeros(len(xy), np.uint8)
        self._order = np.flatnonzero(states == 0).astype(np.int32)
        self._stretches = {_NOBODY: (0, len(self._order))} if len(self._order) else {}
        self._returned.clear()
        self.inferred = int(np.count_nonzero(states == INFERRED))
        self.failed = int(np.count_nonzero(states == FAILED))
        self.state = SlideState.READING

    @property
    def read_from(self) -> str:
        return self.place or self.path

    @property
    def planned(self) -> int:
        return 0 if self.xy is None else len(self.xy)

    @property
    def pending(self) -> int:
        stretches = sum(stop - start for start, stop in self._stretches.values())
        return stretches + sum(len(part) for part in self._returned)

    @property
    def has_pending(self) -> bool:
        return self.state is SlideState.READING and bool(self._stretches or self._returned)

    @property
    def settled(self) -> bool:
        return self.inferred + self.failed == self.planned

    def take(self, count: int, reader: str = _NOBODY) -> np.ndarray:
        """At most `count` pending patches, int32, neighbours first, that go on where this reader was; those given back
        come before all others."""
        self.touched = True
        if self._returned:
            part = self._returned.popleft()
            if len(part) > count:
                self._returned.appendleft(part[count:])
                part = part[:count]
        else:
            part = self._go_on(count, reader)
        self.in_flight += len(part)
        return part

    def _go_on(self, count: int, reader: str) -> np.ndarray:
        if reader not in self._stretches and self._stretches:
            self._claim(count, reader)
        start, stop = self._stretches.pop(reader, (0, 0))
        end = min(start + count, stop)
        if end < stop:
            self._stretches[reader] = (end, stop)
        return self._order[start:end]

    def _claim(self, count: int, reader: str) -> None:
        """A stretch for a reader that has none: the one that nobody has, or the end of the longest, half of it but at
        least `count`."""
        untouched = self._stretches.pop(_NOBODY, None)
        if untouched is not None:
            self._stretches[reader] = untouched
            return
        longest = max(self._stretches, key=self._length)
        start, stop = self._stretches.pop(longest)
        cut = max(start, min(start + (stop - start + 1) // 2, stop - count))
        if cut > start:
            self._stretches[longest] = (start, cut)
        self._stretches[reader] = (cut, stop)

    def _length(self, reader: str) -> int:
        start, stop = self._stretches[reader]
        return stop - start

    def give_back(self, patches: np.ndarray) -> None:
        """Leased patches that came to nothing are pending again, first in line."""
        self.in_flight -= len(patches)
        if not self.cancelled:
            self._returned.appendleft(patches)

    def cancel(self) -> None:
        """Nothing is pending any more, and no record is awaited."""
        self.state = SlideState.CANCELLED
        self._stretches.clear()
        self._returned.clear()
        self.recorded = 0

    @property
    def cancelled(self) -> bool:
        return self.state is SlideState.CANCELLED

    def drop(self, count: int) -> None:
        """`count` leased patches of a cancelled slide came back: nobody wants to know what became of them."""
        self.in_flight -= count

    def record(self, count: int) -> None:
        """`count` leased patches have an outcome that is on its way to the journal."""
        self.in_flight -= count
        self.recorded += count

    def settle(self, inferred: int, failed: int) -> None:
        """The journal has them."""
        self.recorded -= inferred + failed
        self.inferred += inferred
        self.failed += failed

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
