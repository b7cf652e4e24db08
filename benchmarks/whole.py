"""From slides on disk to results on disk: the whole system against its engine alone, its readers alone, and PyTorch's DataLoader.

    python -m benchmarks.whole --networks resnet50 vit_b_16 --engine tensorrt --cores 16 8 4        on a GPU
    python -m benchmarks.whole --networks demo --engine onnx --large 1x1 --small 1x1 --count 2 --set slides.mpp=0.25

Large slides (--large blocks of 4,096 px at 0.5 um/px, 13x12: 52,000 patches of 224 px) and small ones (3x3: 3,000), each a
file of its own. For each number of cores, to which all processes are bound:

- patches/s from a run's first result to its last file, and its ratio to the engine alone of the same run and cores;
- seconds of a slide in a running pipeline: that time over the number of slides;
- GPU busy: the mean of what NVIDIA's management library says of the run's GPUs from the first result to the last file;
- readers alone: the small slides with an engine that computes nothing.

The DataLoader runs once per network, on all cores. Results must be the same for all copies of a slide, on any number of cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.mosaic import copies, mosaic
from benchmarks.prepared import NAMES, Ready, ready
from pipeline import pipeline_bench
from pipeline.bench_loader import loader_alone
from pipeline.pipeline_bench import READERS_ALONE

LOADER_PATCHES = 12_000
COLUMNS = (
    "network", "GPUs", "cores", "slides", "patches", "patches/s", "engine/s", "ratio", "readers/s", "s a slide", "first s", "GPU busy",
    "CPU ms",
)  # fmt: skip


class Utilisation(threading.Thread):
    """The utilisation of all GPUs by NVML, ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, dict[str, int]]] = []
        self._stop_it = threading.Event()

    def run(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            devices = {str(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
        except Exception:  # noqa: BLE001 (NVML's errors are classes made at run time; then there are no samples)
            return
        while not self._stop_it.wait(0.1):
            now = {uuid: pynvml.nvmlDeviceGetUtilizationRates(device).gpu for uuid, device in devices.items()}
            self.samples.append((time.time(), now))

    def between(self, first: float, last: float, used: list[str]) -> float | None:
        """Mean share over these GPUs (UUIDs), 0 to 1."""
        times = [shares for at, shares in self.samples if first <= at <= last]
        values = [shares[uuid] for shares in times for uuid in used if uuid in shares]
        return statistics.fmean(values) / 100 if values else None

    def end(self) -> None:
        self._stop_it.set()
        self.join()


def once(
    args: argparse.Namespace, subject: Ready, what: str, slides: list[Path], sets: list[str], scratch: Path
) -> dict[str, Any]:
    """One run, as a row. RuntimeError where it fails."""
    gpu = Utilisation()
    gpu.start()
    try:
        ran = pipeline_bench.whole(argparse.Namespace(model=[subject.model], set=args.set), what, slides, scratch, sets)
    finally:
        gpu.end()
    log = scratch / "out" / "slidestream.log"
    began, finished = pipeline_bench.times(log)
    used = [device["uuid"] for device in ran.record.get("gpus", [])]
    return {
        "slides": len(slides),
        "patches": ran.patches,
        "patches/s": round(ran.per_s, 1),
        "s a slide": round(ran.steady_s / len(slides), 3),
        "first s": ran.first_result_s,
        "whole s": ran.whole_s,
        "GPU busy": gpu.between(began + ran.first_result_s, finished, used),
        "GPUs": len(used),
        "CPU ms": round(1e3 * ran.cpu_s / max(1, ran.patches), 3),
        "bottleneck": ran.bottleneck,
        "stages": ran.record["stages"],
        "engines": ran.record.get("engines"),
        "failed": ran.record["patches"]["failed"],
        "results": digests(scratch / "out"),
        "record": ran.record,
    }


def digests(out: Path) -> list[str]:
    """Of the CSV files, each different one once."""
    return sorted({hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in out.glob("model-outputs-csv/*.csv")})


def measure(args: argparse.Namespace, subject: Ready, folder: Path, keep: Any) -> None:
    """All rows of a network; `keep(row)` takes each as it comes."""
    large = copies(mosaic(folder / "large" / f"{args.large}.tif", *_blocks(args.large)), args.large_count)
    small = copies(mosaic(folder / "small" / f"{args.small}.tif", *_blocks(args.small)), args.count)
    everything = sorted(os.sched_getaffinity(0))
    counts = [count for count in args.cores if count <= len(everything)] or [len(everything)]
    sets = [*subject.sets(args.batch), *(["inference.contexts=" + str(args.contexts)] if args.contexts else [])]
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        scratch = Path(name)
        folded = scratch / "folded.onnx"
        pipeline_bench.prepare_model(subject.model, folded)
        record: dict[str, Any] = {}
        try:
            for cores in counts:
                os.sched_setaffinity(0, everything[:cores])
                row: dict[str, Any] = {"network": subject.name, "cores": cores}
                try:
                    runs = [once(args, subject, "small slides", small, sets, scratch)]
                    if not args.no_large:
                        runs.append(once(args, subject, "large slides", large, sets, scratch))
                    record = runs[0]["record"]
                    engine = pipeline_bench.alone(record, [folded], args.seconds)
                    nothing = [*sets, *pipeline_bench.nothing(record["configuration"])]
                    readers = once(args, subject, READERS_ALONE, small, nothing, scratch)["patches/s"]
                except (RuntimeError, OSError, subprocess.SubprocessError, ValueError) as error:
                    keep({**row, "problem": str(error).splitlines()[-1]})
                    continue
                for run in runs:
                    ratio = run["patches/s"] / engine
                    limit = "engine" if engine < readers else "readers"
                    keep(
                        {
                            **row,
                            **run,
                            "engine/s": engine,
                            "readers/s": readers,
                            "ratio": ratio,
                            "limit": limit,
                            "record": None,
                        }
                    )
        finally:
            os.sched_setaffinity(0, everything)
        loader = subject.model / "loader"
        if not args.no_loader and record and loader.is_dir():
            facts = pipeline_bench.loader_facts(record, large[0], loader, folded, LOADER_PATCHES)
            keep({"network": subject.name, "cores": len(everything), "DataLoader": loader_alone(facts)})


def _blocks(text: str) -> tuple[int, int]:
    columns, _, rows = text.partition("x")
    return int(columns), int(rows)


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """What is to be said of the rows together."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network and "ratio" in row]
        if not mine:
            lines.append(f"{network}: no figures")
            continue
        kinds: dict[int, set[str]] = {}
        for row in mine:
            kinds.setdefault(row["patches"] // row["slides"], set()).update(row["results"])
        same = all(len(found) == 1 for found in kinds.values())
        failed = sum(row["failed"] for row in mine)
        lines.append(
            f"{network}: results {'the same for all copies and cores' if same else 'DIFFER'}; {failed} patches failed"
        )
        loader = next((row["DataLoader"] for row in rows if row["network"] == network and "DataLoader" in row), {})
        if speed := loader.get("patches_per_s"):
            best = max((row["patches/s"] for row in mine), default=0.0)
            lines.append(
                f"{network}: DataLoader {speed:,.0f} patches/s ({loader['network']}); {best / speed:.1f} times as many"
            )
        elif loader:
            lines.append(f"{network}: no DataLoader: {loader.get('skipped')}")
        lines += [
            f"{network}, {r['cores']} cores, {r['slides']} slides: {r['bottleneck']}; slower part: {r['limit']}; "
            f"processor ms a patch: {_spent(r)}"
            for r in mine
        ]
    return lines


def _spent(row: dict[str, Any]) -> str:
    """Where the processors' time went, the start of each process included."""
    spent = sorted(((stage["cpu_s"], kind) for kind, stage in row["stages"].items()), reverse=True)
    return ", ".join(f"{kind} {1e3 * seconds / max(1, row['patches']):.3f}" for seconds, kind in spent)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.whole", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vit_b_16"], help=NAMES)
    parser.add_argument("--engine", choices=("tensorrt", "aoti", "onnx"), default="tensorrt")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--contexts", type=int, help="of the engine (default: as a run does)")
    parser.add_argument("--cores", nargs="+", type=int, default=[16, 8, 4])
    parser.add_argument("--large", default="13x12", metavar="CxR", help="blocks of tissue (default %(default)s)")
    parser.add_argument("--large-count", type=int, default=3, help="large slides in a row (default %(default)s)")
    parser.add_argument("--small", default="3x3", metavar="CxR", help="blocks of tissue (default %(default)s)")
    parser.add_argument("--count", type=int, default=20, help="small slides in a row (default %(default)s)")
    parser.add_argument("--no-large", action="store_true")
    parser.add_argument("--no-loader", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the engine alone (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for slidestream run")
    parser.add_argument("--folder", type=Path, help="where networks, engines and slides are kept (default: temporary)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON here as figures come")
    args = parser.parse_args()
    machine, rows = table.facts(), []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        shown = {key: table.shown(row[key]) for key in COLUMNS if key in row}
        more = {key: row[key] for key in ("problem", "DataLoader") if key in row}
        print("  ".join(f"{key}={value}" for key, value in {**shown, **more}.items()), flush=True)
        if args.out is not None:
            args.out.write_text(
                json.dumps({"machine": machine, "engine": args.engine, "batch": args.batch, "rows": rows}, indent=1)
            )

    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        folder = args.folder or Path(name)
        for network in args.networks:
            try:
                subject = ready(network, args.engine, args.batch, folder)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                keep({"network": network, "problem": str(error).splitlines()[-1]})
                continue
            measure(args, subject, folder, keep)
    print()
    print(table.text(COLUMNS, [[row.get(key) for key in COLUMNS] for row in rows if "ratio" in row]))
    print("\n".join(["", *verdict(rows)]))
    return 0 if any("ratio" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
