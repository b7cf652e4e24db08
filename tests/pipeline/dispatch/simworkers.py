"""Simulated processes for simulator.py: they obey the rules of a worker, and die, hang and lag as the world wants."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.dispatch.leases import BOOT_SHIFT
from pipeline.line import Line, is_prompt
from pipeline.wire import (
    Ask,
    Beat,
    Begin,
    Begun,
    Consumed,
    Fill,
    Filled,
    Forget,
    Hello,
    Inferred,
    Journaled,
    Known,
    Mask,
    Message,
    Open,
    Opened,
    Planned,
    Recall,
    Record,
    Refused,
    Run,
    Welcome,
    Who,
    Write,
    Written,
)
from slides.geometry import Geometry
from slides.plan import Plan

if TYPE_CHECKING:
    from tests.pipeline.dispatch.simulator import World

CLASSES = 2
STEP = 4  # level-0 pixels from one patch to the next; all patches of a simulated slide lie in one line
PENDING, INFERRED, FAILED = 0, 1, 2
AGAIN = 100  # added to the number of a slide that is submitted anew after it was cancelled
NAN = "the model's output is not a number"


@dataclass
class Slide:
    """A slide as the world knows it. `fates` says what befalls whoever touches a patch."""

    number: int
    id: str
    patches: int
    urgent: bool = False
    kind: str = "sound"  # problem, unreadable, kills_open, hangs_open, refuses_mask, kills_mask, lost
    fates: dict[int, str] = field(default_factory=dict)
    due: int = 0  # the step at which it is submitted
    amends: list[tuple[int, bool, bool]] = field(default_factory=list)  # steps after that: (step, urgent, cancel)

    @property
    def cancelled(self) -> bool:
        return any(cancel for _, _, cancel in self.amends)

    @property
    def geometry(self) -> Geometry:
        return Geometry(4, 0.5, 0, 1.0, (4, 4), "none", 4, 4, STEP, STEP, max(1, self.patches), 1)

    @property
    def key(self) -> dict:
        return {"slide": self.id}


@dataclass
class Journal:
    """What is on disk of one slide; survives every death."""

    key: dict
    header: dict
    states: np.ndarray
    probabilities: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        patches = np.frombuffer(record.patches, "<i4")
        values = np.frombuffer(record.probabilities, "<f4").reshape(len(patches), CLASSES)
        for patch, value in zip(patches.tolist(), values, strict=True):
            if self.states[patch] == PENDING:
                self.states[patch] = INFERRED
                self.probabilities[patch] = value
        for patch, reason in record.failures:
            if self.states[patch] == PENDING:
                self.states[patch] = FAILED
                self.reasons[patch] = reason


def probability(slide: int, patch: int) -> list[float]:
    """What the model says of a patch."""
    value = ((slide % AGAIN * 7919 + patch * 104729) % 997) / 997
    return [value, 1.0 - value]


def slot_of(lease: Any) -> int | None:
    return lease.slot if isinstance(lease, (Fill, Run)) else None


class Process:
    """One generation of one worker. `act` does one thing, if there is one to do, and says whether it did."""

    credit = 1

    def __init__(self, world: World, kind: str, name: str, generation: int):
        self.world = world
        self.rng = world.rng
        self.kind, self.name, self.generation = kind, name, generation
        self.inbox: deque[Message] = deque()
        self.outbox: deque[Message] = deque()
        self.alive, self.hung = True, False
        self.cause, self.blame = "", False
        self.boot: int | None = None
        self.said_hello_to = 0
        self.queue = Line()
        self.slow = self.rng.random() < 0.15
        self._hello(0)

    def _hello(self, boot: int) -> None:
        self.send(Hello(boot, self.kind, "run", 1, self.credit, {"engine": "simulated"}))

    def send(self, message: Message) -> None:
        self.outbox.append(message)

    def act(self) -> bool:
        if not self.alive or self.hung:
            return False
        if self.boot != self.world.boot and not self.outbox and self.rng.random() < 0.3:
            self.send(Beat())  # perhaps in the middle of its work: this is how a new batcher hears of most workers
            return True
        if self.slow and self.busy() and not self.inbox and self.rng.random() < 0.9:
            return True
        if self.inbox and (not self.busy() or self.rng.random() < 0.5):
            self._take(self.inbox.popleft())
            return True
        return self.work()

    def _take(self, message: Message) -> None:
        match message:
            case Welcome():
                self.boot = message.boot
            case Who():
                if message.boot > self.said_hello_to:
                    self.said_hello_to = message.boot
                    self.boot = None
                    self.forget()
                    self._hello(message.boot)
            case _:
                lease = getattr(message, "lease", None)
                if self.boot is not None and (lease is None or lease >> BOOT_SHIFT == self.boot):
                    self.queue.put(message)

    def forget(self) -> None:
        self.queue.clear()

    def busy(self) -> bool:
        return bool(len(self.queue))

    def work(self) -> bool:
        """Serve the first lease in line."""
        if not len(self.queue):
            return False
        lease = self.queue.take()
        if is_prompt(lease):
            self.give_back()
        if not isinstance(lease, Recall):
            self.serve(lease)
        return True

    def give_back(self) -> None:
        """A prompt lease is next."""

    def serve(self, lease: Any) -> None:
        raise NotImplementedError

    def active(self) -> list[Any]:
        """Leases that are being worked on."""
        return []

    def valid_leases(self) -> list[Any]:
        """Every lease that this process works on, or may yet: in work, in line, or still in its inbox."""
        leases = [*self.active(), *(m for m in self.queue.messages() if not isinstance(m, Recall))]
        boot = self.boot
        for message in self.inbox:
            if isinstance(message, Welcome):
                boot = message.boot
            elif isinstance(message, Who):
                boot = None if message.boot > self.said_hello_to else boot
            elif boot is not None and getattr(message, "lease", 0) >> BOOT_SHIFT == boot:
                leases.append(message)
        return leases

    def die(self, cause: str, blame: bool) -> None:
        self.world.die(self, cause, blame)

    def meet(self, fate: str) -> bool:
        """A killing or hanging fate; False where this process lives on."""
        if not fate.startswith(("kills", "hangs")):
            return False
        self.world.poisoned += 1
        if fate.startswith("kills"):
            self.die(fate, True)
        else:
            self.hung, self.cause = True, fate
        return True


class Reader(Process):
    credit = 2

    def __init__(self, *args: Any):
        self.current: Any = None
        self.row = 0
        self.failures: list[list] = []
        self.lost: list[list] = []
        super().__init__(*args)

    def forget(self) -> None:
        super().forget()
        self.current = None

    def busy(self) -> bool:
        return self.current is not None or bool(len(self.queue))

    def give_back(self) -> None:
        for lease in self.queue.recall(Fill):
            self.send(Filled(lease.lease, 0, [], []))

    def active(self) -> list[Any]:
        return [] if self.current is None else [self.current]

    def work(self) -> bool:
        if self.current is not None:
            self._read_on()
            return True
        return super().work()

    def serve(self, lease: Any) -> None:
        if isinstance(lease, Open):
            self._open(lease)
        elif isinstance(lease, Fill):
            self.current, self.row, self.failures, self.lost = lease, 0, [], []
            assert all(grid == self.world.by_number[s].geometry.to_dict() for s, _, grid, *_ in lease.segments)
            self.world.overwrites(self, lease.slot)

    def _open(self, lease: Open) -> None:
        slide = self.world.by_number[lease.slide]
        self.world.overviews[lease.slot] = slide.number
        if slide.kind == "unreadable":
            self.send(Refused(lease.lease, "not a slide"))
        elif not (slide.kind in ("kills_open", "hangs_open") and self.meet(slide.kind)):
            self.send(Opened(lease.lease, {"path": lease.path}, slide.geometry.to_dict(), 8, 8, "direct"))

    def _read_on(self) -> None:
        """One row."""
        lease: Fill = self.current
        rows = [(s, xy) for s, _, _, packed, _ in lease.segments for xy in np.frombuffer(packed, "<i4").reshape(-1, 2)]
        early = self.rng.random() < self.world.early or (not lease.prompt and self.queue.pressing)
        if self.row == len(rows) or (self.row and lease.max_delay_ms < 1e6 and early):
            self.current = None
            self.send(Filled(lease.lease, self.row, self.failures, self.lost))
            return
        number, xy = rows[self.row]
        slide, patch = self.world.by_number[number], int(xy[0]) // STEP
        fate = slide.fates.get(patch, "")
        self.world.memory[lease.slot][self.row] = (number, patch)
        self.world.overwrites(self, lease.slot)
        if slide.kind == "lost" and self.world.steps >= slide.due + 120:
            self.lost.append([number, "lost"])
            while self.row < len(rows) and rows[self.row][0] == number:
                self.world.memory[lease.slot][self.row] = None
                self.failures.append([self.row, "lost"])
                self.row += 1
            return
        if fate in ("kills_reader", "hangs_reader") and self.meet(fate):
            return
        if fate == "bad_tile":
            self.world.memory[lease.slot][self.row] = None
            self.failures.append([self.row, "bad tile"])
        self.row += 1


class Tissue(Process):
    def serve(self, lease: Mask) -> None:
        slide = self.world.by_number[lease.slide]
        assert self.world.overviews[lease.slot] == slide.number, "the overview of another slide was masked"
        if slide.kind == "refuses_mask":
            self.send(Refused(lease.lease, "no tissue can be found"))
        elif not (slide.kind == "kills_mask" and self.meet("kills_mask")):
            n = slide.patches
            plan = Plan(np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.ones(n, np.float32))
            self.send(Planned(lease.lease, plan.to_bytes(), {"method": "simulated"}))


@dataclass
class Executing:
    lease: Run
    rows: list[tuple[int, int] | None]
    doom: int  # the stage at which a fatal batch strikes
    stage: int = 0
    consumed: bool = False


class Inference(Process):
    """With `contexts` batches at a time, in any order, slots given back early; or one by one like a CPU engine."""

    def __init__(self, *args: Any):
        self.running: list[Executing] = []
        self.contexts = args[0].scenario.contexts
        self.credit = self.contexts + 1
        super().__init__(*args)

    def forget(self) -> None:
        super().forget()
        self.running.clear()

    def busy(self) -> bool:
        return bool(len(self.queue) or self.running)

    def active(self) -> list[Any]:
        return [e.lease for e in self.running if not e.consumed]

    def work(self) -> bool:
        if len(self.queue) and len(self.running) < self.contexts and (not self.running or self.rng.random() < 0.5):
            return super().work()
        if not self.running:
            return False
        self._go_on(self.rng.choice(self.running))
        return True

    def serve(self, lease: Run) -> None:
        self.world.reads(self, lease.slot)
        rows = list(self.world.memory[lease.slot][: lease.count])
        self.running.append(Executing(lease, rows, self.rng.randrange(3)))
        self._doom(self.running[-1])

    def _fate(self, row: tuple[int, int] | None) -> str:
        return "" if row is None else self.world.by_number[row[0]].fates.get(row[1], "")

    def _doom(self, batch: Executing) -> bool:
        fates = [f for f in map(self._fate, batch.rows) if f in ("kills_inference", "hangs_inference")]
        return bool(fates) and batch.stage == batch.doom and self.meet(fates[0])

    def _go_on(self, batch: Executing) -> None:
        batch.stage += 1
        if not batch.consumed:  # until now the pixels lay in the slot
            assert batch.rows == self.world.memory[batch.lease.slot][: batch.lease.count], "pixels changed under way"
            self.world.reads(self, batch.lease.slot)
        if self._doom(batch):
            return
        if batch.stage == 1:
            if self.contexts > 1 and self.rng.random() < 0.8:
                batch.consumed = True
                self.send(Consumed(batch.lease.lease))
            return
        self.running.remove(batch)
        fates = [self._fate(row) for row in batch.rows]
        if "refused" in fates:
            self.send(Refused(batch.lease.lease, "engine error"))
            return
        values = np.full((len(batch.rows), CLASSES), np.nan, np.float32)
        for i, (row, fate) in enumerate(zip(batch.rows, fates, strict=True)):
            if row is not None and fate != "nan":
                values[i] = probability(*row)
        failures = [[i, "engine says no"] for i, fate in enumerate(fates) if fate == "engine_says_no"]
        self.send(Inferred(batch.lease.lease, values.tobytes(), failures))


class Aggregator(Process):
    """Takes records in, writes them to the journals later, and acknowledges then; keeps all this over a Who."""

    credit = 0

    def __init__(self, *args: Any):
        self.open: dict[int, str] = {}
        self.unflushed: list[Record] = []
        super().__init__(*args)

    def busy(self) -> bool:
        return bool(len(self.queue) or self.unflushed)

    def work(self) -> bool:
        if self.unflushed and (not len(self.queue) or self.rng.random() < 0.1):
            self.flush()
            return True
        return super().work()

    def flush(self) -> None:
        for record in self.unflushed:
            self.world.disk[self.open[record.slide]].apply(record)
        if self.unflushed:
            self.send(Journaled([record.record for record in self.unflushed]))
        self.unflushed = []

    def torn(self) -> None:
        """Killed in mid-write: some of what was taken in is on disk, and nobody knows."""
        for record in self.unflushed[: self.rng.randint(0, len(self.unflushed))]:
            self.world.disk[self.open[record.slide]].apply(record)

    def serve(self, message: Message) -> None:
        disk = self.world.disk
        match message:
            case Ask():
                journal = disk.get(message.id)
                if journal is None or journal.key != message.key:
                    self.send(Known(message.slide, None, b""))
                    return
                self.flush()  # Known speaks of what is on disk
                self.open[message.slide] = message.id
                if message.retry:
                    journal.states[journal.states == FAILED] = PENDING
                    journal.reasons.clear()
                self.send(Known(message.slide, journal.header, journal.states.astype(np.uint8).tobytes()))
            case Begin():
                if message.id not in disk or disk[message.id].key != message.header["key"]:
                    n = len(Plan.from_bytes(message.header["plan"]))
                    values = np.full((n, CLASSES), np.nan, np.float32)
                    disk[message.id] = Journal(message.header["key"], message.header, np.zeros(n, np.uint8), values)
                self.open[message.slide] = message.id
                self.send(Begun(message.slide))
            case Record():
                if message.slide in self.open:
                    self.unflushed.append(message)
            case Forget():
                if self.open.pop(message.slide, None):
                    self.unflushed = [r for r in self.unflushed if r.slide != message.slide]
                if not message.keep:
                    disk.pop(message.id, None)


class Writer(Process):
    def serve(self, lease: Write) -> None:
        assert lease.slide not in self.world.cancelled, "results of a cancelled slide are written"
        if lease.problem:
            self.world.results[lease.id] = ("failed", lease.problem, None)
            self.send(Written(lease.lease, "failed", lease.problem, 0, 0, 0))
            return
        journal = self.world.disk[lease.id]
        inferred, failed = (int(np.count_nonzero(journal.states == s)) for s in (INFERRED, FAILED))
        assert inferred + failed == len(journal.states), "results were written before every patch was settled"
        state = "failed_patches" if failed else "complete"
        copy = Journal(journal.key, {}, journal.states.copy(), journal.probabilities.copy(), dict(journal.reasons))
        self.world.results[lease.id] = (state, "", copy)
        self.send(Written(lease.lease, state, "", len(journal.states), inferred, failed))


KINDS = {"reader": Reader, "tissue": Tissue, "inference": Inference, "aggregator": Aggregator, "writer": Writer}
