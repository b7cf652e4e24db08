"""Who belongs to a run: its workers, what becomes of one that died, and how a stage gets more of them or fewer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.children import Backoff
from pipeline.control import Refusal
from pipeline.crew import Member

MOST_WORKERS = 1024
SCALABLE = ("reader", "tissue", "inference", "writer")
WELL_S = 60.0  # a worker on a GPU that lasted so long was well
TRIALS = 16  # deaths that one poisonous patch may cost: 3 + log2(rows) of the largest batches (dispatch.suspects)


@dataclass(frozen=True, slots=True)
class Fate:
    """What to do about a death: start the worker again after `pause_s`, or, where that is None, give it up (the others of
    its kind go on) or end the run."""

    pause_s: float | None
    give_up: bool = False
    in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What the batcher knew when a worker died. `present`: it may have died of a batch that is on trial, or waits for it;
    `quarantined`: patches that were found guilty so far."""

    present: bool = False
    quarantined: int = 0


class Roster:
    """The members by name. `config` is the configuration's section `supervisor`."""

    def __init__(self, members: Iterable[Member], recruit: Callable[[str, int], Member], config: dict[str, Any]):
        """`recruit(kind, index)` is one worker more."""
        self.members = {member.name: member for member in members}
        self._recruit = recruit
        self._config = config
        self._backoffs: dict[str, Backoff] = {}
        self._trials: dict[str, tuple[object, int]] = {}

    def died(
        self,
        member: Member,
        generation: int,
        blame: bool,
        well: bool,
        progress: object,
        others: bool,
        suspicion: Suspicion = Suspicion(),
    ) -> Fate:
        """`well`: it had come up and worked. `progress`: of the run. `others`: some of its kind are at work.

        Where others of its kind go on, the run makes progress whatever becomes of one that never works: then its own deaths
        count, but for those that a batch under suspicion may have caused. A patch that is found guilty clears it of the
        deaths before; and no patch costs more than TRIALS.
        """
        of_kind = self._backoff(member.kind)
        pause_s = of_kind.died(blame, progress)
        lately = (generation if well else None, suspicion.quarantined)
        if not well and others and self._excused(member.name, lately, blame and suspicion.present):
            return Fate(self._config["backoff_max_s"] if pause_s is None else pause_s)
        own_pause_s = self._backoff(member.name).died(blame, lately)
        if well or not others:
            return Fate(pause_s, in_a_row=of_kind.in_a_row)
        if own_pause_s is None:
            del self.members[member.name]
            del self._backoffs[member.name]  # `scale` may give it another chance
            self._trials.pop(member.name, None)
        return Fate(own_pause_s, give_up=own_pause_s is None)

    def _excused(self, name: str, lately: object, suspected: bool) -> bool:
        before, count = self._trials.get(name, (None, 0))
        count = 0 if before != lately else count
        self._trials[name] = (lately, count + suspected)
        return suspected and count < TRIALS

    def _backoff(self, name: str) -> Backoff:
        config = self._config
        if name not in self._backoffs:
            self._backoffs[name] = Backoff(config["backoff_s"], config["backoff_max_s"], config["max_failures"])
        return self._backoffs[name]

    def of_kind(self, kind: str) -> list[Member]:
        """In the order of their numbers."""
        return sorted(
            (m for m in self.members.values() if m.kind == kind), key=lambda m: int(m.name.rpartition("-")[2])
        )

    def scale(self, kind: Any, wanted: Any, running: Collection[str]) -> tuple[list[Member], list[Member]]:
        """(those to be sent away, those to be started), for `wanted` workers of `kind`. `running` are names in use.

        Raises Refusal.
        """
        if kind not in SCALABLE:
            raise Refusal(f"{kind}: no such stage, or one that has one worker; there are {', '.join(SCALABLE)}")
        if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= MOST_WORKERS:
            raise Refusal(f"{kind}={wanted}: a stage has 1 to {MOST_WORKERS} workers")
        present = self.of_kind(kind)
        leaving = present[wanted:]
        for member in leaving:
            del self.members[member.name]
        joining: list[Member] = []
        index = 0
        while len(present) + len(joining) < wanted:
            if f"{kind}-{index}" not in self.members and f"{kind}-{index}" not in running:
                member = self._recruit(kind, index)
                self.members[member.name] = member
                joining.append(member)
            index += 1
        return leaving, joining
