"""Runs on machines with GPUs that are not there: cuda-python and TensorRT are stood in for (tests/end_to_end/machine), all else is
real: looking for GPUs, choosing engines, processes, page-locking, contexts, figures, and what becomes of a GPU that fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engines.build import Built
from engines.cache import EngineCache
from engines.census import Census
from engines.flavour import Flavour
from engines.fold import fold, save_folded
from engines.gpu import Gpu
from engines.identity import identity
from engines.model import load_model
from engines.precision import graph_sha256
from engines.recipe import BuildOptions, Profile
from tests.end_to_end.runs import Run, command
from tests.end_to_end.test_crashes import assert_whole
from tests.engines.test_flavour import fake

MACHINE = Path(__file__).resolve().parent / "machine"
BATCH = 8
ONE = {"name": "Test GPU", "capability": "8.6", "uuid": "GPU-11111111-1111-1111-1111-111111111111"}
TWO = {"name": "Test GPU", "capability": "8.6", "uuid": "GPU-22222222-2222-2222-2222-222222222222"}
FEW = ("reader.workers=2", "aggregator.flush_ms=0", "inference.contexts=2", "supervisor.backoff_s=0")


def fill(patch: pytest.MonkeyPatch, gpus: Sequence[dict[str, Any]], visible: str | None = None) -> None:
    """Puts GPUs into the machine."""
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(MACHINE), os.environ.get("PYTHONPATH", "")])))
    patch.setenv("FAKE_GPUS", json.dumps(gpus))
    if visible is None:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        patch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.fixture(scope="module")
def engines(model: Path, material: Path, native: Path) -> Path:
    """A folder with an engine of the model, verified on that kind of GPU by the command for it."""
    folder, about = material / "engines", load_model(model)
    graph = fold(about)
    save_folded(graph, material / "plan.onnx")
    gpu = Gpu(ONE["name"], ONE["capability"], ONE["uuid"])
    wanted = identity(
        model=about.sha256, graph=graph_sha256(graph), precision="fp32", classes=len(about.classes),
        profiles=[Profile(about.patch_px, BATCH, BATCH, BATCH)], options=BuildOptions(),
        flavour=Flavour("tensorrt", "11.4.0", fake(rtx=False)), gpu=gpu,
    )  # fmt: skip
    built = Built((material / "plan.onnx").read_bytes(), Census({}, {}), (), 0.1)
    entry = EngineCache(folder).put("tiny", wanted, built, gpu)
    with pytest.MonkeyPatch.context() as patch:
        fill(patch, [ONE])
        said = command(
            "engine", "verify", entry.plan, "--engines", folder, "--model", model, "--verify-on", native, limit_s=240
        )
    assert said.returncode == 0 and said.stdout.startswith("right: loss 0.000%"), said.stderr
    assert said.stderr.count("warning: TensorRT warns: a plan of a test is used") == 1
    return folder


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch, engines: Path, tmp_path: Path, model: Path, start) -> Callable[..., Run]:
    def run(
        slide: Path, *gpus: dict[str, Any], sets: tuple[str, ...] = (), visible: str | None = None, **more: Any
    ) -> Run:
        fill(monkeypatch, gpus, visible)
        wanted = ("inference.engine=tensorrt", f"inference.engines={engines}", *FEW, *sets)
        return start([slide], tmp_path / "out", model, *wanted, **more)

    return run


def test_two_gpus_work_side_by_side(begin, small: Path, small_csv: pd.DataFrame) -> None:
    """Each in a process of its own, which sees it alone; the answers are ONNX Runtime's; figures and warnings are recorded."""
    run = begin(small, ONE, TWO, sabotage={"inference": {"slow_s": 0.005}})
    finished = run.finish()
    assert_whole(finished, "small", small_csv)
    record = finished.record
    assert [gpu["uuid"] for gpu in record["gpus"]] == [ONE["uuid"], TWO["uuid"]]
    assert record["lost"] == {} and record["stages"]["inference"]["restarts"] == 0
    assert set(record["engines"]) == {"inference-0", "inference-1"}
    for about in record["engines"].values():
        assert (about["engine"], about["precision"], about["provider"]) == ("tensorrt", "fp32", "Test GPU")
        assert about["contexts"] == 2 and about["batches"] > 0 and about["fill"] > 0.9
        assert about["batch_ms_p99"] >= about["batch_ms_p50"] > 0 and about["busy_seconds"] > 0
        assert {"load_seconds", "attach_seconds", "warm_seconds", "first_batch_ms"} <= set(about)
        assert about["gpu_mib"] >= 2000 and len(about["memory_mib_over_seconds"]) >= 1
    warned = [(r["process"], r["level"], r["reason"]) for r in finished.log if r["event"] == "TensorRT warns"]
    assert sorted(warned) == [(f"inference-{i}", "warning", "a plan of a test is used") for i in (0, 1)]
    assert not [r for r in finished.log if "copied twice" in r["event"]]
    assert run.left_behind() == []


def test_a_cuda_error_in_flight_costs_a_restart_and_no_patch(begin, small: Path, small_csv: pd.DataFrame) -> None:
    """The process leaves with 70 at once; its batches run in the next one."""
    run = begin(small, {**ONE, "fatal_at": 14})
    finished = run.finish()
    assert_whole(finished, "small", small_csv)
    assert finished.record["stages"]["inference"]["restarts"] == 1
    (lost,) = [r for r in finished.log if r["event"] == "engine lost"]
    assert "cudaErrorIllegalAddress" in lost["reason"]
    (died,) = [r for r in finished.log if r["event"] == "process died"]
    assert (died["worker"], died["cause"]) == ("inference-0", "exit code 70")
    assert run.left_behind() == []


@pytest.mark.long
def test_a_gpu_that_hangs_is_given_to_another_process(begin, small: Path, small_csv: pd.DataFrame) -> None:
    """It answers no more, and reports no error either: after supervisor.hang_s its process ends, and the next one goes on."""
    finished = begin(small, {**ONE, "hangs_at": 14}, sets=("supervisor.hang_s=3",)).finish()
    assert_whole(finished, "small", small_csv)
    (lost,) = [r for r in finished.log if r["event"] == "engine lost"]
    assert lost["reason"] == "a batch was not answered in 3 s (supervisor.hang_s)"
    (died,) = [r for r in finished.log if r["event"] == "process died"]
    assert (died["worker"], died["cause"]) == ("inference-0", "exit code 70")


@pytest.mark.long
def test_a_gpu_that_is_lost_for_good_leaves_the_others(begin, native: Path, native_csv: pd.DataFrame) -> None:
    """Degraded, with the reason; the exit code is 0, for every patch is there."""
    sets = ("supervisor.max_failures=1",)
    run = begin(native, ONE, {**TWO, "broken": True}, sets=sets, sabotage={"inference": {"slow_s": 0.01}})
    finished = run.finish()
    assert_whole(finished, "native", native_csv)
    assert list(finished.record["lost"]) == ["inference-1"]
    assert "cudaErrorDevicesUnavailable" in finished.record["lost"]["inference-1"]
    assert "DEGRADED: inference-1 was given up" in finished.console


@pytest.mark.long
@pytest.mark.parametrize(("free_mib", "words"), [(3, "contexts=2 would fit"), (1, "a smaller batch")])
def test_too_little_memory_names_what_would_fit(begin, small: Path, free_mib: int, words: str) -> None:
    """What was needed, what is free, and what to change."""
    gpu = {**ONE, "free_mib": free_mib}
    finished = begin(small, gpu, sets=("inference.contexts=16", "supervisor.max_failures=1")).finish()
    assert finished.code == 70
    assert "inference.contexts=16 of batcher.batch=8 need 17 MiB of GPU memory" in finished.record["reason"]
    assert words in finished.record["reason"]


@pytest.mark.long
def test_the_gpus_that_are_named_are_used(begin, small: Path, small_csv: pd.DataFrame) -> None:
    """The second of those that CUDA_VISIBLE_DEVICES leaves, which is the first there is."""
    visible = f"1,{ONE['uuid']}"
    finished = begin(small, ONE, TWO, sets=("inference.devices=[1]",), visible=visible).finish()
    assert_whole(finished, "small", small_csv)
    assert [gpu["uuid"] for gpu in finished.record["gpus"]] == [ONE["uuid"]]


@pytest.mark.long
def test_without_a_gpu_a_run_that_may_goes_on_with_the_cpu(begin, small: Path, small_csv: pd.DataFrame) -> None:
    """Loudly."""
    finished = begin(small, sets=("inference.fallback=cpu",)).finish()
    assert_whole(finished, "small", small_csv)
    assert "NO GPU IS USED" in finished.console and finished.record["gpus"] == []


@pytest.mark.long
def test_another_kind_of_gpu_is_told_what_it_lacks(begin, small: Path) -> None:
    """The engine is for one kind; the command that builds another is named."""
    finished = begin(small, ONE, {**TWO, "name": "Other GPU", "capability": "8.9"}).finish()
    assert finished.code == 2
    assert "was built for Test GPU (8.6), here is Other GPU (8.9)" in finished.complaint()
    assert "slidestream engine build" in finished.complaint()
