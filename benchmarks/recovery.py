"""kill -9 of the inference process in mid-run: seconds until it infers again, and whether the results are the same.

    python -m benchmarks.recovery --network resnet50 --engine tensorrt       on a GPU
    python -m benchmarks.recovery --network demo --engine onnx --blocks 3     on any machine

The run is `slidestream run` over one synthetic slide, twice undisturbed and `--kills` times with a kill when a third of the patches
are on disk. It infers again when the journal grows although the old process's last answers are long written; the results are the
CSV files: the same patches, and the largest difference between two probabilities of a patch, beside that of the undisturbed runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.mosaic import mosaic
from benchmarks.prepared import NAMES, Ready, ready
from benchmarks.processes import identity, tree
from engines.python_path import python_path

SAME = 1e-6  # of probabilities
POLL_S = 0.005
AFTER = 1 / 3
SETTLED_S = 0.25  # in which the old process's last answers reach the disk, and no new one can have started


def run(
    subject: Ready, slide: Path, out: Path, sets: list[str], kill_at: int | None, timeout_s: float
) -> dict[str, Any]:
    """One run, with a kill once the journal has `kill_at` bytes. RuntimeError where it fails or ends too soon."""
    command = table.slidestream("run", str(slide), "--out", str(out), "--model", str(subject.model), "--no-progress")
    command += [word for text in sets for word in ("--set", text)]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, text=True, env={**os.environ, "PYTHONPATH": python_path()}
        )
        try:
            figures: dict[str, Any] = {}
            most = 0
            while process.poll() is None:
                size = journal_bytes(out)
                most = max(most, size)
                if kill_at is not None and not figures and size >= kill_at:
                    figures = _kill(process, out, timeout_s)
                if time.monotonic() - began > timeout_s:
                    raise RuntimeError(f"the run has not finished in {timeout_s:g} s")
                time.sleep(POLL_S)
            output.seek(0)
            if process.returncode:
                last = output.read().strip().splitlines()
                raise RuntimeError(f"the run ended with code {process.returncode}: {last[-1] if last else ''}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if kill_at is not None and not figures:
        raise RuntimeError("the run was over before there was anything to kill; take more blocks")
    record = json.loads((out / "run.json").read_text())
    return {
        **figures,
        "journal_bytes": most,
        "seconds": record["seconds"],
        "patches": record["patches"],
        "restarts": record["stages"]["inference"]["restarts"],
        "engine": record["engine"].get("engine"),
    }


def _kill(process: subprocess.Popen, out: Path, timeout_s: float) -> dict[str, Any]:
    """Kill the inference process and wait until its successor's first answer is in the journal."""
    victims = inference(process.pid)
    if len(victims) != 1:
        raise RuntimeError(f"{len(victims)} inference processes, one was expected")
    killed = time.monotonic()
    os.kill(victims[0], signal.SIGKILL)
    started: float | None = None
    size = 0
    while process.poll() is None and time.monotonic() - killed < timeout_s:
        now = time.monotonic()
        if started is None and set(inference(process.pid)) - set(victims):
            started = now
        if started is None or now - killed < SETTLED_S:
            size = journal_bytes(out)
        elif journal_bytes(out) != size:
            return {"started_again_s": round(started - killed, 3), "infers_again_s": round(now - killed, 3)}
        time.sleep(POLL_S)
    raise RuntimeError("nothing was inferred after the kill")


def inference(root: int) -> list[int]:
    """Process ids of the inference workers of a run."""
    found = []
    for pid in tree(root):
        try:
            kind, _ = identity(pid, root)
        except (OSError, IndexError, ValueError):
            continue
        if kind == "inference":
            found.append(pid)
    return found


def journal_bytes(out: Path) -> int:
    """Of all unfinished slides."""
    total = 0
    for path in out.glob(".slidestream/work/*/*"):
        try:
            total += path.stat().st_size if "journal" in path.name else 0
        except OSError:
            continue
    return total


def results(out: Path) -> dict[tuple[str, ...], list[float]]:
    """Probabilities of every patch, by file and place, from the CSV files."""
    found: dict[tuple[str, ...], list[float]] = {}
    for path in sorted(out.glob("model-outputs-csv/*.csv")):
        with open(path, newline="") as file:
            head, *rows = csv.reader(file)
        first = next(index for index, name in enumerate(head) if name.startswith("prob_"))
        found |= {(path.name, *row[:first]): [float(value) for value in row[first:]] for row in rows}
    return found


def difference(one: dict[tuple[str, ...], list[float]], other: dict[tuple[str, ...], list[float]]) -> float | None:
    """The largest between two probabilities of a patch; None where they are not of the same patches."""
    if not one or one.keys() != other.keys():
        return None
    return max(abs(a - b) for key, values in one.items() for a, b in zip(values, other[key], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50", help=NAMES)
    parser.add_argument("--engine", choices=("tensorrt", "aoti", "onnx"), default="tensorrt")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=12, help="of tissue a side (default %(default)s)")
    parser.add_argument("--kills", type=int, default=3, help="runs with a kill (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for slidestream run")
    parser.add_argument("--timeout", type=float, default=120.0, help="of each run, in seconds")
    parser.add_argument("--folder", type=Path, help="where networks, engines and slides are kept (default: temporary)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON here too")
    args = parser.parse_args()
    machine, rows = table.facts(), []
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        folder = args.folder or Path(name)
        subject = ready(args.network, args.engine, args.batch, folder)
        slide = mosaic(folder / f"{args.blocks}x{args.blocks}.tif", args.blocks, args.blocks)
        sets = [*subject.sets(args.batch), "inference.workers=1", "results.formats=[csv]", *args.set]
        plain = run(subject, slide, Path(name) / "plain", sets, None, args.timeout)
        wanted = results(Path(name) / "plain")
        run(subject, slide, Path(name) / "again", sets, None, args.timeout)
        plain["twice_max_difference"] = difference(wanted, results(Path(name) / "again"))
        for number in range(args.kills):
            out = Path(name) / f"killed-{number}"
            found = run(subject, slide, out, sets, int(plain["journal_bytes"] * AFTER), args.timeout)
            found["max_difference"] = difference(wanted, results(out))
            rows.append(found)
            print(json.dumps(found), file=sys.stderr, flush=True)
    columns = ("started_again_s", "infers_again_s", "seconds", "restarts", "max_difference")
    record = {"machine": machine, "network": subject.name, "engine": args.engine, "undisturbed": plain, "killed": rows}
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1))
    if args.json:
        print(json.dumps(record, indent=1))
    else:
        print(
            f"{subject.name}, {plain['engine']}: {plain['patches']['inferred']:,} patches in {plain['seconds']:.1f} s undisturbed; "
            f"two such runs differ by at most {plain['twice_max_difference']}\n"
        )
        print(table.text(columns, [[row[column] for column in columns] for row in rows]))
    # Kernels of a GPU may add up in another order from time to time; a kill may not change more than that.
    allowed = max(plain["twice_max_difference"] or 0.0, SAME)
    return 0 if all(row["max_difference"] is not None and row["max_difference"] <= allowed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
