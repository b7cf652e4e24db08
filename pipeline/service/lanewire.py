"""What the service and its lanes say to each other: one frame of JSON over a socket in the service's private directory.

    service ── Do Amend Cancel Scale Loud ──▶ lane ── Up Began First Over Scaled Told ──▶ service

A slide is named by its id in the ledger and the number of the attempt: what comes of an attempt that is over is dropped.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

MAX_BYTES = 16 << 20


class LaneProtocolError(Exception):
    """A frame that is no message of this protocol; one line."""


@dataclass(frozen=True, slots=True)
class LaneMessage:
    """Base of all."""

    IS: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Do(LaneMessage):
    """A slide to be done. `name` is what its results are called, `path` is where to read it."""

    IS: ClassVar[str] = "do"
    slide: int
    attempt: int
    name: str
    path: str
    urgent: bool


@dataclass(frozen=True, slots=True)
class Amend(LaneMessage):
    """Another class for a slide that is under way."""

    IS: ClassVar[str] = "amend"
    slide: int
    attempt: int
    urgent: bool


@dataclass(frozen=True, slots=True)
class Cancel(LaneMessage):
    """A slide is not wanted any more."""

    IS: ClassVar[str] = "cancel"
    slide: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Scale(LaneMessage):
    """More or fewer workers of a stage; answered by Scaled with the same `token`."""

    IS: ClassVar[str] = "scale"
    token: int
    stage: str
    workers: int


@dataclass(frozen=True, slots=True)
class Loud(LaneMessage):
    """What is said from now on: records of this level (log.level) and above."""

    IS: ClassVar[str] = "loud"
    level: str


@dataclass(frozen=True, slots=True)
class Up(LaneMessage):
    """The lane takes slides from now on. `ahead`: how many it reads side by side."""

    IS: ClassVar[str] = "up"
    ahead: int


@dataclass(frozen=True, slots=True)
class First(LaneMessage):
    """The first patches of a slide have been inferred."""

    IS: ClassVar[str] = "first"
    slide: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Over(LaneMessage):
    """The end of an attempt. `state`: complete, partial, failed, changed (while it was read) or cancelled.

    `kind` is that of `reason` where the lane knows it better than its words tell (pipeline.service.reasons), else empty.
    `result` is the summary for the ledger.
    """

    IS: ClassVar[str] = "over"
    slide: int
    attempt: int
    state: str
    reason: str
    kind: str
    result: dict


@dataclass(frozen=True, slots=True)
class Scaled(LaneMessage):
    """The answer to Scale."""

    IS: ClassVar[str] = "scaled"
    token: int
    ok: bool
    said: str


@dataclass(frozen=True, slots=True)
class Told(LaneMessage):
    """The lane at this moment, once a second: `run` as `slidestream status --json` has it; `settled`: planned, inferred and
    failed patches of the slides that are over; `slides`: [slide, attempt, patches done, planned] of those under way."""

    IS: ClassVar[str] = "told"
    run: dict
    settled: dict
    slides: list


_KINDS: dict[str, type[LaneMessage]] = {
    kind.IS: kind for kind in (Do, Amend, Cancel, Scale, Loud, Up, First, Over, Scaled, Told)
}
_FIELDS = {
    kind: {field.name: typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
    for kind in _KINDS.values()
}


def encode(message: LaneMessage) -> bytes:
    """The frame of a message."""
    values = {name: getattr(message, name) for name in _FIELDS[type(message)]}
    return json.dumps({"is": message.IS, **values}).encode()


def decode(frame: bytes) -> LaneMessage:
    """The message in a frame; LaneProtocolError where it holds none."""
    if len(frame) > MAX_BYTES:
        raise LaneProtocolError(f"{len(frame)} bytes; at most {MAX_BYTES} are read")
    try:
        values: Any = json.loads(frame)
        kind = _KINDS[values.pop("is")]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise LaneProtocolError("not understood") from None
    fields = _FIELDS[kind]
    if values.keys() != fields.keys():
        raise LaneProtocolError(f"{kind.IS} has the fields {', '.join(fields)}")
    for name, hint in fields.items():
        if type(values[name]) is not hint:
            raise LaneProtocolError(f"{kind.IS}: {name} is a {type(values[name]).__name__}")
    return kind(**values)
