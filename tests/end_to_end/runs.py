"""Starts slidestream as a user does, in processes of its own, and looks at what it leaves."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent.parent
SABOTAGE = Path(__file__).resolve().parent / "sabotage"
STAGES = ("reader", "tissue", "batcher", "inference", "aggregator", "writer")
FEWEST = ("reader.workers=1", "inference.workers=1")  # where their number does not matter: a start is most of a short run
LIMIT_S = 240.0  # for anything; the machine may be busy with other things

_LIBC = ctypes.CDLL(None)

T = TypeVar("T")


@dataclass(frozen=True)
class Finished:
    """A run that is over."""

    code: int
    console: str
    out: Path

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.out / "run.json").read_text())

    def summary(self, slide: str) -> dict[str, Any]:
        return json.loads((self.out / "slides" / f"{slide}.json").read_text())

    def table(self, slide: str) -> pd.DataFrame:
        """The slide's CSV in the order of places."""
        return table(self.out, slide)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "slidestream.log").read_text().splitlines()]

    def complaint(self) -> str:
        """The one line that a run says which cannot start."""
        lines = self.console.strip().splitlines()
        assert len(lines) == 1, self.console
        return lines[0]


@dataclass
class Run:
    """One `slidestream run`, with a temporary directory of its own, so that what it leaves there can be seen."""

    process: subprocess.Popen
    out: Path
    temporary: Path
    marks: Path
    _console: Any
    _killed: set[str] = field(default_factory=set)

    def until(self, condition: Callable[[], T | None], what: str) -> T:
        """What `condition` gives as soon as it is true."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            if self.process.poll() is not None:
                value = condition()  # it may have become true just before the end
                if value:
                    return value
                raise AssertionError(f"the run ended before {what}:\n{self.console()}")
            time.sleep(0.02)
        raise AssertionError(f"not within {LIMIT_S:.0f} s: {what}\n{self.console()}")

    def stages(self, kind: str = "") -> list[psutil.Process]:
        """The living stage processes of this run, of one kind or all."""
        found = []
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            ours = any(word.startswith(str(self.temporary)) for word in line)
            if ours and any(word.startswith("stages.") and word.endswith(kind) for word in line):
                found.append(process)
        return found

    def run_directory(self) -> Path | None:
        return next(iter(self.temporary.glob("slidestream-*")), None)

    def blocked(self, kind: str) -> int:
        """Wait until a process of this kind hangs in its work (sabotage: block); its pid."""

        def look() -> str | None:
            names = [path.name for path in self.marks.glob(f"{kind}.*") if path.name not in self._killed]
            return names[0] if names else None

        name = self.until(look, f"a {kind} hangs in its work")
        self._killed.add(name)
        return int(name.rsplit(".", 1)[1])

    def journalled(self) -> int:
        """Bytes in all journals."""
        return sum(path.stat().st_size for path in self.out.glob(".slidestream/work/*/journal"))

    def at_work(self) -> None:
        """Wait until results of patches are in a journal: what follows comes in the middle."""
        first = self.until(self.journalled, "a journal is begun")
        self.until(lambda: self.journalled() > first, "results are in the journal")

    def console(self) -> str:
        self._console.seek(0)
        return self._console.read().decode("utf-8", "backslashreplace")

    def finish(self, limit_s: float = LIMIT_S) -> Finished:
        code = self.process.wait(limit_s)
        return Finished(code, self.console(), self.out)

    def left_behind(self) -> list[str]:
        """Processes, sockets and files that should not be there any more."""
        left = [f"process {process.pid}" for process in self.stages()]
        left += [str(path.relative_to(self.temporary)) for path in _below(self.temporary)]
        left += [str(path) for path in Path("/dev/shm").glob("*slidestream*")]
        left += [str(path) for path in _below(self.out) if path.match("*.slidestream-part")]
        return left

    def destroy(self) -> None:
        """Whatever is still there."""
        for process in [*self.stages("batcher"), *self.stages()]:
            try:
                process.kill()
            except psutil.Error:
                pass
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._console.close()
        shutil.rmtree(self.temporary, ignore_errors=True)
        shutil.rmtree(self.marks, ignore_errors=True)


def _below(folder: Path) -> list[Path]:
    """All there is below a folder, also while something is removed from it (Path.rglob raises then)."""
    return [Path(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files)]


def start(
    inputs: Sequence[Path],
    out: Path,
    model: Path | Sequence[Path],
    *sets: str,
    sabotage: dict[str, dict] | None = None,
    temporary: Path | None = None,
    ordinary: bool = False,
) -> Run:
    """`slidestream run INPUT... --out OUT --model MODEL... --set ...`, in the background.

    `temporary`: that of an earlier run. `ordinary`: also where root runs the tests, modes of files count.
    """
    temporary = temporary or Path(tempfile.mkdtemp(prefix="e2e-"))
    temporary.mkdir(exist_ok=True)
    marks = Path(tempfile.mkdtemp(prefix="e2e-marks-"))
    models = [model] if isinstance(model, Path) else model
    command = [sys.executable, "-m", "pipeline.cli", "run", *map(str, inputs), "--out", str(out)]
    command += [word for one in models for word in ("--model", str(one))]
    command += ["--no-progress", *(word for value in sets for word in ("--set", value))]
    path = [*([str(SABOTAGE)] if sabotage else []), *_path()]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(path)}
    environment.update(E2E_SABOTAGE=json.dumps(sabotage or {}), E2E_MARKS=str(marks))
    environment.update(PYTHONDONTWRITEBYTECODE="1", NO_COLOR="1")
    console = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the run)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment, cwd="/",
        start_new_session=True,
        preexec_fn=_drop_privileges if ordinary else None,  # noqa: PLW1509 (it takes no lock)
    )  # fmt: skip
    return Run(process, Path(out), temporary, marks, console)


def command(*words: str | Path, limit_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """`slidestream WORD...`, as from another terminal, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_path()), "NO_COLOR": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def _path() -> list[str]:
    """Where processes find slidestream, and what the tests themselves were given to find their packages."""
    return [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _drop_privileges() -> None:
    """Root without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: from the next exec on, modes of files count for it too."""
    for capability in (1, 2):
        _LIBC.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; not permitted to others, who do not need it


def table(out: Path, slide: str) -> pd.DataFrame:
    import pandas as pd  # here, as tests on a machine with a GPU do without it

    frame = pd.read_csv(out / "model-outputs-csv" / f"{slide}.csv")
    return frame.sort_values(["miny", "minx"]).reset_index(drop=True)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float = 1e-6) -> None:
    """Same patches, each once, and same probabilities."""
    import pandas as pd

    places = ["minx", "miny", "width", "height"]
    assert not found.duplicated(places).any()
    pd.testing.assert_frame_equal(found[places], expected[places])
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=0, atol=tolerance)


def interrupt(run: Run) -> None:
    run.process.send_signal(signal.SIGINT)
