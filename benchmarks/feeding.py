"""How busy a fast GPU is kept over many small slides: the batcher's real mind in a simulated world of given speeds.

    python -m benchmarks.feeding                          20 slides of 3,000 patches, 16 readers, one GPU, batch 64
    python -m benchmarks.feeding --slides 1 --patches 60000
    python -m benchmarks.feeding --tissue-workers 2 --ahead 8

Every decision is made by `pipeline.dispatch`; readers, tissue masks, inference, aggregator and writers are queues that take
the times given here (defaults: processor times measured on one core, PyTorch-class readers and engines as on an H100 with
16 cores). So it shows what the schedule and the numbers of processes cost, with every process at its own speed: valleys at
the change of slides, slots half empty, the end of the last slide. It knows nothing of the cores that processes share.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import table
from pipeline.dispatch.board import DispatchSettings
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.wire import (
    Ask,
    Begin,
    Begun,
    Fill,
    Filled,
    Hello,
    Inferred,
    Journaled,
    Known,
    Living,
    Mask,
    Message,
    Open,
    Opened,
    Planned,
    Record,
    Run,
    SlideDone,
    Submit,
    Write,
    Written,
)
from slides.geometry import Geometry
from slides.plan import Plan

CLASSES = 2
TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of one process of each kind: patches a second, and seconds a slide."""

    read: float
    infer: float
    open_s: float
    mask_s: float
    write_s: float
    sync_s: float
    flush_s: float = 0.05
    way_s: float = 0.0003  # of a message, with the batcher's own time


@dataclass(slots=True)
class Process:
    """A queue that serves one message after the other. `busy`: spans of work, (from, to, patches)."""

    name: str
    free_at: float = 0.0
    busy: list[tuple[float, float, int]] = field(default_factory=list)


class World:
    """Simulated time, the mind, and the processes around it."""

    def __init__(self, arguments: argparse.Namespace, speeds: Speeds, patches: int):
        a = arguments
        self.speeds, self.batch = speeds, a.batch
        self.now = 0.0
        self.done_at: dict[int, float] = {}
        self.first_result: float | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._records: deque[int] = deque()
        self._left: dict[int, int] = {}  # patches of a slide that have no record yet
        side = int(np.ceil(patches**0.5))
        index = np.arange(patches, dtype=np.int32)
        self._plan = Plan(index % side, index // side, np.ones(patches, np.float32)).to_bytes()
        self._geometry = Geometry(224, 0.25, 0, 1.0, (224, 224), "none", 224, 224, 224, 224, side, side).to_dict()
        slots = (a.contexts + 1) + a.readers * a.credit + 1
        self.mind = Dispatcher(
            DispatchSettings(
                run="r", folder="/nowhere", batch=a.batch, slots=slots, overview_slots=a.overview_slots, reserved=0, shared=False,
                delay_urgent_ms=20, delay_routine_ms=200, delay_hungry_ms=20, floor=0.1, ahead=a.ahead, window=256,
                classes=(CLASSES,), patience=dict.fromkeys(("reader", "tissue", "inference", "aggregator", "writer"), 1e9),
            ),
            1,
        )  # fmt: skip
        self.mind.from_supervisor(Living("r", []), 0.0)
        self.processes: dict[str, Process] = {}
        counts = {"aggregator": 1, "reader": a.readers, "tissue": a.tissue_workers, "inference": 1, "writer": a.writers}
        credits = {"aggregator": 0, "reader": a.credit, "tissue": 1, "inference": a.contexts + 1, "writer": 1}
        for kind, count in counts.items():
            for i in range(count):
                name = f"{kind}-{i}"
                self.processes[name] = Process(name)
                self.mind.from_worker(name, 1, Hello(0, kind, "r", 1, credits[kind], {}), 0.0)
        for number in range(1, a.slides + 1):
            self.mind.from_supervisor(Submit(number, str(number), "/s", {}, False, False, ""), 0.0)
            self._left[number] = patches
        self._slides = a.slides

    def run(self) -> None:
        self._at(TICK_S, self._tick)
        self._post()
        while len(self.done_at) < self._slides:
            self.now, _, event = heapq.heappop(self._events)
            event()
            self._post()

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _tick(self) -> None:
        self.mind.tick(self.now)
        self._at(self.now + TICK_S, self._tick)

    def _post(self) -> None:
        for (name, _), message in self.mind.letters():
            if isinstance(message, SlideDone):
                self.done_at[message.slide] = self.now
            elif name in self.processes:
                self._serve(self.processes[name], message)

    def _serve(self, process: Process, message: Message) -> None:
        """Queue a message at a process; its answer comes when it is through."""
        seconds, answer, patches = self._work(message)
        if answer is None:
            return
        begin = max(self.now + self.speeds.way_s, process.free_at)
        process.free_at = begin + seconds
        process.busy.append((begin, process.free_at, patches))
        self._at(process.free_at + self.speeds.way_s, lambda: self._answer(process.name, answer))

    def _answer(self, name: str, answer: Message) -> None:
        if isinstance(answer, Inferred) and self.first_result is None:
            self.first_result = self.now
        self.mind.from_worker(name, 1, answer, self.now)

    def _work(self, message: Message) -> tuple[float, Message | None, int]:
        s = self.speeds
        match message:
            case Open():
                return s.open_s, Opened(message.lease, {}, self._geometry, 8, 8, "direct"), 0
            case Mask():
                return s.mask_s, Planned(message.lease, self._plan, {}), 0
            case Fill():
                rows = sum(len(segment[3]) for segment in message.segments) // 8
                return rows / s.read, Filled(message.lease, rows, [], []), rows
            case Run():
                # An engine takes as long for a slot that is half empty.
                answer = Inferred(message.lease, bytes(message.count * CLASSES * 4), [])
                return self.batch / s.infer, answer, message.count
            case Ask():
                return 0.0, Known(message.slide, None, b""), 0
            case Begin():
                return s.sync_s, Begun(message.slide), 0
            case Record():
                if not self._records:
                    self._at(self.now + s.flush_s, self._flush)
                self._records.append(message.record)
                self._left[message.slide] -= len(message.patches) // 4
                if not self._left[message.slide]:  # the last of a slide is synced at once
                    self._flush()
            case Write():
                return s.write_s, Written(message.lease, "complete", "", 0, 0, 0), 0
        return 0.0, None, 0

    def _flush(self) -> None:
        if not self._records:
            return
        records, self._records = list(self._records), deque()
        at = self.now + self.speeds.sync_s
        self._at(at, lambda: self._answer("aggregator-0", Journaled(records)))


def figures(world: World, patches: int) -> dict[str, Any]:
    """What counts: how busy the GPU was, and what the whole took beside the engine's own time."""
    gpu = world.processes["inference-0"].busy
    begin, end = gpu[0][0], gpu[-1][1]
    alone = patches / world.speeds.infer
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(gpu)]
    return {
        "gpu_busy": sum(to - at for at, to, _ in gpu) / (end - begin),
        "slots_filled": sum(rows for _, _, rows in gpu) / (len(gpu) * world.batch),
        "longest_gap_ms": 1e3 * max(gaps, default=0.0),
        "first_batch_s": begin,
        "last_batch_s": end,
        "last_file_s": max(world.done_at.values()),
        "engine_alone_s": alone,
        "of_the_engine_from_first_result_to_last_file": alone
        / (max(world.done_at.values()) - (world.first_result or 0)),
    }


def main() -> int:
    parser = table.parser("feeding", __doc__.splitlines()[0])
    for name, default, what in (
        ("slides", 20, "in a row"), ("patches", 3000, "of each slide"), ("batch", 64, "rows of a slot"),
        ("readers", 16, "processes"), ("credit", 2, "of a reader"), ("contexts", 3, "of the GPU"),
        ("tissue-workers", 1, "processes"), ("writers", 1, "processes"),
        ("ahead", 4, "slides.ahead"), ("overview-slots", 2, "batcher.overview_slots"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: %(default)s)")
    for name, default, what in (
        ("read", 2600.0, "patches/s of a reader"), ("infer", 18900.0, "patches/s of the GPU"),
        ("open-s", 0.12, "seconds to open a slide and make its overview"), ("mask-s", 0.09, "seconds of a tissue mask"),
        ("write-s", 0.16, "seconds for the files of a slide"), ("sync-s", 0.003, "seconds of a sync to disk"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{what} (default: %(default)s)")
    a = parser.parse_args()
    machine = table.facts()
    world = World(a, Speeds(a.read, a.infer, a.open_s, a.mask_s, a.write_s, a.sync_s), a.patches)
    world.run()
    found = figures(world, a.slides * a.patches)
    rows = [[name.replace("_", " "), value] for name, value in found.items()]
    title = f"{a.slides} slides of {a.patches:,} patches, {a.readers} readers, simulated time"
    table.emit(a.json, title, ["", ""], rows, machine=machine, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
