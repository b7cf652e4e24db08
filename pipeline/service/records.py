"""What the ledger takes and gives: plain immutable values. Times are wall-clock seconds since 1970, paths are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.service.lifecycle import State, Urgency
from pipeline.service.reasons import Kind


@dataclass(frozen=True, slots=True)
class Delivery:
    """A finished slide in a watched folder (or one that was submitted).

    `stamp` changes with the size and time of any of its files; `fingerprint` is of its content alone. `seen` is when it
    was first met, `rested` since when it has not changed: the deadline counts from there. `name` is what its results are
    called, a relative path without extension. With `problem` the slide goes into quarantine for that kind of reason.
    """

    path: bytes
    folder: str
    name: str
    stamp: str
    fingerprint: str
    bytes: int
    files: int
    seen: float
    rested: float
    routes: tuple[str, ...]
    urgency: Urgency = Urgency.ROUTINE
    deadline: float | None = None
    problem: Kind | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Slide:
    """A slide under one route: the unit of work. `path` is a name of it that can be read now, or the last that could.

    `attempts` counts starts, `failures` the failures that were the slide's own, `waits` those that were not (share gone,
    disk full), `interruptions` the times that the service ended while it ran. `due` is the time of the next try in
    RETRY_WAIT. `result` is what `Ledger.finished` was given.
    """

    id: int
    name: str
    route: str
    fingerprint: str
    bytes: int
    path: bytes
    urgency: Urgency
    deadline: float | None
    state: State
    kind: Kind | None
    reason: str
    attempts: int
    failures: int
    waits: int
    interruptions: int
    due: float | None
    seen: float
    delivered: float
    started: float | None
    first_result: float | None
    finished: float | None
    alarmed: float | None
    result: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a list of slides shows of one. `seen`: when it was first met; `finished`: since when it is at rest, if it is."""

    name: str
    urgency: Urgency
    state: State
    reason: str
    seen: float
    finished: float | None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A slide in a watched folder that is not taken yet, and why not."""

    path: bytes
    folder: str
    urgency: Urgency
    seen: float
    changed: float
    bytes: int
    reason: str
    stuck: bool


@dataclass(frozen=True, slots=True)
class Name:
    """One name under which a content was delivered; `gone` is when the file was missed, or None while it is there."""

    path: bytes
    folder: str
    seen: float
    delivered: float
    gone: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One change of state in a slide's history. `by` is who did it: service, or the operator."""

    time: float
    old: State
    new: State
    kind: Kind | None
    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class Told:
    """An event for the world outside. `id` rises; `slide` is None where it concerns the intake."""

    id: int
    time: float
    event: str
    slide: int | None
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the service goes on with less: "worker:ROUTE/WORKER", "lane:ROUTE", "disk:ROUTE", or the key of a hold."""

    key: str
    kind: str
    reason: str
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Hold:
    """What is not worked on: "results:ROUTE" or "folder:PATH", until `until`, or until released where that is None."""

    key: str
    kind: Kind
    reason: str
    since: float
    until: float | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows: those that meet all that is given. `text` is a part of the name, in any case."""

    states: tuple[State, ...] = ()
    urgency: Urgency | None = None
    route: str | None = None
    folder: str | None = None
    text: str = ""
    since: float | None = None
