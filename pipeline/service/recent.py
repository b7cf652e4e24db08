"""What can only be said from several looks: the speed of the last minute, and when something last came out. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.status import StageStatus

WINDOW_S = 60.0
_APART_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment; `at` in seconds of a clock that never goes back."""

    at: float
    patches: int
    stages: tuple[StageStatus, ...] = ()
    gpus: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Recent:
    """The looks of the last minute."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._highest: dict[str, int] = {}
        self._workable_since: float | None = None
        self.progress_at: float | None = None
        """When more patches were settled than ever before; None while that was not seen."""

    def add(self, sample: Sample) -> None:
        """A new look. Counts that fell (the batcher was replaced) are no progress until they are higher than ever."""
        before = self._highest.get("settled", sample.patches)
        if self.highest("settled", sample.patches) > before:
            self.progress_at = sample.at
        while len(self._samples) > 1 and sample.at - self._samples[1].at >= WINDOW_S:
            self._samples.popleft()
        if len(self._samples) > 1 and sample.at - self._samples[-2].at < _APART_S:
            self._samples.pop()  # many who ask must not fill memory, or push out what is old enough to compare with
        self._samples.append(sample)

    def highest(self, counter: str, value: int) -> int:
        """The most that a counter has ever had: a new batcher counts again from the journals, and counters must not fall."""
        self._highest[counter] = max(value, self._highest.get(counter, 0))
        return self._highest[counter]

    def workable_s(self, workable: bool, at: float) -> float:
        """To be told at each look whether there is work that could be done; for how many seconds there has been."""
        if not workable:
            self._workable_since = None
        elif self._workable_since is None:
            self._workable_since = at
        return 0.0 if self._workable_since is None else at - self._workable_since

    @property
    def oldest(self) -> Sample | None:
        """The look that the newest is compared with, a minute ago or less; None while there is one only."""
        return self._samples[0] if len(self._samples) > 1 else None

    @property
    def newest(self) -> Sample | None:
        return self._samples[-1] if self._samples else None

    def patches_per_s(self) -> float | None:
        """Over the last minute; None while it cannot be told."""
        older, newer = self.oldest, self.newest
        if older is None or newer is None or newer.at <= older.at:
            return None
        return max(0.0, newer.patches - older.patches) / (newer.at - older.at)

    def gpu_busy(self, worker: str) -> float | None:
        """Share of the last minute in which a batch was under way on an inference worker; None where that is not told."""
        older, newer = self.oldest, self.newest
        if newer is None or "busy_seconds" not in newer.gpus.get(worker, {}):
            return None
        now = newer.gpus[worker]
        then = older.gpus.get(worker, {}) if older is not None else {}
        seconds, busy = now.get("seconds", 0.0), now["busy_seconds"]
        if then.get("batches", 0) <= now.get("batches", 0) and then.get("seconds", 0.0) < seconds:
            seconds, busy = seconds - then.get("seconds", 0.0), busy - then.get("busy_seconds", 0.0)
        return min(1.0, max(0.0, busy / seconds)) if seconds > 0 else None
