from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.service import trials as module
from pipeline.service.reasons import Kind
from pipeline.service.trials import Outcome, Trials
from tests.end_to_end.runs import ROOT
from tests.pipeline.service.folders import mirax, tiff

PYTHON = sys.executable  # as `replaced` puts another one in its place


def try_one(path: Path | bytes, timeout_s: float = 30.0) -> Outcome:
    trials = Trials(1, timeout_s)
    try:
        trials.start(os.fsencode(path), time.monotonic())
        while not (outcomes := trials.poll(time.monotonic())):
            time.sleep(0.02)
        return outcomes[0]
    finally:
        trials.close()


def test_a_good_slide_opens_and_has_a_fingerprint(tmp_path: Path) -> None:
    """Whatever its name: spaces, newlines, bytes that are no UTF-8, a dash at the start of its folder."""
    path = tiff(tmp_path / "a.tif")
    odd = os.fsencode(tmp_path) + b"/-x \n\xff \xc3\xbc.tif"
    shutil.copy(path, odd)
    one, two = try_one(path), try_one(odd)
    assert (one.kind, two.kind) == (None, None), (one, two)
    assert one.fingerprint == two.fingerprint != ""
    assert (one.bytes, one.files) == (path.stat().st_size, 1)


def test_what_is_wrong_is_told_by_its_kind(tmp_path: Path) -> None:
    """With the fingerprint, as far as the slide can be read."""
    path = tiff(tmp_path / "a.tif")
    path.write_bytes(path.read_bytes()[:-100])
    cut = try_one(path)
    (tmp_path / "text.svs").write_text("no slide")
    text = try_one(tmp_path / "text.svs")
    files = mirax(tmp_path / "m.mrxs")
    files[2].unlink()
    assert [cut.kind, text.kind, try_one(files[0]).kind] == [Kind.INCOMPLETE, Kind.BAD_SLIDE, Kind.INCOMPLETE]
    assert cut.fingerprint and text.fingerprint
    assert try_one(tmp_path / "none.svs").kind is Kind.VANISHED


def test_real_bad_slides(data_dir: Path) -> None:
    """One that OpenSlide refuses is bad; one whose tiles are broken opens, and is for the readers to judge."""
    assert try_one(data_dir / "bad" / "unopenable.tiff").kind is Kind.BAD_SLIDE
    assert try_one(data_dir / "bad" / "unreadable.svs").kind is None


def replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Let another program stand in for the trial: it prints a fingerprint, then does `body`."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho \'{{"bytes": 1, "files": 1, "fingerprint": "ff"}}\'\n{body}\n')
    script.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(script))


def test_a_crash_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was said before it counts."""
    replaced(tmp_path, monkeypatch, "kill -SEGV $$")
    outcome = try_one(tmp_path / "a.svs")
    assert (outcome.kind, outcome.fingerprint) == (Kind.CRASH, "ff")
    assert "signal 11" in outcome.reason


def test_a_kill_from_outside_is_not_the_slides_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash has two tries, this has those of a read error; killed for lack of memory, it is a crash."""
    replaced(tmp_path, monkeypatch, "kill -KILL $$")
    outcome = try_one(tmp_path / "a.svs")
    assert (outcome.kind, outcome.fingerprint) == (Kind.READ_ERROR, "ff")
    counts = iter((3, 4))
    monkeypatch.setattr(module, "oom_kills", lambda: next(counts))
    assert try_one(tmp_path / "a.svs").kind is Kind.CRASH


def test_too_much_of_the_processor_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the clock on the wall has not come so far: the signal says why."""
    replaced(tmp_path, monkeypatch, "kill -XCPU $$")
    assert try_one(tmp_path / "a.svs").kind is Kind.TIMEOUT
    code = (
        "import sys, pipeline.service.trial as trial\n"
        "trial.examine = lambda path, mpp: [None for _ in iter(int, 1)]\n"
        "sys.exit(trial.main(['--cpu-s', '1', sys.argv[1]]))"
    )
    path = tiff(tmp_path / "a.tif")
    done = subprocess.run([PYTHON, "-c", code, path], cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGXCPU, done


def test_a_hang_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit, and the process is gone."""
    replaced(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    outcome = try_one(tmp_path / "a.svs", timeout_s=0.5)
    assert (outcome.kind, outcome.fingerprint) == (Kind.TIMEOUT, "ff")
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while time.monotonic() < until and _alive(pid):
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_slide_that_is_written_during_its_trial_is_not_taken(tmp_path: Path) -> None:
    """Its size or time before and after differ."""
    from pipeline.service import trial

    path = os.fsencode(tiff(tmp_path / "a.tif"))
    before = trial._state(path)
    os.utime(path, ns=(1, 1))
    assert trial._state(path) != before
