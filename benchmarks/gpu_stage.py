"""The real inference stage, fed by the real batcher from slots that are always full, against the bare engine loop of the same run.

    python -m benchmarks.gpu_stage --networks resnet50 vit_b_16 --engine tensorrt        on a GPU
    python -m benchmarks.gpu_stage --networks demo --engine onnx --batches 8 --contexts 1     on any machine

Slots in shared memory are filled with noise once; null readers say at once that a slot is filled, so it is sent again and
again; null aggregator and writer take the answers. A stage's rate is counted over the middle of its run, latency from the
moment that a context takes a slot to its answer. `ratio` is stage over bare loop with the same contexts, batch and processes.
`--processes 1 2` sets several processes on one GPU beside one with more contexts, `--gpus 1 2` several GPUs beside one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks import table
from benchmarks.batcher import Crowd, submit
from benchmarks.prepared import NAMES, Ready, ready
from benchmarks.timed_stage import TIMES
from engines.python_path import python_path
from pipeline import memory
from pipeline.bench_engine import engines_alone
from pipeline.config import load_config
from pipeline.crew import VISIBLE
from pipeline.dispatch.board import SUPERVISOR
from pipeline.link import HIGH_WATER
from pipeline.machine import detect
from pipeline.rundir import RunDir
from pipeline.sizing import resolve
from pipeline.wire import Living, SlideDone, Stop, decode, encode
from pipeline.worker import PLAN

READERS = 2
MIDDLE = (0.2, 0.9)  # of the batches, over which a rate is counted


@cache  # it starts a process
def seen_alone(count: int) -> list[dict[str, str]]:
    """For each of the first so many GPUs, the environment of a process that sees it alone. RuntimeError where there are fewer."""
    if count == 1:
        return [{}]  # the first there is, and a machine with none
    from engines.probe import probe
    from pipeline.gpus import visible

    gpus = probe().gpus[:count]
    if not gpus or len(gpus) < count:
        raise RuntimeError(f"{count} GPUs were asked for, {len(gpus)} are here")
    return [{VISIBLE: visible(gpu, index)} for index, gpu in enumerate(gpus)]


def configuration(subject: Ready, batch: int, contexts: int, processes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configuration as in run.json, what the model says of itself)."""
    from engines.model import load_model

    model = load_model(subject.model)
    sets = [*subject.sets(batch), f"inference.contexts={contexts}", f"inference.workers={processes}"]
    if subject.plan is None:
        sets.append(f"inference.threads={max(1, detect().cores // processes)}")
    sets += [
        "inference.devices=all",
        "reader.workers=2",
        f"batcher.slots={processes * (contexts + 2) + 2 * READERS + 4}",
    ]
    config = resolve(load_config(None, sets), detect(), patch_px=model.patch_px, classes=len(model.classes))
    return config.model_dump(mode="json"), model.describe()


def stage(
    subject: Ready,
    config: dict[str, Any],
    model: dict[str, Any],
    patches: int,
    timeout_s: float,
    visible: list[dict[str, str]],
) -> dict[str, Any]:
    """Patches a second and latencies of `inference.workers` real stages that infer `patches` patches, on the GPUs of `visible`
    in turn."""
    batch, workers = config["batcher"]["batch"], config["inference"]["workers"]
    slides = 8
    crowd = Crowd(READERS, workers, batch, slides, -(-patches // slides // batch) * batch)
    folder = Path(tempfile.mkdtemp(prefix="slidestream-"))
    place, run = RunDir(folder), uuid.uuid4().hex
    layout = memory.Layout(config["batcher"]["slots"], batch, model["patch_px"], 1, 8)
    settings = {
        "run": run, "out": str(folder / "out"), "private": str(folder), "layout": layout.to_dict(), "config": config,
        "urgent_may_come": False,
        "models": [model], "key": {}, "versions": {},
    }  # fmt: skip
    fd = memory.create(layout)
    slots = memory.SharedSlots(fd, layout)
    noise = np.random.default_rng(0).integers(0, 256, (batch, layout.patch_px, layout.patch_px, 3), np.uint8)
    for slot in range(layout.slots):
        slots.patches(slot, batch)[:] = noise
    place.settings.write_text(json.dumps(settings))
    if subject.plan is None:
        from engines.check import prepare
        from engines.model import load_model

        prepare(load_model(subject.model), place.folded())
    processes: list[subprocess.Popen] = []
    context = zmq.Context()
    hub = context.socket(zmq.DEALER)
    try:
        environment = {**os.environ, "PYTHONPATH": python_path()}
        parent = ["--parent", str(os.getpid())]
        real = ["--run", str(folder), "--generation", "1", "--memory", str(fd), *parent]
        command = table.python("-m", "stages.batcher", "--name", "batcher", *real)
        processes.append(subprocess.Popen(command, pass_fds=(fd,), env=environment))
        for number in range(workers):
            mine = {**environment, **visible[number % len(visible)], TIMES: str(folder / f"times-{number}.json")}
            if subject.plan is not None:
                mine[PLAN] = str(subject.plan)
            command = table.python("-m", "benchmarks.timed_stage", "--name", f"inference-{number}", *real)
            processes.append(subprocess.Popen(command, pass_fds=(fd,), env=mine))
        for name in (*(f"reader-{i}" for i in range(READERS)), "aggregator-0", "writer-0"):
            command = table.python("-m", "benchmarks.batcher", "--worker", name, "--hub", place.hub, "--run", run)
            processes.append(subprocess.Popen([*command, "--patches", str(crowd.patches), *parent], env=environment))
        hub.setsockopt(zmq.IDENTITY, f"{SUPERVISOR}.0".encode())
        hub.set_hwm(HIGH_WATER)
        hub.connect(place.hub)
        hub.send_multipart(encode(Living(run, [])))
        _serve(crowd, hub, processes, time.monotonic() + timeout_s)
        hub.send_multipart(encode(Stop()))
        for process in processes:
            process.wait(timeout=30)
        return _figures([json.loads((folder / f"times-{number}.json").read_text()) for number in range(workers)])
    finally:
        hub.close(linger=0)
        context.term()
        for process in processes:
            process.kill() if process.poll() is None else None
            process.wait()
        os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)


def _serve(crowd: Crowd, hub: zmq.Socket, processes: list[subprocess.Popen], until: float) -> None:
    """Until all slides are done. RuntimeError where a process dies, TimeoutError."""
    present, done, begun = 0, 0, False
    while done < crowd.slides:
        if any(process.poll() is not None for process in processes):
            raise RuntimeError("a process of the benchmark has died")
        if time.monotonic() > until:
            raise TimeoutError("the benchmark has not finished in its time")
        message = decode(hub.recv_multipart()) if hub.poll(200) else None
        if message is not None and hasattr(message, "status"):
            present = len(message.status["present"])
        if not begun and present == len(crowd.workers):
            begun = True
            for number in range(1, crowd.slides + 1):
                hub.send_multipart(encode(submit(number)))
        done += isinstance(message, SlideDone)


def _figures(stages: list[dict[str, Any]]) -> dict[str, Any]:
    batches = sorted((batch for found in stages for batch in found["batches"]), key=lambda batch: batch[1])
    first, last = (int(len(batches) * part) for part in MIDDLE)
    middle = batches[first:last]
    seconds = middle[-1][1] - batches[first - 1][1]
    latency = np.array([ended - begun for begun, ended, _ in middle]) * 1e3
    memory_mib = [found["memory_mib"] for found in stages if found.get("memory_mib")]
    return {
        "per_s": round(sum(rows for _, _, rows in middle) / seconds, 1),
        "p50_ms": round(float(np.quantile(latency, 0.5)), 3),
        "p99_ms": round(float(np.quantile(latency, 0.99)), 3),
        "batches": len(batches),
        "fill": round(sum(rows for _, _, rows in batches) / len(batches) / max(rows for _, _, rows in batches), 4),
        "memory_mib": sum(memory_mib) if memory_mib else None,
        "engine": stages[0].get("engine"),
    }


COLUMNS = (
    "network", "batch", "GPUs", "processes", "contexts", "bare/s", "stage/s", "ratio", "p50 ms", "p99 ms", "bare p50", "bare p99",
    "GPU MiB",
)  # fmt: skip


def measure(
    args: argparse.Namespace, subject: Ready, batch: int, contexts: int, processes: int, gpus: int
) -> dict[str, Any]:
    """One line of the table."""
    row: dict[str, Any] = dict(zip(COLUMNS, (subject.name, batch, gpus, processes, contexts), strict=False))
    try:
        visible = seen_alone(gpus)
        config, model = configuration(subject, batch, contexts, processes * gpus)
        with tempfile.TemporaryDirectory(prefix="slidestream-") as folder:
            folded = Path(folder) / "folded.onnx"
            if subject.plan is None:
                from engines.check import prepare
                from engines.model import load_model

                prepare(load_model(subject.model), folded)
            plans = [subject.plan] if subject.plan else []
            bare = engines_alone(config, model, folded, args.seconds, plans, visible)
        rate = sum(found["per_s"] for found in bare)
        found = stage(subject, config, model, int(rate * args.seconds * 1.5) + 20 * batch, args.timeout, visible)
    except (RuntimeError, TimeoutError, OSError, IndexError, ValueError) as error:
        return {**row, "failed": str(error).splitlines()[0] if str(error) else type(error).__name__}
    row |= {
        "bare/s": rate,
        "stage/s": found["per_s"],
        "ratio": found["per_s"] / rate,
        "p50 ms": found["p50_ms"],
        "p99 ms": found["p99_ms"],
        "bare p50": max(part["p50_ms"] for part in bare),
        "bare p99": max(part["p99_ms"] for part in bare),
        "GPU MiB": found["memory_mib"],
    }
    return {**row, "stage": found, "bare": bare}


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu_stage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vit_b_16"], help=NAMES)
    parser.add_argument("--engine", choices=("tensorrt", "aoti", "onnx"), default="tensorrt")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--contexts", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--processes", nargs="+", type=int, default=[1], help="on each GPU")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1], help="how many of this machine's are used")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the bare loop; a stage takes half as much again")
    parser.add_argument("--timeout", type=float, default=60.0, help="of one stage, in seconds")
    parser.add_argument("--folder", type=Path, help="where networks and engines are made and kept (default: temporary)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON here as figures come")
    args = parser.parse_args()
    machine, rows = table.facts(), []
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        for network in args.networks:
            for batch in args.batches:
                try:
                    subject = ready(network, args.engine, batch, args.folder or Path(name))
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    rows.append({"network": network, "batch": batch, "failed": str(error).splitlines()[-1]})
                    print(rows[-1], flush=True)
                    continue
                for gpus, processes, contexts in product(args.gpus, args.processes, args.contexts):
                    rows.append(measure(args, subject, batch, contexts, processes, gpus))
                    shown = {key: table.shown(rows[-1].get(key)) for key in COLUMNS}
                    words = "  ".join(f"{key}={value}" for key, value in shown.items())
                    print(words, rows[-1].get("failed", ""), flush=True)
                    if args.out is not None:
                        record = {"machine": machine, "engine": args.engine, "rows": rows}
                        args.out.write_text(json.dumps(record, indent=1))
    print()
    print(table.text(COLUMNS, [[row.get(key) for key in COLUMNS] for row in rows]))
    return 0 if any("ratio" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
