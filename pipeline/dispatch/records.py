"""Results on their way to the journal: kept until the aggregator says that they are on disk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.dispatch.board import Board
from pipeline.dispatch.leases import BOOT_SHIFT
from pipeline.dispatch.slidework import SlideWork
from pipeline.wire import Journaled, Record

FAILURES_PER_RECORD = 2048


class Records:
    """Unacknowledged records, in order. A record sent twice does no harm: the journal's bitmap sees to that."""

    def __init__(self, board: Board, settled: Callable[[SlideWork], None]):
        """`settled(slide)` is called whenever the journal has acknowledged something of a slide."""
        self._board = board
        self._settled = settled
        # As with leases, a boot's numbers are its own: the aggregator may yet acknowledge records of a dead batcher.
        self._next = (board.leases.boot << BOOT_SHIFT) + 1
        self._unacknowledged: dict[int, Record] = {}
        self.settled_patches = 0
        self.first_at: float | None = None  # when the first result was safe

    def __len__(self) -> int:
        return len(self._unacknowledged)

    @property
    def room(self) -> bool:
        return len(self._unacknowledged) < self._board.settings.window

    def add(self, slide: SlideWork, patches: np.ndarray, probabilities: np.ndarray, failures: list) -> None:
        """`patches` int32 (n,), `probabilities` float32 (n, classes), `failures` [[patch, reason], ...]; all were leased."""
        if slide.cancelled:
            slide.drop(len(patches) + len(failures))
            return
        slide.record(len(patches) + len(failures))
        record = Record(
            self._next,
            slide.number,
            patches.astype("<i4", copy=False).tobytes(),
            probabilities.astype("<f4", copy=False).tobytes(),
            failures,
        )
        self._next += 1
        self._unacknowledged[record.record] = record
        aggregator = self._board.aggregator()
        if aggregator is not None:
            self._board.send(aggregator, record)

    def fail(self, slide: SlideWork, patches: np.ndarray, reason: str) -> None:
        """All these leased patches failed, for one reason."""
        nothing = np.empty(0, np.float32)
        for start in range(0, len(patches), FAILURES_PER_RECORD):
            part = patches[start : start + FAILURES_PER_RECORD]
            self.add(slide, part[:0], nothing, [[int(patch), reason] for patch in part])

    def forget(self, slide: SlideWork) -> None:
        """The slide is cancelled: whether its records come to disk is nobody's concern."""
        for number in [number for number, record in self._unacknowledged.items() if record.slide == slide.number]:
            del self._unacknowledged[number]

    def resend(self, slide: SlideWork) -> None:
        """The aggregator is a new one that has just opened the slide's journal."""
        aggregator = self._board.aggregator()
        for record in self._unacknowledged.values():
            if record.slide == slide.number and aggregator is not None:
                self._board.send(aggregator, record)

    def acknowledge(self, message: Journaled, now: float) -> None:
        for number in message.records:
            record = self._unacknowledged.pop(number, None)
            if record is None:
                continue
            inferred, failed = len(record.patches) // 4, len(record.failures)
            self.settled_patches += inferred + failed
            if self.first_at is None and inferred:
                self.first_at = now
            slide = self._board.slides.get(record.slide)
            if slide is not None:
                slide.settle(inferred, failed)
                self._settled(slide)
