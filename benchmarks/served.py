"""A real `slidestream serve` under a manager that does what systemd does: told when it is ready, seen to be alive, restarted.

Of configs/deploy/slidestream.service: Type=notify, WatchdogSec, Restart=on-failure with its pause, KillMode=mixed (when the
service is dead, so is whatever it left).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from benchmarks import table
from engines.python_path import python_path
from pipeline.service.migrations import LedgerError
from pipeline.service.notify import READY, WATCHDOG
from pipeline.service.state import LEDGER
from pipeline.service.view import View

ROUTE = "day"
WATCHDOG_S = 60.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Process:
    """One living process of the service. `kind`: serve, lane, web, trial, a stage, or ? for what only helps (a shell)."""

    pid: int
    kind: str


@dataclass
class Served:
    """The service below `folder`: routine/ and frozen/ (stat) are watched, out/ has the results of its only route, spool/ its
    events. `ready_s`: from each start, or from each death, to its word that it is ready, in seconds."""

    folder: Path
    model: Path
    restart_s: float
    sets: list[str] = field(default_factory=list)
    section: dict[str, Any] = field(default_factory=dict)
    starts: int = 0
    ready_s: list[float] = field(default_factory=list)
    hangs: int = 0
    exits: list[int] = field(default_factory=list)
    ready: bool = False

    def __post_init__(self) -> None:
        self.out, self.state, self.spool = (self.folder / name for name in ("out", "state", "spool"))
        self.routine, self.frozen = self.folder / "routine", self.folder / "frozen"
        for path in (self.routine, self.frozen, self.spool):
            path.mkdir(parents=True)
        # Of its own, so that what is left there can be seen; on a short path, as sockets lie in it.
        self.temporary = Path(tempfile.mkdtemp(prefix="day-"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(str(self.temporary / "notify"))
        self._console = (self.folder / "console").open("w+b")
        self.process: subprocess.Popen[bytes] | None = None
        self._down_at = time.monotonic()
        self._alive_at = 0.0
        self._start_at: float | None = None
        self.file = self.folder / "service.yaml"
        self.file.write_text(yaml.safe_dump({"model": str(self.model), "service": self._section()}))

    def _section(self) -> dict[str, Any]:
        watch = {"routes": [ROUTE], "poll_s": 0.2, "settle_s": 0.5, "series_settle_s": 1.0}
        return {
            "state": str(self.state),
            "watch": [
                {"path": str(self.routine), "stat_patterns": ["*frozen*"], **watch},
                {"path": str(self.frozen), "urgency": "stat", **watch},
            ],
            "routes": [{"name": ROUTE, "out": str(self.out)}],
            "http": {"port": 0},
            "spool": {"path": str(self.spool)},
            "give_up_s": 6.0,
            **self.section,
        }

    # As systemd does

    def start(self) -> None:
        """Begin, or begin again. Does not wait."""
        environment = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": python_path()}
        environment |= {"NOTIFY_SOCKET": str(self.temporary / "notify"), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        sets = [word for text in self.sets for word in ("--set", text)]
        self.process = subprocess.Popen(
            table.slidestream("serve", "--config", str(self.file), *sets),
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        self.starts, self.ready, self._start_at = self.starts + 1, False, None
        self._alive_at = time.monotonic()

    def tend(self) -> None:
        """To be called a few times a second: hear it, and start it again when it has died and its pause is over."""
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            while words := self._socket.recv(1 << 12).decode().splitlines():
                self._alive_at = now if WATCHDOG in words else self._alive_at
                if READY in words and not self.ready:
                    self.ready, self._alive_at = True, now
                    self.ready_s.append(now - self._down_at)
        if self.process is None:
            self._down_at = now
            self.start()
        elif self._start_at is not None:
            if now >= self._start_at:
                self.start()
        elif (code := self.process.poll()) is not None:
            self._ended(code, now)
        elif self.ready and now - self._alive_at > WATCHDOG_S:
            self.hangs += 1
            self.process.kill()

    def _ended(self, code: int, now: float) -> None:
        self.exits.append(code)
        if code in (2, 75):
            raise RuntimeError(f"the service left with exit code {code}:\n{self.console()[-2000:]}")
        self.kill_all()
        self._down_at, self._start_at = now, now + self.restart_s

    def kill_all(self) -> None:
        """kill -9 of every process at once."""
        for process in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def stop(self, limit_s: float = 100.0) -> int:
        """SIGTERM, and the exit code once it has drained."""
        if self.process is None or self.process.poll() is not None:
            return self.exits[-1] if self.exits else 0
        self.process.terminate()
        return self.process.wait(limit_s)

    def close(self) -> None:
        """End whatever is left and remove its temporary folder; the rest stays."""
        self.kill_all()
        if self.process is not None:
            self.process.wait()
        self._socket.close()
        self._console.close()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def wait(self, condition: Callable[[], T | None], what: str, limit_s: float = 120.0) -> T:
        """What `condition` gives as soon as it is true; the service is tended meanwhile. TimeoutError."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            self.tend()
            if value := condition():
                return value
            time.sleep(0.02)
        raise TimeoutError(f"not within {limit_s:g} s: {what}\n{self.console()[-2000:]}")

    # Looking at it

    def console(self) -> str:
        self._console.flush()
        return (self.folder / "console").read_text(errors="replace")

    def family(self) -> list[Process]:
        """All living processes of this service, orphans too: those that have its folder for temporary files."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = []
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            try:
                if mark not in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    continue
                words = Path(f"/proc/{name}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            found.append(Process(int(name), self._kind(int(name), words)))
        return found

    def _kind(self, pid: int, words: list[str]) -> str:
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        if module == "pipeline.cli":  # a child has its parent's words until it is itself
            return "serve" if self.process is not None and pid == self.process.pid else "?"
        package, _, kind = module.rpartition(".")
        return kind if package in ("stages", "pipeline.service") else "?"

    @contextlib.contextmanager
    def view(self) -> Iterator[View | None]:
        """The ledger for reading; None while there is none."""
        try:
            view = View.open(self.state / LEDGER)
        except LedgerError:
            yield None
            return
        try:
            yield view
        finally:
            view.close()

    def journalled(self) -> int:
        """Bytes in all journals."""
        total = 0
        for path in self.out.glob(".slidestream/work/*/journal"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total
