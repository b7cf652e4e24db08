"""Trials of slides in child processes: a few at a time, each with a time limit."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from engines.python_path import python_path
from pipeline.children import oom_kills
from pipeline.service.reasons import Kind
from slides.errors import one_line

_OUTPUT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial found. `kind` None: the slide is whole and opens. `fingerprint` is empty where it cannot be read."""

    path: bytes
    kind: Kind | None
    reason: str
    fingerprint: str
    bytes: int
    files: int


@dataclass(slots=True)
class _Child:
    path: bytes
    process: subprocess.Popen[bytes]
    until: float
    oom_kills: int
    output: bytearray = field(default_factory=bytearray)


class Trials:
    """Runs `pipeline.service.trial`. `mpp` as in `slides.mpp`: µm per pixel given by the operator, or None."""

    def __init__(self, limit: int, timeout_s: float, mpp: float | None = None) -> None:
        self._limit = limit
        self._timeout_s = timeout_s
        self._mpp = mpp
        self._children: dict[bytes, _Child] = {}
        self._lost: list[subprocess.Popen[bytes]] = []

    @property
    def room(self) -> int:
        """How many more may be started."""
        return self._limit - len(self._children)

    def __contains__(self, path: bytes) -> bool:
        return path in self._children

    def start(self, path: bytes, now: float) -> None:
        """Start a trial; `now` is monotonic. ValueError where the path is under trial already. OSError of fork."""
        if path in self._children:
            raise ValueError(f"{path!r} is under trial")
        command = [sys.executable, "-m", "pipeline.service.trial", "--cpu-s", str(math.ceil(self._timeout_s))]
        command += [] if self._mpp is None else ["--mpp", repr(self._mpp)]
        killed_before = oom_kills()
        process = subprocess.Popen(
            [*map(os.fsencode, command), b"--", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        os.set_blocking(process.stdout.fileno(), False)
        self._children[path] = _Child(path, process, now + self._timeout_s, killed_before)

    def poll(self, now: float) -> list[Outcome]:
        """The trials that have ended since the last call. Ends those that take too long."""
        self._lost = [process for process in self._lost if process.poll() is None]
        outcomes = []
        for child in list(self._children.values()):
            code = child.process.poll()
            _read(child)
            if code is None and now < child.until:
                continue
            del self._children[child.path]
            child.process.stdout.close()
            if code is None:
                # One that hangs in the kernel, on a share that does not answer, dies when it is let go; nobody waits.
                child.process.kill()
                self._lost.append(child.process)
            outcomes.append(_outcome(child, code, self._timeout_s))
        return outcomes

    def close(self) -> None:
        """End all of them."""
        for child in self._children.values():
            child.process.kill()
            child.process.stdout.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(5)
        self._children.clear()


def _read(child: _Child) -> None:
    with contextlib.suppress(BlockingIOError):
        while len(child.output) < _OUTPUT_BYTES and (data := os.read(child.process.stdout.fileno(), _OUTPUT_BYTES)):
            child.output += data


def _outcome(child: _Child, code: int | None, timeout_s: float) -> Outcome:
    said: dict[str, Any] = {}
    for line in child.output.splitlines():
        with contextlib.suppress(ValueError):  # cut short
            said |= json.loads(line)
    content = (said.get("fingerprint", ""), said.get("bytes", 0), said.get("files", 0))
    if "kind" in said:
        kind = None if said["kind"] is None else Kind(said["kind"])
        return Outcome(child.path, kind, one_line(said["reason"]), *content)
    if code is None or code in (-signal.SIGALRM, -signal.SIGXCPU):
        return Outcome(child.path, Kind.TIMEOUT, f"could not be opened within {timeout_s:g} s", *content)
    if code == -signal.SIGKILL and oom_kills() == child.oom_kills:
        # Neither we nor the kernel's lack of memory: somebody else, for which no slide is to blame.
        return Outcome(child.path, Kind.READ_ERROR, "what opened it was killed from outside", *content)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Outcome(child.path, Kind.CRASH, f"what opened it came to an end by {how}", *content)
