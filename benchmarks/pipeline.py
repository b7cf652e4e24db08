"""The whole pipeline against the plain sequential script, on the same slide, patches and model, as a ratio in one run.

    python -m benchmarks.pipeline                     40,000 x 30,000 pixels at 0.25 um/px; three rounds
    python -m benchmarks.pipeline --size 20000x15000 --rounds 1

The script is benchmarks/sequential.py: one process, OpenSlide's read_region, resize, normalise, ONNX Runtime with its
default threads. The two run in turns (script, pipeline, script, pipeline, ...), so that whatever else the machine does
meets both, and each round gives one ratio; the median counts.

Two ratios are given. "Whole command": patches over the wall time of the command, from its start to its result, both with
everything that they do: Python's start, loading the model, tissue mask, result files (one CSV for the script, all seven
for the pipeline). "Script's loop": patches per second of the script's reading and inferring alone, without its start and
its mask, against the pipeline's with all of that.

What could be reached at the very most: "engine alone" is a bare loop of the pipeline's engine on all cores, with nothing
read. On cores that readers share, what can be gained at all is the processor time that neither engine nor readers take:
`processor s` has each kind of process in the last round, its start included, and `engine and readers share` those two.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks import table
from benchmarks.inputs import model_directory, synthetic_slide
from benchmarks.processes import watch
from pipeline.pipeline_bench import alone, prepare_model

LIMIT_S = 170.0
_SAMPLE_S = 0.05
_ENGINE_S = 3.0


@dataclass(frozen=True, slots=True)
class Side:
    """One command: patches, wall and processor seconds of it all, and patches per second as it says itself."""

    patches: int
    wall_s: float
    cpu_s: float
    own_per_s: float

    @property
    def per_s(self) -> float:
        return self.patches / self.wall_s


def script(slide: Path, model: Path, folder: Path) -> Side:
    ran = table.run(
        table.python(
            "benchmarks/sequential.py", str(slide), "--model", str(model), "--out", str(folder / "script.csv")
        ),
        LIMIT_S,
    )
    said = json.loads(ran.output.splitlines()[-1])
    return Side(said["patches"], ran.wall_s, ran.cpu_s, said["patches_per_s"])


def pipeline(slide: Path, model: Path, folder: Path, sets: list[str]) -> tuple[Side, dict, Counter[str]]:
    out = folder / "out"
    command = table.slidestream("run", str(slide), "--out", str(out), "--model", str(model), "--no-progress")
    command += [word for text in sets for word in ("--set", text)]
    ran = watch(command, every_s=_SAMPLE_S, timeout_s=LIMIT_S)
    if ran.code:
        raise RuntimeError(f"slidestream run ended with code {ran.code}: {ran.output[-1000:]}")
    record = json.loads((out / "run.json").read_text())
    done = record["patches"]["inferred"]
    kinds: Counter[str] = Counter()
    for process in ran.seen.values():
        kinds[process.kind] += process.cpu_s
    return Side(done, ran.wall_s, ran.cpu_s, record["patches_per_s"]), record, kinds


def main() -> int:
    parser = table.parser("pipeline", __doc__.splitlines()[0])
    parser.add_argument("--size", default="40000x30000", metavar="WxH", help="of the slide (default: %(default)s)")
    parser.add_argument("--slide", type=Path, help="another slide instead of a synthetic one")
    parser.add_argument("--model", type=Path, help="model directory (default: the demonstration model, or a tiny one)")
    parser.add_argument("--rounds", type=int, default=3, help="of script and pipeline in turn (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for slidestream run")
    arguments = parser.parse_args()
    width, _, height = arguments.size.partition("x")
    machine = table.facts()
    slide = arguments.slide or synthetic_slide(int(width), int(height))
    rounds: list[tuple[Side, Side]] = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
            folder = Path(name)
            model = model_directory(arguments.model, folder)
            before = script(slide, model, folder)
            after, record, kinds = pipeline(slide, model, folder, arguments.set)
            if not rounds:
                prepare_model(model, folder / "folded.onnx")
                engine_per_s = alone(record, [folder / "folded.onnx"], _ENGINE_S)
        if before.patches != after.patches:
            raise RuntimeError(f"the script has {before.patches} patches, the pipeline {after.patches}")
        rounds.append((before, after))
    script_per_s = statistics.median(before.own_per_s for before, _ in rounds)
    rows = []
    for number, sides in enumerate(rounds, 1):
        for name, side in zip(("script", "pipeline"), sides, strict=True):
            rows.append([f"{number} {name}", side.wall_s, side.cpu_s, side.per_s, side.own_per_s])
    table.emit(
        arguments.json,
        f"Whole pipeline against the sequential script: {slide.name}, {rounds[0][0].patches:,} patches, model {model.name}",
        ["round", "wall s", "processor s", "patches/s, whole", "patches/s, as it says"],
        rows,
        machine=machine,
        ratio_whole_command=statistics.median(b.per_s / a.per_s for a, b in rounds),
        ratio_to_the_script_s_loop=statistics.median(b.own_per_s / a.own_per_s for a, b in rounds),
        ratio_of_processor_time=statistics.median(a.cpu_s / b.cpu_s for a, b in rounds),
        aim_ratio=3.0,
        engine_alone_per_s=engine_per_s,
        engine_alone_to_the_script_s_loop=engine_per_s / script_per_s,
        engine_and_readers_share=(kinds["inference"] + kinds["reader"]) / kinds.total(),
        processor_s=", ".join(f"{kind} {seconds:.2f}" for kind, seconds in kinds.most_common() if kind != "?"),
        first_result_s=record["first_result_s"],
        bottleneck=record["bottleneck"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
