"""How many batches a second the patch batcher can deal out: the real process, among workers that answer at once.

    python -m benchmarks.batcher                 the process stages.batcher, null workers around it, real sockets
    python -m benchmarks.batcher --mind          its decisions alone (pipeline.dispatch), in this process, without sockets
    python -m benchmarks.batcher --profile FILE  the first, under cProfile; look at FILE with pstats

A null worker does everything that the protocol asks of a real one and nothing else: a reader says that its rows are
filled, an inference worker answers Inferred with made-up probabilities, the aggregator acknowledges records
in groups as the real one does. So the batcher takes and sends as many messages per batch as in a real run: Fill, Filled,
Run, Inferred, Record, and a share of a Journaled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks import table
from pipeline import memory
from pipeline.dispatch.board import SUPERVISOR, DispatchSettings
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.link import HIGH_WATER, Link, Stopped
from pipeline.rundir import RunDir
from pipeline.wire import (
    Ask,
    Fill,
    Filled,
    Forget,
    Hello,
    Inferred,
    Journaled,
    Known,
    Living,
    Message,
    Record,
    Run,
    SlideDone,
    Stop,
    Submit,
    Write,
    Written,
    decode,
    encode,
)
from pipeline.worker import die_with_parent
from slides.geometry import Geometry
from slides.plan import Plan

CLASSES = 2
CREDIT = 2
FLUSH_S = 0.05  # aggregator.flush_ms
IDLE_S = 1.0
# In flight: what readers and inference workers hold, and one slot more of each, as pipeline.sizing has it.
SLOTS_PER_WORKER = CREDIT + 1
TINY_PX = 8  # no pixel is ever touched


def header(patches: int) -> dict[str, Any]:
    """A journal's header for a slide of `patches` patches, all in a square."""
    side = max(1, int(np.ceil(np.sqrt(patches))))
    grid = Geometry(224, 0.5, 0, 1.0, (448, 448), "area", 448, 448, 448, 448, side, side, 0, 0)
    index = np.arange(patches, dtype=np.int32)
    plan = Plan(index % side, index // side, np.ones(patches, np.float32))
    return {"info": {}, "geometry": grid.to_dict(), "plan": plan.to_bytes(), "tissue": {}, "overview": [1, 1]}


class Null:
    """What null workers answer; `answers(message)` gives the messages to be sent back."""

    def __init__(self, patches: int):
        self._known = (header(patches), bytes(patches))
        self._probabilities: dict[int, bytes] = {}
        self._records: list[int] = []
        self._since = 0.0

    def answers(self, message: Message) -> list[Message]:
        match message:
            case Fill():
                rows = sum(len(segment[3]) for segment in message.segments) // 8
                return [Filled(message.lease, rows, [], [])]
            case Run():
                return [Inferred(message.lease, self._made_up(message.count), [])]
            case Record():
                if not self._records:
                    self._since = time.monotonic()
                self._records.append(message.record)
            case Ask():
                return [Known(message.slide, *self._known)]
            case Write():
                return [Written(message.lease, "complete", "", 0, 0, 0)]
            case Forget():
                pass
        return []

    def _made_up(self, count: int) -> bytes:
        if count not in self._probabilities:
            self._probabilities[count] = np.full((count, CLASSES), 0.5, "<f4").tobytes()
        return self._probabilities[count]

    def wait_s(self) -> float:
        return max(0.0, self._since + FLUSH_S - time.monotonic()) if self._records else IDLE_S

    def flush(self) -> Journaled | None:
        """The acknowledgement, where it is due."""
        if not self._records or time.monotonic() < self._since + FLUSH_S:
            return None
        records, self._records = self._records, []
        return Journaled(records)


# ---------------------------------------------------------------- null workers as processes


def worker(arguments: argparse.Namespace) -> None:
    """One null worker, until told to stop."""
    die_with_parent(arguments.parent)
    kind = arguments.worker.rpartition("-")[0]
    hello = Hello(0, kind, arguments.run, os.getpid(), 0 if kind == "aggregator" else CREDIT, {})
    link = Link(arguments.hub, arguments.worker, 1, hello, beat_s=1.0)
    null = Null(arguments.patches)
    try:
        while True:
            message = link.receive(null.wait_s())
            for answer in null.answers(message) if message is not None else ():
                link.send(answer)
            if (journaled := null.flush()) is not None:
                link.send(journaled)
    except Stopped:
        link.close()


# ---------------------------------------------------------------- the real batcher among them


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many workers, and how much they are given to do."""

    readers: int
    inference: int
    batch: int
    slides: int
    patches: int  # of each slide

    @property
    def batches(self) -> int:
        return self.slides * -(-self.patches // self.batch)

    @property
    def slots(self) -> int:
        return (self.readers + self.inference) * SLOTS_PER_WORKER + 1

    @property
    def workers(self) -> list[str]:
        names = [f"reader-{i}" for i in range(self.readers)] + [f"inference-{i}" for i in range(self.inference)]
        return [*names, "aggregator-0", "writer-0"]


def settings(crowd: Crowd, run: str, private: Path) -> dict[str, Any]:
    """settings.json as a real run writes it, as far as the batcher reads it."""
    layout = memory.Layout(crowd.slots, crowd.batch, TINY_PX, 1, TINY_PX)
    return {
        "run": run,
        "urgent_may_come": False,
        "private": str(private),
        "layout": layout.to_dict(),
        "models": [{"classes": ["normal", "tumour"]}],
        "config": {
            "supervisor": {"hang_s": 30.0, "beat_s": 1.0},
            "batcher": {"urgent": [], "max_delay_ms": {"urgent": 20.0, "routine": 200.0}, "routine_floor": 0.1},
            "slides": {"ahead": 4, "read_timeout_s": 30.0},
            "inference": {"engine": "null"},
            "aggregator": {"window": 256},
            "log": {"level": "info"},
        },
    }


def submit(number: int) -> Submit:
    return Submit(number, f"slide-{number}", f"/nowhere/{number}.svs", {"fingerprint": str(number)}, False, False, "")


def ticks(pid: int) -> float:
    """Seconds of processor time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(crowd: Crowd, profile: str | None, timeout_s: float) -> dict[str, Any]:
    """One run; batches per second from the first submission to the last slide's end."""
    folder = Path(tempfile.mkdtemp(prefix="slidestream-"))
    processes: list[subprocess.Popen] = []
    run = uuid.uuid4().hex
    place = RunDir(folder)
    told = settings(crowd, run, folder)
    fd = memory.create(memory.Layout(**told["layout"]))
    place.settings.write_text(json.dumps(told))
    context = zmq.Context()
    hub = context.socket(zmq.DEALER)
    try:
        environment = {**os.environ, "PYTHONPATH": str(table.ROOT), "OMP_NUM_THREADS": "1"}
        profiled = ["-m", "cProfile", "-o", profile] if profile else []
        parent = ["--parent", str(os.getpid())]
        command = [sys.executable, *profiled, "-m", "stages.batcher", "--run", str(folder), "--name", "batcher"]
        command += ["--generation", "1", "--memory", str(fd), *parent]
        batcher = subprocess.Popen(command, pass_fds=(fd,), env=environment)
        processes.append(batcher)
        for name in crowd.workers:
            command = [sys.executable, "-m", "benchmarks.batcher", "--worker", name, "--hub", place.hub, "--run", run]
            command += ["--patches", str(crowd.patches), *parent]
            processes.append(subprocess.Popen(command, env=environment))
        hub.setsockopt(zmq.IDENTITY, f"{SUPERVISOR}.0".encode())
        hub.set_hwm(HIGH_WATER)
        hub.connect(place.hub)
        hub.send_multipart(encode(Living(run, [])))
        return _watch(crowd, hub, processes, time.monotonic() + timeout_s)
    finally:
        hub.close(linger=0)
        context.term()
        for process in processes:
            process.kill() if process.poll() is None else None
            process.wait()
        os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)


def _watch(crowd: Crowd, hub: zmq.Socket, processes: list[subprocess.Popen], until: float) -> dict[str, Any]:
    def hear() -> Message | None:
        if any(process.poll() is not None for process in processes):
            raise RuntimeError("a process of the benchmark has died")
        if time.monotonic() > until:
            raise TimeoutError("the benchmark has not finished in its time")
        return decode(hub.recv_multipart()) if hub.poll(200) else None

    while True:  # until all are there: their start is not what is measured
        message = hear()
        present = message.status["present"] if message is not None and hasattr(message, "status") else []
        if len(present) == len(crowd.workers):
            break
    cpu = [ticks(process.pid) for process in processes]
    began = time.monotonic()
    for number in range(1, crowd.slides + 1):
        hub.send_multipart(encode(submit(number)))
    done = 0
    while done < crowd.slides:
        done += isinstance(hear(), SlideDone)
    seconds = time.monotonic() - began
    spent = [ticks(process.pid) - before for process, before in zip(processes, cpu, strict=True)]
    hub.send_multipart(encode(Stop()))
    for process in processes:
        process.wait(timeout=20)
    return {
        "batches": crowd.batches,
        "seconds": seconds,
        "batches_per_s": crowd.batches / seconds,
        "batcher_cpu_s": spent[0],
        "batches_per_cpu_s": crowd.batches / max(spent[0], 1e-9),
        "batcher_busy": spent[0] / seconds,
        "workers_cpu_s": sum(spent[1:]),
    }


# ---------------------------------------------------------------- the mind alone


def mind(crowd: Crowd, coded: bool) -> dict[str, Any]:
    """Decisions alone, in processor time of this process: no sockets, one message after the other.

    `coded`: every message is also encoded and decoded once, as it would be on its way through the batcher.
    """
    run = "mind"
    dispatcher = Dispatcher(
        DispatchSettings(
            run=run,
            folder="/nowhere",
            batch=crowd.batch,
            slots=crowd.slots,
            overview_slots=1,
            reserved=0,
            shared=False,
            delay_urgent_ms=20,
            delay_routine_ms=200,
            delay_hungry_ms=20,
            floor=0.1,
            ahead=4,
            window=256,
            classes=(CLASSES,),
            patience=dict.fromkeys(("reader", "tissue", "inference", "aggregator", "writer"), 1e9),
        ),
        1,
    )
    null = Null(crowd.patches)
    dispatcher.from_supervisor(Living(run, []), 0.0)
    for name in crowd.workers:
        kind = name.rpartition("-")[0]
        dispatcher.from_worker(name, 1, Hello(0, kind, run, 1, 0 if kind == "aggregator" else CREDIT, {}), 0.0)
    for number in range(1, crowd.slides + 1):
        dispatcher.from_supervisor(submit(number), 0.0)
    queue: deque[tuple[tuple[str, int], Message]] = deque()
    done = 0
    began = time.process_time()
    inside = 0.0
    records: list[int] = []
    while done < crowd.slides:
        queue.extend(dispatcher.letters())
        if not queue or len(records) >= 64:
            answers: list[Message] = [Journaled(records)]
            peer, records = ("aggregator-0", 1), []
        else:
            peer, message = queue.popleft()
            if isinstance(message, SlideDone):
                done += 1
                continue
            if isinstance(message, Record):
                records.append(message.record)
                continue
            answers = null.answers(message)
        for answer in answers:
            at = time.process_time()
            if coded:
                answer = decode(encode(answer))
            dispatcher.from_worker(*peer, answer, at)
            inside += time.process_time() - at
    seconds = time.process_time() - began
    return {"batches": crowd.batches, "batches_per_cpu_s": crowd.batches / inside, "with_null_workers": seconds}


# ---------------------------------------------------------------- command line


def main() -> int:
    parser = table.parser("batcher", __doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20_000, help="of 32 rows, in all (default: %(default)s)")
    parser.add_argument("--slides", type=int, default=20, help="they come from (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="rows in a batch (default: %(default)s)")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--inference", type=int, default=2)
    parser.add_argument("--mind", action="store_true", help="the decisions alone, without sockets")
    parser.add_argument("--profile", metavar="FILE", help="write a cProfile of the batcher process to FILE")
    parser.add_argument("--timeout", type=float, default=150, help="seconds (default: %(default)s)")
    for name in ("--worker", "--hub", "--run"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--patches", "--parent"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return 0
    machine = table.facts()
    each = max(1, arguments.batches // arguments.slides) * arguments.batch
    crowd = Crowd(arguments.readers, arguments.inference, arguments.batch, arguments.slides, each)
    title = f"Patch batcher: {crowd.batches:,} batches of {crowd.batch} rows from {crowd.slides} slides"
    if arguments.mind:
        rows = [[name, mind(crowd, coded)["batches_per_cpu_s"]] for name, coded in _MINDS]
        table.emit(
            arguments.json,
            f"{title}, decisions alone",
            ["in processor time of the batcher", "batches/s"],
            rows,
            machine=machine,
            batches_per_s=rows[-1][1],
        )
        return 0
    result = measure(crowd, arguments.profile, arguments.timeout)
    rows = [
        ["batcher", 1, result["batcher_cpu_s"], 1e6 * result["batcher_cpu_s"] / crowd.batches],
        ["null workers", len(crowd.workers), result["workers_cpu_s"], 1e6 * result["workers_cpu_s"] / crowd.batches],
    ]
    table.emit(
        arguments.json,
        f"{title}; {crowd.readers} null readers, {crowd.inference} null inference workers",
        ["processes", "number", "processor s", "us a batch"],
        rows,
        machine=machine,
        seconds=result["seconds"],
        batches_per_s=result["batches_per_s"],
        batches_per_processor_second_of_the_batcher=result["batches_per_cpu_s"],
        share_of_the_time_in_which_the_batcher_ran=result["batcher_busy"],
        aim_batches_per_s=2000,
    )
    return 0


_MINDS = (("decisions", False), ("decisions, and decoding what comes in", True))

if __name__ == "__main__":
    sys.exit(main())
