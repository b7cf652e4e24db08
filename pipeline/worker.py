"""What every stage process does around its work: come up, connect, die with its parent, leave with the right code.

    python -m stages.reader --run RUN --name reader-0 --generation 1 --memory FD --parent PID

A process that cannot go on says so in one log line of level "critical" and leaves with that problem's exit code; the
supervisor then ends the run with the same line and code. Everything else that goes wrong is a crash, and crashes are
restarted.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import faulthandler
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import log
from pipeline.link import Link, Stopped
from pipeline.memory import Layout, SharedSlots
from pipeline.rundir import RunDir
from pipeline.wire import Hello

EXIT_CONFIGURATION = 2
EXIT_FAULT = 70
EXIT_INTERRUPTED = 75

# What ends with the machine's or the operator's help, not with another try: the run stops and resumes later.
HOPELESS_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

# Names, to an inference worker on a GPU, the engine that it opens (see plan_variable).
PLAN = "SLIDESTREAM_PLAN"

OOM_SCORE = 300  # of 1000: of a run, the kernel is to end a worker, which is replaced, rather than the supervisor
NICE = 5  # a third of the share of a process that does not step back
_PR_SET_PDEATHSIG = 1


def plan_variable(number: int) -> str:
    """The environment variable that names the engine of the run's model `number`: one each, as a path may hold any sign."""
    return f"{PLAN}_{number}" if number else PLAN


class CannotGoOn(Exception):
    """The run must end: `code` is its exit code, the text its reason in one line."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code = code


class Lost(SystemExit):
    """The device of this process is lost: it ends at once, with EXIT_FAULT.

    Libraries are not taken down: what they ask of a lost GPU may never come back, or crash and leave another exit code.
    """

    def __init__(self) -> None:
        super().__init__(EXIT_FAULT)


@dataclass(frozen=True, slots=True)
class Post:
    """Where a worker stands: who it is, and what the run's settings say (plain JSON, see pipeline.settings)."""

    kind: str
    name: str
    generation: int
    run: RunDir
    memory_fd: int
    settings: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.settings["config"]

    @property
    def plans(self) -> list[Path]:
        """The engines for this worker's GPU, one for each model of the run; none on a CPU."""
        variables = (plan_variable(number) for number in itertools.count())
        return [Path(path) for path in itertools.takewhile(bool, map(os.environ.get, variables))]

    def connect(self, credit: int, detail: dict | None = None) -> Link:
        hello = Hello(0, self.kind, self.settings["run"], os.getpid(), credit, detail or {})
        return Link(self.run.hub, self.name, self.generation, hello, self.config["supervisor"]["beat_s"])

    def slots(self) -> SharedSlots:
        return SharedSlots(self.memory_fd, Layout(**self.settings["layout"]))


def step_back() -> None:
    """For processes that keep every core busy: let those go first that have little to do, but that all others wait for
    (batcher, tissue mask, aggregator, writer). The whole does the same work in the same time."""
    os.nice(NICE)


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGKILL when the supervisor dies; leave at once if it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EXIT_FAULT)


def begun(program: str, starter: str, **options: type) -> argparse.Namespace:
    """The arguments of a process of ours: --run, and `options`, all of which must be given. It dies with its parent, and
    leaves Ctrl-C to `starter`."""
    parser = argparse.ArgumentParser(prog=program, description=f"Started by the {starter}, not by hand.")
    parser.add_argument("--run", type=Path, required=True)
    for name, kind in options.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return arguments


def main(kind: str, work: Callable[[Post], None]) -> None:
    """Run `work` as a stage process; never returns."""
    faulthandler.enable()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    arguments = begun(f"stages.{kind}", "supervisor", name=str, generation=int, memory=int)
    run = RunDir(arguments.run)
    try:
        settings = json.loads(run.settings.read_text())
    except OSError as error:
        log.configure_later(arguments.name, "json", "info", sys.stderr)
        log.get_logger().critical(f"{run.settings}: {error.strerror}; has the run's directory been removed?")
        sys.exit(EXIT_FAULT)
    log.configure_later(arguments.name, "json", settings["config"]["log"]["level"], sys.stderr)
    post = Post(kind, arguments.name, arguments.generation, run, arguments.memory, settings)
    try:
        code = _run(work, post)
    except Lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FAULT)
    sys.exit(code)


def _run(work: Callable[[Post], None], post: Post) -> int:
    logger = log.get_logger()
    try:
        work(post)
    except Stopped:
        return 0
    except CannotGoOn as problem:
        logger.critical(str(problem))
        return problem.code
    except OSError as error:
        if error.errno not in HOPELESS_ERRNOS:
            logger.exception("crashed")
            return EXIT_FAULT
        logger.critical(
            f"{error.filename or post.settings['out']}: {error.strerror}; nothing is lost, free some space and run again"
        )
        return EXIT_INTERRUPTED
    except Exception:  # the last place to catch it: one record in the log instead of loose lines on stderr
        logger.exception("crashed")
        return EXIT_FAULT
    return 0
