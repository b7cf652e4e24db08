"""engines.fresh: an engine that does not come up in a new process is not found right."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import DeadlyError, EngineError
from engines.fresh import prove

SHAPE = {"classes": 2, "patch_px": 64, "max_batch": 4}


def test_the_new_processs_own_words_are_told(tmp_path: Path) -> None:
    """One line, and which engine."""
    plan = tmp_path / "none.engine"
    with pytest.raises(EngineError, match=r"none\.engine: a new process cannot run it: .*none\.engine") as told:
        prove(plan, **SHAPE)
    assert "\n" not in str(told.value)


def test_one_that_takes_longer_than_a_run_waits_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Whatever it would have come to; it leaves nothing in the temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(EngineError, match=r"not ready 0\.01 s after a new process began to load it"):
        prove(tmp_path / "slow.engine", **SHAPE, limit_s=0.01)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("signal", "kind", "words"),
    [
        ("SEGV", DeadlyError, r"a new process that runs it dies \(segmentation fault\)"),
        ("KILL", EngineError, r"was ended from outside \(killed\); try again"),  # as for lack of memory
    ],
)
def test_a_process_that_dies_is_told_with_its_signal(tmp_path: Path, monkeypatch, signal: str, kind, words: str) -> None:
    """It has no last words. Only its own fault is the engine's."""
    dying = tmp_path / "python"
    dying.write_text(f"#!/bin/sh\nkill -{signal} $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(dying))
    with pytest.raises(EngineError, match=r"some\.engine: .*" + words) as told:
        prove(tmp_path / "some.engine", **SHAPE)
    assert type(told.value) is kind
