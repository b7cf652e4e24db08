"""The operations page of a service: the figures that its metrics have, from the ledger and the supervisor's own answer."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pipeline.service.sampler import Sampler
from pipeline.service.snapshot import Snapshot
from pipeline.status import StageStatus, times
from review.entry import Shelf, iso
from review.operations import failures

FRESH_S = 1.0
LATELY_S = 60.0
SAME_START_S = 2.0
PATIENCE_S = 5.0


class ServiceFigures:
    """Looks when somebody asks, once a second at most; from any thread."""

    def __init__(self, sampler: Sampler, shelf: Shelf) -> None:
        self._sampler, self._shelf = sampler, shelf
        self._thread = ThreadPoolExecutor(1, "figures")  # the sampler's ledger belongs to one thread
        self._latest: tuple[float, Snapshot] | None = None
        self._older: deque[tuple[float, Snapshot]] = deque()

    def __call__(self) -> dict[str, Any]:
        """As GET /api/operations gives it."""
        try:
            now, before = self._thread.submit(self._look).result(PATIENCE_S)
        except TimeoutError:
            now, before = (
                Snapshot(time.time(), problem=f"looking at the service takes longer than {PATIENCE_S:g} s"),
                None,
            )
        return {**shown(now, before), "failures": failures(self._shelf.look().values())}

    def _look(self) -> tuple[Snapshot, Snapshot | None]:
        """Now, and a minute ago or since somebody looks, where the service has not begun anew since."""
        at = time.monotonic()
        if self._latest is None or at - self._latest[0] >= FRESH_S:
            self._latest = at, self._sampler.look()
            self._older.append(self._latest)
        while self._older[0][0] < at - LATELY_S:
            self._older.popleft()
        now, before = self._latest[1], self._older[0][1]
        return now, before if before is not now and _same_start(before, now) else None


def _same_start(before: Snapshot, now: Snapshot) -> bool:
    if before.started is None or now.started is None:
        return False
    return abs(before.started - now.started) < SAME_START_S


def shown(now: Snapshot, before: Snapshot | None = None) -> dict[str, Any]:
    """A look at the service as the page shows it; with an earlier one, what the stages did since."""
    older = {stage.kind: stage for stage in before.stages} if before is not None else {}
    slides = {state: sum(classes.values()) for state, classes in now.slides.items()}
    return {
        "at": iso(now.time),
        "live": now.answers,
        "source": "service",
        "bottleneck": now.bottleneck or now.problem,
        "patches_per_s": now.patches_per_s,
        "slides": {state: count for state, count in slides.items() if count},
        "patches": {"planned": now.patches_planned, "inferred": now.patches_inferred, "failed": now.patches_failed},
        "stages": times(lately(stage, older.get(stage.kind)) for stage in now.stages),
        "lately": bool(older),
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


def lately(stage: StageStatus, older: StageStatus | None) -> StageStatus:
    """What a stage did since an earlier look: after months the sum since the start says little of now."""
    if older is None:
        return stage
    names = ("busy", "waiting_input", "waiting_room")
    return replace(stage, **{name: max(0.0, getattr(stage, name) - getattr(older, name)) for name in names})
