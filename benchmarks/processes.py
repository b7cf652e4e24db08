"""Watching the processes of a run from outside: who they are, their processor time, their memory."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.table import ROOT
from engines.python_path import python_path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Seen:
    """One process of a run, as far as it was seen, and the most of everything.

    pss_own: resident bytes without the run's shared memory, what it shares with others (libraries) counted by parts;
    private_own: of these, anonymous memory: what no file stands behind.
    """

    pid: int
    kind: str
    name: str
    cpu_s: float = 0.0
    pss_own: int = 0
    private_own: int = 0


@dataclass(slots=True)
class Watched:
    """A finished run. `totals`: at each sample (seconds since the start, PSS of all processes, the part of it that is the
    run's shared memory), in bytes."""

    code: int
    wall_s: float
    cpu_s: float  # of the command and all its descendants, to their end
    output: str
    seen: dict[int, Seen] = field(default_factory=dict)
    totals: list[tuple[float, int, int]] = field(default_factory=list)


def watch(
    command: Sequence[str],
    *,
    every_s: float,
    timeout_s: float,
    memory: bool = False,
    due: Callable[[float], bool] | None = None,
) -> Watched:
    """Run `command`, and sample it and all its descendants every `every_s` seconds until it ends.

    With `due(seconds since the start)`, that is called so often instead, and a sample is taken where it says so: a
    sample costs a millisecond, which is too much to be taken all the time. TimeoutError where the run takes longer.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path()},
    )
    watched = Watched(0, 0.0, 0.0, "")
    before = os.times()
    try:
        while process.poll() is None:
            at = time.monotonic()
            if due is None or due(at - began):
                _sample(process.pid, at - began, watched, memory)
            if at - began > timeout_s:
                raise TimeoutError(f"{' '.join(command)} has not finished in {timeout_s:g} s")
            time.sleep(max(0.0, at + every_s - time.monotonic()))
        watched.wall_s = time.monotonic() - began
        watched.cpu_s = children_cpu_s(before, os.times())
        watched.code = process.returncode
        watched.output = process.stdout.read()
        return watched
    finally:
        if process.poll() is None:
            process.terminate()  # once drains, which a benchmark has no time for
            process.terminate()
            process.wait(timeout=30)


def children_cpu_s(before: os.times_result, after: os.times_result) -> float:
    """Processor seconds of children that were waited for in between, and of theirs."""
    return after.children_user - before.children_user + after.children_system - before.children_system


def _sample(root: int, seconds: float, watched: Watched, memory: bool) -> None:
    total = shared = 0
    for pid in tree(root):
        process = watched.seen.get(pid)
        try:
            if process is None or process.kind == "?":  # between fork and exec it has its parent's name
                kind, name = identity(pid, root)
                if process is None:
                    process = watched.seen[pid] = Seen(pid, kind, name)
                process.kind, process.name = kind, name
            process.cpu_s = max(process.cpu_s, _cpu_s(pid))
            if memory:
                pss, shmem = note_memory(process)
                total += pss
                shared += shmem
        except (OSError, IndexError, ValueError):
            continue  # it is gone
    if memory:
        watched.totals.append((seconds, total, shared))


def tree(root: int) -> list[int]:
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                queue += [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
        except OSError:
            continue
    return found


def identity(pid: int, root: int) -> tuple[str, str]:
    if pid == root:
        return "supervisor", "supervisor"
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    for word, name in zip(words, [*words[1:], ""], strict=True):
        if word == "-m" and name.startswith("stages."):
            return name.removeprefix("stages."), words[words.index("--name") + 1]
    return "?", "?"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def note_memory(process: Seen) -> tuple[int, int]:
    """Note the memory of a process; its PSS, and the part of it that is shared memory, in bytes."""
    values: dict[str, int] = {}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        values[name] = int(value.split()[0]) * 1024
    pss, shmem = values["Pss"], values.get("Pss_Shmem", 0)
    private = values.get("Pss_Anon", pss - shmem)
    process.pss_own = max(process.pss_own, pss - shmem)
    process.private_own = max(process.private_own, private)
    return pss, shmem
