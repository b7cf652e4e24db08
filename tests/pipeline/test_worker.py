"""pipeline.worker: how a stage process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.worker import EXIT_FAULT
from tests.conftest import ROOT

_STAGE = """
import atexit, sys, time
from pipeline import log
from pipeline.worker import EXIT_FAULT, Lost, main

def work(post):
    log.get_logger().error("engine lost", reason="cudaErrorIllegalAddress")
    raise {end}

atexit.register(lambda: (print("taken down", flush=True), {then}))
main("inference", work)
"""


@pytest.mark.parametrize(
    ("end", "then", "down"),
    [("Lost()", "time.sleep(600)", False), ("SystemExit(EXIT_FAULT)", "None", True)],
    ids=["lost", "not started"],
)
def test_a_process_whose_gpu_is_lost_ends_without_taking_libraries_down(
    tmp_path, end: str, then: str, down: bool
) -> None:
    """With 70 and its last words told, though a library would hang at its end; any other end is an orderly one."""
    (tmp_path / "settings.json").write_text(json.dumps({"config": {"log": {"level": "info"}}}))
    command = [sys.executable, "-c", _STAGE.format(end=end, then=then), "--run", str(tmp_path), "--name", "inference-0"]
    command += ["--generation", "1", "--memory", "0", "--parent", str(os.getpid())]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == EXIT_FAULT
    assert json.loads(done.stderr.splitlines()[-1])["reason"] == "cudaErrorIllegalAddress"
    assert ("taken down" in done.stdout) == down
