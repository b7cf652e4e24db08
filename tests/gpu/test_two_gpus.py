"""Several GPUs in one run: they share its work, and one that is lost costs no patch. Skipped where there is one GPU.

Run like tests.gpu.test_runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.runs import Finished, command
from tests.gpu.conftest import NEVER_S, Lab, answers
from tests.gpu.test_runs import SLOWER, assert_complete, assert_same_bytes

pytestmark = pytest.mark.gpu

NATIVE = "native"


@pytest.fixture(params=["tensorrt", "aoti"])
def engine(request: pytest.FixtureRequest, lab: Lab) -> str:
    if len(lab.found.gpus) < 2:
        pytest.skip("there is one GPU")
    lab.prepare(request.param)
    return request.param


@pytest.fixture
def begin(lab: Lab, engine: str, tmp_path: Path, start):
    """A slow run on the first two GPUs."""

    def begin(*sets: str, **sabotage: Any):
        wanted = lab.sets(engine, "inference.devices=[0, 1]", "supervisor.backoff_s=0", *sets)
        return start(
            [lab.slide()], tmp_path / "out", lab.model(), *wanted, sabotage={"inference": {**SLOWER, **sabotage}}
        )

    return begin


@pytest.fixture
def assert_as_on_one(lab: Lab, engine: str):
    """Every patch is there, with the answers that one GPU alone gives."""

    def check(finished: Finished) -> None:
        assert_complete(finished, NATIVE)
        assert_same_bytes(answers(finished.out, NATIVE), answers(lab.on_gpu(engine).out, NATIVE), engine)

    return check


def test_both_work_and_the_results_are_those_of_one(begin, assert_as_on_one, lab: Lab):
    """Each in a process of its own, which sees its GPU alone."""
    run = begin()
    finished = run.finish(NEVER_S)
    assert_as_on_one(finished)
    record = finished.record
    assert [gpu["uuid"] for gpu in record["gpus"]] == [gpu.uuid for gpu in lab.found.gpus[:2]]
    assert set(record["engines"]) == {"inference-0", "inference-1"}
    assert all(about["batches"] > 0 for about in record["engines"].values())
    assert record["lost"] == {} and record["stages"]["inference"]["restarts"] == 0
    assert run.left_behind() == []


def test_kill_9_of_one_changes_nothing(begin, assert_as_on_one):
    """The other goes on, and the killed one is started again."""
    run = begin()
    run.at_work()
    (second,) = [process for process in run.stages("inference") if "inference-1" in process.cmdline()]
    second.kill()
    finished = run.finish(NEVER_S)
    assert_as_on_one(finished)
    assert finished.record["stages"]["inference"]["restarts"] == 1 and finished.record["lost"] == {}
    assert run.left_behind() == []


def test_one_that_is_lost_for_good_in_mid_run_leaves_the_other(begin, assert_as_on_one):
    """A CUDA error, and then it cannot be opened any more: degraded, with the reason; its batches run on the other GPU, and the
    exit code is 0, for every patch is there."""
    gone = {"worker": "inference-1", "cuda_error_at": 3, "never": "inference-1", "never_from": 2}
    finished = begin("supervisor.max_failures=1", **gone).finish(NEVER_S)
    assert_as_on_one(finished)
    assert list(finished.record["lost"]) == ["inference-1"]
    assert "DEGRADED: inference-1 was given up" in finished.console
    first = next(entry for entry in finished.log if entry["event"] == "engine lost")
    assert first["process"] == "inference-1" and "cuda" in first["reason"].lower()


def test_a_gpu_is_taken_away_and_given_back_while_the_run_goes_on(begin, assert_as_on_one):
    """`slidestream scale`, twice."""
    run = begin()
    run.at_work()
    taken = command("scale", run.out, "inference=1")
    assert taken.returncode == 0, taken.stderr
    assert taken.stdout.strip() == "inference: 2 -> 1 workers"
    run.until(lambda: len(run.stages("inference")) == 1, "one inference process is gone")
    given = command("scale", run.out, "inference=2")
    assert given.returncode == 0, given.stderr
    assert given.stdout.strip() == "inference: 1 -> 2 workers"
    assert_as_on_one(run.finish(NEVER_S))


def test_the_one_that_is_named_by_its_uuid_is_used_alone(
    assert_as_on_one, engine: str, lab: Lab, tmp_path: Path, start
):
    """`inference.devices` takes the beginning of a UUID; the answers of one GPU are those of the other."""
    second = lab.found.gpus[1].uuid
    sets = lab.sets(engine, f"inference.devices=[{second[:12]}]")
    finished = start([lab.slide()], tmp_path / "out", lab.model(), *sets).finish(NEVER_S)
    assert_as_on_one(finished)
    assert [gpu["uuid"] for gpu in finished.record["gpus"]] == [second]
