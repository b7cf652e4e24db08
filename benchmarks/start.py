"""From the start of `slidestream run` to the first probability that is safe on disk.

    python -m benchmarks.start            a small slide, the demonstration model; the median of three starts
    python -m benchmarks.start --imports  what each kind of process spends on importing its modules

The clock starts before the process does, so Python's own start counts. It stops when the first record is in the slide's
journal, looked for every 5 ms. The table has the processor time that each process had taken by then.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import table
from benchmarks.inputs import model_directory, synthetic_slide
from benchmarks.processes import Watched, watch
from results import journal

EVERY_S = 0.005
SIZE = (6000, 4500)
KINDS = ("supervisor", "batcher", "reader", "tissue", "inference", "aggregator", "writer")
MODULES = {kind: "pipeline.run" if kind == "supervisor" else f"stages.{kind}" for kind in KINDS}


class FirstResult:
    """Looks for the first record in the journal below an output folder."""

    def __init__(self, out: Path):
        self._work = out / ".slidestream" / "work"
        self.at_s: float | None = None

    def came(self, seconds: float) -> bool:
        """Whether it has come since the last look."""
        if self.at_s is not None or not self._there():
            return False
        self.at_s = seconds
        return True

    def _there(self) -> bool:
        for folder in self._work.iterdir() if self._work.is_dir() else ():
            found = journal.read(folder)
            if found is not None and (found[1].states == journal.INFERRED).any():
                return True
        return False


def once(slide: Path, model: Path, sets: list[str]) -> tuple[float, Watched]:
    """One start: when the first result came, and the processor time that each process had taken by then."""
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as folder:
        first = FirstResult(Path(folder) / "out")
        command = table.slidestream("run", str(slide), "--out", f"{folder}/out", "--model", str(model), "--no-progress")
        command += [word for text in sets for word in ("--set", text)]
        watched = watch(command, every_s=EVERY_S, timeout_s=60, due=first.came)
    if watched.code != 0 or first.at_s is None:
        raise RuntimeError(f"the run ended with code {watched.code}:\n{watched.output}")
    return first.at_s, watched


def imports() -> list[list[object]]:
    """Processor seconds of Python's start and of the modules of each kind of process, the best of three."""
    rows = []
    for kind, module in MODULES.items():
        code = f"import time; a = time.process_time(); import {module}; print(a, time.process_time() - a)"
        runs = [table.run(table.python("-c", code), 60).output.split() for _ in range(3)]
        rows.append([kind, min(float(run[0]) for run in runs), min(float(run[1]) for run in runs)])
    return rows


def main() -> int:
    parser = table.parser("start", __doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="starts (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="model directory (default: the demonstration model, or a tiny one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for slidestream run")
    parser.add_argument("--imports", action="store_true", help="only what the imports take")
    arguments = parser.parse_args()
    machine = table.facts()
    if arguments.imports:
        columns = ["process", "Python itself, processor s", "its imports, processor s"]
        table.emit(arguments.json, "Imports of each kind of process", columns, imports(), machine=machine)
        return 0
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as folder:
        slide = synthetic_slide(*SIZE)
        model = model_directory(arguments.model, Path(folder))
        runs = [once(slide, model, arguments.set) for _ in range(arguments.runs)]
    times = [seconds for seconds, _ in runs]
    middle = runs[times.index(statistics.median_low(times))][1].seen.values()
    rows = []
    for kind in KINDS:
        spent = [process.cpu_s for process in middle if process.kind == kind]
        rows.append([kind, len(spent), sum(spent)])
    rows.append(["all", len(middle), sum(process.cpu_s for process in middle)])
    table.emit(
        arguments.json,
        f"Start to first probability, model {model.name}",
        ["processes", "number", "processor s by then"],
        rows,
        machine=machine,
        seconds_of_each_start=", ".join(f"{seconds:.2f}" for seconds in times),
        median_seconds=statistics.median(times),
        processor_seconds_of_the_whole_run=statistics.median(watched.cpu_s for _, watched in runs),
        aim_seconds=3.0,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
