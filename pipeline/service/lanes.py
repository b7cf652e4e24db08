"""A lane as the service knows it: its process, what it was given to do, how it stands, and when it is started again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.children import judge
from pipeline.service.config import Route
from pipeline.service.lanewire import Told
from pipeline.service.lifecycle import Urgency
from pipeline.service.offspring import Offspring
from pipeline.service.reasons import Kind, decide, kind_of_text
from pipeline.service.records import Slide
from pipeline.worker import EXIT_CONFIGURATION, EXIT_INTERRUPTED

STAT_MOST = 64  # stat slides that a lane has at a time; they are never kept back for routine
MORE = 4  # routine slides beyond those that are read and made ready, so that the lane never waits for the ledger
SILENT_S = 120.0
LONGEST_PAUSE_S = 300.0
ALONE_AFTER = 2  # faults in a row after which slides are tried one by one, to find the one that is at fault

_SECONDS = ("busy", "waiting_input", "waiting_room", "restarts")
_COUNTS = ("planned", "inferred", "failed")


@dataclass(frozen=True, slots=True)
class End:
    """What follows the end of a lane. `kind`: what its route is held for, until it is started again; None: it is not.

    `refused`: its configuration cannot be used. `culprit`: the slide that it died of, as (id, attempt)."""

    reason: str
    kind: Kind | None = None
    refused: bool = False
    culprit: tuple[int, int] | None = None


@dataclass(slots=True)
class Lane:
    """One route's lane. Times are monotonic seconds. `jobs` are the slides it has: (id, attempt) -> class; `scaled`: workers
    by stage, where the operator has changed them."""

    route: Route
    child: Offspring | None = None
    generation: int = 0
    up: bool = False
    was_up: bool = False
    ahead: int = 1
    start_at: float = 0.0
    heard_at: float = 0.0
    faults: int = 0
    pauses: int = 0
    restarts: int = 0
    words: str = ""
    problem: str = ""
    jobs: dict[tuple[int, int], Urgency] = field(default_factory=dict)
    told: Told | None = None
    scaled: dict[str, int] = field(default_factory=dict)
    _settled: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    _stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether it is known what becomes of it: it is up, or there is a reason why it cannot be for now."""
        return self.up or self.was_up or bool(self.restarts and self.problem)

    @property
    def peer(self) -> bytes:
        """Its name on the socket."""
        return f"{self.route.name}.{self.generation}".encode()

    def began(self, child: Offspring) -> None:
        self.child, self.up, self.words = child, False, ""
        self.heard_at = time.monotonic()

    def choose(self, due: Sequence[Slide]) -> list[Slide]:
        """Which of the slides that are due it is given now, in their order. After faults, only one at a time."""
        if self.faults >= ALONE_AFTER:
            return [] if self.jobs else list(due[:1])
        free = self.room()
        chosen = []
        for slide in due:
            if free[slide.urgency] > 0:
                free[slide.urgency] -= 1
                chosen.append(slide)
        return chosen

    def room(self) -> dict[Urgency, int]:
        """How many more slides of each class it may have."""
        routine = sum(1 for urgency in self.jobs.values() if urgency is Urgency.ROUTINE)
        return {
            Urgency.STAT: max(0, STAT_MOST - (len(self.jobs) - routine)),
            Urgency.ROUTINE: max(0, 2 * self.ahead + MORE - routine),
        }

    def did_well(self) -> None:
        """A slide came through."""
        self.faults = self.pauses = 0
        self.problem = ""

    def silent(self, now: float) -> bool:
        """Whether it was up and has said nothing for too long."""
        return self.up and now - self.heard_at > SILENT_S

    def ended(self, code: int, lack_of_memory: bool, now: float) -> End:
        """Its process has come to an end: take in what it had told, decide when it is started again and what follows.

        `jobs` are left for the caller, to be queued again.
        """
        death = judge(code, self.child.sentence, lack_of_memory)
        reason = self.words or death.cause
        self._fold()
        first, self.was_up = not self.was_up, self.was_up or self.up
        first = first and not self.up
        self.child, self.up, self.told = None, False, None
        self.restarts += 1
        self.problem = reason
        kind = self._waits_for(code, reason)
        if kind is not None:
            self.pauses += 1
            self.start_at = now + (decide(kind, min(self.pauses, 3), 0.0).retry_at or LONGEST_PAUSE_S)
            return End(reason, kind, refused=first and kind is Kind.MODEL)
        if not death.blame:
            self.start_at = now + 0.2  # whoever kills lanes must not make us spin
            return End(death.cause)
        self.faults += 1
        culprit = next(iter(self.jobs)) if self.faults > ALONE_AFTER and len(self.jobs) == 1 else None
        self.start_at = now + min(LONGEST_PAUSE_S, 0.5 * 2.0 ** min(self.faults - 1, 16))
        return End(reason, Kind.INTERNAL if self.faults > ALONE_AFTER + 1 else None, culprit=culprit)

    def _waits_for(self, code: int, reason: str) -> Kind | None:
        """What must become better before another start is of use; None: nothing known."""
        kind = kind_of_text(reason)
        if code > 0 and kind in (Kind.DISK_FULL, Kind.SHARE_GONE):
            return Kind.DISK_FULL if kind is Kind.DISK_FULL else Kind.WRITE_ERROR
        if code == EXIT_CONFIGURATION:
            return Kind.MODEL
        return Kind.WRITE_ERROR if code == EXIT_INTERRUPTED else None

    # How it stands

    def _fold(self) -> None:
        """The next process counts from nothing; what slides that go on had done, it finds in their journals."""
        if self.told is not None:
            self._settled = {name: self._settled[name] + int(self.told.settled.get(name, 0)) for name in _COUNTS}
            self._stages = self.stages()

    def patches(self) -> dict[str, int]:
        """planned, inferred and failed patches since the service started."""
        run = {} if self.told is None else self.told.run
        return {name: self._settled[name] + int(run.get(f"patches_{name}", 0)) for name in _COUNTS}

    def stages(self) -> dict[str, dict[str, Any]]:
        """Stages by kind, with the seconds of all processes of this lane that ever were."""
        found = {kind: {**stage, "workers": 0} for kind, stage in self._stages.items()}
        for stage in self.told.run.get("stages", ()) if self.told is not None else ():
            before = self._stages.get(stage["kind"], {})
            found[stage["kind"]] = {**stage, **{name: stage[name] + before.get(name, 0) for name in _SECONDS}}
        return found
