"""The operations page of a service: the figures that its metrics have, from the ledger and the supervisor's own answer."""

from __future__ import annotations

import datetime
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.service.sampler import Sampler
from pipeline.service.snapshot import Snapshot
from pipeline.status import times
from review.entry import Shelf
from review.operations import failures

FRESH_S = 1.0
PATIENCE_S = 5.0


class ServiceFigures:
    """Looks when somebody asks, once a second at most; from any thread."""

    def __init__(self, sampler: Sampler, shelf: Shelf) -> None:
        self._sampler, self._shelf = sampler, shelf
        self._thread = ThreadPoolExecutor(1, "figures")  # the sampler's ledger belongs to one thread
        self._latest: tuple[float, Snapshot] | None = None

    def __call__(self) -> dict[str, Any]:
        """As GET /api/operations gives it."""
        try:
            now = self._thread.submit(self._look).result(PATIENCE_S)
        except TimeoutError:
            now = Snapshot(time.time(), problem=f"looking at the service takes longer than {PATIENCE_S:g} s")
        return {**shown(now), "failures": failures(self._shelf.look().values())}

    def _look(self) -> Snapshot:
        if self._latest is None or time.monotonic() - self._latest[0] >= FRESH_S:
            self._latest = time.monotonic(), self._sampler.look()
        return self._latest[1]


def shown(now: Snapshot) -> dict[str, Any]:
    """A look at the service as the page shows it."""
    slides = {state: sum(classes.values()) for state, classes in now.slides.items()}
    at = datetime.datetime.fromtimestamp(now.time, datetime.UTC).isoformat(timespec="seconds")
    return {
        "at": at.replace("+00:00", "Z"),
        "live": now.answers,
        "source": "service",
        "bottleneck": now.bottleneck or now.problem,
        "patches_per_s": now.patches_per_s,
        "slides": {state: count for state, count in slides.items() if count},
        "patches": {"planned": now.patches_planned, "inferred": now.patches_inferred, "failed": now.patches_failed},
        "stages": times(now.stages),
        "queues": {"slots": dict(now.slots), "records": now.records, "suspects": now.suspects},
        "gpus": [
            {
                "name": gpu.name or gpu.worker,
                "worker": gpu.worker,
                "busy": gpu.busy,
                "load": gpu.load,
                "memory_mib": gpu.memory_mib,
            }
            for gpu in now.gpus
        ],
        "lost": dict(now.lost),
    }
