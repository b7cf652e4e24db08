"""Batches that killed a worker, and how the guilty patch is found: by bisecting, never by guessing.

A batch whose worker died is run again, alone and unchanged. When a second worker dies of it, it is cut in halves, and
each half is tried in its turn; a half that is innocent runs through. A single patch that kills two workers of its own
is quarantined. In a batch of n rows one poisonous patch costs about 3 + log2(n) deaths, and no innocent patch is lost.
"""

from __future__ import annotations

from collections import deque

from pipeline.dispatch.slots import Batch, Segment

DEATHS_ALLOWED = 2


class Suspects:
    """The batches that wait for a trial, in order."""

    def __init__(self) -> None:
        self._queue: deque[Batch] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self):
        return iter(self._queue)

    def blame(self, batch: Batch) -> list[Segment]:
        """A worker died of `batch`: queue what is to be tried next; the patches that are quarantined."""
        strikes = batch.strikes + 1
        if strikes < DEATHS_ALLOWED:
            self._queue.append(Batch(batch.segments, batch.urgent, strikes, suspect=True))
            return []
        if batch.count == 1:
            return list(batch.segments)
        for half in batch.split(batch.count // 2):
            count = sum(len(segment.patches) for segment in half)
            # A single patch is judged by its own deaths alone: two, so that no accident quarantines it.
            self._queue.append(Batch(half, batch.urgent, 1 if count > 1 else 0, suspect=True))
        return []

    def put_back(self, batch: Batch) -> None:
        """The trial did not take place."""
        self._queue.appendleft(batch)

    def next(self) -> Batch | None:
        """The next batch to be tried, urgent ones first."""
        for batch in self._queue:
            if batch.urgent:
                self._queue.remove(batch)
                return batch
        return self._queue.popleft() if self._queue else None

    def remove_slide(self, slide: int) -> list[Segment]:
        """Take all patches of a slide out of the queue, and return them."""
        taken: list[Segment] = []
        kept: deque[Batch] = deque()
        for batch in self._queue:
            mine = tuple(s for s in batch.segments if s.slide == slide)
            others = tuple(s for s in batch.segments if s.slide != slide)
            taken.extend(mine)
            if others:
                kept.append(Batch(others, batch.urgent, batch.strikes, suspect=True) if mine else batch)
        self._queue = kept
        return taken
