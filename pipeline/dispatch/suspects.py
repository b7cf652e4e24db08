"""Batches that may have killed a worker, and how the guilty patch is found: by bisecting, never by guessing.

Whatever a worker held when it died by its own work is suspect: which of its leases it was at is known to nobody, as its
last words may be lost. A suspect batch is tried by a worker that holds nothing else, so a death under it is its own. A
batch that kills alone is cut in halves, and each half is tried in its turn; an innocent one runs through. A single patch
that kills two workers of a kind so is quarantined; where there is a worker that it has not killed, that one tries it
next, as a worker, or its GPU, may be to blame itself. In a batch of n rows one poisonous
patch costs about 3 + log2(n) deaths, and no innocent patch is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from pipeline.dispatch.slots import Batch, Segment

DEATHS_ALLOWED = 2


class Suspects:
    """The batches that wait for a trial, by class, in order."""

    def __init__(self) -> None:
        self._queue: dict[bool, deque[Batch]] = {True: deque(), False: deque()}

    def __len__(self) -> int:
        return len(self._queue[True]) + len(self._queue[False])

    def __iter__(self) -> Iterator[Batch]:
        return iter([*self._queue[True], *self._queue[False]])

    def waiting(self, urgent: bool) -> bool:
        return bool(self._queue[urgent])

    def blame(self, batch: Batch, kind: str, worker: str = "") -> list[Segment]:
        """A worker of a kind died with `batch`: queue what is to be tried next; the patches that are quarantined."""
        queue = self._queue[batch.urgent]
        killed = (*batch.killed, worker)
        if not batch.suspect:
            queue.append(Batch(batch.segments, batch.urgent, suspect=True, killed=killed))
        elif batch.count > 1:
            halves = batch.split(batch.count // 2)
            queue.extend(Batch(half, batch.urgent, suspect=True, killed=(worker,)) for half in halves)
        else:
            strikes = (*batch.strikes, kind)
            if strikes.count(kind) >= DEATHS_ALLOWED:
                return list(batch.segments)
            queue.append(Batch(batch.segments, batch.urgent, strikes, suspect=True, killed=killed))
        return []

    def put_back(self, batch: Batch) -> None:
        """The trial did not take place."""
        self._queue[batch.urgent].appendleft(batch)

    def sift(self, current: Callable[[Batch], Batch | None]) -> None:
        """Slides were amended: `current(batch)` is what each batch is now, perhaps of another class; None: nothing."""
        batches = [now for now in map(current, list(self)) if now is not None]
        for urgent, queue in self._queue.items():
            queue.clear()
            queue.extend(batch for batch in batches if batch.urgent == urgent)

    def next(self, urgent: bool) -> Batch:
        """The next batch of this class to be tried; IndexError where none is waiting."""
        return self._queue[urgent].popleft()

    def killed(self, urgent: bool) -> tuple[str, ...]:
        """The workers that the next one has killed."""
        return self._queue[urgent][0].killed
