"""The soak: hundreds of slides through one service with kills all the while, and a look at what must not grow.

    bin/soak                          500 slides
    python -m benchmarks.soak --slides 5000 --seconds 2700

The mechanism, the slides and the audit are those of `benchmarks.day`. Processes that are killed every few seconds cannot show what
grows in them; so after 60 % of the slides only workers (and trials) are killed, while the service, its lane and the HTTP process
live on and replace them. Over that calm part their anonymous memory and their descriptors are compared: the median of the second
quarter against that of the last. Over the whole: the service's memory files (shared memory), its folder for temporary files, the
ledger, the log (rotated at 1 MB, two older ones kept), and the spool folder, which a receiver empties.

Exit code 1 where a slide is lost, doubled or different, or something has grown beyond its bound.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import table
from benchmarks.day import COLUMNS, Course, Life, figures, in_folder, live, options, rows, teller
from benchmarks.kills import LIVING_LONG, Sample, size
from pipeline.machine import MIB
from pipeline.service.state import LEDGER

CALM = 0.6
GROWN_MIB = 8.0  # a leak of 1 MiB in 25 slides shows in the calm part of 500
GROWN_DESCRIPTORS = 6  # pipes and sockets of workers that start and end just then
LEDGER_BYTES_A_SLIDE = 4096  # events included, which are forgotten after service.retention.events_days
LEDGER_BYTES = 256 << 10  # the empty tables
WAL_BYTES = 6 << 20
LOG_BYTES = 3.2e6
SEGMENTS = 2  # of the lane, and for a moment of the one before it
TEMPORARY = 4  # run directories of the service and its lane, and of those just killed
ENOUGH = 12


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that must stay within a bound."""

    what: str
    first: float
    last: float
    bound: float

    @property
    def kept(self) -> bool:
        """Whether it does."""
        return self.last <= self.bound


def measures(samples: Sequence[Sample], calm_at: float | None, slides: int) -> list[Measure]:
    """What has grown, and how far it may. RuntimeError where the calm part was too short to tell."""
    calm = [sample for sample in samples if calm_at is not None and sample.at >= calm_at and _complete(sample)]
    # One life of each: what was killed just before the calm part began starts anew.
    last = {kind: calm[-1].own[kind][0] for kind in LIVING_LONG} if calm else {}
    calm = [sample for sample in calm if all(sample.own[kind][0] == last[kind] for kind in LIVING_LONG)]
    if len(calm) < ENOUGH:
        raise RuntimeError(f"{len(calm)} looks at the calm part are too few to tell what grows; take more slides")
    quarter = len(calm) // 4
    early, late = calm[quarter : 2 * quarter], calm[-quarter:]
    found = []
    for kind in LIVING_LONG:
        for column, name, unit, grown in (
            (1, "anonymous memory, MiB", MIB, GROWN_MIB),
            (2, "descriptors", 1, GROWN_DESCRIPTORS),
        ):
            first, then = (
                statistics.median(sample.own[kind][column] for sample in part) / unit for part in (early, late)
            )
            found.append(Measure(f"{kind}: {name}", first, then, first + grown))
    first, end = samples[0], samples[-1]
    ledger = LEDGER_BYTES + slides * LEDGER_BYTES_A_SLIDE
    found.append(Measure("ledger, MiB", first.ledger / MIB, _most(samples, "ledger") / MIB, ledger / MIB))
    found.append(Measure("its write-ahead log, MiB", first.wal / MIB, _most(samples, "wal") / MIB, WAL_BYTES / MIB))
    found.append(Measure("log files, MB", first.log / 1e6, _most(samples, "log") / 1e6, LOG_BYTES / 1e6))
    found.append(Measure("memory files at a time", first.segments, _most(samples, "segments"), SEGMENTS))
    found.append(Measure("entries for temporary files, at the end", first.temporary, end.temporary, TEMPORARY))
    return found


def _complete(sample: Sample) -> bool:
    return all(kind in sample.own for kind in LIVING_LONG)


def _most(samples: Sequence[Sample], name: str) -> float:
    return max(getattr(sample, name) for sample in samples)


def show(life: Life) -> tuple[list[Measure], str]:
    """What has grown, and a table of it."""
    found = measures(life.vitals.samples, life.calm_at, len(life.arrivals))
    made = [[one.what, one.first, one.last, one.bound, "yes" if one.kept else "NO"] for one in found]
    return found, table.text(["what must not grow", "before", "then", "bound", "kept"], made)


def main() -> int:
    parser = options("soak", __doc__.splitlines()[0], 500, 270.0, 1.5)
    arguments = parser.parse_args()
    machine = table.facts()
    course = Course(
        arguments.slides, arguments.seconds, arguments.every, arguments.restart_s, seed=arguments.seed, calm=CALM
    )

    def work(folder: Path) -> int:
        life = live(course, folder, teller(not sys.stderr.isatty()))
        found, text = show(life)
        counts = figures(life) | {"grown": sum(not one.kept for one in found)}
        counts["ledger_bytes_per_slide"] = size(life.served.state / LEDGER) / len(life.slides)  # closed: all is in it
        if arguments.json:
            counts["growth"] = [[one.what, one.first, one.last, one.bound] for one in found]
        title = f"Soak: {len(life.arrivals)} slides within {course.seconds:g} s"
        table.emit(arguments.json, title, COLUMNS, rows(life), machine=machine, **counts)
        if not arguments.json:
            print(f"\n{text}")
        print("\n".join(life.faults.lines()[:50]), file=sys.stderr)
        return 1 if life.faults.lines() or counts["grown"] else 0

    return in_folder(arguments.keep, work)


if __name__ == "__main__":
    sys.exit(main())
