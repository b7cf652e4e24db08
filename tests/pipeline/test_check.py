"""What `slidestream check` tells of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import check
from pipeline.check import (
    Finding,
    ModelFacts,
    check_limits,
    check_memory,
    check_out,
    check_unused_gpu,
    plan,
    report,
    size,
)
from pipeline.config import load_config, resolve
from pipeline.machine import Machine

GIB = 1 << 30


def sized(*sets: str, cores: int = 2):
    return resolve(load_config(None, sets), Machine(cores, 64 * GIB))


def levels(findings: object) -> list[str]:
    return [finding.level for finding in findings]


def test_report_covers_the_machine(tmp_path: Path):
    """The report names versions, cores, memory, GPU, the plan of every stage, the bound, limits and the results folder."""
    lines, _ = report(load_config(), tmp_path / "out", Machine(2, 64 * GIB))
    text = "\n".join(lines)
    for part in ("OpenSlide", "ONNX Runtime", "GPU", "readers", "inference", "in all at most", "memfd", "free in"):
        assert part in text
    assert all(line.startswith(("ok  ", "warn", "FAIL")) for line in lines)


def test_broken_model_is_a_fail(tmp_path: Path):
    """A model directory that is not there fails the check, in one line that names it."""
    lines, fine = report(load_config(None, [f"model={tmp_path / 'none'}"]), None, Machine(2, 64 * GIB))
    failed = [line for line in lines if line.startswith("FAIL")]
    assert not fine
    assert len(failed) == 1 and str(tmp_path / "none") in failed[0]


def test_good_model_passes(monkeypatch: pytest.MonkeyPatch):
    """With a model, everything here is fine, and the exit code can be 0."""
    monkeypatch.setattr(check, "check_model", lambda _: (ModelFacts(), [Finding("ok", "model", "demo")]))
    lines, fine = report(load_config(), None, Machine(2, 64 * GIB))
    assert fine, lines


def test_memory_that_does_not_fit_fails():
    """A bound above what the machine has is a FAIL with the keys to lower; above what is free now, a warning."""
    config = sized("reader.workers=64")
    assert levels(check_memory(config, Machine(2, GIB), ModelFacts(), 0))[-1] == "FAIL"
    assert levels(check_memory(config, Machine(2, 640 * GIB), ModelFacts(), GIB))[-1] == "warn"
    assert levels(check_memory(config, Machine(2, 640 * GIB), ModelFacts(), 640 * GIB))[-1] == "ok"


def test_too_few_slots_are_warned_of():
    """Fewer slots than the credits call for is worth a warning that says how many are wanted."""
    found = [finding for finding in plan(sized("batcher.slots=3"), Machine(2, 64 * GIB)) if finding.level == "warn"]
    assert [finding.what for finding in found] == ["batcher"]
    assert "less than 11" in found[0].text


def test_too_many_threads_are_warned_of():
    """Many times more threads than cores hinder each other."""
    found = plan(sized("inference.workers=4", "inference.threads=8"), Machine(2, 64 * GIB))
    assert "32 threads on 2 cores" in str(next(finding for finding in found if finding.level == "warn"))


def test_few_open_files_are_warned_of(monkeypatch: pytest.MonkeyPatch):
    """A low hard limit of open files is a warning with the command that raises it."""
    monkeypatch.setattr(check.resource, "getrlimit", lambda _: (256, 512))
    assert "ulimit -n 1024" in next(check_limits(sized())).text


def test_shared_memory_that_cannot_be_made_fails(monkeypatch: pytest.MonkeyPatch):
    """Without memfd there is no pipeline."""
    monkeypatch.setattr(
        check.os, "memfd_create", lambda *_: (_ for _ in ()).throw(OSError(38, "Function not implemented"))
    )
    finding = check.check_shared_memory()
    assert finding.level == "FAIL" and "Function not implemented" in finding.text


def test_results_folder(tmp_path: Path):
    """A folder that does not exist yet is judged by its parent; a file in its place fails."""
    (tmp_path / "file").touch()
    assert levels(check_out(tmp_path / "a" / "b"))[0] in ("ok", "warn")
    assert levels(check_out(tmp_path / "file")) == ["FAIL"]
    assert levels(check_out(tmp_path / "file" / "below")) == ["FAIL"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_results_folder_that_cannot_be_written(tmp_path: Path):
    """A folder without the right to write fails."""
    tmp_path.chmod(0o500)
    assert levels(check_out(tmp_path / "a")) == ["FAIL"]


def fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_gpu_that_is_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A GPU is named, with the word that this engine does not use it."""
    fake_smi(
        tmp_path,
        monkeypatch,
        "echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)'",
    )
    assert check_unused_gpu().text == "2 found (NVIDIA H100 80GB HBM3), not used by the engine onnx; docs/engines.md"


@pytest.mark.parametrize("script", ["exit 9", "echo No devices found"])
def test_driver_without_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str):
    """A driver that finds no GPU is the same as no GPU."""
    fake_smi(tmp_path, monkeypatch, script)
    assert check_unused_gpu() == Finding("ok", "GPU", "no GPU found: CPU engine")


def test_driver_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A driver that does not answer is a warning, not a check that hangs."""
    monkeypatch.setattr(check, "GPU_PROBE_S", 0.2)
    fake_smi(tmp_path, monkeypatch, "exec sleep 5")
    assert check_unused_gpu().level == "warn"


@pytest.mark.parametrize(("count", "text"), [(0, "0 MiB"), (512 << 20, "512 MiB"), (3 << 29, "1.5 GiB")])
def test_size(count: int, text: str):
    """Bytes as people say them."""
    assert size(count) == text
