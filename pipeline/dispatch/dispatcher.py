"""The batcher's mind: what is known, and what is decided, message by message. No sockets, no clock: `now` is an argument.

A batcher that starts (the first one, or one in place of a dead one) is told by the supervisor which workers live. It
hands out nothing until each of them has said Hello to it or is dead: until then, one may still be writing to a slot.
"""

from __future__ import annotations

from typing import Any

from pipeline.dispatch.account import Account
from pipeline.dispatch.board import AGGREGATOR, INFERENCE, READER, WRITER, Board, DispatchSettings
from pipeline.dispatch.feed import Feed
from pipeline.dispatch.intake import Intake
from pipeline.dispatch.leases import Leases, Worker
from pipeline.dispatch.manners import fault
from pipeline.dispatch.quiet import Quiet
from pipeline.dispatch.records import Records
from pipeline.dispatch.schedule import Schedule
from pipeline.dispatch.slidework import SlideState
from pipeline.wire import (
    Amend,
    Beat,
    Begun,
    Condemn,
    Consumed,
    Dead,
    Drain,
    Filled,
    Hello,
    Inferred,
    Journaled,
    Known,
    Living,
    Message,
    Opened,
    Planned,
    Refused,
    Report,
    Stop,
    Submit,
    Telemetry,
    Welcome,
    Who,
    Written,
)

# Which lease an answer ends.
_ANSWERS = {Opened: "open", Planned: "mask", Filled: "fill", Inferred: "run", Written: "write"}


class Dispatcher:
    """Takes messages, time and deaths; leaves what is to be sent in `outbox` (take it with `letters`)."""

    def __init__(self, settings: DispatchSettings, boot: int):
        self._board = Board(settings, Leases(boot))
        self._schedule = Schedule(settings.batch, settings.ahead)
        self._intake = Intake(self._board, self._schedule)
        self._records = Records(self._board, self._intake.settled)
        self._intake.use(self._records)
        self._feed = Feed(self._board, self._schedule, self._records, self._intake.lose)
        self._quiet = Quiet(self._board)
        self._account = Account()
        self._awaited: dict[tuple[str, int], float] | None = None  # None: the supervisor has not spoken yet
        self._gone: dict[str, int] = {}  # the last generation of each name that is dead, or as good as dead
        self.stale = 0
        self._news_at: float | None = None  # when something was heard that may let work be handed out

    def letters(self) -> list[tuple[tuple[str, int], Message]]:
        """What is to be sent, in order; each is addressed to (name, generation).

        Work is handed out here, once for all that was heard since the last call.
        """
        if self._news_at is not None and self._awaited is not None and not self._awaited:
            self._quiet.look(self._news_at)
            self._intake.offer(self._news_at)
            self._feed.offer(self._news_at)
        self._news_at = None
        letters, self._board.outbox = self._board.outbox, []
        return letters

    # ------------------------------------------------------------ the supervisor

    def from_supervisor(self, message: Message, now: float) -> None:
        self._advance(now)
        match message:
            case Living():
                known = {(w.name, w.generation) for w in self._board.leases.workers.values()}
                living = {(name, generation) for name, generation in message.workers}
                self._awaited = dict.fromkeys(living - known, now)
            case Submit():
                self._intake.submit(message)
            case Amend():
                if self._intake.amend(message):
                    self._feed.amended()
            case Dead():
                self._worker_died(message)
            case Drain():
                self._board.draining = True
            case Stop():
                for worker in self._board.leases.workers.values():
                    self._board.send(worker, Stop())
        self._news_at = now

    def _worker_died(self, message: Dead) -> None:
        if self._awaited is not None:
            self._awaited.pop((message.name, message.generation), None)
        self._gone[message.name] = max(message.generation, self._gone.get(message.name, 0))
        worker = self._board.leases.get(message.name, message.generation)
        if worker is None:
            return
        self._schedule.leave(worker.name)
        # Last granted, first given back: pending patches keep their order.
        for lease in reversed(self._board.leases.leave(worker)):
            part = self._feed if lease.kind in ("fill", "run") else self._intake
            part.worker_died(lease, message.blame, message.cause)

    # ------------------------------------------------------------ the workers

    def from_worker(self, name: str, generation: int, message: Message, now: float) -> None:
        self._advance(now)
        worker = self._board.leases.get(name, generation)
        if worker is not None and isinstance(message, Beat):
            worker.heard_at = now  # and nothing else has changed, so there is nothing new to offer
            return
        if worker is not None and isinstance(message, Telemetry):
            worker.heard_at, worker.telemetry = now, message.values
            return
        if isinstance(message, Hello):
            self._hello(name, generation, message, now)
        elif worker is None:
            self.stale += 1
            self._board.outbox.append(((name, generation), Who(self._board.leases.boot)))
        elif wrong := fault(message):
            self.nonsense(name, generation, wrong)
        else:
            worker.heard_at = now
            self._answer(worker, message, now)
        self._news_at = now

    def _hello(self, name: str, generation: int, message: Hello, now: float) -> None:
        leases = self._board.leases
        old = leases.workers.get(name)
        known = max(self._gone.get(name, 0), old.generation if old is not None else 0)
        ours = message.run == self._board.settings.run and message.kind in self._board.settings.patience
        if generation <= known or not ours or fault(message):  # the last words of a dead worker may come after word of its death
            self.stale += 1
            return
        if old is not None:  # the next generation is here before word of the last one's death
            self._worker_died(Dead(name, old.generation, "replaced", False))
        if self._awaited is not None:
            self._awaited.pop((name, generation), None)
        worker = Worker(name, generation, message.kind, message.credit, now, message.detail, free_since=now)
        leases.join(worker)
        self._board.send(worker, Welcome(leases.boot))
        if worker.kind == AGGREGATOR:
            self._intake.aggregator_joined()
        elif worker.kind == INFERENCE:
            self._board.engine = message.detail

    def _answer(self, worker: Worker, message: Message, now: float) -> None:
        match message:
            case Known():
                self._intake.known(message)
            case Begun():
                self._intake.begun(message)
            case Journaled():
                self._records.acknowledge(message, now)
            case Consumed():
                lease = worker.leases.get(message.lease)
                if lease is not None and lease.kind == "run":
                    self._feed.consumed(lease)
            case Refused():
                lease = worker.leases.get(message.lease)
                if lease is not None and self._board.leases.settle(worker, lease.number, lease.kind, now):
                    (self._feed if lease.kind in ("fill", "run") else self._intake).refused(lease, message.reason)
            case Opened() | Planned() | Filled() | Inferred() | Written():
                settled = self._board.leases.settle(worker, message.lease, _ANSWERS[type(message)], now)
                if settled is None:
                    self.stale += 1
                    return
                lease, seconds = settled
                match message:
                    case Opened():
                        self._intake.opened(lease.subject, message, seconds)
                    case Planned():
                        self._intake.planned(lease.subject, message, seconds)
                    case Filled():
                        self._feed.filled(lease, message, seconds)
                    case Inferred():
                        self._feed.inferred(lease, message, seconds)
                    case Written():
                        self._intake.written(lease.subject, message)
            case _:
                self.nonsense(worker.name, worker.generation, f"sent a {type(message).__name__}")

    def nonsense(self, name: str, generation: int, reason: str) -> None:
        """A peer speaks nonsense: if it is a worker of ours, it is condemned."""
        worker = self._board.leases.get(name, generation)
        if worker is not None:
            self._condemn(worker, reason)

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        """To be called several times a second: finds workers that hang."""
        self._advance(now)
        patience = self._board.settings.patience
        for worker in list(self._board.leases.workers.values()):
            if not worker.condemned and now - worker.heard_at > patience[worker.kind]:
                self._condemn(worker, f"no sign of life for {now - worker.heard_at:.1f} s")
        for (name, generation), since in (self._awaited or {}).items():
            if now - since > max(patience.values()):
                self._awaited[name, generation] = now
                self._gone[name] = generation  # a Hello that comes too late saves nobody
                self._board.tell_supervisor(Condemn(name, generation, "does not answer the new batcher"))
        self._news_at = now

    def _condemn(self, worker: Worker, reason: str) -> None:
        """Its leases stay where they are until the supervisor has reaped it: a hanging process may still write."""
        if not worker.condemned:
            worker.condemned = True
            self._board.tell_supervisor(Condemn(worker.name, worker.generation, reason))

    def _advance(self, now: float) -> None:
        self._account.advance(now, self._board.leases.workers.values(), self._idle_is)

    def _idle_is(self, kind: str) -> str:
        """What a worker without a lease is doing, as a field of StageTime. The aggregator works without leases."""
        if kind == AGGREGATOR and len(self._records):
            return "working"
        if kind == READER and self._feed.lacks_room:
            return "waiting_room"
        if kind == INFERENCE and self._feed.slots.anything_ready and not self._records.room:
            return "waiting_room"
        return "waiting_input"

    # ------------------------------------------------------------ what the supervisor is shown

    @property
    def drained(self) -> bool:
        """Nothing is under way any more: what is read has been inferred, and is on disk."""
        writing = any(s.state is SlideState.WRITING for s in self._board.slides.values())
        leased = any(w.leases for w in self._board.leases.workers.values() if w.kind != WRITER)
        return self._board.draining and self._feed.idle and not leased and not len(self._records) and not writing

    def report(self, worked_s: float = 0.0, waited_s: float = 0.0) -> Report:
        """Slides in work, stages with their times, slots and queues; plain data for display and run.json.

        `worked_s` and `waited_s` are the batcher's own seconds.
        """
        slides = self._board.slides.values()
        stages: dict[str, Any] = {
            kind: {
                "workers": sum(1 for _ in self._board.leases.of_kind(kind)),
                "busy": sum(1 for w in self._board.leases.of_kind(kind) if w.leases),
                "working_s": round(time.working, 3),
                "waiting_input_s": round(time.waiting_input, 3),
                "waiting_room_s": round(time.waiting_room, 3),
            }
            for kind, time in self._account.stages.items()
        }
        stages["batcher"] = {
            "workers": 1,
            "busy": 1,
            "working_s": round(worked_s, 3),
            "waiting_input_s": round(waited_s, 3),
            "waiting_room_s": 0.0,
        }
        active = [s for s in slides if s.state in (SlideState.READING, SlideState.WRITING) and s.xy is not None]
        return Report(
            {
                "boot": self._board.leases.boot,
                "slides": {state.value: sum(1 for s in slides if s.state is state) for state in SlideState},
                "active": [[s.number, s.id, s.inferred, s.failed, s.planned] for s in active],
                "slots": self._feed.slots.counts(),
                "suspects": len(self._feed.suspects),
                "on_trial": self._feed.on_trial,
                "quarantined": self._feed.quarantined,
                "records": len(self._records),
                "settled": self._records.settled_patches,
                "first_result_at": self._records.first_at,
                "present": [[w.name, w.generation] for w in self._board.leases.workers.values()],
                "stages": stages,
                "stale": self.stale,
                "drained": self.drained,
                "engine": self._board.engine,
                "engines": {w.name: w.detail for w in self._board.leases.of_kind(INFERENCE)},
                "telemetry": {w.name: w.telemetry for w in self._board.leases.of_kind(INFERENCE) if w.telemetry},
            }
        )
