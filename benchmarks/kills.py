"""Kills at random, and a look at memory, descriptors and files while they go on."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import Seen, note_memory
from benchmarks.served import Served
from pipeline.service.state import LEDGER

WORKERS = ("reader", "tissue", "batcher", "inference", "aggregator", "writer", "trial")
SERVICE = ("lane", "web", "serve", "everything")
LIVING_LONG = ("serve", "lane", "web")


@dataclass
class Killer:
    """kill -9, every `every_s` seconds on average, of each kind about as often. `everything` is all processes at once."""

    served: Served
    every_s: float
    rng: random.Random
    kinds: tuple[str, ...] = WORKERS + SERVICE
    killed: collections.Counter[str] = field(default_factory=collections.Counter)
    _bag: list[str] = field(default_factory=list)
    _at: float = 0.0

    def step(self) -> None:
        """Kill if it is time and there is something to kill."""
        now = time.monotonic()
        if now < self._at:
            return
        if self._at and self.served.ready:
            self._kill()
        self._at = now + self.rng.expovariate(1 / self.every_s)

    def _kill(self) -> None:
        if not self._bag:
            self._bag = self.rng.sample(self.kinds, len(self.kinds))
        family = self.served.family()
        for kind in list(self._bag):
            if kind not in self.kinds:
                self._bag.remove(kind)
                continue
            if kind == "everything":
                self.served.kill_all()
            else:
                pids = [process.pid for process in family if process.kind == kind]
                if not pids:
                    continue  # it stays in the bag for another time
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.rng.choice(pids), signal.SIGKILL)
            self._bag.remove(kind)
            self.killed[kind] += 1
            return


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. Bytes; `own`: of serve, lane and web, by kind: (pid, anonymous memory, descriptors)."""

    at: float
    pss: int
    own: dict[str, tuple[int, int, int]]
    segments: int
    ledger: int
    wal: int
    log: int
    temporary: int
    kills: int


@dataclass
class Vitals:
    """Looks every `every_s` seconds, as a look costs some milliseconds."""

    served: Served
    every_s: float = 2.0
    samples: list[Sample] = field(default_factory=list)
    _at: float = 0.0

    def step(self, kills: int) -> None:
        """Take a sample if it is time."""
        now = time.monotonic()
        if now - self._at >= self.every_s:
            self._at = now
            self.samples.append(self._look(now, kills))

    def _look(self, now: float, kills: int) -> Sample:
        total, own, segments = 0, {}, set()
        for process in self.served.family():
            seen = Seen(process.pid, process.kind, process.kind)
            with contextlib.suppress(OSError, KeyError, ValueError):
                total += note_memory(seen)[0]
                held = [entry.path for entry in os.scandir(f"/proc/{process.pid}/fd")]
                # Of a memory file many processes have the same one open.
                segments |= {os.stat(path).st_ino for path in held if os.readlink(path).startswith("/memfd:")}
                if process.kind in LIVING_LONG:
                    own[process.kind] = (process.pid, seen.private_own, len(held))
        state = self.served.state
        ledger, wal = size(state / LEDGER), size(state / f"{LEDGER}-wal")
        log = sum(size(path) for path in state.glob("slidestream.log*"))
        left = sum(entry.name != "notify" for entry in os.scandir(self.served.temporary))
        return Sample(now, total, own, len(segments), ledger, wal, log, left, kills)


def size(path: Path) -> int:
    """Bytes of a file; 0 where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
