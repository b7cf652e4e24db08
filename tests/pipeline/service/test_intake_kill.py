from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from pipeline.service.lifecycle import State
from pipeline.service.migrations import LedgerError
from pipeline.service.records import Filter
from pipeline.service.view import View
from tests.pipeline.service.folders import tiff

WORKER = Path(__file__).parent / "intake_worker.py"


def test_kill_9_of_the_intake_loses_no_slide_and_doubles_none(tmp_path: Path, root: Path) -> None:
    """Killed six times while slides come in, every one of them, whole or cut short, has its row in the end, and just one."""
    chance = random.Random(3)
    folder, ledger = tmp_path / "scans", tmp_path / "ledger.sqlite"
    folder.mkdir()
    slide = tiff(tmp_path / "a.tif").read_bytes()
    number = 0
    for round_ in range(7):
        for _ in range(3):
            number += 1
            # Each differs: whole slides by bytes behind their end, every fifth by where it is cut short.
            data = slide + b"%d" % number if number % 5 else slide[: -200 - number]
            (folder / f"S{number}.tif").write_bytes(data)
        with subprocess.Popen(
            [sys.executable, str(WORKER), str(ledger), str(folder)],
            env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            if round_ < 6:
                time.sleep(chance.uniform(0.3, 2.0))
            else:
                _until_all_have_a_row(ledger, number)
            assert process.poll() is None, process.stderr.read().decode()
            process.kill()
    view = View.open(ledger)
    rows = view.rows(Filter(), 1000)
    assert sorted(row.name for row in rows) == sorted(f"S{n}" for n in range(1, number + 1))
    assert {row.name for row in rows if row.state is State.QUARANTINED} == {f"S{n}" for n in range(5, number + 1, 5)}
    assert all(len(view.history(row.id)) == 1 and len(view.names(row.id)) == 1 for row in rows)
    told = [event.event for event in view.unsent("x", 1000)]
    assert told.count("slide.delivered") == number
    assert view.arrivals() == []
    view.close()


def _until_all_have_a_row(ledger: Path, number: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            view = View.open(ledger)
        except LedgerError:
            time.sleep(0.1)
            continue
        count = view.count(Filter())
        view.close()
        if count == number:
            return
        time.sleep(0.1)
    raise AssertionError(f"{count} of {number} slides have a row")
