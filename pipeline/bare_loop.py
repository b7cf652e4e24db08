"""An engine in a bare loop: what is the most that a pipeline around it can reach."""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Callable

import numpy as np

SLOT_PLACES = 8
LATENCIES = 200


def drive(contexts: list, memory: np.ndarray, seconds: float) -> dict[str, float]:
    """The inference stage's loop with a reader that is never slow: patches/s, and milliseconds from submit to answer.

    `memory`: uint8 (places, batch, P, P, 3), submitted in turn.
    """
    idle, busy, place = list(contexts), deque(), 0
    latencies: list[float] = []
    rows = 0
    started = time.perf_counter()
    while True:
        now = time.perf_counter()
        if now - started >= seconds:
            break
        while idle:
            context = idle.pop()
            begun = time.perf_counter()
            context.submit(memory[place])
            busy.append((context, begun))
            place = (place + 1) % len(memory)
        busy[0][0].wait(0.002)
        for item in list(busy):
            context, begun = item
            if context.done():
                rows += len(context.result())
                latencies.append(time.perf_counter() - begun)
                busy.remove(item)
                idle.append(context)
    elapsed = time.perf_counter() - started
    for context, _ in busy:
        context.result()
    kept = np.array(latencies[len(latencies) // 10 :] or [0.0]) * 1e3
    return {
        "per_s": round(rows / elapsed, 1),
        "p50_ms": round(float(np.quantile(kept, 0.5)), 3),
        "p99_ms": round(float(np.quantile(kept, 0.99)), 3),
    }


def shared_slots(batch: int, patch_px: int, patches: np.ndarray, places: int = SLOT_PLACES) -> np.ndarray:
    """uint8 (places, batch, P, P, 3) in shared memory, filled with `patches` over and over."""
    shape = (places, batch, patch_px, patch_px, 3)
    fd = os.memfd_create("slots")
    os.posix_fallocate(fd, 0, int(np.prod(shape)))
    view = np.frombuffer(mmap.mmap(fd, int(np.prod(shape))), np.uint8).reshape(shape)
    os.close(fd)
    for number in range(places):
        view[number] = np.resize(np.roll(patches, -number, axis=0), shape[1:])
    return view


def latency(one: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of a call, over `LATENCIES` of them after some that do not count."""
    taken = []
    for _ in range(LATENCIES + 20):
        began = time.perf_counter()
        one()
        taken.append(time.perf_counter() - began)
    kept = np.array(taken[20:]) * 1e3
    return {
        "p50_ms": round(float(np.quantile(kept, 0.5)), 3),
        "p99_ms": round(float(np.quantile(kept, 0.99)), 3),
    }
