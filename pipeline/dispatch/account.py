"""Where the time of each kind of stage goes: working, waiting for input, or waiting for room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.dispatch.leases import Worker


@dataclass(slots=True)
class StageTime:
    """Seconds of worker time, summed over the workers of a kind."""

    working: float = 0.0
    waiting_input: float = 0.0
    waiting_room: float = 0.0


class Account:
    """Integrates over time what each worker is doing."""

    def __init__(self) -> None:
        self.stages: dict[str, StageTime] = {}
        self._last: float | None = None

    def advance(self, now: float, workers: Iterable[Worker], idle_is: Callable[[str], str]) -> None:
        """Attribute the time since the last call. A worker that holds a lease works; `idle_is(kind)` names the field of
        StageTime that the time of one without a lease belongs to."""
        last, self._last = self._last, now
        if last is None or now <= last:
            return
        idle: dict[str, str] = {}
        for worker in workers:
            kind = worker.kind
            stage = self.stages.get(kind)
            if stage is None:
                stage = self.stages[kind] = StageTime()
            if worker.leases:
                stage.working += now - last
                continue
            if kind not in idle:
                idle[kind] = idle_is(kind)
            setattr(stage, idle[kind], getattr(stage, idle[kind]) + now - last)
