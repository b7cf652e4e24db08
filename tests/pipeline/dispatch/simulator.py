"""A world around the Dispatcher, in virtual time: processes that work, lag, hang and die, and messages on their way.

Messages of one link keep their order; between links, chance decides. A process dies at any moment; some of its last
messages are lost, the others may arrive before or after word of its death. The batcher dies too: its successor is a new
Dispatcher, while the workers live on with leases of the old one. What the world knows for certain (who touches which
slot, what lies in it, what is on disk) is checked against what the Dispatcher believes.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.dispatch.board import DispatchSettings
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.dispatch.leases import BOOT_SHIFT
from pipeline.dispatch.slidework import SlideState
from pipeline.dispatch.slots import FILLING, READY, RUNNING
from pipeline.wire import (
    Beat,
    Condemn,
    Dead,
    Drain,
    Fill,
    Hello,
    Living,
    Mask,
    Message,
    Open,
    Run,
    SlideDone,
    Submit,
    Write,
    decode,
    encode,
)
from tests.pipeline.dispatch.simworkers import (
    CLASSES,
    FAILED,
    INFERRED,
    KINDS,
    NAN,
    PENDING,
    Aggregator,
    Journal,
    Process,
    Slide,
    probability,
)

PATIENCE = 10.0


@dataclass
class Scenario:
    """What a world starts with, and how rough it is."""

    slides: list[Slide]
    readers: int = 2
    inferences: int = 1
    contexts: int = 1
    batch: int = 4
    slots: int = 3
    reserved: int = 1
    overview_slots: int = 2
    ahead: int = 2
    window: int = 4
    floor: float = 0.1
    deaths: int = 0  # of workers, from outside
    batcher_deaths: int = 0
    accidents: int = 0  # blamed deaths and hangs that no patch is to blame for
    roughness: float = 0.04  # how often one of these happens, per step
    early: float = 0.1  # how often a reader closes a slot early, per row
    drain_at: int | None = None
    real_wire: bool = False


class Stuck(AssertionError):
    """Nothing happens any more, or no end is in sight."""


class World:
    """One run over `disk`, the journals that earlier runs have left."""

    def __init__(self, scenario: Scenario, seed: int, disk: dict[str, Journal] | None = None):
        self.scenario = scenario
        self.rng = random.Random(seed)
        self.by_number = {slide.number: slide for slide in scenario.slides}
        self.disk = {} if disk is None else disk
        self.results: dict[str, tuple[str, str, Journal | None]] = {}
        self.memory: list[list] = [[None] * scenario.batch for _ in range(scenario.slots)]
        self.overviews: list[int | None] = [None] * scenario.overview_slots
        self.early = scenario.early
        self.now, self.steps, self.quiet = 0.0, 0, 0
        self.deaths = self.poisoned = 0
        self.budget = {"death": scenario.deaths, "batcher": scenario.batcher_deaths, "accident": scenario.accidents}
        self.boot = 0
        self.dispatcher: Dispatcher | None = None
        self.children: dict[str, Process] = {}
        self.ghosts: list[Process] = []
        self.generations: dict[str, int] = {}
        self.to_start: list[tuple[str, str]] = []
        self.to_batcher: deque[Message] = deque()
        self.to_supervisor: deque[Message] = deque()
        self.unsubmitted = deque(sorted(scenario.slides, key=lambda slide: slide.due))
        self.under_way: dict[int, Slide] = {}
        self.done: dict[int, SlideDone] = {}
        self.draining = False
        self.greeted: set[tuple[str, int]] = set()  # said Hello to this batcher
        self.told = False  # so was the batcher, of the living
        self.awaited: set[tuple[str, int]] = set()  # lived when this batcher started
        self.rows = {True: 0, False: 0}
        for kind, count in (("reader", scenario.readers), ("inference", scenario.inferences)):
            self.to_start += [(kind, f"{kind}-{i}") for i in range(count)]
        self.to_start += [("tissue", "tissue-0"), ("aggregator", "aggregator-0"), ("writer", "writer-0")]
        self._start_batcher()

    # ------------------------------------------------------------ the supervisor

    def _start_batcher(self) -> None:
        s = self.scenario
        self.boot += 1
        kinds = dict.fromkeys(KINDS, PATIENCE)
        settings = DispatchSettings(
            run="run",
            folder="/nowhere",
            batch=s.batch,
            slots=s.slots,
            overview_slots=s.overview_slots,
            reserved=s.reserved,
            delay_urgent_ms=5.0,
            delay_routine_ms=200.0,
            delay_hungry_ms=5.0,
            floor=s.floor,
            ahead=s.ahead,
            window=s.window,
            classes=CLASSES,
            patience=kinds,
        )
        self.dispatcher = Dispatcher(settings, self.boot)
        self.to_supervisor.clear()
        self.greeted, self.told, self.ghosts, self.rows = set(), False, [], {True: 0, False: 0}
        self.awaited = {(c.name, c.generation) for c in self.children.values()}
        self.to_batcher.append(Living("run", [[*worker] for worker in sorted(self.awaited)]))
        for slide in list(self.under_way.values()):
            if self.results.get(slide.id, ("", "", None))[0] == "complete" and self.rng.random() < 0.5:
                del self.under_way[slide.number]  # found on disk
            else:
                self.to_batcher.append(self._submit(slide))
        if self.draining:
            self.to_batcher.append(Drain())

    def _submit(self, slide: Slide) -> Submit:
        problem = "not there" if slide.kind == "problem" else ""
        return Submit(slide.number, slide.id, f"/slides/{slide.id}", slide.key, slide.urgent, False, problem)

    def _supervise(self) -> bool:
        """One of the supervisor's duties, in any order."""
        duties: list[Any] = []
        dead = [c for c in self.children.values() if not c.alive]
        if self.to_supervisor:
            duties.append(self._hear)
        if dead:
            duties.append(lambda: self._reap(self.rng.choice(dead)))
        if self.to_start:
            duties.append(lambda: self._start(*self.to_start.pop(self.rng.randrange(len(self.to_start)))))
        if self.unsubmitted and (self.quiet or self.unsubmitted[0].due <= self.steps) and not self.draining:
            duties.append(self._submit_next)
        if self.dispatcher is None:
            duties.append(self._start_batcher)
        if duties:
            self.rng.choice(duties)()
        return bool(duties)

    def _submit_next(self) -> None:
        slide = self.unsubmitted.popleft()
        self.under_way[slide.number] = slide
        self.to_batcher.append(self._submit(slide))

    def _start(self, kind: str, name: str) -> None:
        self.generations[name] = self.generations.get(name, 0) + 1
        self.children[name] = KINDS[kind](self, kind, name, self.generations[name])

    def _reap(self, child: Process) -> None:
        del self.children[child.name]
        self.to_start.append((child.kind, child.name))
        self.to_batcher.append(Dead(child.name, child.generation, child.cause, child.blame))

    def _hear(self) -> None:
        match self.to_supervisor.popleft():
            case SlideDone() as done:
                if self.under_way.pop(done.slide, None):
                    self.done[done.slide] = done
            case Condemn() as condemned:
                child = self.children.get(condemned.name)
                if child is not None and child.alive and child.generation == condemned.generation:
                    self.die(child, child.cause or condemned.reason, True)

    # ------------------------------------------------------------ mishaps

    def die(self, process: Process, cause: str, blame: bool) -> None:
        """Some of its last messages never left it."""
        self.deaths += 1
        process.alive, process.cause, process.blame = False, cause, blame
        if isinstance(process, Aggregator):
            process.torn()
        for _ in range(self.rng.randint(0, len(process.outbox))):
            process.outbox.pop()
        if process.outbox:
            self.ghosts.append(process)

    def _mishap(self) -> None:
        kinds = [kind for kind, left in self.budget.items() if left]
        if not kinds or self.rng.random() >= self.scenario.roughness:
            return
        kind = self.rng.choice(kinds)
        alive = [c for c in self.children.values() if c.alive]
        if kind == "batcher" and self.dispatcher is not None:
            self._batcher_dies()
        elif kind != "batcher" and alive:
            victim = self.rng.choice(alive)
            if kind == "accident" and self.rng.random() < 0.5:
                victim.hung = True
            else:
                self.die(victim, "accident" if kind == "accident" else "killed", kind == "accident")
        else:
            return
        self.budget[kind] -= 1

    def _batcher_dies(self) -> None:
        self.dispatcher = None
        self.ghosts.clear()
        self.to_batcher.clear()
        for _ in range(self.rng.randint(0, len(self.to_supervisor))):
            self.to_supervisor.pop()
        for child in self.children.values():
            for _ in range(self.rng.randint(0, len(child.inbox))):
                child.inbox.pop()
            for _ in range(self.rng.randint(0, len(child.outbox))):
                child.outbox.popleft()  # what was on its way is lost, what was not yet sent goes to the next one

    # ------------------------------------------------------------ the batcher

    def _deliver(self, process: Process) -> None:
        message = process.outbox.popleft()
        if isinstance(message, Hello) and process.alive:
            self.greeted.add((process.name, process.generation))
        if self.scenario.real_wire:
            message = decode(encode(message))
        self.dispatcher.from_worker(process.name, process.generation, message, self.now)
        self._post()

    def _post(self) -> None:
        for (name, generation), message in self.dispatcher.letters():
            if self.scenario.real_wire:
                message = decode(encode(message))
            if name == "supervisor":
                self.to_supervisor.append(message)
                continue
            child = self.children.get(name)
            here = child is not None and child.alive and child.generation == generation
            if isinstance(message, (Open, Fill, Mask, Run, Write)):
                self._check_grant(child if here else None, message)
            if here:
                child.inbox.append(message)

    def tick(self) -> None:
        if self.dispatcher is not None:
            self.dispatcher.tick(self.now)
            self._post()

    # ------------------------------------------------------------ the course of things

    def run(self, limit: int = 30_000) -> World:
        """Until all is done; Stuck where that takes more than `limit` steps."""
        while not self.finished():
            self._step(limit)
            self._mishap()
        return self

    def finished(self) -> bool:
        if self.draining and self.dispatcher is not None and self.dispatcher.drained:
            return True
        return not self.unsubmitted and not self.under_way

    def settle(self, limit: int = 30_000) -> None:
        """Let everything that is under way arrive."""
        while self.quiet < 3:
            self._step(limit)

    def _step(self, limit: int) -> None:
        self.steps += 1
        self.now += 0.001
        if self.steps > limit:
            raise Stuck(f"no end after {limit} steps")
        if self.steps == self.scenario.drain_at:
            self.draining = True
            self.to_batcher.append(Drain())
        if self.rng.random() < 0.003:
            self._time_passes()
        elif self._act():
            self.quiet = 0
        else:
            self.quiet += 1
            if self.quiet > 40 and not self.finished():
                raise Stuck("nothing happens any more")
            self._time_passes()
        if self.steps % 16 == 0:
            self.audit()

    def _act(self) -> bool:
        """Something that can happen, happens."""
        actors: list[Any] = [None, *self.children.values(), *self.ghosts]
        for _ in range(4):
            if self._act_of(self.rng.choice(actors)):
                return True
        self.rng.shuffle(actors)
        return any(self._act_of(actor) for actor in actors)

    def _act_of(self, actor: Process | None) -> bool:
        first = self.rng.random() < 0.5
        if actor is None:
            return (first and self._hear_supervisor()) or self._supervise() or self._hear_supervisor()
        return (first and self._hear_worker(actor)) or actor.act() or self._hear_worker(actor)

    def _hear_supervisor(self) -> bool:
        if self.dispatcher is None or not self.to_batcher:
            return False
        message = self.to_batcher.popleft()
        if isinstance(message, Living):
            self.told = True
        elif isinstance(message, Dead):
            self.awaited.discard((message.name, message.generation))
        self.dispatcher.from_supervisor(message, self.now)
        self._post()
        return True

    def _hear_worker(self, process: Process) -> bool:
        if self.dispatcher is None or not process.outbox:
            return False
        self._deliver(process)
        if not process.outbox and process in self.ghosts:
            self.ghosts.remove(process)
        return True

    def _time_passes(self) -> None:
        """So much that whoever is silent twice hangs; all that are well beat in time."""
        self.now += 0.6 * PATIENCE
        for child in list(self.children.values()):
            if child.alive and not child.hung:
                child.send(Beat())
                while self.dispatcher is not None and child.outbox:
                    self._deliver(child)
        self.tick()

    # ------------------------------------------------------------ what must hold

    def overwrites(self, process: Process, slot: int) -> None:
        """A process writes into a slot: nobody else may be at it."""
        for other in self.children.values():
            if other is not process and other.alive and any(_slot(lease) == slot for lease in other.active()):
                raise AssertionError(f"{process.name} writes into slot {slot}, and {other.name} is at it")

    def reads(self, process: Process, slot: int) -> None:
        self.overwrites(process, slot)

    def _check_grant(self, child: Process | None, lease: Any) -> None:
        assert lease.lease >> BOOT_SHIFT == self.boot
        missing = self.awaited - self.greeted
        living = {(c.name, c.generation) for c in self.children.values() if c.alive}
        assert self.told, "a lease is granted before the supervisor has spoken"
        assert not missing & living, f"a lease is granted while {missing & living} may still hold slots"
        if isinstance(lease, (Fill, Run)):
            assert 0 <= lease.slot < self.scenario.slots
            for other in self.children.values():
                if other.alive and any(_slot(held) == lease.slot for held in other.valid_leases()):
                    raise AssertionError(f"slot {lease.slot} is given away while {other.name} has a lease on it")
        if child is not None:
            outstanding = [held for held in child.valid_leases() if held.lease >> BOOT_SHIFT == self.boot]
            assert len(outstanding) < child.credit, f"{child.name} gets more than its credit"
        if isinstance(lease, Fill):
            self._check_priority(lease)

    def _check_priority(self, lease: Fill) -> None:
        """Routine rows are read beside urgent ones only as far as the floor goes."""
        slides = self.dispatcher._board.slides
        urgent = self.by_number[lease.segments[0][0]].urgent
        rows = sum(len(packed) // 8 for _, _, _, packed in lease.segments)
        assert 0 < rows <= self.scenario.batch
        assert all(self.by_number[segment[0]].urgent == urgent for segment in lease.segments)
        if urgent:
            self.rows[True] += rows
        elif any(s.urgent and s.has_pending for s in slides.values()):
            self.rows[False] += rows
            allowed = self.rows[True] * self.scenario.floor / (1 - self.scenario.floor) + 2 * self.scenario.batch
            assert self.rows[False] <= allowed, "routine patches go before urgent ones"

    def audit(self) -> None:
        """Every planned patch is in one place, the counters say so, and what counts as settled is on disk."""
        mind = self.dispatcher
        if mind is None:
            return
        leases = [lease for worker in mind._board.leases.workers.values() for lease in worker.leases.values()]
        for worker in mind._board.leases.workers.values():
            assert len(worker.leases) <= worker.credit
        slots = mind._feed.slots
        held = {FILLING: 0, RUNNING: 0}
        batches = [slots.batches[i] for i, state in enumerate(slots.states) if state == READY]
        for lease in leases:
            if lease.kind in ("fill", "run"):
                batches.append(lease.subject.batch)
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
                self._audit_slide(slide, flying.pop(slide.number, []), recorded.pop(slide.number, []))
        assert not flying and not recorded, "patches of a slide that is not being read"

    def _audit_slide(self, slide: Any, flying: list, recorded: list) -> None:
        pending = slide._order[slide._next :].tolist() + [p for part in slide._returned for p in part.tolist()]
        assert len(pending) == slide.pending and slide.has_pending == bool(pending)
        assert len(flying) == slide.in_flight, f"{slide.id}: in_flight is {slide.in_flight}, not {len(flying)}"
        assert len(recorded) == slide.recorded
        places = pending + flying + recorded
        assert len(set(places)) == len(places), f"{slide.id}: a patch is in two places"
        assert slide.inferred + slide.failed == slide.planned - len(places), f"{slide.id}: a patch is nowhere"
        settled = np.ones(slide.planned, bool)
        settled[places] = False
        assert (self.disk[slide.id].states[settled] != PENDING).all(), f"{slide.id}: believed to be on disk, but is not"

    def check_end(self) -> None:
        """All slides are done, as they should be, and everything is released."""
        for slide in self.scenario.slides:
            check_result(slide, *self.results[slide.id])
        self.settle()
        self.audit()
        mind = self.dispatcher
        assert mind._feed.idle and not mind._board.slides and not len(mind._records) and not len(mind._feed.suspects)
        assert not any(worker.leases for worker in mind._board.leases.workers.values())
        assert sorted(mind._intake._free_overviews) == list(range(self.scenario.overview_slots))
        assert not mind._schedule.waiting(True) and not mind._schedule.waiting(False)


def _slot(lease: Any) -> int | None:
    return lease.slot if isinstance(lease, (Fill, Run)) else None


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
