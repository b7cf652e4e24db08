"""An engine alone: a bare loop over one slot that is always full, which is the most that a pipeline around it can reach.

    python -m pipeline.bench_engine '{"engine": "onnx", "folded": ..., "classes": ..., ...}'

One process, as `stages.inference` is one: it says "ready", waits for a line, keeps every context busy for so many
seconds, and prints how many patches that were. `engine_alone` runs as many of them side by side as a run has.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

WAIT_S = 0.002  # as stages.inference waits


def engine_alone(configuration: dict[str, Any], model: dict[str, Any], folded: Path, seconds: float) -> float:
    """Patches a second of the inference workers of a run: `configuration` and `model` are those of run.json.

    RuntimeError, with its last words, where a worker fails.
    """
    inference = configuration["inference"]
    facts = {
        "engine": inference["engine"],
        "folded": str(folded),
        "classes": len(model["classes"]),
        "patch_px": model["patch_px"],
        "threads": inference["threads"],
        "batch": configuration["batcher"]["batch"],
        "contexts": inference["contexts"],
        "seconds": seconds,
    }
    command = [sys.executable, "-m", "pipeline.bench_engine", json.dumps(facts)]
    workers: list[subprocess.Popen[str]] = []
    try:
        for _ in range(inference["workers"]):
            pipe = subprocess.PIPE
            workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        for worker in workers:
            if worker.stdout.readline() != "ready\n":  # type: ignore[union-attr]
                raise RuntimeError(f"the engine alone cannot be measured: {_last_words(worker)}")
        for worker in workers:
            worker.stdin.write("go\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
        return sum(float(worker.stdout.readline() or 0) for worker in workers)  # type: ignore[union-attr]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _last_words(worker: subprocess.Popen[str]) -> str:
    worker.stdin.close()  # type: ignore[union-attr]
    lines = worker.stderr.read().strip().splitlines()  # type: ignore[union-attr]
    return lines[-1] if lines else f"it ended with code {worker.wait()}"


def _work(facts: dict[str, Any]) -> None:
    from engines.engine import open_engine

    batch, side = facts["batch"], facts["patch_px"]
    memory = np.random.default_rng(0).integers(0, 256, batch * side * side * 3, np.uint8)
    slot = memory.reshape(batch, side, side, 3)
    engine = open_engine(
        facts["engine"],
        Path(facts["folded"]),
        classes=facts["classes"],
        patch_px=side,
        threads=facts["threads"],
        max_batch=batch,
    )
    try:
        engine.attach(memory)
        idle = list(engine.contexts(facts["contexts"]))
        busy: deque = deque()
        for context in idle:  # a first batch of full size each
            context.submit(slot)
            context.result()
        print("ready", flush=True)
        sys.stdin.readline()
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < facts["seconds"] or busy:
            while idle and time.perf_counter() - began < facts["seconds"]:
                context = idle.pop()
                context.submit(slot)
                busy.append(context)
            if busy and busy[0].wait(WAIT_S):
                context = busy.popleft()
                done += len(context.result())
                idle.append(context)
        print(done / (time.perf_counter() - began), flush=True)
    finally:
        engine.close()


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
