"""The inference stage as it is, with a clock at both ends of every batch; started by benchmarks.gpu_stage, not by hand.

Writes to $SLIDESTREAM_BENCH_TIMES when it is told to stop: seconds (monotonic) at which each batch was begun and answered, its
rows, the MiB that the process had on the GPU, and what the engine says of itself.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import stages.inference as stage
from pipeline.gpu_memory import Memory
from pipeline.wire import Run
from pipeline.worker import PLAN, main

TIMES = "SLIDESTREAM_BENCH_TIMES"
_MEMORY_AT = 20  # batches after which nothing grows any more


class Timed(stage.Inference):
    """Notes when batches begin and end."""

    batches: ClassVar[list[tuple[float, float, int]]] = []
    about: ClassVar[dict[str, Any]] = {}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._begun: dict[int, float] = {}
        self._gpu = Memory("") if os.environ.get(PLAN) else None
        Timed.about["engine"] = self._engine.describe()

    def _start(self, lease: Run) -> None:
        self._begun[lease.lease] = time.monotonic()
        super()._start(lease)

    def _look(self, busy: stage.Busy) -> None:
        under_way = len(self._busy)
        super()._look(busy)
        if len(self._busy) < under_way:
            Timed.batches.append((self._begun.pop(busy.lease.lease), time.monotonic(), busy.lease.count))
            if len(Timed.batches) == _MEMORY_AT and self._gpu is not None:
                Timed.about["memory_mib"] = self._gpu.mib()


if __name__ == "__main__":
    stage.Inference = Timed  # type: ignore[misc]
    try:
        main("inference", stage.work)
    finally:
        Path(os.environ[TIMES]).write_text(json.dumps({"batches": Timed.batches, **Timed.about}))
