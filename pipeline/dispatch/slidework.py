"""The work that one slide still needs: where it stands, and where each of its patches is.

Every planned patch is in exactly one place: pending here, in a lease or slot, recorded (its result is on the way to the
journal), or settled (the journal has it, inferred or failed).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

INFERRED, FAILED = 1, 2  # as in the journal; 0 is pending


class SlideState(Enum):
    ASKING = "asking"  # what does the journal hold?
    WAITING = "waiting"  # for a reader to open it
    OPENING = "opening"
    MASKING = "masking"
    BEGINNING = "beginning"  # its journal is being started
    READING = "reading"  # planned; patches are read, inferred, journalled
    WRITING = "writing"  # every patch is settled; results are being written
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
    deficit: int = 0  # pipeline.dispatch.schedule
    seconds: dict[str, float] = field(default_factory=dict)
    _order: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    _next: int = 0
    _returned: deque[np.ndarray] = field(default_factory=deque)

    def begin(self, xy: np.ndarray, states: np.ndarray | None = None) -> None:
        """Start reading: `xy` int32 (n, 2); `states` uint8 (n,) says what the journal holds already."""
        self.xy = xy
        if states is None:
            states = np.zeros(len(xy), np.uint8)
        self._order = np.flatnonzero(states == 0).astype(np.int32)
        self._next = 0
        self._returned.clear()
        self.inferred = int(np.count_nonzero(states == INFERRED))
        self.failed = int(np.count_nonzero(states == FAILED))
        self.state = SlideState.READING

    @property
    def planned(self) -> int:
        return 0 if self.xy is None else len(self.xy)

    @property
    def pending(self) -> int:
        return len(self._order) - self._next + sum(len(part) for part in self._returned)

    @property
    def has_pending(self) -> bool:
        return self.state is SlideState.READING and (self._next < len(self._order) or bool(self._returned))

    @property
    def settled(self) -> bool:
        return self.inferred + self.failed == self.planned

    def take(self, count: int) -> np.ndarray:
        """At most `count` pending patches, int32, neighbours first; those given back come before all others."""
        if self._returned:
            part = self._returned.popleft()
            if len(part) > count:
                self._returned.appendleft(part[count:])
                part = part[:count]
        else:
            part = self._order[self._next : self._next + count]
            self._next += len(part)
        self.in_flight += len(part)
        return part

    def give_back(self, patches: np.ndarray) -> None:
        """Leased patches that came to nothing are pending again, first in line."""
        self.in_flight -= len(patches)
        self._returned.appendleft(patches)

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
