from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.limits import IDLE_BYTES, allow_files, bound_notices, check_workers, lack_for_more
from pipeline.machine import MIB, Machine
from pipeline.memory import Layout, MemoryLack

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["batcher", "aggregator", "reader", "reader", "inference"]
LAYOUT = Layout(slots=4, batch=8, patch_px=64, overview_slots=1, overview_px=256)


def test_processes_that_fit_are_let_through():
    """Five of them, beside the shared memory, to the byte."""
    check_workers(KINDS, LAYOUT, Machine(2, LAYOUT.total_bytes + 5 * IDLE_BYTES), 5 * IDLE_BYTES)


@pytest.mark.parametrize(("memory", "available"), [(-1, 5 * IDLE_BYTES), (MIB, 5 * IDLE_BYTES - 1)])
def test_more_processes_than_memory_are_refused(memory: int, available: int):
    """By what the machine has and by what is free; the message names the key that asks for most of them."""
    machine = Machine(2, LAYOUT.total_bytes + 5 * IDLE_BYTES + memory)
    with pytest.raises(
        MemoryLack, match=r"^reader\.workers=2: 5 worker processes need 100 MiB .* lower reader\.workers$"
    ):
        check_workers(KINDS, LAYOUT, machine, available)


def with_files(limit: int, kinds: list[str]) -> str:
    """What a process says that begins with this soft and hard limit of open files."""
    code = (
        "import resource, sys; from pipeline.limits import allow_files\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({min(limit, 256)}, {limit}))\n"
        "try: allow_files(sys.argv[1:]); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *kinds], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be():
    """256 or 1,024 are common and too few for hundreds of readers, or for slides with many files."""
    hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert with_files(hard, KINDS) == f"{hard}\n"


def test_a_limit_of_open_files_that_cannot_suffice_is_told():
    """Before the first process is started, with both remedies."""
    said = with_files(100, ["reader"] * 40)
    assert said == (
        "ConfigError reader.workers=40: 40 worker processes need 110 open files, and this process may have 100; "
        "raise that (ulimit -n), or lower reader.workers\n"
    )


def test_no_limit_of_open_files_is_left_as_it_is():
    """What suffices already, here and now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_files(KINDS)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]


def test_a_bound_above_the_memory_is_told_with_its_largest_part():
    """Slides may never need it; where they do, the kernel ends processes."""
    parts = [("supervisor", 300 * MIB), ("slide readers, 9", 900 * MIB)]
    assert bound_notices(parts, Machine(2, 1200 * MIB)) == []
    (notice,) = bound_notices(parts, Machine(2, 1000 * MIB))
    assert "1200 MiB" in notice and "1000 MiB" in notice and "slide readers, 9: 900 MiB" in notice


def test_more_processes_than_memory_has_room_for_are_told():
    """What `scale` asks for while the run is under way; fewer processes are never refused."""
    assert lack_for_more(8, 10, 10 * IDLE_BYTES) == ""
    assert lack_for_more(8, -4, 1) == ""
    assert "10 processes more need 200 MiB" in lack_for_more(8, 10, 10 * IDLE_BYTES - 1)
    assert "open files" in lack_for_more(8, 10**6, 10**15)
