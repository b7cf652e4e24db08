"""An engine alone: a bare loop over slots that are always full, which is the most that a pipeline around it can reach.

    python -m pipeline.bench_engine '{"inference": {...}, "plan": ..., "folded": ..., "classes": ..., ...}'

One process, as `stages.inference` is one: it says "ready", waits for a line, keeps every context busy for so many
seconds, and prints how many patches a second that were, as JSON. `engine_alone` runs as many of them side by side as a run
has, on the GPUs and cores that they have there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def engine_alone(
    configuration: dict[str, Any],
    model: dict[str, Any],
    folded: Path,
    seconds: float,
    plans: Sequence[Path] = (),
    environments: Sequence[dict[str, str]] = (),
) -> float:
    """Patches a second of the inference workers of a run: `configuration` and `model` are those of run.json.

    `plans`: the engines of its GPUs, in their order. RuntimeError, with its last words, where a worker fails.
    """
    return sum(found["per_s"] for found in engines_alone(configuration, model, folded, seconds, plans, environments))


def engines_alone(
    configuration: dict[str, Any],
    model: dict[str, Any],
    folded: Path,
    seconds: float,
    plans: Sequence[Path] = (),
    environments: Sequence[dict[str, str]] = (),
) -> list[dict[str, Any]]:
    """As `engine_alone`, by worker: per_s, p50_ms and p99_ms of a batch, memory_mib on the GPU, and what the engine says
    of itself as `engine`."""
    inference = configuration["inference"]
    facts = {
        "inference": inference,
        "folded": str(folded),
        "classes": len(model["classes"]),
        "patch_px": model["patch_px"],
        "batch": configuration["batcher"]["batch"],
        "seconds": seconds,
    }
    workers: list[subprocess.Popen[str]] = []
    try:
        for number in range(inference["workers"]):
            plan = str(plans[number % len(plans)]) if plans else None
            more = environments[number % len(environments)] if environments else {}
            command = [sys.executable, "-m", "pipeline.bench_engine", json.dumps({**facts, "plan": plan})]
            pipe, environment = subprocess.PIPE, {**os.environ, **more}
            workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment))
        for worker in workers:
            if worker.stdout.readline() != "ready\n":  # type: ignore[union-attr]
                raise RuntimeError(f"the engine alone cannot be measured: {_last_words(worker)}")
        for worker in workers:
            worker.stdin.write("go\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
        lines = [worker.stdout.readline() for worker in workers]  # type: ignore[union-attr]
        for worker, line in zip(workers, lines, strict=True):
            if not line.strip():
                raise RuntimeError(f"the engine alone cannot be measured: {_last_words(worker)}")
        return [json.loads(line) for line in lines]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _last_words(worker: subprocess.Popen[str]) -> str:
    worker.stdin.close()  # type: ignore[union-attr]
    lines = worker.stderr.read().strip().splitlines()  # type: ignore[union-attr]
    return lines[-1] if lines else f"it ended with code {worker.wait()}"


def _work(facts: dict[str, Any]) -> None:
    from engines.configured import open_configured
    from pipeline.bare_loop import drive, shared_slots
    from pipeline.gpu_memory import Memory

    batch, side, inference = facts["batch"], facts["patch_px"], facts["inference"]
    noise = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    slots = shared_slots(batch, side, noise, inference["contexts"] + 1)
    engine = open_configured(
        inference,
        folded=Path(facts["folded"]),
        plan=Path(facts["plan"]) if facts["plan"] else None,
        classes=facts["classes"],
        patch_px=side,
        max_batch=batch,
    )
    try:
        engine.attach(slots.reshape(-1))
        contexts = engine.contexts(inference["contexts"])
        for context in contexts:  # a first batch of full size each
            context.submit(slots[0])
            context.result()
        print("ready", flush=True)
        sys.stdin.readline()
        found = drive(contexts, slots, facts["seconds"])
        memory = Memory("").mib() if facts["plan"] else None
        print(json.dumps({**found, "memory_mib": memory, "engine": engine.describe()}), flush=True)
    finally:
        engine.close()


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
