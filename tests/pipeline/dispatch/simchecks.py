"""What must hold in the world of simulator.py: checked at every grant, now and then, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.dispatch.leases import BOOT_SHIFT
from pipeline.dispatch.slidework import SlideState
from pipeline.dispatch.slots import FILLING, READY, RUNNING
from pipeline.wire import Fill, Run
from tests.pipeline.dispatch.simworkers import (
    FAILED,
    INFERRED,
    NAN,
    PENDING,
    Journal,
    Process,
    Slide,
    probability,
    slot_of,
)

if TYPE_CHECKING:
    from tests.pipeline.dispatch.simulator import World


def check_grant(world: World, child: Process | None, lease: Any) -> None:
    """A lease leaves the batcher: nobody else may have its slot, and its worker must be fit for it."""
    assert lease.lease >> BOOT_SHIFT == world.boot
    assert world.told, "a lease is granted before the supervisor has spoken"
    living = {(c.name, c.generation) for c in world.children.values() if c.alive}
    missing = (world.awaited - world.greeted) & living
    assert not missing, f"a lease is granted while {missing} may still hold slots"
    if isinstance(lease, (Fill, Run)):
        assert 0 <= lease.slot < world.scenario.slots
        for other in world.children.values():
            if other.alive and any(slot_of(held) == lease.slot for held in other.valid_leases()):
                raise AssertionError(f"slot {lease.slot} is given away while {other.name} has a lease on it")
    about = {segment[0] for segment in lease.segments} if isinstance(lease, Fill) else {getattr(lease, "slide", 0)}
    assert not about & world.cancelled, "a cancelled slide is gone on with"
    if child is not None:
        assert (child.name, child.generation) not in world.condemned, f"{child.name} is condemned and gets work"
        outstanding = [held for held in child.valid_leases() if held.lease >> BOOT_SHIFT == world.boot]
        prompt = getattr(lease, "prompt", False)
        assert len(outstanding) < child.credit + prompt, f"{child.name} gets more than its credit"
    if isinstance(lease, Fill):
        check_priority(world, lease)


def check_gone(world: World, number: int) -> None:
    """A slide is said to be cancelled: from now on, nobody is at it."""
    assert world.by_number[number].cancelled or number in world.wishes and world.wishes[number].cancel
    mind = world.dispatcher
    assert number not in mind._board.slides and world.awaited - world.greeted <= {
        (name, generation) for name, generation in world.awaited if not _alive(world, name, generation)
    }
    for child in world.children.values():
        for lease in child.valid_leases() if child.alive else []:
            if isinstance(lease, Fill):
                assert number not in [segment[0] for segment in lease.segments], f"{child.name} still reads it"
            elif isinstance(lease, Run):
                rows = world.memory[lease.slot][: lease.count]
                assert number not in [row[0] for row in rows if row is not None], f"{child.name} still infers it"
            else:
                assert getattr(lease, "slide", None) != number or child.kind == "aggregator", f"{child.name} is at it"


def _alive(world: World, name: str, generation: int) -> bool:
    child = world.children.get(name)
    return child is not None and child.alive and child.generation == generation


def check_priority(world: World, lease: Fill) -> None:
    """Routine rows are read beside urgent ones only as far as the floor goes."""
    slides = world.dispatcher._board.slides
    classes = {slides[segment[0]].urgent for segment in lease.segments}
    assert not any(slides[segment[0]].cancelled for segment in lease.segments), "a cancelled slide is read"
    urgent = True in classes
    rows = sum(len(packed) // 8 for _, _, _, packed, _ in lease.segments)
    assert 0 < rows <= world.scenario.batch
    # Slides of a suspect batch may have been amended since their rows were put together.
    assert len(classes) == 1 or lease.max_delay_ms == float("inf"), "a batch is of one class"
    if urgent:
        world.rows[True] += rows
    elif any(s.urgent and s.has_pending for s in slides.values()):
        world.rows[False] += rows
        allowed = world.rows[True] * world.scenario.floor / (1 - world.scenario.floor) + 2 * world.scenario.batch
        assert world.rows[False] <= allowed, "routine patches go before urgent ones"


def audit(world: World) -> None:
    """Every planned patch is in one place, the counters say so, what counts as settled is on disk, and nobody idles."""
    mind = world.dispatcher
    if mind is None:
        return
    leases = [lease for worker in mind._board.leases.workers.values() for lease in worker.leases.values()]
    for worker in mind._board.leases.workers.values():
        assert len(worker.leases) <= worker.credit + 1 and worker.prompt <= worker.credit
    slots = mind._feed.slots
    held = {FILLING: 0, RUNNING: 0}
    batches = [slots.batches[i] for i, state in enumerate(slots.states) if state == READY]
    for lease in leases:
        if lease.kind in ("fill", "run"):
            batches.append(lease.subject.batch)
            assert not batches[-1].suspect or len(lease.worker.leases) == 1, "a suspect batch is not tried alone"
            if lease.subject.slot is not None:
                state = FILLING if lease.kind == "fill" else RUNNING
                assert slots.states[lease.subject.slot] == state
                held[state] += 1
    counts = slots.counts()
    assert (counts[FILLING], counts[RUNNING]) == (held[FILLING], held[RUNNING])
    batches += list(mind._feed.suspects)
    flying: dict[int, list] = {}
    for batch in batches:
        for segment in batch.segments:
            flying.setdefault(segment.slide, []).extend(segment.patches.tolist())
    recorded: dict[int, list] = {}
    for record in mind._records._unacknowledged.values():
        places = recorded.setdefault(record.slide, [])
        places += np.frombuffer(record.patches, "<i4").tolist() + [patch for patch, _ in record.failures]
    for slide in mind._board.slides.values():
        if slide.state is SlideState.READING:
            audit_slide(world, slide, flying.pop(slide.number, []), recorded.pop(slide.number, []))
        elif slide.cancelled:
            assert slide.in_flight == len(flying.pop(slide.number, [])) and not slide.has_pending and not slide.recorded
    assert not flying and not recorded, "patches of a slide that is not being read"
    if mind._awaited == {}:
        audit_idleness(world)


def audit_slide(world: World, slide: Any, flying: list, recorded: list) -> None:
    stretches = [slide._order[start:stop].tolist() for start, stop in slide._stretches.values()]
    assert all(stretches), f"{slide.id}: a reader has an empty stretch"
    pending = [p for part in (*stretches, *(part.tolist() for part in slide._returned)) for p in part]
    assert len(pending) == slide.pending and slide.has_pending == bool(pending)
    assert len(flying) == slide.in_flight, f"{slide.id}: in_flight is {slide.in_flight}, not {len(flying)}"
    assert len(recorded) == slide.recorded
    places = pending + flying + recorded
    assert len(set(places)) == len(places), f"{slide.id}: a patch is in two places"
    assert slide.inferred + slide.failed == slide.planned - len(places), f"{slide.id}: a patch is nowhere"
    settled = np.ones(slide.planned, bool)
    settled[places] = False
    assert (world.disk[slide.id].states[settled] != PENDING).all(), f"{slide.id}: believed to be on disk, but is not"


def audit_idleness(world: World) -> None:
    """No worker waits while there is work for it, and room. (A trial may wait for a worker to become idle.)"""
    mind = world.dispatcher
    leases, feed = mind._board.leases, mind._feed
    trial = len(feed.suspects) or mind._board.hold_fills or any(b is not None and b.suspect for b in feed.slots.batches)
    if trial:
        return
    if mind._records.room and leases.able("inference") and not feed.quiet:
        assert not feed.slots.anything_ready, "an inference worker idles beside a full slot"
    if not mind._board.draining and leases.able("reader"):
        for urgent in (True, False)[: 1 if mind._board.quiet else 2]:
            waiting = mind._schedule.waiting(urgent)
            assert not (waiting and feed.slots.room(urgent)), (
                f"a reader idles beside pending patches (urgent: {urgent})"
            )


def check_drained(world: World) -> None:
    """A drained run holds nothing that is not on disk, but for suspects that are still to be tried."""
    mind = world.dispatcher
    suspects = sum(batch.count for batch in mind._feed.suspects)
    assert sum(s.in_flight for s in mind._board.slides.values()) == suspects
    assert sum(s.recorded for s in mind._board.slides.values()) == 0
    if mind._awaited == {}:  # else workers may still be at leases of the last batcher
        for child in world.children.values():
            assert not child.alive or not any(isinstance(lease, (Fill, Run)) for lease in child.active())


def check_end(world: World) -> None:
    """All slides are done, as they should be, and everything is released."""
    for slide in world.scenario.slides:
        check_result(slide, *world.results[slide.id])
    world.settle()
    audit(world)
    mind = world.dispatcher
    assert not any(done.state == "cancelled" and not world.by_number[n].cancelled for n, done in world.done.items())
    assert mind._feed.idle and not mind._board.slides and not len(mind._records) and not len(mind._feed.suspects)
    assert not any(worker.leases for worker in mind._board.leases.workers.values())
    assert sorted(mind._intake._free_overviews) == list(range(world.scenario.overview_slots))
    assert not mind._schedule.waiting(True) and not mind._schedule.waiting(False)
    check_deaths(world)


def check_deaths(world: World) -> None:
    """Poison kills a bounded number of workers; a batcher that dies takes what was learnt with it."""
    bisecting = 3 + (world.scenario.batch - 1).bit_length()
    killers = sum(
        fate.startswith(("kills", "hangs")) for slide in world.by_number.values() for fate in slide.fates.values()
    )
    killers_as_a_whole = sum(slide.kind.startswith(("kills", "hangs")) for slide in world.by_number.values())
    bound = (killers * bisecting + killers_as_a_whole * 3) * world.boot + world.unlucky
    assert world.poisoned <= bound, f"{world.poisoned} deaths by poison, {bound} should have been enough"


REASONS = {
    "bad_tile": "bad tile",
    "kills_reader": "reading it stopped the reader twice",
    "hangs_reader": "reading it stopped the reader twice",
    "kills_inference": "inferring it stopped the inference twice",
    "hangs_inference": "inferring it stopped the inference twice",
    "refused": "inferring it stopped the inference twice",
    "nan": NAN,
    "engine_says_no": "engine says no",
}
PROBLEMS = {
    "problem": "not there",
    "unreadable": "not a slide",
    "kills_open": "opening it killed the reader twice",
    "hangs_open": "opening it killed the reader twice",
    "refuses_mask": "no tissue can be found",
    "kills_mask": "masking it killed the tissue twice",
}


def check_result(slide: Slide, state: str, problem: str, journal: Journal | None) -> None:
    """A slide's result is that of an undisturbed run."""
    if slide.kind in PROBLEMS:
        assert state == "failed" and PROBLEMS[slide.kind] in problem, f"{slide.id}: {state} {problem}"
        return
    assert journal is not None, f"{slide.id} failed: {problem}"
    assert len(journal.states) == slide.patches
    for patch, got in enumerate(journal.states.tolist()):
        reason = journal.reasons.get(patch, "")
        fate = slide.fates.get(patch)
        assert got in (INFERRED, FAILED), f"{slide.id}: patch {patch} is not settled"
        if slide.kind == "lost" and got == FAILED and reason == "lost":
            continue
        assert (got == FAILED) == (fate is not None), f"{slide.id}: patch {patch} ({fate}) is {got}: {reason}"
        if fate is None:
            assert np.array_equal(journal.probabilities[patch], np.float32(probability(slide.number, patch)))
        else:
            assert REASONS[fate] in reason, f"{slide.id}: patch {patch} ({fate}) failed for another reason: {reason}"
