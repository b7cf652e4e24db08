"""kill -9 of every process of the service in the middle of a slide: seconds until it is ready again, and until results come.

    python -m benchmarks.restart                   five rounds, the demonstration model

The service is started again at once (under systemd `RestartSec=5` comes on top). Ready is its own word to its manager, after its
lane is up; the first new result is the first byte that is added to the slide's journal. In the end each slide's CSV must be that of an
undisturbed run, byte for byte, and its ledger must say that it was completed once.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import table
from benchmarks.accounts import RESULTS, all_slides, digest
from benchmarks.day import SETS
from benchmarks.inputs import model_directory, synthetic_slide
from benchmarks.served import Served
from pipeline.service.lifecycle import State

LIMIT_S = 170.0
SETTLED_S = 0.3


def rounds(served: Served, slide: Path, count: int) -> tuple[float, list[list[object]]]:
    """Seconds of the first start, and of each round: until ready, until the first new result, until the slide is complete."""
    served.start()
    served.wait(lambda: served.ready, "it is ready")
    first, made = served.ready_s[0], []
    for number in range(count):
        part = served.routine / f".{number}.part"
        part.write_bytes(slide.read_bytes() + bytes([number]))  # content of its own
        part.rename(served.routine / f"slide {number}.tif")
        begun = served.wait(served.journalled, "a journal is begun")
        served.wait(lambda size=begun: served.journalled() > size, "results are in the journal")
        served.kill_all()
        served.process.wait()
        at, before = time.monotonic(), served.journalled()
        if not before:
            raise RuntimeError("the slide was complete before the kill; take a larger one")
        served.process = None
        served.tend()
        served.wait(lambda: served.ready, "it is ready again")
        ready = served.ready_s[-1]
        # A journal that is gone was of a slide that is complete.
        served.wait(lambda size=before: served.journalled() != size, "results come again")
        result = time.monotonic() - at
        served.wait(lambda n=number: _complete(served, n), "the slide is complete", LIMIT_S)
        made.append([f"round {number + 1}", before, ready, result, time.monotonic() - at])
        time.sleep(SETTLED_S)
    return first, made


def _complete(served: Served, number: int) -> bool:
    with served.view() as view:
        found = [] if view is None else view.named(f"slide {number}")
        return bool(found) and found[0].state is State.COMPLETE


def wrong(served: Served, undisturbed: Path, count: int) -> list[str]:
    """What is not as it must be."""
    found = []
    expected = digest(undisturbed)
    for number in range(count):
        if digest(served.out / RESULTS / f"slide {number}.csv") != expected:
            found.append(f"slide {number}: another result than that of the undisturbed run")
    with served.view() as view:
        for slide in all_slides(view):
            times = sum(step.new is State.COMPLETE for step in view.history(slide.id))
            found += [f"{slide.name}: completed {times} times"] if times != 1 else []
    return found


def main() -> int:
    parser = table.parser("restart", __doc__.splitlines()[0])
    parser.add_argument("--slide", default="12000x9000", metavar="WxH", help="synthetic (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="model directory (default: the demonstration model, or a tiny one)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    machine = table.facts()
    slide = synthetic_slide(*map(int, arguments.slide.split("x")), seed=2)
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        folder = Path(name)
        model = model_directory(arguments.model, folder)
        sets = [word for text in SETS for word in ("--set", text)]
        out = folder / "undisturbed"
        table.run(table.slidestream("run", str(slide), "--out", str(out), "--model", str(model), *sets), LIMIT_S)
        served = Served(folder / "served", model.resolve(), 0.0, list(SETS))
        try:
            first, made = rounds(served, slide, arguments.rounds)
            code = served.stop()
            faults = wrong(served, out / RESULTS / f"{slide.stem}.csv", arguments.rounds)
        finally:
            served.close()
    if code != 75:
        faults.append(f"drained, it left with exit code {code}")
    medians = [statistics.median(column) for column in zip(*(row[2:] for row in made), strict=True)]
    made.append(["median", None, *medians])
    table.emit(
        arguments.json,
        f"kill -9 of the whole service in the middle of a slide, model {model.name}",
        ["", "journal then, bytes", "ready s", "first new result s", "slide complete s"],
        made,
        machine=machine,
        first_start_ready_s=first,
        ready_again_s=medians[0],
        first_new_result_s=medians[1],
        wrong=len(faults),
    )
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
