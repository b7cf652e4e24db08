"""What processes take for certain, before any slide is read: memory and open files, against what this machine gives.

Told at the start. Later it would be a worker that cannot be started, or the kernel that ends processes, without a word of why.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.machine import MIB, Machine, available_memory, detect
from pipeline.memory import Layout, MemoryLack
from pipeline.overrides import ConfigError
from pipeline.roster import SCALABLE

# Of a worker that has nothing to do yet, what it shares with no other process (`Pss_Anon` of /proc/PID/smaps_rollup with 16
# readers: batcher and aggregator 21 MiB, tissue 21, reader 24, inference 26, writer 36).
IDLE_BYTES = 20 * MIB
FILES = 65536  # asked for where the hard limit allows: nothing here uses select(), which could not count so far
# Of the supervisor: what it has without workers (20 were counted), and of each the end of its output and its pidfd.
OWN_FILES = 30
FILES_PER_WORKER = 2


def check_workers(kinds: Iterable[str], layout: Layout, machine: Machine | None = None, available: int = 0) -> None:
    """MemoryLack where workers of these kinds cannot all be in memory, beside the shared memory.

    `available` are the bytes free now, with the shared memory taken; 0 asks the kernel.
    """
    machine = machine or detect()
    counts = Counter(kinds)
    needed = counts.total() * IDLE_BYTES
    free = machine.memory_bytes - layout.total_bytes
    free = min(free, available or available_memory() or free)
    if needed > free:
        key, count = _most(counts)
        raise MemoryLack(
            f"{key}={count}: {counts.total()} worker processes need {needed // MIB} MiB before they do anything "
            f"({max(0, free) // MIB} MiB are free); lower {key}"
        )


def allow_files(kinds: Iterable[str]) -> None:
    """Raise this process's limit of open files, which its workers inherit; ConfigError where it cannot suffice."""
    counts = Counter(kinds)
    needed = OWN_FILES + FILES_PER_WORKER * counts.total()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft != resource.RLIM_INFINITY and soft < needed:
        key, count = _most(counts)
        raise ConfigError(
            f"{key}={count}: {counts.total()} worker processes need {needed} open files, and this process may have {soft}; "
            f"raise that (ulimit -n), or lower {key}"
        )


def _most(counts: Counter[str]) -> tuple[str, int]:
    """The key that asks for most of them, and its value."""
    kind = max(SCALABLE, key=lambda name: counts[name])
    return f"{kind}.workers", counts[kind]


def lack_for_more(workers: int, more: int, available: int = 0) -> str:
    """What is missing for `more` processes beside `workers` that run; "" where nothing is. `available` as above."""
    needed, free = more * IDLE_BYTES, available or available_memory()
    if more > 0 and 0 < free < needed:
        return f"{more} processes more need {needed // MIB} MiB before they do anything ({free // MIB} MiB are free)"
    soft, files = resource.getrlimit(resource.RLIMIT_NOFILE)[0], OWN_FILES + FILES_PER_WORKER * (workers + more)
    if more > 0 and resource.RLIM_INFINITY != soft < files:
        return f"{workers + more} processes need {files} open files, and the run may have {soft} (ulimit -n)"
    return ""


def bound_notices(bound: Sequence[tuple[str, int]], machine: Machine) -> list[str]:
    """A line where a run may take more memory than there is; `bound` is of pipeline.sizing.memory_bound."""
    total = sum(count for _, count in bound)
    if total <= machine.memory_bytes:
        return []
    what, count = max(bound, key=lambda part: part[1])
    text = (
        f"this configuration may take {total // MIB} MiB of memory, of {machine.memory_bytes // MIB} MiB: large slides may have "
        f"the kernel end processes (most of it: {what}: {count // MIB} MiB; slidestream check lists all)"
    )
    return [text]
