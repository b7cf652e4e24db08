"""The memory of a whole run, every process of it, against the bound that it prints at its start.

    python -m benchmarks.memory                          two synthetic slides of 12,000 x 9,000
    python -m benchmarks.memory --slide a.svs --slide b.tif --model DIR --set inference.threads=2

Every 0.2 s the proportional set size (PSS) of each process is read from /proc/<pid>/smaps_rollup: what several processes
share, libraries and the run's shared memory, counts once in the sum of all. The bound is run.json's. The table sets the
largest process of each kind against the bound for one of that kind, both without the run's shared memory, which is
allocated in full at the start and counted so. Not counted: the page cache of slide files, which the system gives up when
memory is short, and what the kernel keeps for sockets and page tables.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks import table
from benchmarks.inputs import model_directory, synthetic_slide
from benchmarks.processes import Watched, watch
from pipeline.machine import MIB

EVERY_S = 0.2
SIZES = ((12_000, 9_000, 1), (12_000, 9_000, 2))
KINDS = ("supervisor", "reader", "tissue", "batcher", "inference", "aggregator", "writer")
PARTS = {
    "slide readers": "reader",
    "tissue masks": "tissue",
    "inference": "inference",
    "writers": "writer",
}


def bound_of(record: dict, model_bytes: int) -> list[tuple[str, int]]:
    """The bound of a run, part by part, from its run.json."""
    from pipeline.schema import Config
    from pipeline.sizing import memory_bound

    model = record["model"]
    config = Config.model_validate_json(json.dumps(record["configuration"]))
    return memory_bound(config, model["patch_px"], len(model["classes"]), model_bytes)


def split(bound: list[tuple[str, int]]) -> tuple[int, dict[str, int]]:
    """Bytes of the run's shared memory, and of one process of each kind."""
    shared, each = 0, {}
    for what, size in bound:
        name, _, count = what.partition(", ")
        if "shared memory" in name:
            shared += size
        else:
            each[PARTS.get(name, name)] = size // int(count or 1)
    return shared, each


def report(watched: Watched, bound: list[tuple[str, int]]) -> tuple[list[list[object]], int]:
    """The table's rows, and the most that all processes took together."""
    shared, each = split(bound)
    rows: list[list[object]] = []
    for kind in KINDS:
        mine = [process for process in watched.seen.values() if process.kind == kind]
        if mine:
            own = max(process.pss_own for process in mine) / MIB
            private = max(process.private_own for process in mine) / MIB
            rows.append([kind, len(mine), own, private, each[kind] / MIB, own / (each[kind] / MIB)])
    rows.append(["shared memory of the run", None, shared / MIB, None, shared / MIB, 1.0])
    # The shared memory is allocated in full at the start, whether or not its pages have been touched.
    return rows, max(total - mapped for _, total, mapped in watched.totals) + shared


def main() -> int:
    parser = table.parser("memory", __doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, action="append", help="a slide, instead of the synthetic ones")
    parser.add_argument("--model", type=Path, help="model directory (default: the demonstration model, or a tiny one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for slidestream run")
    parser.add_argument("--processor", action="store_true", help="tell each process's processor time instead")
    arguments = parser.parse_args()
    machine = table.facts()
    slides = arguments.slide or [synthetic_slide(*size) for size in SIZES]
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as folder:
        model = model_directory(arguments.model, Path(folder))
        command = table.slidestream("run", *map(str, slides), "--out", f"{folder}/out", "--model", str(model))
        command += ["--no-progress", *(word for text in arguments.set for word in ("--set", text))]
        watched = watch(command, every_s=EVERY_S, timeout_s=170, memory=True)
        if watched.code != 0:
            raise RuntimeError(f"the run ended with code {watched.code}:\n{watched.output}")
        record = json.loads(Path(folder, "out", "run.json").read_text())
        bound = bound_of(record, (model / "model.onnx").stat().st_size)
    if arguments.processor:
        spent = sorted(
            ([process.name, process.cpu_s] for process in watched.seen.values()), key=lambda row: str(row[0])
        )
        table.emit(
            arguments.json,
            f"Processor time of a run of {len(slides)} slides, {record['patches']['inferred']:,} patches",
            ["process", "processor s"],
            spent,
            machine=machine,
            processor_seconds=watched.cpu_s,
            seconds=watched.wall_s,
        )
        return 0
    rows, most = report(watched, bound)
    total = sum(size for _, size in bound)
    table.emit(
        arguments.json,
        f"Memory of a run of {len(slides)} slides, {record['patches']['inferred']:,} patches, model {model.name}",
        ["process", "number", "largest PSS, MiB", "of it anonymous, MiB", "bound of one, MiB", "share"],
        rows,
        machine=machine,
        samples=len(watched.totals),
        most_of_all_processes_together_mib=most / MIB,
        printed_bound_mib=record["memory_bound_bytes"] / MIB,
        bound_of_the_parts_mib=total / MIB,
        share_of_the_bound=most / record["memory_bound_bytes"],
        within_the_bound=most <= record["memory_bound_bytes"],
    )
    return 0 if most <= record["memory_bound_bytes"] else 1


if __name__ == "__main__":
    sys.exit(main())
