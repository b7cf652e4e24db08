"""Whether the service lives, is ready and comes on, with reasons in words. Pure.

Live: the supervisor answers; if not, only a restart helps. Ready: it can take slides in and infer. Progressing: while there
is work that could be done, results come. A held folder or a full disk is no lack of progress: nothing could be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.service.snapshot import Snapshot
from pipeline.service.troubles import TroubleKind
from pipeline.status import duration, stage_name

NEEDED = ("reader", "tissue", "batcher", "inference", "aggregator", "writer")

# What is neither a lost worker nor held, which are told by themselves.
_ONLY_TROUBLES = {
    TroubleKind.DISK_LOW: "results disks nearly full",
    TroubleKind.LANE_DOWN: "lanes of routes that do not come up",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all is well, and in `reasons` why not; `notes` are what an operator should know although it is."""

    good: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def live(look: Snapshot) -> Verdict:
    """The supervisor's loop turns."""
    return _verdict([] if look.answers else [look.problem or "the supervisor does not answer"])


def ready(look: Snapshot) -> Verdict:
    """Slides that come now are taken in and inferred. Lost workers and held folders are notes, as the rest goes on."""
    if not look.answers:
        return live(look)
    reasons = []
    if not look.ledger:
        reasons.append(look.problem or "the ledger cannot be read")
    if look.draining:
        reasons.append("the service is draining: it takes no more slides")
    missing = [stage_name(kind) for kind in NEEDED if not look.workers(kind)]
    if missing:
        reasons.append(f"no process is ready of: {', '.join(missing)}")
    notes = [f"{worker} was given up: {reason}" for worker, reason in look.lost.items()]
    notes += [f"held for {kind}: {count}" for kind, count in look.held.items()]
    notes += [f"{words}: {look.troubles[kind]}" for kind, words in _ONLY_TROUBLES.items() if kind in look.troubles]
    return _verdict(reasons, notes)


def progressing(look: Snapshot, stuck_s: float) -> Verdict:
    """Not so where slides could be worked on and no patch has been settled for `stuck_s` seconds.

    Counts from the later of the last result and the time since when there has been such work: a slide that was just
    delivered to an idle service is no lack of progress.
    """
    if not look.answers:
        return live(look)
    if not look.ledger:
        return _verdict([look.problem or "the ledger cannot be read"])
    age = look.workable_s if look.last_result_age_s is None else min(look.workable_s, look.last_result_age_s)
    if look.workable and age > stuck_s:
        return _verdict([f"{look.backlog} slides are unfinished and nothing has come out for {duration(age)}"])
    if look.backlog and not look.workable:
        return _verdict([], ["nothing can be worked on: what waits is held or waits for its next try"])
    return _verdict([])


def _verdict(reasons: Sequence[str], notes: Sequence[str] = ()) -> Verdict:
    return Verdict(not reasons, tuple(reasons), tuple(notes))
