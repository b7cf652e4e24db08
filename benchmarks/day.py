"""A day in fast motion: slides come to a real `slidestream serve` while its processes are killed, and all are accounted for.

    python -m benchmarks.day                         200 slides within 60 seconds, a kill every 2 seconds or so
    python -m benchmarks.day --slides 50 --seconds 40 --every 3

Slides of mixed sizes come at random with two rushes: 5 % are broken (truncated, rubbish, or with a tile that cannot be read),
3 % urgent, 3 % are written slowly with pauses longer than the settle time, 2 % come a second time under another name. Killed
with SIGKILL are readers, masks, batchers, inference, aggregators, writers, trials, the lane (the supervisor of its workers), the HTTP
process, the service alone, and everything at once; the service is started again as systemd does.

Afterwards (`benchmarks.accounts`) each good slide must have its result once, byte for byte that of an undisturbed `slidestream
run` over the same files; each broken one must have been told as failed, once and with its reason; and nothing may be left behind.
Exit code 1 where anything is lost, doubled or different.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.accounts import END, Faults, all_slides, audit, unfinished
from benchmarks.arrivals import AGAIN, BROKEN, Arrival, Courier, link, plan, stock
from benchmarks.inputs import tiny
from benchmarks.kills import SERVICE, WORKERS, Killer, Vitals
from benchmarks.served import Served
from pipeline.machine import MIB
from pipeline.service.lifecycle import State

STEP_S = 0.05
LOOK_S = 1.0
SETS = ('results.formats=["csv"]', "log.rotate_mb=1", "log.keep=2")


@dataclass
class Course:
    """What is to happen. `calm`: the part of all slides after which only workers are killed, so that the service, the lane and
    the HTTP process live on; 1: never."""

    slides: int
    seconds: float
    every_s: float
    restart_s: float
    broken: float = 0.05
    urgent: float = 0.03
    seed: int = 1
    calm: float = 1.0
    patience_s: float = 300.0
    sets: Sequence[str] = SETS


@dataclass
class Life:
    """What has happened. Times are those of the clock on the wall, in s; `calm_at` is monotonic, as the samples are."""

    arrivals: list[Arrival]
    came: dict[str, float]
    slides: list[Any]
    faults: Faults
    killed: collections.Counter[str]
    vitals: Vitals
    served: Served
    wall_s: float
    run_s: float
    events: int
    calm_at: float | None
    unasked: list[int] = field(default_factory=list)

    def waits(self, choose: Callable[[Arrival], bool]) -> tuple[list[float], list[float]]:
        """Seconds from the last byte of a slide to the start of work, and to its complete result."""
        by_name = {slide.name: slide for slide in self.slides}
        found = [
            (self.came[one.name], by_name[one.name]) for one in self.arrivals if choose(one) and one.name in by_name
        ]
        done = [(came, slide) for came, slide in found if slide.state in (State.COMPLETE, State.PARTIAL)]
        return [slide.started - came for came, slide in done], [slide.finished - came for came, slide in done]


def live(course: Course, folder: Path, tell: Callable[[str], None]) -> Life:
    """One day: the undisturbed run, then the service with kills until nothing is unfinished, then the audit."""
    tell("slides")
    arrivals = plan(stock(course.slides, course.seed), course.seconds, course.broken, course.urgent, course.seed)
    model = tiny(folder / "tiny", side=64, spacing=0.5)
    tell("undisturbed run")
    undisturbed, run_s = _undisturbed(course, arrivals, model, folder)
    served = Served(folder / "served", model, course.restart_s, list(course.sets))
    courier = Courier(served.routine, served.frozen, arrivals, course.seed)
    killer = Killer(served, course.every_s, random.Random(course.seed), WORKERS + SERVICE)
    vitals, events, calm_at = Vitals(served), [], None
    try:
        served.start()
        served.wait(lambda: served.ready, "it is ready")
        began = looked = time.monotonic()
        until = began + course.seconds + course.patience_s
        left = len(arrivals)
        tell("the day begins")
        while left:
            served.tend()
            courier.step()
            killer.step()
            vitals.step(killer.killed.total())
            now = time.monotonic()
            if now - looked >= LOOK_S:
                looked = now
                events += _collect(served.spool)
                left, done = _left(served, arrivals)
                tell(f"{done} of {len(arrivals)} slides, {killer.killed.total()} kills, {served.starts} starts")
                if calm_at is None and done >= course.calm * len(arrivals):
                    calm_at, killer.kinds = now, WORKERS
            if now > until:
                tell(f"{left} slides are not done {course.patience_s:g} s after the last one came")
                break
            time.sleep(STEP_S)
        wall_s = time.monotonic() - began
        served.wait(lambda: served.ready, "it is ready in the end")
        _quiet(served)
        code = served.stop()
        events += _collect(served.spool)
        faults = audit(served, arrivals, events, undisturbed)
        if code != 75:
            faults.left.append(f"drained, it left with exit code {code}")
        with served.view() as view:
            slides = all_slides(view)
        unasked = [code for code in served.exits if code != -9]
        return Life(
            arrivals,
            courier.came,
            slides,
            faults,
            killer.killed,
            vitals,
            served,
            wall_s,
            run_s,
            len(events),
            calm_at,
            unasked,
        )
    finally:
        served.close()


def _undisturbed(course: Course, arrivals: list[Arrival], model: Path, folder: Path) -> tuple[Path, float]:
    inputs, out = folder / "inputs", folder / "undisturbed"
    inputs.mkdir()
    for one in arrivals:
        if END.get(one.how) in (State.COMPLETE, State.PARTIAL):
            link(one, inputs, course.seed)
    sets = [word for text in course.sets for word in ("--set", text)]
    command = table.slidestream("run", str(inputs), "--out", str(out), "--model", str(model), "--no-progress", *sets)
    began = time.monotonic()
    try:
        table.run(command, 600)
    except RuntimeError:
        if not (out / "run.json").exists():  # damaged slides are told by the exit code
            raise
    shutil.rmtree(inputs)
    return out, time.monotonic() - began


def _left(served: Served, arrivals: list[Arrival]) -> tuple[int, int]:
    """How many slides are not done, and how many are."""
    with served.view() as view:
        left = len(unfinished(view, arrivals)) if view is not None else len(arrivals)
    return left, len(arrivals) - left


def _collect(spool: Path) -> list[dict[str, Any]]:
    """Events, taken out of the spool folder as their receiver does."""
    found = []
    for path in sorted(spool.glob("*.json")):
        found.append(json.loads(path.read_text()))
        path.unlink()
    return found


def _quiet(served: Served) -> None:
    """All events are confirmed and second names noted, so that nothing is missed because it was too early to look."""

    def quiet() -> bool:
        with served.view() as view:
            return not view.unsent("spool") and not view.arrivals() if view is not None else False

    served.wait(quiet, "all events are sent", 60.0)


# ------------------------------------------------------------ what it says


def percentile(values: list[float], percent: int) -> float | None:
    """Of so few values, the nearest one; None of none."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, round(percent / 100 * (len(values) - 1)))]


def rows(life: Life) -> list[list[object]]:
    """The table: classes of slides with their waiting times."""
    made: list[list[object]] = []
    for name, choose in (
        ("urgent", lambda one: one.urgent),
        ("routine", lambda one: not one.urgent and one.how == "good"),
        ("routine, written slowly", lambda one: one.how == "slow"),
        ("broken", lambda one: one.how in BROKEN),
        ("a second time", lambda one: one.how == AGAIN),
    ):
        starts, results = life.waits(choose)
        count = sum(1 for one in life.arrivals if choose(one))
        times = [percentile(values, percent) for values in (starts, results) for percent in (50, 95)]
        made.append([name, count, *(times if name in TIMED else [None] * 4)])
    return made


TIMED = ("urgent", "routine", "routine, written slowly")
COLUMNS = ["slides", "number", "to start p50 s", "p95 s", "to result p50 s", "to result p95 s"]


def figures(life: Life) -> dict[str, Any]:
    """What counts, for the table and for JSON."""
    samples = life.vitals.samples
    return {
        "slides_per_hour": len(life.arrivals) / life.wall_s * 3600,
        "seconds": life.wall_s,
        "undisturbed_run_seconds": life.run_s,
        "kills": life.killed.total(),
        "killed": ", ".join(f"{kind} {count}" for kind, count in sorted(life.killed.items())),
        "starts_of_the_service": life.served.starts,
        "ready_after_death_p50_s": statistics.median(life.served.ready_s[1:] or [0.0]),
        "ready_after_death_max_s": max(life.served.ready_s[1:] or [0.0]),
        "hangs": life.served.hangs,
        "exits_of_its_own": len(life.unasked),
        "attempts_per_slide": statistics.mean(slide.attempts for slide in life.slides) if life.slides else 0.0,
        "interruptions": sum(slide.interruptions for slide in life.slides),
        "memory_most_mib": max((sample.pss for sample in samples), default=0) / MIB,
        "events": life.events,
        "lost": len(life.faults.lost),
        "doubled": len(life.faults.doubled),
        "different": len(life.faults.different),
        "left_behind": len(life.faults.left),
    }


def options(program: str, description: str, slides: int, seconds: float, every_s: float) -> argparse.ArgumentParser:
    """The options that day and soak have in common."""
    parser = table.parser(program, description)
    parser.add_argument("--slides", type=int, default=slides, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=seconds, help="in which they come (default: %(default)g)")
    parser.add_argument("--every", type=float, default=every_s, help="seconds between kills (default: %(default)g)")
    parser.add_argument("--restart-s", type=float, default=1.0, help="pause before it is started again (systemd: 5)")
    parser.add_argument("--seed", type=int, default=1, help="of slides, times and kills (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="a new folder for everything, kept afterwards")
    return parser


def in_folder(keep: Path | None, work: Callable[[Path], int]) -> int:
    """Run `work` in a folder that is kept, or in one that is removed afterwards."""
    if keep is not None:
        keep.mkdir(parents=True)
        return work(keep.resolve())
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as folder:
        return work(Path(folder))


def teller(quiet: bool) -> Callable[[str], None]:
    """Says on standard error how far it is, where somebody looks."""
    return lambda line: None if quiet else print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)


def main() -> int:
    arguments = options("day", __doc__.splitlines()[0], 200, 60.0, 2.0).parse_args()
    machine = table.facts()
    course = Course(arguments.slides, arguments.seconds, arguments.every, arguments.restart_s, seed=arguments.seed)

    def work(folder: Path) -> int:
        life = live(course, folder, teller(not sys.stderr.isatty()))
        title = f"A day in fast motion: {len(life.arrivals)} slides within {course.seconds:g} s"
        table.emit(arguments.json, title, COLUMNS, rows(life), machine=machine, **figures(life))
        print("\n".join(life.faults.lines()[:50]), file=sys.stderr)
        return 1 if life.faults.lines() else 0

    return in_folder(arguments.keep, work)


if __name__ == "__main__":
    sys.exit(main())
