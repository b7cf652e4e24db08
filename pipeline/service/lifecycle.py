"""The states of a slide in the service, and which change may follow which. Pure.

                 deliver              start             finish
    WAITING ───────────────▶ QUEUED ─────────▶ RUNNING ─────────▶ COMPLETE | PARTIAL
    (in a watched folder,      ▲  ▲ restart       │ fail
     not finished by its       │  └───────────────┤
     scanner)                  │ due              ▼
                               └──────────── RETRY_WAIT, or QUARANTINED where no other try would help

An operator may cancel whatever is not finished, and retry whatever is at rest. There is no state "failed": a failed
attempt is decided on in the same transaction (pipeline.service.reasons), so a slide never rests there.
"""

from __future__ import annotations

from enum import StrEnum

from pipeline.service.reasons import Kind


class State(StrEnum):
    """Where a slide stands. WAITING is that of an arrival: its content is not known yet."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    RETRY_WAIT = "retry_wait"
    COMPLETE = "complete"
    PARTIAL = "partial"
    QUARANTINED = "quarantined"
    CANCELLED = "cancelled"


class Urgency(StrEnum):
    """The class of a slide. STAT goes before ROUTINE."""

    STAT = "stat"
    ROUTINE = "routine"


class Event(StrEnum):
    """What the world outside is told of."""

    DELIVERED = "slide.delivered"
    AGAIN = "slide.delivered_again"
    COMPLETE = "slide.complete"
    PARTIAL = "slide.partial"
    RETRY = "slide.retry"
    QUARANTINED = "slide.quarantined"
    CANCELLED = "slide.cancelled"
    DEADLINE = "slide.deadline_at_risk"
    STUCK = "arrival.stuck"
    HELD = "intake.held"
    RELEASED = "intake.released"
    DEGRADED = "service.degraded"
    RECOVERED = "service.recovered"


ALLOWED: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.QUEUED, State.QUARANTINED}),
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.QUARANTINED}),
    State.RUNNING: frozenset(
        {State.COMPLETE, State.PARTIAL, State.RETRY_WAIT, State.QUARANTINED, State.CANCELLED, State.QUEUED}
    ),
    State.RETRY_WAIT: frozenset({State.QUEUED, State.RUNNING, State.CANCELLED, State.QUARANTINED}),
    State.COMPLETE: frozenset({State.QUEUED}),
    State.PARTIAL: frozenset({State.QUEUED}),
    State.QUARANTINED: frozenset({State.QUEUED, State.CANCELLED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}

UNFINISHED = frozenset({State.QUEUED, State.RUNNING, State.RETRY_WAIT})
AT_REST = frozenset(State) - UNFINISHED - {State.WAITING}

_TOLD = {
    State.COMPLETE: Event.COMPLETE,
    State.PARTIAL: Event.PARTIAL,
    State.RETRY_WAIT: Event.RETRY,
    State.QUARANTINED: Event.QUARANTINED,
    State.CANCELLED: Event.CANCELLED,
}

# Quarantined for one of these, a slide is tried again when it is delivered again: the copy may be what was wrong.
_DELIVERY_HELPS = frozenset(
    {Kind.VANISHED, Kind.SHARE_GONE, Kind.PERMISSION, Kind.READ_ERROR, Kind.CHANGED, Kind.BAD_NAME}
)


class NotAllowed(Exception):
    """A change of state that the lifecycle does not know. One line, for a person."""


def check(old: State, new: State) -> None:
    """NotAllowed unless `new` may follow `old`."""
    if new not in ALLOWED[old]:
        raise NotAllowed(f"the slide is {old}, and cannot become {new}")


def told(new: State) -> Event | None:
    """The event that goes out when a slide enters a state; None where nobody needs to know."""
    return _TOLD.get(new)


def requeued_by_delivery(state: State, kind: Kind | None) -> bool:
    """Whether a slide is tried again because the same content was delivered once more.

    What is under way or finished is not done twice; what the operator cancelled stays cancelled; a slide that is broken
    is as broken in its second copy.
    """
    return state is State.QUARANTINED and kind in _DELIVERY_HELPS


def more_urgent(one: Urgency, other: Urgency) -> Urgency:
    """A slide delivered under two classes has the more urgent one."""
    return Urgency.STAT if Urgency.STAT in (one, other) else Urgency.ROUTINE
