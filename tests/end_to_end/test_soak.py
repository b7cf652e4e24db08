"""The day in fast motion and the soak, as they are run: real processes, real kills, every slide accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.table import ROOT

pytestmark = pytest.mark.long


def run(module: str, folder: Path, *words: str) -> dict:
    """A benchmark's figures, where it says that nothing was lost."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *words, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "SLIDESTREAM_BENCH": str(folder)},
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)["figures"]


def test_a_short_day_with_kills_loses_nothing(tmp_path: Path) -> None:
    """Slides of every sort, kills of every kind: results as undisturbed, each once."""
    figures = run("day", tmp_path, "--slides", "30", "--seconds", "30", "--every", "1.5")
    assert figures["kills"] >= 5
    assert [figures[name] for name in ("lost", "doubled", "different", "left_behind", "hangs")] == [0] * 5


def test_a_short_soak_is_flat(tmp_path: Path) -> None:
    """The same with its calm part, long enough to see what grows."""
    figures = run("soak", tmp_path, "--slides", "60", "--seconds", "110", "--every", "2")
    assert (figures["lost"], figures["doubled"], figures["different"], figures["grown"]) == (0, 0, 0, 0)


def test_restarted_after_kill_9_it_goes_on(tmp_path: Path) -> None:
    """Ready again, with new results in the journal, and the same result in the end."""
    figures = run("restart", tmp_path, "--rounds", "1")
    assert 0 < figures["ready_again_s"] and 0 < figures["first_new_result_s"] and figures["wrong"] == 0
