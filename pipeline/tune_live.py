"""A run that `slidestream tune` looks at while it goes on: the same slides again and again, into a folder of its own.

    python -m pipeline.tune_live FACTS.json --parent PID

FACTS.json, from `LiveRun`, has the configuration, the slides and the folder. What is asked of the run, and how it is
scaled, goes over its control socket, as an operator does it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engines.python_path import python_path
from pipeline.balance import bottleneck
from pipeline.config import Config, ConfigError
from pipeline.control import ask
from pipeline.service.config import Service
from pipeline.status import StageStatus
from pipeline.worker import die_with_parent
from slides.discover import Found, files

COPIES = 20_000  # slides in a run, which must not come to its end while it is measured
START_S = 120.0
SETTLE_S = 1.5
_LOOK_S = 0.1
_STOP_S = 15.0
_FORGET_S = 0.25
_FORGET_FILES = 256


@dataclass(frozen=True, slots=True)
class Window:
    """A run over a few seconds: patches a second, its stages at the end and at the beginning, the bottleneck in words."""

    per_s: float
    stages: tuple[StageStatus, ...]
    before: tuple[StageStatus, ...]
    words: str


class LiveRun:
    """A run in a process of its own, for as long as the `with` lasts. `config` is resolved; `folder` is emptied by others."""

    def __init__(self, config: Config, slides: Sequence[Path], folder: Path, on_gpu: bool = False) -> None:
        self.out = folder / "out"
        self._on_gpu = on_gpu
        self._console = folder / "console"
        quiet = config.log.model_copy(update={"level": "warning", "format": "console", "file": False})
        own = config.model_copy(update={"service": Service(), "log": quiet})
        facts = {
            "config": own.model_dump(mode="json"),
            "slides": [str(slide) for slide in slides],
            "out": str(self.out),
        }
        self._facts = folder / "facts.json"
        self._facts.write_text(json.dumps(facts))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """ConfigError where no patch comes out of it."""
        words = [sys.executable, "-m", "pipeline.tune_live", str(self._facts), "--parent", str(os.getpid())]
        environment = {**os.environ, "PYTHONPATH": python_path(), "NO_COLOR": "1"}
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to answer
            )
        try:
            self._until(
                lambda look: look["patches_inferred"] > 0,
                START_S,
                "no patch was inferred (is there tissue on the slides?)",
            )
            time.sleep(SETTLE_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def measure(self, seconds: float) -> Window:
        """What it does from now on, for so long."""
        began, before = time.monotonic(), self._look()
        time.sleep(seconds)
        after = self._look()
        elapsed = time.monotonic() - began
        older, newer = _stages(before), _stages(after)
        words = bottleneck(newer, older, backlog=1, on_gpu=self._on_gpu)
        done = after["patches_inferred"] - before["patches_inferred"]
        return Window(max(0.0, done / elapsed), newer, older, words)

    def scale(self, stage: str, workers: int) -> None:
        """As `slidestream scale`, and until they are at work. ConfigError where they do not come."""
        self._ask({"do": "scale", "stage": stage, "workers": workers})

        def there(look: dict[str, Any]) -> bool:
            return any(one.kind == stage and one.workers == workers for one in _stages(look))

        self._until(there, START_S, f"{workers} processes of {stage} did not come up")
        time.sleep(SETTLE_S)

    def _until(self, reached: Any, limit_s: float, problem: str) -> None:
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise ConfigError(f"the run that is measured ended: {self._last_words()}")
            with contextlib.suppress(ConfigError):  # it is on its way up
                if reached(self._look()):
                    return
            time.sleep(_LOOK_S)
        raise ConfigError(f"{problem} within {limit_s:.0f} s: {self._last_words()}")

    def _look(self) -> dict[str, Any]:
        return self._ask({"do": "status"})["run"]

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        return ask(self.out, question)

    def _last_words(self) -> str:
        lines = self._console.read_text(errors="replace").strip().splitlines()
        return " ".join(lines[-1].split()) if lines else "it said nothing"

    def _stop(self) -> None:
        for _ in range(2):  # the second stops at once
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                time.sleep(_LOOK_S)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its processes go with it
            self._process.wait()


def _stages(look: dict[str, Any]) -> tuple[StageStatus, ...]:
    return tuple(StageStatus(**stage) for stage in look["stages"])


class Forgetting:
    """While this lasts, the kernel is asked again and again to drop these slides from memory: what reads them has them from
    their storage, as a slide that has just come."""

    def __init__(self, slides: Iterable[Path]) -> None:
        self._names = [name for slide in slides for name in files(slide)][:_FORGET_FILES]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._over.wait(_FORGET_S):
            for name in self._names:
                with contextlib.suppress(OSError):
                    forget(name)


def forget(name: str) -> None:
    """Ask the kernel to drop a file from memory. OSError."""
    descriptor = os.open(name, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def main() -> int:
    parser = argparse.ArgumentParser(prog="pipeline.tune_live", description="Started by slidestream tune, not by hand.")
    parser.add_argument("facts", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    from pipeline.cli import explained
    from pipeline.run import Options, run_slides

    facts = json.loads(arguments.facts.read_text())
    config = Config.model_validate_json(json.dumps(facts["config"]))
    paths = facts["slides"]
    found = [Found(f"tune-{number:06d}", Path(paths[number % len(paths)])) for number in range(COPIES)]
    return explained(lambda: run_slides(found, config, Options(Path(facts["out"]), "silent"), []).code)


if __name__ == "__main__":
    sys.exit(main())
