"""A world around the Dispatcher, in virtual time: processes that work, lag, hang and die, and messages on their way.

Messages of one link keep their order; between links, chance decides. A process dies at any moment; some of its last
messages are lost, the others may arrive before or after word of its death. The batcher dies too: its successor is a new
Dispatcher, while the workers live on with leases of the old one. What the world knows for certain (who touches which
slot, what lies in it, what is on disk) is checked against what the Dispatcher believes.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from pipeline.dispatch.board import DispatchSettings
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.wire import (
    Amend,
    Ask,
    Beat,
    Begin,
    Condemn,
    Dead,
    Drain,
    Fill,
    Hello,
    Living,
    Mask,
    Message,
    Open,
    Record,
    Run,
    SlideDone,
    Submit,
    Write,
    decode,
    encode,
)
from tests.pipeline.dispatch.simchecks import audit, check_gone, check_grant
from tests.pipeline.dispatch.simworkers import AGAIN, CLASSES, KINDS, Aggregator, Journal, Process, Slide, slot_of

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
    shared: bool = False
    overview_slots: int = 2
    ahead: int = 2
    window: int = 4
    floor: float = 0.1
    deaths: int = 0  # of workers, from outside
    batcher_deaths: int = 0
    accidents: int = 0  # blamed deaths and hangs that no patch is to blame for
    roughness: float = 0.04  # how often one of these happens, per step
    early: float = 0.1  # how often a reader closes a slot early, per row
    end_at: int | None = None  # the step at which the run is drained, or cut off
    cut_off: bool = False
    frugal: bool = False  # the dead are replaced only where none of their kind is left
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
        self.poisoned = 0  # how often a patch or slide has struck
        self.unlucky = 0  # how often a death may have taught nothing
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
        self.cancelled: set[int] = set()  # said by a SlideDone
        self.wishes: dict[int, Amend] = {}  # of slides under way, as a new batcher must be told
        self.amends = deque(
            sorted(
                (slide.due + step, slide.number, urgent, cancel)
                for slide in scenario.slides
                for step, urgent, cancel in slide.amends
            )
        )
        self.draining = False
        self.condemned: set[tuple[str, int]] = set()
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
            shared=s.shared,
            delay_urgent_ms=5.0,
            delay_routine_ms=200.0,
            delay_hungry_ms=5.0,
            floor=s.floor,
            ahead=s.ahead,
            window=s.window,
            classes=(CLASSES,),
            patience=kinds,
        )
        self.dispatcher = Dispatcher(settings, self.boot)
        self.to_supervisor.clear()
        self.to_batcher.clear()  # a new line: nothing that was meant for the dead one arrives
        self.condemned.clear()
        self.cancelled -= set(self.under_way)  # the word of it was lost, and the new one has yet to hear that it is
        self.greeted, self.told, self.ghosts, self.rows = set(), False, [], {True: 0, False: 0}
        self.awaited = {(c.name, c.generation) for c in self.children.values()}
        self.to_batcher.append(Living("run", [[*worker] for worker in sorted(self.awaited)]))
        for slide in list(self.under_way.values()):
            if self.results.get(slide.id, ("", "", None))[0] == "complete" and self.rng.random() < 0.5:
                del self.under_way[slide.number]  # found on disk
            else:
                self.to_batcher.append(self._submit(slide))
                if slide.number in self.wishes:
                    self.to_batcher.append(self.wishes[slide.number])
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
        wanted = [post for post in self.to_start if not self._enough(post[0])]
        if wanted:
            duties.append(lambda: self._start(*self.rng.choice(wanted)))
        if self.unsubmitted and (self.quiet or self.unsubmitted[0].due <= self.steps) and not self.draining:
            duties.append(self._submit_next)
        if self.amends and (self.quiet or self.amends[0][0] <= self.steps):
            duties.append(self._amend)
        if self.dispatcher is None:
            duties.append(self._start_batcher)
        if duties:
            self.rng.choice(duties)()
        return bool(duties)

    def _enough(self, kind: str) -> bool:
        return self.scenario.frugal and any(child.kind == kind for child in self.children.values())

    def _submit_next(self) -> None:
        slide = self.unsubmitted.popleft()
        self.under_way[slide.number] = slide
        self.to_batcher.append(self._submit(slide))

    def _amend(self) -> None:
        """Word of a slide that is not known to the batcher, or no longer, goes nowhere."""
        _, number, urgent, cancel = self.amends.popleft()
        if number in self.under_way:
            cancel = cancel or (number in self.wishes and self.wishes[number].cancel)
            self.wishes[number] = Amend(number, urgent, cancel)
            self.to_batcher.append(self.wishes[number])

    def _start(self, kind: str, name: str) -> None:
        self.to_start.remove((kind, name))
        self.generations[name] = self.generations.get(name, 0) + 1
        self.children[name] = KINDS[kind](self, kind, name, self.generations[name])

    def _reap(self, child: Process) -> None:
        del self.children[child.name]
        self.to_start.append((child.kind, child.name))
        self.to_batcher.append(Dead(child.name, child.generation, child.cause, child.blame))

    def _hear(self) -> None:
        match self.to_supervisor.popleft():
            case SlideDone() as done:
                if slide := self.under_way.pop(done.slide, None):
                    self.done[done.slide] = done
                    if done.state == "cancelled":
                        self._resubmit(slide)
            case Condemn() as condemned:
                child = self.children.get(condemned.name)
                if child is not None and child.alive and child.generation == condemned.generation:
                    self.die(child, child.cause or condemned.reason, True)

    def _resubmit(self, slide: Slide) -> None:
        """The same slide again, under a number of its own."""
        anew = replace(slide, number=slide.number + AGAIN, amends=[], due=self.steps + 20)
        self.by_number[anew.number] = anew
        self.unsubmitted.append(anew)

    # ------------------------------------------------------------ mishaps

    def die(self, process: Process, cause: str, blame: bool) -> None:
        """Some of its last messages never left it."""
        self.unlucky += not blame
        process.alive, process.cause, process.blame = False, cause, blame
        if isinstance(process, Aggregator):
            process.torn()
        for _ in range(self.rng.randint(0, len(process.outbox))):
            process.outbox.pop()
        if process.outbox:
            self.ghosts.append(process)

    def power_cut(self) -> None:
        for child in self.children.values():
            if isinstance(child, Aggregator):
                child.torn()

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
            self.unlucky += any(isinstance(m, Dead) and m.name == process.name for m in self.to_batcher)
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
                if isinstance(message, SlideDone) and message.state == "cancelled":
                    check_gone(self, message.slide)
                    self.cancelled.add(message.slide)
                if isinstance(message, Condemn):
                    self.condemned.add((message.name, message.generation))
                continue
            child = self.children.get(name)
            here = child is not None and child.alive and child.generation == generation
            if isinstance(message, (Open, Fill, Mask, Run, Write)):
                check_grant(self, child if here else None, message)
            elif isinstance(message, (Ask, Begin, Record)):
                assert message.slide not in self.cancelled, "a cancelled slide is not let go of"
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
        if self.scenario.cut_off and self.steps >= (self.scenario.end_at or self.steps + 1):
            return True
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
        if self.steps == self.scenario.end_at and not self.scenario.cut_off:
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
            audit(self)

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

    # ------------------------------------------------------------ who touches what

    def overwrites(self, process: Process, slot: int) -> None:
        """A process writes into a slot: nobody else may be at it."""
        for other in self.children.values():
            if other is not process and other.alive and any(slot_of(lease) == slot for lease in other.active()):
                raise AssertionError(f"{process.name} writes into slot {slot}, and {other.name} is at it")

    def reads(self, process: Process, slot: int) -> None:
        """A process reads from a slot: nobody else may be at it either."""
        self.overwrites(process, slot)
