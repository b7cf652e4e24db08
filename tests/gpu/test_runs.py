"""Engines built, verified and run on a real GPU by `slidestream` itself; and what goes wrong there.

    bin/test -m gpu             or, where PyTorch is installed already,   python -m pytest -m gpu tests/gpu

With TensorRT of any flavour, with AOTInductor, or with both; what is not installed is skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.errors import EngineError
from engines.verify import decide
from tests.end_to_end.runs import Finished, command
from tests.gpu.conftest import DEMO, NEVER_S, Answers, Lab, answers

pytestmark = pytest.mark.gpu

DIFFERENCE = 2e-2
SAME_CLASS = 0.995
SLOW = {"slow_s": 0.004}  # for each patch: the small slide takes some seconds
SLOWER = {"slow_s": 0.01}  # so that a second process comes up before the first has done it all


def assert_agrees(found: Answers, expected: Answers) -> None:
    """Same patches, probabilities as on the CPU within what FP16 may cost."""
    np.testing.assert_array_equal(found.places, expected.places)
    assert np.abs(found.probabilities - expected.probabilities).max() <= DIFFERENCE
    assert (decide(found.probabilities) == decide(expected.probabilities)).mean() >= SAME_CLASS


def assert_same_bytes(found: Answers, expected: Answers, engine: str) -> None:
    """The same file. cuDNN may choose another algorithm in each process of aoti: there, the same to FP16's last digits."""
    if engine == "tensorrt":
        assert found.raw == expected.raw
    else:
        np.testing.assert_array_equal(found.places, expected.places)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=5e-3, rtol=0)


def assert_complete(finished: Finished, slide: str) -> None:
    assert finished.code == 0, finished.console
    patches = finished.summary(slide)["patches"]
    assert patches["planned"] == patches["inferred"] > 200 and patches["failed"] == 0


class TestEngines:
    """build, verify, list."""

    @pytest.mark.parametrize("backend", ["tensorrt", "aoti"])
    def test_is_built_verified_and_listed(self, backend: str, lab: Lab):
        """The sidecar says what it is, and on which GPU it was found right, how closely and how fast."""
        lab.need(backend)
        plan = lab.build(lab.model(), lab.slide(), backend)
        (entry,) = [entry for entry in lab.cached().entries() if entry.plan == plan]
        assert not entry.problem and entry.identity is not None and entry.identity.precision == "fp16"
        found = entry.verification(lab.gpu)
        assert found["passed"] and found["patches"] >= 256 and found["max_difference"] <= DIFFERENCE
        assert found["patches_per_s"] > 100
        listed = json.loads(command("engine", "list", "--json", "--engines", lab.engines).stdout)
        assert str(plan) in [engine["plan"] for engine in listed]

    def test_can_be_verified_again(self, lab: Lab):
        """By name, with other patches."""
        plan = lab.build(lab.model(), lab.slide(), lab.any())
        said = command(
            "engine", "verify", plan.name, "--model", lab.model(), "--verify-on", lab.slide(), "--patches", "300",
            "--seed", "9", "--engines", lab.engines, limit_s=NEVER_S,
        )  # fmt: skip
        assert said.returncode == 0 and said.stdout.startswith("right: loss"), said.stderr


class TestRuns:
    """`slidestream run` on the GPU."""

    @pytest.mark.parametrize("engine", ["tensorrt", "aoti", "gpu"])
    def test_gives_the_probabilities_of_the_cpu(self, engine: str, lab: Lab):
        """Every patch, within what FP16 may cost; run.json names the GPU and the engine and how it went."""
        finished = lab.on_gpu(engine)
        slide = lab.slide().stem
        assert_complete(finished, slide)
        assert_agrees(answers(finished.out, slide), lab.on_cpu(lab.slide(), lab.model()))
        record = finished.record
        assert [gpu["uuid"] for gpu in record["gpus"]] == [lab.gpu.uuid]
        used = record["configuration"]["inference"]["engine"]
        assert used in lab.backends if engine == "gpu" else used == engine
        about = record["engines"]["inference-0"]
        assert about["plan"] == record["gpus"][0]["engine"] and about["precision"] == "fp16"
        assert about["batches"] > 0 and about["batch_ms_p99"] >= about["batch_ms_p50"] > 0
        assert record["stages"]["inference"]["restarts"] == 0 and record["lost"] == {}

    def test_the_demonstration_model(self, lab: Lab):
        """It comes as ONNX alone, so TensorRT runs it."""
        lab.need("tensorrt")
        lab.build(DEMO, lab.demo_slide(), "tensorrt")
        finished = lab.run(lab.demo_slide(), DEMO, *lab.sets("tensorrt"), key="gpu-demo")
        assert_complete(finished, "demo")
        assert_agrees(answers(finished.out, "demo"), lab.on_cpu(lab.demo_slide(), DEMO))

    def test_two_processes_on_one_gpu(self, lab: Lab, tmp_path: Path, start):
        """Both work, and the results are those of one."""
        engine = lab.any()
        expected = answers(lab.on_gpu(engine).out, "native")
        sets = lab.sets(engine, "inference.per_gpu=2", "inference.contexts=1")
        run = start([lab.slide()], tmp_path / "out", lab.model(), *sets, sabotage={"inference": SLOWER})
        finished = run.finish(NEVER_S)
        assert_complete(finished, "native")
        assert_same_bytes(answers(finished.out, "native"), expected, engine)
        assert finished.record["stages"]["inference"]["workers"] == 2
        engines = finished.record["engines"]
        assert set(engines) == {"inference-0", "inference-1"}
        assert all(about["batches"] > 0 for about in engines.values())

    def test_without_an_engine_the_command_that_builds_one_is_named(self, lab: Lab, tmp_path: Path, start):
        """Exit code 2 and one line, before anything is begun."""
        sets = lab.sets(lab.any(), f"inference.engines={tmp_path / 'none'}")
        finished = start([lab.slide()], tmp_path / "out", lab.model(), *sets).finish(NEVER_S)
        assert finished.code == 2
        assert "none has been built; build one: slidestream engine build" in finished.complaint()


class TestDeath:
    """The inference process dies."""

    def test_kill_9_in_mid_run_changes_nothing(self, lab: Lab, tmp_path: Path, start):
        """The same CSV as that of the undisturbed run."""
        engine = lab.any()
        expected = answers(lab.on_gpu(engine).out, "native")
        run = start([lab.slide()], tmp_path / "out", lab.model(), *lab.sets(engine), sabotage={"inference": SLOW})
        run.at_work()
        run.stages("inference")[0].kill()
        finished = run.finish(NEVER_S)
        assert_complete(finished, "native")
        assert finished.record["stages"]["inference"]["restarts"] == 1
        assert_same_bytes(answers(finished.out, "native"), expected, engine)
        assert run.left_behind() == []

    def test_a_cuda_error_in_flight_ends_the_process_with_70_and_its_slots_run_elsewhere(
        self, lab: Lab, tmp_path: Path, start
    ):
        """A kernel writes to nowhere in the middle of the work: the context is lost, and no patch is."""
        engine = lab.any()
        expected = answers(lab.on_gpu(engine).out, "native")
        run = start(
            [lab.slide()], tmp_path / "out", lab.model(), *lab.sets(engine),
            sabotage={"inference": {**SLOW, "cuda_error_at": 6}},
        )  # fmt: skip
        finished = run.finish(NEVER_S)
        assert_complete(finished, "native")
        assert_same_bytes(answers(finished.out, "native"), expected, engine)
        assert finished.record["stages"]["inference"]["restarts"] == 1
        (lost,) = [r for r in finished.log if r["event"] == "engine lost"]
        assert re.search("cuda ?error", lost["reason"], re.IGNORECASE), lost
        (died,) = [r for r in finished.log if r["event"] == "process died"]
        assert (died["worker"], died["cause"]) == ("inference-0", "exit code 70")
        assert run.left_behind() == []

    def test_a_gpu_that_hangs_is_given_to_another_process(self, lab: Lab, tmp_path: Path, start):
        """A batch does not end and there is no error: after supervisor.hang_s its process does, and the next one goes on."""
        engine = lab.any()
        expected = answers(lab.on_gpu(engine).out, "native")
        run = start(
            [lab.slide()], tmp_path / "out", lab.model(), *lab.sets(engine, "supervisor.hang_s=5"),
            sabotage={"inference": {**SLOW, "hang_at": 6}},
        )  # fmt: skip
        finished = run.finish(NEVER_S)
        assert_complete(finished, "native")
        assert_same_bytes(answers(finished.out, "native"), expected, engine)
        (lost,) = [r for r in finished.log if r["event"] == "engine lost"]
        assert lost["reason"] == "a batch was not answered in 5 s (supervisor.hang_s)"
        (died,) = [r for r in finished.log if r["event"] == "process died"]
        assert (died["worker"], died["cause"]) == ("inference-0", "exit code 70")
        assert run.left_behind() == []


class TestTooLittleMemory:
    """Another program holds nearly all of the GPU's memory."""

    @pytest.fixture
    def leave(self, lab: Lab) -> Iterator:
        """`leave(mib)` takes all of GPU 0's memory but so much."""
        from engines.cuda import Cuda

        device = Cuda()
        taken: list[int] = []

        def leave(mib: int) -> None:
            while (size := min(1 << 30, device.free_bytes() - (mib << 20))) > 0:
                try:
                    taken.append(device.allocate(size))
                except EngineError:
                    break  # as full as it gets: memory is given out in pieces of some size

        yield leave
        for address in taken:
            device.release(address)
        device.close()

    def failed(self, finished: Finished) -> str:
        """The reason of a run that could not begin."""
        assert finished.code == 70, finished.console
        assert finished.record["patches"]["inferred"] == 0
        reason = finished.record["reason"]
        assert "inference-0 died" in reason and "\n" not in reason
        return reason

    def test_names_what_it_needed_and_what_would_fit(self, lab: Lab, leave, tmp_path: Path, start):
        """Sixteen contexts of 1024 patches of 256 px need more than the 3 GiB that are left; a few would fit."""
        engine = lab.any()
        model = lab.model(256)
        lab.build(model, lab.slide(), engine, 1024)
        leave(3072)
        sets = lab.sets(engine, "inference.contexts=16", "batcher.batch=1024", "batcher.slots=4")
        sets += ["supervisor.max_failures=1", "supervisor.backoff_s=0"]
        reason = self.failed(start([lab.slide()], tmp_path / "out", model, *sets).finish(NEVER_S))
        needed = re.search(
            r"inference.contexts=16 of batcher.batch=1024 need (\d+) MiB of GPU memory, (\d+) MiB are", reason
        )
        tried = re.search(
            r"context \d+ of 16 does not start: .*(\d+) MiB of GPU memory are free; try contexts=", reason
        )
        assert needed or tried, reason
        if needed:
            assert int(needed[1]) > int(needed[2])
            assert re.search(r"contexts=([1-9]|1[0-5]) would fit|a smaller batch", reason)

    def test_no_memory_at_all_is_told_and_not_waited_for(self, lab: Lab, leave, tmp_path: Path, start):
        """Not even a context of CUDA can be made: the run ends with the reason."""
        engine = lab.any()
        lab.prepare(engine)
        leave(64)
        sets = lab.sets(engine, "supervisor.max_failures=1", "supervisor.backoff_s=0")
        reason = self.failed(start([lab.slide()], tmp_path / "out", lab.model(), *sets).finish(NEVER_S))
        assert "memory" in reason.lower()
