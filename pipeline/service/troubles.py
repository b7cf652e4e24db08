"""What makes the service go on with less, told once when it begins and once when it is over. Pure, but for `note`.

A trouble is a worker that was given up (often with its GPU), a lane that does not come up, a results disk nearly full, a
folder or results that are held. What cannot be seen for the moment is as it was; what is over must stay over for a while,
so that a share that comes and goes does not ring every minute.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.service import outbox
from pipeline.service.lanes import Lane
from pipeline.service.lifecycle import Event
from pipeline.service.reasons import RULES, Kind
from pipeline.service.records import Hold, Trouble

OVER_S = 30.0  # a trouble must be gone for so long
DOWN_S = 60.0  # a lane that dies is started again; one that is not up for so long is worth telling
ROOM_AGAIN = 1.25  # times the room at which a disk counts as nearly full


class TroubleKind(StrEnum):
    """Beside the kinds of reasons (pipeline.service.reasons), which those that are held have."""

    WORKER_LOST = "worker_lost"
    LANE_DOWN = "lane_down"
    DISK_LOW = "disk_low"


_REMEDIES = {
    TroubleKind.WORKER_LOST: "look at nvidia-smi and dmesg; slidestream scale brings it back",
    TroubleKind.LANE_DOWN: "see its reason in the log; it is started again and again by itself",
    TroubleKind.DISK_LOW: "free some space, or let service.retention do it",
}


@dataclass(slots=True)
class Watchman:
    """Remembers since when lanes are down and troubles are gone. `clock` is a monotonic time in seconds."""

    _down: dict[str, float] = field(default_factory=dict)
    _gone: dict[str, float] = field(default_factory=dict)

    def look(
        self,
        lanes: Sequence[Lane],
        holds: Iterable[Hold],
        free: Mapping[str, int],
        low_bytes: float,
        standing: Mapping[str, Trouble],
        clock: float,
    ) -> dict[str, Trouble]:
        """The troubles there are, by key. `free`: bytes on each results disk that could be asked, by route; `standing` are
        those that were told and are not over."""
        found = {trouble.key: trouble for trouble in (*self._lanes(lanes, clock), *_held(holds))}
        for route, room in free.items():
            key = f"disk:{route}"
            if room < low_bytes * (ROOM_AGAIN if key in standing else 1.0):
                found[key] = Trouble(
                    key, TroubleKind.DISK_LOW, f"{room / 1e9:.1f} GB are free for the results of {route}"
                )
        silent = {lane.route.name for lane in lanes if lane.told is None}
        for key, trouble in standing.items():
            if key in found:
                self._gone.pop(key, None)
                found[key] = trouble  # as it was told
                continue
            unseen = key.startswith("worker:") and key[7:].rpartition("/")[0] in silent
            if unseen or clock - self._gone.setdefault(key, clock) < OVER_S:
                found[key] = trouble
            else:
                del self._gone[key]
        return found

    def _lanes(self, lanes: Sequence[Lane], clock: float) -> Iterable[Trouble]:
        for lane in lanes:
            name = lane.route.name
            if lane.up:
                self._down.pop(name, None)
            elif clock - self._down.setdefault(name, clock) >= DOWN_S and lane.problem:
                yield Trouble(f"lane:{name}", TroubleKind.LANE_DOWN, f"the lane of {name} is not up: {lane.problem}")
            for worker, reason in (lane.told.run.get("lost") or {}).items() if lane.told is not None else ():
                text = f"{worker} of {name} was given up: {reason}"
                yield Trouble(f"worker:{name}/{worker}", TroubleKind.WORKER_LOST, text)


def _held(holds: Iterable[Hold]) -> Iterable[Trouble]:
    return (Trouble(hold.key, hold.kind, f"{hold.key} is held: {hold.reason}") for hold in holds)


def remedy(kind: str) -> str:
    """What to do about a trouble of this kind."""
    return _REMEDIES[TroubleKind(kind)] if kind in set(TroubleKind) else RULES[Kind(kind)].remedy


def note(
    run: sqlite3.Connection, now: float, standing: Mapping[str, Trouble], found: Mapping[str, Trouble]
) -> tuple[Collection[Trouble], Collection[Trouble]]:
    """In a transaction: what has begun and what is over since `standing`, with an event each."""
    begun = [found[key] for key in found.keys() - standing.keys()]
    over = [standing[key] for key in standing.keys() - found.keys()]
    for trouble in begun:
        run.execute("INSERT INTO troubles VALUES (?, ?, ?, ?)", (trouble.key, trouble.kind, trouble.reason, now))
        body = {"trouble": trouble.key, "kind": trouble.kind, "reason": trouble.reason, "remedy": remedy(trouble.kind)}
        outbox.tell_of_intake(run, now, Event.DEGRADED, {**body, "troubles": len(found)})
    for trouble in over:
        run.execute("DELETE FROM troubles WHERE key = ?", (trouble.key,))
        body = {"trouble": trouble.key, "kind": trouble.kind, "lasted_s": round(now - trouble.since, 3)}
        outbox.tell_of_intake(run, now, Event.RECOVERED, {**body, "troubles": len(found)})
    return begun, over
