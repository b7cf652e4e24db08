"""Death at any moment: of a worker, of the supervisor, of all; and what hangs. The result is that of an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.end_to_end.runs import FEWEST, STAGES, Finished, Run, assert_same, interrupt

SLOW = {"inference": {"slow_s": 0.004}}  # about a second for 256 patches
ONE_OF_EACH = (*FEWEST, "batcher.batch=16", "aggregator.flush_ms=0")
# Calls of its work that a process of a kind does before it hangs, so that deaths come in the middle.
AFTER = {"reader": 4, "tissue": 0, "batcher": 30, "inference": 4, "aggregator": 3, "writer": 0}


def assert_whole(finished: Finished, slide: str, expected: pd.DataFrame) -> None:
    """Complete, and neither lost nor doubled nor changed a patch."""
    assert finished.code == 0, finished.console
    patches = finished.summary(slide)["patches"]
    assert patches == {"planned": len(expected), "inferred": len(expected), "failed": 0}
    assert_same(finished.table(slide), expected)
    assert list(finished.out.glob(".slidestream/work/*")) == []  # of complete slides no journal stays


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def gone(run: Run, limit_s: float = 60.0) -> list[str]:
    """What is left once everything had the time to go."""
    deadline = time.monotonic() + limit_s
    while (left := run.left_behind()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize("kind", STAGES)
def test_killing_a_worker_three_times_changes_nothing(
    kind: str, tmp_path: Path, native: Path, model: Path, native_csv: pd.DataFrame, start
):
    """kill -9 of each kind of process in the middle of its work, three generations in a row."""
    run = start([native], tmp_path / "out", model, *ONE_OF_EACH, sabotage={kind: {"block": 3, "after": AFTER[kind]}})
    for _ in range(3):
        kill(run.blocked(kind))
    finished = run.finish()
    assert_whole(finished, "native", native_csv)
    assert finished.record["stages"][kind]["restarts"] == 3
    assert run.left_behind() == []


@pytest.mark.parametrize("kind", ["reader", pytest.param("batcher", marks=pytest.mark.long)])
def test_sigterm_to_one_worker_is_a_death_like_any_other(kind, tmp_path, small, model, small_csv, start):
    """It is replaced, and the run goes on."""
    run = start([small], tmp_path / "out", model, *ONE_OF_EACH, sabotage={"reader": {"slow_s": 0.005}})
    run.at_work()
    run.stages(kind)[0].terminate()
    finished = run.finish()
    assert_whole(finished, "small", small_csv)
    assert finished.record["stages"][kind]["restarts"] == 1
    assert run.left_behind() == []


def test_stage_seconds_survive_the_batcher(tmp_path: Path, small: Path, model: Path, start):
    """run.json tells the seconds of the whole run, not those since the last batcher came."""
    sabotage = {"batcher": {"block": 1, "after": AFTER["batcher"]}, "tissue": {"slow_s": 1.5}}
    run = start([small], tmp_path / "out", model, *ONE_OF_EACH, sabotage=sabotage)
    pid = run.blocked("batcher")
    time.sleep(0.1)
    kill(pid)
    finished = run.finish()
    assert finished.code == 0, finished.console
    assert finished.record["stages"]["tissue"]["working_s"] > 1


class TestInterrupted:
    """Ctrl-C, and the next run."""

    def test_once_reaches_a_checkpoint_and_the_next_run_goes_on(self, tmp_path, native, model, native_csv, start):
        """Exit code 75; the second run infers only what is missing and gives the same table."""
        out = tmp_path / "out"
        run = start([native], out, model, *ONE_OF_EACH, sabotage=SLOW)
        run.at_work()
        interrupt(run)
        first = run.finish()
        assert first.code == 75, first.console
        assert "checkpoint reached" in first.console and "Traceback" not in first.console
        assert run.left_behind() == []
        done = first.record["patches"]["inferred"]
        assert 0 < done < len(native_csv)
        second = start([native], out, model).finish()
        assert_whole(second, "native", native_csv)
        assert second.record["patches"]["inferred_before"] == done

    def test_twice_stops_at_once(self, tmp_path, small, model, start):
        """Although a worker hangs and would never reach a checkpoint."""
        run = start([small], tmp_path / "out", model, *ONE_OF_EACH, sabotage={"reader": {"block": 9, "after": 1}})
        run.blocked("reader")
        interrupt(run)
        run.until(lambda: "once more stops at once" in run.console(), "the first signal is answered")
        interrupt(run)
        finished = run.finish()
        assert finished.code == 75
        assert "stopped at once" in finished.console and "Traceback" not in finished.console
        assert run.left_behind() == []


def test_when_the_supervisor_is_killed_everything_goes_and_the_next_run_resumes(
    tmp_path: Path, native: Path, model: Path, native_csv: pd.DataFrame, start
):
    """The kernel ends its workers, the run directory goes too, and the journal is there."""
    out = tmp_path / "out"
    run = start([native], out, model, *ONE_OF_EACH, sabotage=SLOW)
    run.at_work()
    run.process.kill()
    assert gone(run) == []
    again = start([native], out, model)
    assert_whole(again.finish(), "native", native_csv)
    assert 0 < again.finish().record["patches"]["inferred_before"] < len(native_csv)


def test_when_the_supervisor_is_killed_a_stopped_worker_goes_too(tmp_path: Path, small: Path, model: Path, start):
    """A stopped process hears nothing, but the kernel can still kill it."""
    run = start([small], tmp_path / "out", model, *ONE_OF_EACH, sabotage=SLOW)
    run.at_work()
    for kind in ("batcher", "reader"):
        run.stages(kind)[0].suspend()
    run.process.kill()
    assert gone(run) == []


def test_when_all_are_killed_at_once_the_next_run_sweeps_and_resumes(
    tmp_path: Path, native: Path, model: Path, native_csv: pd.DataFrame, start
):
    """Nobody is left to clean up but the next run."""
    out = tmp_path / "out"
    run = start([native], out, model, *ONE_OF_EACH, sabotage=SLOW)
    run.at_work()
    run.process.send_signal(signal.SIGSTOP)
    workers = psutil.Process(run.process.pid).children(recursive=True)  # and the shell that sweeps
    for process in [*workers, run.process]:
        process.kill()
    run.process.wait()
    psutil.wait_procs(workers, 60)
    assert run.run_directory() is not None
    again = start([native], out, model, temporary=run.temporary)
    assert_whole(again.finish(), "native", native_csv)
    assert again.left_behind() == []


_RARER = [pytest.param(kind, marks=pytest.mark.long) for kind in ("batcher", "tissue", "aggregator")]


@pytest.mark.parametrize("kind", ["reader", *_RARER])
def test_a_hanging_worker_is_replaced(kind: str, tmp_path: Path, small: Path, model: Path, small_csv, start):
    """A stopped process (SIGSTOP) gives no sign of life, and is killed and replaced."""
    run = start(
        [small], tmp_path / "out", model, *ONE_OF_EACH, "slides.read_timeout_s=4", "supervisor.hang_s=4",
        "supervisor.beat_s=0.2", sabotage={kind: {"block": 1, "after": min(AFTER[kind], 2)}},
    )  # fmt: skip
    os.kill(run.blocked(kind), signal.SIGSTOP)
    finished = run.finish()
    assert_whole(finished, "small", small_csv)
    assert finished.record["stages"][kind]["restarts"] >= 1
    assert run.left_behind() == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["inference", "writer"])
def test_a_hanging_worker_that_may_be_long_at_work_is_replaced(kind, tmp_path, small, model, small_csv, start):
    """These have ten times the patience, as one batch or one file may leave no moment for a beat."""
    run = start(
        [small], tmp_path / "out", model, *ONE_OF_EACH, "supervisor.hang_s=2", "supervisor.beat_s=0.2",
        sabotage={kind: {"block": 1, "after": 0}},
    )  # fmt: skip
    os.kill(run.blocked(kind), signal.SIGSTOP)
    finished = run.finish()
    assert_whole(finished, "small", small_csv)
    assert finished.record["stages"][kind]["restarts"] >= 1


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_chaos(seed: int, tmp_path: Path, native: Path, fine: Path, small: Path, model: Path, clean, start):
    """Random processes die at random moments of a run over several slides, the supervisor among them."""
    rng = random.Random(seed)
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    for i, path in enumerate((native, fine, small, native)):
        shutil.copyfile(path, folder / f"{i}.tif")
    sabotage = {"reader": {"slow_s": 0.003}, "tissue": {"slow_s": 0.2}, "writer": {"slow_s": 0.3}}
    supervisors = 2
    run = start([folder], out, model, sabotage=sabotage)
    until = time.monotonic() + 40
    while time.monotonic() < until and run.process.poll() is None:
        time.sleep(rng.uniform(0.05, 1.0))
        if supervisors and rng.random() < 0.08:
            supervisors -= 1
            run.process.kill()
            run.process.wait()
            assert [left for left in gone(run, 20) if left.startswith("process")] == []
            run = start([folder], out, model, sabotage=sabotage, temporary=run.temporary)
            continue
        victims = run.stages(rng.choice(STAGES))
        for victim in rng.sample(victims, min(len(victims), rng.choice((1, 1, 2)))):
            try:
                victim.send_signal(rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            except psutil.Error:
                pass
    finished = run.finish()
    names = ("native", "zz-frozen", "ward 3/Präparat № 1 (a)", "native")
    for i, name in enumerate(names):
        assert_whole(finished, str(i), clean.finished.table(name))
    assert run.left_behind() == []
