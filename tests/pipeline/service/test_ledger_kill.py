from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.service.ledger import Ledger
from pipeline.service.lifecycle import ALLOWED, State, told
from pipeline.service.records import Filter

WORKER = Path(__file__).parent / "ledger_worker.py"


def run_and_kill(path: Path, seed: int, after_s: float, root: Path) -> dict[int, str]:
    """Let a worker work for a while after it is ready, then SIGKILL it; the last state that it said of each slide."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(WORKER), str(path), str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment, cwd=root,
    ) as process:  # fmt: skip
        first = process.stdout.readline()  # at least its start has happened
        time.sleep(after_s)
        process.kill()
        output, errors = process.communicate()
    assert first, errors.decode()
    assert process.returncode == -9, errors.decode()
    said: dict[int, str] = {}
    for line in (first + output).splitlines():
        try:
            _, slide, state = json.loads(line)
        except ValueError:
            continue  # cut by the kill
        said[slide] = state
    said.pop(0, None)
    return said


def check_whole(path: Path, said: dict[int, str]) -> None:
    """The file is sound, all that was said is there, and every slide's state is that of its history and its events."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    with Ledger(path) as ledger:
        slides = {slide.id: slide for slide in ledger.rows(Filter(), limit=1000)}
        assert len(slides) == ledger.count(Filter())
        assert set(said) <= set(slides)
        assert len({(slide.fingerprint, slide.route) for slide in slides.values()}) == len(slides)
        events: dict[int, list[str]] = {}
        for event in ledger.unsent("none", 100_000):
            events.setdefault(event.slide, []).append(event.event)
        for slide in slides.values():
            steps = ledger.history(slide.id)
            assert steps[-1].new is slide.state
            for step, following in itertools.pairwise(steps):
                assert following.old is step.new
                assert following.new in ALLOWED[step.new]
            assert sum(step.new is State.RUNNING for step in steps) == slide.attempts
            wanted = [event for step in steps if (event := told(step.new)) is not None]
            assert [e for e in events[slide.id] if e not in ("slide.delivered", "slide.delivered_again")] == wanted
        # One operation may have been committed and not yet said; it has then moved on from the state that was said.
        later = [number for number, state in said.items() if slides[number].state != state]
        for number in later:
            assert State(said[number]) in {step.new for step in ledger.history(number)}
        assert len(later) <= 5  # the largest operation


def kill_often(path: Path, rounds: int, seed: int, root: Path) -> int:
    chance = random.Random(seed)
    known: dict[int, str] = {}
    for round_ in range(1, rounds + 1):
        said = run_and_kill(path, round_, chance.uniform(0.0, 0.15), root)
        check_whole(path, said)
        known |= said
        with Ledger(path) as ledger:
            assert set(known) <= {slide.id for slide in ledger.rows(Filter(), limit=1000)}
    return len(known)


def test_kill_9_loses_nothing_that_was_said(tmp_path: Path, root: Path) -> None:
    """A writing process killed at random, eight times over: every change that it reported is there, whole."""
    assert kill_often(tmp_path / "ledger.sqlite", 8, 1, root) > 10


@pytest.mark.long
def test_kill_9_loses_nothing_however_often(tmp_path: Path, root: Path) -> None:
    """The same, 150 times, with one ledger for each 10."""
    for part in range(15):
        kill_often(tmp_path / f"ledger-{part}.sqlite", 10, part, root)
