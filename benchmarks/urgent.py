"""How long an urgent slide takes to its complete result while routine slides keep everything busy, against its time alone.

    python -m benchmarks.urgent                      five rounds: alone, then under load, in turn
    python -m benchmarks.urgent --urgent 12000x9000 --routine 20000x15000 --rounds 3

The real processes of a run, with their supervisor in this process and slides that are submitted as a service would. A round
is: the urgent slide alone on an idle pipeline; then a backlog of routine slides, and when that has been inferred for some
seconds, at a random moment, the urgent slide again; then the backlog is cancelled. So both times meet the same machine, and
the ratio is that of their medians; beside it that of the fastest of each, which a machine that does something else too
disturbs least. The clock runs from the submission to the supervisor's word that the slide is complete: all
its files are on disk then.

The parts of that time: until it is opened by a reader that was told to (`open`), masked and planned, with its journal begun
(`mask`), its first row leased (`turn`), its last result in the journal's hands (`rows`: read and inferred), its files asked for
(`settle`), written (`write`).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import table
from benchmarks.inputs import model_directory, synthetic_slide
from benchmarks.timed_batcher import TIMES
from engines.probe import probe
from pipeline import assembly, children, log, memory
from pipeline.config import load_config, resolve
from pipeline.crew import crew, member
from pipeline.gpus import build_engine
from pipeline.machine import detect
from pipeline.models import load_models, result_folders, result_keys, sizes
from pipeline.outdir import hold, run_directory
from pipeline.placement import place_all, result_hashes
from pipeline.submissions import Earlier, Tally, Verdict
from pipeline.supervisor import Supervisor
from pipeline.watch import Watch
from pipeline.wire import SlideDone, Submit
from slides.discover import Found

PARTS = ("open", "mask", "turn", "rows", "settle", "write")
BACKLOG = 8  # routine slides under way
SETTLE_S = 1.0  # idle, between two measurements
STUCK_S = 150.0


@dataclass
class Desk:
    """A source of slides (pipeline.submissions.Source): those that are put in, and routine ones for as long as wanted."""

    look: Callable[[Found], Earlier]
    routine: Path
    backlog: bool = False
    finished: bool = False
    tally: Tally = field(default_factory=Tally)
    under_way: dict[int, Submit] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)
    ended: dict[int, tuple[float, SlideDone]] = field(default_factory=dict)
    total: int = 0
    _queue: list[Submit] = field(default_factory=list)
    _keys: dict[Path, dict] = field(default_factory=dict)

    def put(self, path: Path, urgent: bool) -> int:
        self.total += 1
        name = f"{'urgent' if urgent else 'routine'}-{self.total}"
        if path not in self._keys:
            self._keys[path] = self.look(Found(name, path)).key
        self._queue.append(Submit(self.total, name, str(path), self._keys[path], urgent, False, ""))
        self.began[self.total] = time.monotonic()
        return self.total

    def next(self) -> Submit | None:
        if not self._queue and self.backlog and len(self.under_way) < BACKLOG:
            self.put(self.routine, urgent=False)
        if not self._queue:
            return None
        submit = self._queue.pop(0)
        self.under_way[submit.slide] = submit
        return submit

    def again(self) -> list[Submit]:
        return list(self.under_way.values())

    def done(self, message: SlideDone) -> Verdict | None:
        self.ended[message.slide] = (time.monotonic(), message)
        submit = self.under_way.pop(message.slide)
        counts = (message.planned, message.inferred, message.failed)
        verdict = Verdict(submit.id, submit.path, message.state, message.reason, *counts)
        self.tally.add(verdict)
        return verdict


@dataclass
class Drive:
    """What happens when: a generator that is gone on with a few times a second."""

    desk: Desk
    urgent: Path
    rounds: int
    load_s: float
    out: Path
    measured: list[tuple[str, int]] = field(default_factory=list)  # how, number
    rates: list[float] = field(default_factory=list)  # routine patches a second before the urgent slide comes
    supervisor: Supervisor | None = None

    def steps(self, watch: Watch) -> Iterator[None]:
        desk, chance = self.desk, random.Random(1)
        kinds = {"reader", "tissue", "inference", "aggregator", "writer"}
        yield from _until(lambda: {name.partition("-")[0] for name, _ in watch.report.get("present", [])} >= kinds)
        yield from self._time("warm")
        for _ in range(self.rounds):
            yield from _pause(SETTLE_S)
            yield from self._time("alone")
            desk.backlog = True
            yield from _until(lambda: self._routine(watch) > 0)
            settled, since = watch.report["settled"], time.monotonic()
            yield from _pause(self.load_s + chance.random() * self.load_s)
            self.rates.append((watch.report["settled"] - settled) / (time.monotonic() - since))
            yield from self._time("loaded")
            desk.backlog = False
            for number in list(desk.under_way):
                self.supervisor.cancel(number)
            yield from _until(lambda: not desk.under_way)
            written = [s for s in self.out.glob("slides/routine-*.json") if s.stem not in self._complete()]
            if written:
                raise RuntimeError(f"cancelled, and yet there is a result: {written[0]}")
        desk.finished = True

    def _routine(self, watch: Watch) -> int:
        """Patches inferred of the slides that are under way."""
        return sum(inferred for number, _, inferred, _, _ in watch.report["active"] if number in self.desk.under_way)

    def _complete(self) -> set[str]:
        """Names of the routine slides that were done before they could be cancelled."""
        states = {f"routine-{number}": done.state for number, (_, done) in self.desk.ended.items()}
        return {name for name, state in states.items() if state != "cancelled"}

    def _time(self, how: str) -> Iterator[None]:
        number = self.desk.put(self.urgent, urgent=True)
        yield from _until(lambda: number in self.desk.ended)
        done = self.desk.ended[number][1]
        if done.state != "complete":
            raise RuntimeError(f"the urgent slide is {done.state}: {done.reason}")
        if how != "warm":
            self.measured.append((how, number))


def _until(condition: Callable[[], bool]) -> Iterator[None]:
    until = time.monotonic() + STUCK_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError("nothing comes any more")
        yield


def _pause(seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    yield from _until(lambda: time.monotonic() > until)


def _timed(command: list[str], **arguments: Any) -> subprocess.Popen:
    words = ["benchmarks.timed_batcher" if word == "stages.batcher" else word for word in command]
    return subprocess.Popen(words, **arguments)


def measure(
    folder: Path, model: Path, sets: list[str], drive: Callable[[Callable], Drive]
) -> tuple[Drive, dict[int, dict]]:
    """One life of the pipeline."""
    from engines.check import prepare

    config = load_config(None, [f"model={model}", *sets])
    models = load_models(config)
    facts = sizes(models)
    placement = place_all(config, models, probe, lambda wanted, model: build_engine(wanted, model, []))
    gpus = len(placement.devices)
    config = resolve(placement.config, detect(), **facts, gpus=gpus, gpu_batch=placement.batch)
    os.environ[TIMES] = str(folder / "times")
    children.subprocess = SimpleNamespace(Popen=_timed, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]
    out = folder / "out"
    out.mkdir()
    folders = result_folders(out, models)
    with hold(out, folders) as private, run_directory(private) as run:
        sink = assembly.open_sink(config, out)
        log.configure("supervisor", "json", config.log.level, sink)
        keys = result_keys(models, result_hashes(config, placement, models))
        settings = assembly.settings(private, out, config, models, keys)
        settings["urgent_may_come"] = True
        run.settings.write_text(json.dumps(settings))
        driven = drive(assembly.looker(folders, private, keys, config.results.formats))
        course: Iterator[None] | None = None

        def watching(watch: Watch) -> None:
            nonlocal course
            course = course or driven.steps(watch)
            next(course, None)

        layout = memory.Layout(**settings["layout"])
        memory_fd = memory.create(layout)

        def ready() -> None:
            if not placement.devices:
                for number, one in enumerate(models):
                    prepare(one, run.folded(number))

        try:
            workers = crew(config, placement.devices)
            supervisor = driven.supervisor = Supervisor(
                run, memory_fd, settings, workers, member, driven.desk, sink, watching, lambda verdict: None, {}
            )
            ending = supervisor.run(ready)
        finally:
            os.close(memory_fd)
            sink.close()
    if ending.code:
        raise RuntimeError(ending.reason)
    lines = [json.loads(line) for line in (folder / "times").read_text().splitlines()]
    return driven, dict(lines)


def parts(desk: Desk, number: int, sent: dict[str, list[float]]) -> list[float]:
    """Seconds of each of PARTS, then of all."""
    began, ended = desk.began[number], desk.ended[number][0]
    marks = [began, sent["Mask"][0], sent["Begin"][0], sent["Fill"][0], sent["Record"][1], sent["Write"][0], ended]
    return [after - before for before, after in itertools.pairwise(marks)] + [ended - began]


def main() -> int:
    parser = table.parser("urgent", __doc__.splitlines()[0])
    parser.add_argument(
        "--urgent", default="12000x9000", metavar="WxH", help="of the urgent slide (default: %(default)s)"
    )
    parser.add_argument("--routine", default="20000x15000", metavar="WxH", help="of the others (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="model directory (default: the demonstration model, or a tiny one)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--load-s", type=float, default=3.0, help="of routine work before it comes, once to twice so long"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration")
    arguments = parser.parse_args()
    machine = table.facts()
    urgent, routine = (
        synthetic_slide(*map(int, size.split("x")), seed=seed)
        for size, seed in ((arguments.urgent, 2), (arguments.routine, 1))
    )
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        model = model_directory(arguments.model, Path(name))
        drive, times = measure(
            Path(name),
            model,
            arguments.set,
            lambda look: Drive(Desk(look, routine), urgent, arguments.rounds, arguments.load_s, Path(name) / "out"),
        )
    rows: list[list[object]] = []
    by_kind: dict[str, list[list[float]]] = {"alone": [], "loaded": []}
    for how, number in drive.measured:
        by_kind[how].append(parts(drive.desk, number, times[number]))
        rows.append([how, *by_kind[how][-1]])
    for how, found in by_kind.items():
        rows.append([f"{how}, median", *(statistics.median(column) for column in zip(*found, strict=True))])
    alone, loaded = (statistics.median(one[-1] for one in by_kind[how]) for how in ("alone", "loaded"))
    fastest = {how: min(one[-1] for one in found) for how, found in by_kind.items()}
    patches = drive.desk.ended[drive.measured[0][1]][1].planned
    table.emit(
        arguments.json,
        f"An urgent slide of {patches:,} patches, alone and under routine load, model {model.name}",
        ["", *(f"{part} s" for part in PARTS), "all s"],
        rows,
        machine=machine,
        ratio=loaded / alone,
        ratio_of_the_fastest=fastest["loaded"] / fastest["alone"],
        aim_ratio=1.25,
        routine_patches_per_s=statistics.median(drive.rates),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
