"""Whether an engine comes up in a process of its own, as a run will open it.

    python -m engines.fresh PLAN CLASSES PATCH_PX BATCH

Who has built an engine has loaded, tried out and cached what a new process has not: there it may take longer than a run waits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from engines.errors import DeadlyError, EngineError, one_line
from engines.python_path import python_path

LIMIT_S = 60.0  # as supervisor.start_s
_OWN_FAULT = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def prove(plan: Path, *, classes: int, patch_px: int, max_batch: int, limit_s: float = LIMIT_S) -> None:
    """Opens the engine in a new process, on the first GPU, and runs a batch. Raises EngineError where that fails, or takes
    longer than `limit_s`; DeadlyError where the process dies of it.
    """
    command = [sys.executable, "-m", "engines.fresh", str(plan), str(classes), str(patch_px), str(max_batch)]
    # A folder of its own: what is ended in the middle leaves in it what it had unpacked.
    with tempfile.TemporaryDirectory(prefix="slidestream-", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "PYTHONPATH": python_path(), "TMPDIR": folder}
        try:
            done = subprocess.run(
                command, env=environment, timeout=limit_s, capture_output=True, text=True, errors="replace", check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"{plan}: is not ready {limit_s:g} s after a new process began to load it, and a run waits no longer; use "
                "another backend"
            ) from error
    if done.returncode < 0:
        killed = (signal.strsignal(-done.returncode) or f"signal {-done.returncode}").lower()
        if -done.returncode in _OWN_FAULT:
            raise DeadlyError(f"{plan}: a new process that runs it dies ({killed}); use another backend")
        raise EngineError(f"{plan}: the new process that was to run it was ended from outside ({killed}); try again")
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), f"code {done.returncode}")
        raise EngineError(f"{plan}: a new process cannot run it: {one_line(last, 300)}")


def _run(plan: Path, classes: int, patch_px: int, batch: int) -> None:
    from engines.backend import open_plan

    engine = open_plan(plan, classes=classes, patch_px=patch_px, max_batch=batch, unverified=True)
    try:
        context = engine.contexts(1)[0]
        context.submit(np.zeros((batch, patch_px, patch_px, 3), np.uint8))
        context.result()
    finally:
        engine.close()


if __name__ == "__main__":
    signal.alarm(round(LIMIT_S) + 5)  # also where nobody is left to end us
    try:
        _run(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except EngineError as problem:
        print(problem, file=sys.stderr)
        sys.exit(1)
