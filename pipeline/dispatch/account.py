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
    """Integrates over time what each worker is doing; a worker works as long as it holds a lease."""

    def __init__(self) -> None:
        self.stages: dict[str, StageTime] = {}
        self._last: float | None = None

    def advance(self, now: float, workers: Iterable[Worker], lacks_room: Callable[[str], bool]) -> None:
        """Attribute the time since the last call. `lacks_room(kind)` says whether idle workers of a kind wait for room."""
        last, self._last = self._last, now
        if last is None or now <= last:
            return
        lacking: dict[str, bool] = {}
        for worker in workers:
            stage = self.stages.get(worker.kind)
            if stage is None:
                stage = self.stages[worker.kind] = StageTime()
            if worker.leases:
                stage.working += now - last
                continue
            if worker.kind not in lacking:
                lacking[worker.kind] = lacks_room(worker.kind)
            if lacking[worker.kind]:
                stage.waiting_room += now - last
            else:
                stage.waiting_input += now - last
