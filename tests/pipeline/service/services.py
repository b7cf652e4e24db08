"""Starts `slidestream serve` as an operator does, with small slides and short times, and looks at what comes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from pipeline.service.lifecycle import State
from pipeline.service.migrations import LedgerError
from pipeline.service.records import Filter, Slide
from pipeline.service.view import View
from tests.end_to_end import runs

LIMIT_S = 120.0
T = TypeVar("T")


def until(condition: Callable[[], T | None], what: str, limit_s: float = LIMIT_S) -> T:
    """What `condition` gives as soon as it is true."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {limit_s:.0f} s: {what}")


class Service:
    """One service below `folder`: in/ is watched, out/ has the results of the only route (unless `more` says otherwise)."""

    def __init__(self, folder: Path, model: Path, sabotage: dict[str, dict] | None = None, **more: Any) -> None:
        self.folder = folder
        self.into, self.out, self.state = folder / "in", folder / "out", folder / "state"
        self.temporary = Path(tempfile.mkdtemp(prefix="srv-"))
        self.marks = self.temporary / "marks"
        self.into.mkdir(parents=True, exist_ok=True)
        self.marks.mkdir(exist_ok=True)
        self.file = folder / "service.yaml"
        self.config: dict[str, Any] = {
            "model": str(model),
            "reader": {"workers": 1},
            "inference": {"workers": 1},
            "batcher": {"batch": 16},
            "aggregator": {"flush_ms": 0},
            "results": {"formats": ["csv"]},
            "service": {
                "state": str(self.state),
                "watch": [self.watch(self.into)],
                "routes": [{"name": "tumour", "out": str(self.out)}],
                "http": {"port": 0},
                "give_up_s": 2,
                **more,
            },
        }
        self.sabotage = sabotage
        self.process: subprocess.Popen[bytes] | None = None
        self._console = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the service)

    @staticmethod
    def watch(path: Path, routes: Sequence[str] = ("tumour",), **more: Any) -> dict[str, Any]:
        return {
            "path": str(path),
            "routes": list(routes),
            "poll_s": 0.1,
            "settle_s": 0.3,
            "series_settle_s": 0.5,
            **more,
        }

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.config))

    def start(self) -> None:
        """Begin, or begin again. Does not wait."""
        self.write()
        path = [*([str(runs.SABOTAGE)] if self.sabotage else []), str(runs.ROOT)]
        path += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        environment = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": os.pathsep.join(path)}
        environment.update(E2E_SABOTAGE=json.dumps(self.sabotage or {}), E2E_MARKS=str(self.marks), NO_COLOR="1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "serve", "--config", str(self.file)],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            env=environment,
            cwd="/",
            start_new_session=True,
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`slidestream WORD... --service STATE`."""
        return runs.command(*words, "--service", str(self.state))

    def console(self) -> str:
        self._console.seek(0)
        return self._console.read().decode("utf-8", "backslashreplace")

    # The ledger

    def slides(self, *states: State, route: str | None = None) -> list[Slide]:
        """Slides in the ledger, oldest first; none while there is no ledger."""
        if not (self.state / "ledger.sqlite").exists():
            return []
        try:
            view = View.open(self.state / "ledger.sqlite")
        except LedgerError:  # it is being made
            return []
        try:
            return view.rows(Filter(states=states, route=route), 1000)[::-1]
        finally:
            view.close()

    def slide(self, name: str, route: str = "tumour") -> Slide | None:
        return next((slide for slide in self.slides(route=route) if slide.name == name), None)

    def until_state(self, name: str, *states: State, route: str = "tumour") -> Slide:
        """The slide as soon as it is in one of these states."""

        def look() -> Slide | None:
            slide = self.slide(name, route)
            return slide if slide is not None and slide.state in states else None

        try:
            return until(look, f"{name} is {' or '.join(states)}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.slide(name, route)}\n{self.console()}") from None

    def steps(self, name: str) -> list[tuple[str, str]]:
        """(old, new) of all changes of state of a slide."""
        view = View.open(self.state / "ledger.sqlite")
        try:
            return [(step.old, step.new) for step in view.history(self.slide(name).id)]
        finally:
            view.close()

    # Processes

    def family(self) -> list[psutil.Process]:
        """All living processes of this service but itself."""
        found = []
        for process in psutil.process_iter():
            try:
                line, environment = process.cmdline(), process.environ()
            except (psutil.Error, OSError):
                continue
            if environment.get("TMPDIR") == str(self.temporary) and process.pid != self.process.pid and "-m" in line:
                found.append(process)
        return found

    def lanes(self) -> list[psutil.Process]:
        return [process for process in self.family() if "pipeline.service.lane" in process.cmdline()]

    def journalled(self) -> int:
        """Bytes in all journals."""
        total = 0
        for path in self.out.glob(".slidestream/work/*/journal"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                pass
        return total

    def kill(self) -> None:
        """kill -9 of the service; the kernel ends all others with it."""
        self.process.kill()
        self.process.wait()

    def stop(self, limit_s: float = LIMIT_S) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)

    def destroy(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        until(lambda: not self.family(), "all processes are gone", 30.0) if self.process is not None else None
        self._console.close()
