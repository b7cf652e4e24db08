"""What an operator does and sees while a run is under way: scale, status; and runs that find no GPU, or lose a worker."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.end_to_end.runs import Run, command, interrupt
from tests.end_to_end.test_crashes import assert_whole

pytestmark = pytest.mark.long

SLOW = {
    "inference": {"slow_s": 0.03},
    "reader": {"slow_s": 0.002},
}  # tens of seconds with one process: time to look at it
TWO_OF_EACH = ("reader.workers=2", "inference.workers=2", "batcher.batch=8", "aggregator.flush_ms=0")
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def workers(run: Run, kind: str) -> set[str]:
    """Names of the living workers of a kind."""
    found = set()
    for process in run.stages(kind):
        line = process.cmdline()
        found.add(line[line.index("--name") + 1])
    return found


class TestScale:
    """`slidestream scale OUT reader=4 inference=1` while the run is under way."""

    def test_up_and_down_and_back_changes_nothing_but_speed(
        self, tmp_path: Path, native: Path, model: Path, native_csv: pd.DataFrame, start
    ):
        """Workers come and go in the middle of their work; each patch is there once, with the same probability."""
        run = start([native], tmp_path / "out", model, *TWO_OF_EACH, sabotage=SLOW)
        run.at_work()
        said = command("scale", run.out, "reader=4", "inference=1")
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout == "reader: 2 -> 4 workers\ninference: 2 -> 1 workers\n"
        run.until(
            lambda: (
                workers(run, "reader") == {f"reader-{i}" for i in range(4)}
                and workers(run, "inference") == {"inference-0"}
            ),
            "four readers and one inference process",
        )
        before = run.journalled()
        run.until(lambda: run.journalled() > before, "work goes on")
        said = command("scale", run.out, "reader=1", "inference=4", "tissue=2", "writer=2")
        assert said.returncode == 0 and "inference: 1 -> 4 workers" in said.stdout
        run.until(
            lambda: workers(run, "reader") == {"reader-0"} and len(workers(run, "inference")) == 4,
            "one reader and four inference processes",
        )
        finished = run.finish()
        assert_whole(finished, "native", native_csv)
        # Those sent away did not die: nothing was restarted, and nobody is missed.
        assert {stage["restarts"] for stage in finished.record["stages"].values()} == {0}
        assert finished.record["lost"] == {}
        assert [(r["stage"], r["before"], r["now"]) for r in finished.log if r["event"] == "scaled"][:2] == [
            ("reader", 2, 4),
            ("inference", 2, 1),
        ]
        assert run.left_behind() == []

    @pytest.mark.long
    def test_what_cannot_be_done_is_refused_and_the_run_goes_on(
        self, tmp_path: Path, small: Path, model: Path, small_csv: pd.DataFrame, start
    ):
        """Too many, and what is no stage: exit code 2, one line."""
        run = start([small], tmp_path / "out", model, *TWO_OF_EACH, sabotage=SLOW)
        run.at_work()
        said = command("scale", run.out, "reader=5000")
        assert said.returncode == 2 and said.stdout == ""
        assert said.stderr == f"slidestream: {run.out}: reader=5000: a stage has 1 to 1024 workers\n"
        assert command("scale", run.out, "batcher=2").returncode == 2
        assert_whole(run.finish(), "small", small_csv)

    @pytest.mark.long
    def test_after_the_run_there_is_nobody_to_ask(self, tmp_path: Path, small: Path, model: Path, start):
        """One line that says so."""
        finished = start([small], tmp_path / "out", model).finish()
        for words in (("status", finished.out), ("scale", finished.out, "reader=2")):
            said = command(*words)
            assert said.returncode == 2 and said.stderr.count("\n") == 1
            assert "no run is under way there" in said.stderr


class TestStatus:
    """`slidestream status OUT`."""

    def test_says_what_the_run_is_at(self, tmp_path: Path, small: Path, native: Path, model: Path, start):
        """For a person in lines, for a program as JSON, with the same figures; it changes nothing."""
        run = start([native, small], tmp_path / "out", model, *TWO_OF_EACH, sabotage=SLOW)
        run.at_work()
        status: dict = {"patches_inferred": 0}
        while not status["patches_inferred"]:  # what is in a journal is told with the batcher's next report
            said = command("status", run.out, "--json")
            assert (said.returncode, said.stderr) == (0, "")
            status = json.loads(said.stdout)
        assert status["slides_total"] == 2 and status["slides_done"] <= 1
        assert status["patches_inferred"] <= status["patches_planned"]
        stages = {stage["kind"]: stage for stage in status["stages"]}
        assert stages["reader"]["workers"] == stages["inference"]["workers"] == 2
        assert status["lost"] == {} and status["slots"] is not None
        lines = command("status", run.out).stdout.splitlines()
        assert len(lines) >= 2 and "patches/s" in lines[0], lines
        interrupt(run)
        assert run.finish().code == 75


class TestNoGpu:
    """A GPU is asked for where there is none."""

    @pytest.fixture(autouse=True)
    def hidden(self, monkeypatch: pytest.MonkeyPatch):
        for name, value in NO_GPU.items():
            monkeypatch.setenv(name, value)

    @pytest.mark.parametrize("engine", ["gpu", "tensorrt", "aoti"])
    def test_is_refused_in_one_line(self, engine: str, tmp_path: Path, small: Path, model: Path, start):
        """Exit code 2, why, and what to do; no results folder is begun."""
        finished = start([small], tmp_path / "out", model, f"inference.engine={engine}").finish()
        assert finished.code == 2
        complaint = finished.complaint()
        assert "inference.engine asks for a GPU, but" in complaint
        assert "use inference.engine=onnx for the CPU" in complaint
        assert not (tmp_path / "out" / "run.json").exists()

    def test_fallback_is_complete_and_loud(
        self, tmp_path: Path, small: Path, model: Path, small_csv: pd.DataFrame, start
    ):
        """The CPU does it, the same results come out, and a warning says that it was the CPU and why."""
        finished = start([small], tmp_path / "out", model, "inference.engine=gpu", "inference.fallback=cpu").finish()
        assert_whole(finished, "small", small_csv)
        (warning,) = [r for r in finished.log if "NO GPU IS USED" in r["event"]]
        assert warning["level"] == "warning" and "many times slower" in warning["event"]
        assert "NO GPU IS USED" in finished.console
        assert finished.record["configuration"]["inference"]["engine"] == "onnx"
        assert finished.record["gpus"] == []

    @pytest.mark.long
    def test_the_same_run_on_the_cpu_takes_what_the_fallback_did_for_done(
        self, tmp_path: Path, small: Path, model: Path, start
    ):
        """Its results are those of the engine onnx, and so they are recorded."""
        start([small], tmp_path / "out", model, "inference.engine=gpu", "inference.fallback=cpu").finish()
        again = start([small], tmp_path / "out", model).finish()
        assert again.code == 0 and again.record["slides"]["skipped"] == 1


class TestLostWorker:
    """A worker that never comes up."""

    @pytest.mark.long
    def test_is_given_up_while_another_works_and_the_run_is_complete(
        self, tmp_path: Path, native: Path, model: Path, native_csv: pd.DataFrame, start
    ):
        """Degraded: run.json, the log, the status and the last words name it, with the reason; the exit code is 0."""
        sabotage = {"inference": {"never": "inference-1", "slow_s": 0.015}}
        out = tmp_path / "out"
        sets = (*TWO_OF_EACH, "supervisor.max_failures=1", "supervisor.backoff_s=0.1")
        run = start([native], out, model, *sets, sabotage=sabotage)
        run.until(lambda: "DEGRADED" in run.console(), "the worker is given up")
        lines = command("status", out).stdout
        finished = run.finish()
        assert_whole(finished, "native", native_csv)
        reason = "engine not started: this GPU has fallen off the bus"
        assert list(finished.record["lost"]) == ["inference-1"] and reason in finished.record["lost"]["inference-1"]
        assert f"inference-1 was given up: exit code 70: {reason}" in lines
        (error,) = [r for r in finished.log if r["event"].startswith("DEGRADED")]
        assert (error["level"], error["worker"], error["left"]) == ("error", "inference-1", 1)
        assert "DEGRADED: inference-1 was given up" in finished.console
        assert run.left_behind() == []

    def test_the_only_one_is_not_given_up_but_ends_the_run(self, tmp_path: Path, small: Path, model: Path, start):
        """A fault, exit code 70, with the reason of the last try; the same command goes on later."""
        sabotage = {"inference": {"never": "inference-0"}}
        sets = ("inference.workers=1", "supervisor.max_failures=1", "supervisor.backoff_s=0.1")
        finished = start([small], tmp_path / "out", model, *sets, sabotage=sabotage).finish()
        assert finished.code == 70
        assert "inference-0 died 2 times in a row without any progress" in finished.record["reason"]
        assert "this GPU has fallen off the bus" in finished.record["reason"]
        assert finished.record["lost"] == {}

    def test_an_error_of_the_device_ends_its_process_with_70_and_no_patch_is_lost(
        self, tmp_path: Path, small: Path, model: Path, small_csv: pd.DataFrame, start
    ):
        """In the middle of the work: the process leaves at once, its slots run elsewhere, and it is started again."""
        sets = ("inference.workers=1", "batcher.batch=8", "supervisor.backoff_s=0")
        run = start([small], tmp_path / "out", model, *sets, sabotage={"inference": {"fatal_at": 20}})
        finished = run.finish()
        assert_whole(finished, "small", small_csv)
        (lost,) = [r for r in finished.log if r["event"] == "engine lost"]
        (died,) = [r for r in finished.log if r["event"] == "process died"]
        assert lost["reason"] == "the device is lost"
        assert (died["worker"], died["cause"]) == ("inference-0", "exit code 70")
        assert finished.record["stages"]["inference"]["restarts"] == 1
