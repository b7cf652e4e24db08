"""Slides copied to a local disk before they are read: the same results, under their own names, and nothing left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests.end_to_end.runs import assert_same

pytestmark = pytest.mark.long


def test_staged_slides_give_the_same_results(tmp_path: Path, small: Path, native: Path, model: Path, small_csv, start):
    """Results name the slide, not its copy; a killed batcher finds the copies again; at the end they are gone."""
    stage = tmp_path / "stage"
    run = start(
        [small, native], tmp_path / "out", model, f"slides.stage_dir={stage}", "slides.stage_gb=0.1",
        sabotage={"batcher": {"block": 1, "after": 20}},
    )  # fmt: skip
    os.kill(run.blocked("batcher"), signal.SIGKILL)
    finished = run.finish()
    assert finished.code == 0, finished.console
    assert_same(finished.table("small"), small_csv)
    assert finished.summary("small")["path"] == str(small)
    texts = [path for path in finished.out.rglob("*.json") if path.name != "run.json"]
    assert texts and all(str(stage) not in path.read_text() for path in texts)
    assert list(stage.iterdir()) == [] and run.left_behind() == []


def test_what_a_killed_run_had_staged_goes_at_the_next_start(
    tmp_path: Path, small: Path, model: Path, small_csv: pd.DataFrame, start
):
    """kill -9 of the supervisor in the middle, then the same command again."""
    stage = tmp_path / "stage"
    run = start(
        [small], tmp_path / "out", model, f"slides.stage_dir={stage}", sabotage={"inference": {"block": 1, "after": 1}}
    )
    run.blocked("inference")
    assert list(stage.rglob(small.name))
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    again = start([small], tmp_path / "out", model, f"slides.stage_dir={stage}", temporary=run.temporary)
    finished = again.finish()
    assert finished.code == 0, finished.console
    assert_same(finished.table("small"), small_csv)
    assert list(stage.iterdir()) == []


def test_a_stage_dir_that_cannot_be_used_is_refused(tmp_path: Path, small: Path, model: Path, start):
    """One line that names the key, and exit code 2, before any process starts."""
    (tmp_path / "file").write_text("")
    finished = start([small], tmp_path / "out", model, f"slides.stage_dir={tmp_path / 'file' / 'stage'}").finish()
    assert finished.code == 2
    last = finished.console.strip().splitlines()[-1]
    assert "slides.stage_dir" in last and "Not a directory" in last
