"""pipeline.children: where a worker may run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline import children
from pipeline.children import spawn
from pipeline.crew import Member
from pipeline.rundir import RunDir

LOOK = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]


def ran_on(cpus: str, tmp_path, monkeypatch) -> str:
    """The cores that a worker finds itself on; what it would run is a look at them, and there is no other program at hand."""
    real = subprocess.Popen

    def popen(command: list[str], **options):
        options.update(stdout=subprocess.PIPE, pass_fds=(), env={**options["env"], "PATH": ""})
        assert command[0] == sys.executable
        return real(LOOK, **options)

    monkeypatch.setattr(children.subprocess, "Popen", popen)
    child = spawn(Member("inference", "inference-0", {}, cpus), 1, RunDir(tmp_path), 0)
    said, _ = child.process.communicate(timeout=60)
    child.close()
    return said.decode().strip()


def test_a_worker_is_on_its_cores_and_its_parent_where_it_was(tmp_path, monkeypatch) -> None:
    """Without any program of the system's."""
    before = os.sched_getaffinity(0)
    core = max(before)
    assert ran_on(str(core), tmp_path, monkeypatch) == f"[{core}]"
    assert os.sched_getaffinity(0) == before
    assert ran_on("", tmp_path, monkeypatch) == str(sorted(before))


def test_cores_that_may_not_be_used_any_more_limit_nothing(tmp_path, monkeypatch) -> None:
    """A container may be given others at any time."""
    before = os.sched_getaffinity(0)
    if 1023 in before:
        pytest.skip("a machine with all cores there can be")
    assert ran_on("1023", tmp_path, monkeypatch) == str(sorted(before))
