"""From pending patches to results: which rows go into which slot, who fills it, who infers it, and what if they die."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.dispatch.board import INFERENCE, READER, Board
from pipeline.dispatch.leases import Lease
from pipeline.dispatch.records import Records
from pipeline.dispatch.schedule import Floor, Schedule
from pipeline.dispatch.slidework import SlideWork
from pipeline.dispatch.slots import READY, Batch, Segment, SlotPool
from pipeline.dispatch.suspects import Suspects
from pipeline.wire import Fill, Filled, Inferred, Run
from results.columns import NOT_A_NUMBER, unanswered

Loss = Callable[[SlideWork, str], None]


class Feed:
    """Composes batches, leases slots to readers and to inference workers, and settles their answers."""

    def __init__(self, board: Board, schedule: Schedule, records: Records, lose: Loss):
        """`lose(slide, reason)` is called for a slide that a reader can no longer read."""
        self._board = board
        self._schedule = schedule
        self._records = records
        self._lose = lose
        batch, floor = board.settings.batch, board.settings.floor
        self._floor = Floor(batch, floor)
        self.slots = SlotPool(board.settings.slots, board.settings.reserved, Floor(batch, floor))
        self.suspects = Suspects()
        self.quarantined = 0

    # ------------------------------------------------------------ leases

    def offer(self, now: float) -> None:
        """Grant fill leases, then run leases, as long as there are workers, rows and room."""
        while not (self._board.draining or self._board.hold_fills) and (urgent := self._due()) is not None:
            alone = self.suspects.waiting(urgent)
            prompt = urgent or self._floor.contended
            reader = self._board.leases.able(READER, alone, self.suspects.killed(urgent) if alone else (), prompt)
            if reader is None:
                break
            batch = self.suspects.next(urgent) if alone else self._compose(urgent, reader.name)
            self._floor.charge(urgent, batch.count)
            slot = self.slots.fill(batch)
            lease = self._board.leases.grant(reader, "fill", _Filling(batch, slot), now, alone, prompt)
            segments = [self._segment(segment) for segment in batch.segments]
            self._board.send(reader, Fill(lease.number, slot, self._delay_ms(batch), segments, prompt))
        while self._records.room and (slot := self.slots.next_ready(self.quiet)) is not None:
            next_ = self.slots.batches[slot]
            alone, prompt = next_.suspect, next_.urgent or self.slots.contended
            worker = self._board.leases.able(INFERENCE, alone, next_.killed, prompt)
            if worker is None:
                break
            batch = self.slots.run(slot)
            lease = self._board.leases.grant(worker, "run", _Running(batch, slot), now, alone, prompt)
            self._board.send(worker, Run(lease.number, slot, batch.count, prompt))

    @property
    def quiet(self) -> bool:
        """Whether inference leaves routine batches alone beyond their floor; not where urgent rows need their slots."""
        return self._board.quiet and self.slots.room(urgent=True)

    def _waiting(self, urgent: bool) -> bool:
        return self.suspects.waiting(urgent) or self._schedule.waiting(urgent)

    def _due(self) -> bool | None:
        """The class of the next batch to be read, if there is one, and a slot for it."""
        waiting = self._waiting(True)
        urgent = self._floor.due(waiting or self._board.quiet, self._waiting(False))
        if urgent is False and waiting and not self.slots.room(urgent=False):
            urgent = True  # the slots that are kept for urgent work are no use to routine
        if urgent is None or (urgent and not waiting):
            return None
        return urgent if self.slots.room(urgent) else None

    def _compose(self, urgent: bool, reader: str) -> Batch:
        """A batch of a class that has pending patches, as far as may be where this reader was before."""
        segments: list[Segment] = []

        def take(slide: SlideWork, rows: int) -> int:
            patches = slide.take(rows, reader)
            segments.append(Segment(slide.number, patches))
            return len(patches)

        self._schedule.draw(urgent, self._board.settings.batch, take, reader)
        return Batch(tuple(segments), urgent)

    def _segment(self, segment: Segment) -> list:
        slide = self._board.slides[segment.slide]
        return [slide.number, slide.read_from, slide.geometry, slide.xy[segment.patches].tobytes(), slide.source]

    def _delay_ms(self, batch: Batch) -> float:
        """How long the first row may wait. A trial of suspects is never cut short: its rows belong together."""
        settings = self._board.settings
        if batch.suspect:
            return float("inf")
        if batch.urgent:
            return settings.delay_urgent_ms
        idle = all(not worker.leases for worker in self._board.leases.of_kind(INFERENCE))
        return settings.delay_hungry_ms if idle and not self.slots.anything_ready else settings.delay_routine_ms

    @property
    def lacks_room(self) -> bool:
        """Readers have nothing to do although there are patches to be read: every slot is taken."""
        return self._due() is None and (self._waiting(True) or self._waiting(False))

    @property
    def on_trial(self) -> int:
        """Suspect batches that are being read, ready to run, or being run; `suspects` are those that wait."""
        read = sum(batch.suspect for batch, state in zip(self.slots.batches, self.slots.states) if state == READY)
        leased = (lease for worker in self._board.leases.workers.values() for lease in worker.leases.values())
        return read + sum(isinstance(lease.subject, _Filling) and lease.subject.batch.suspect for lease in leased)

    # ------------------------------------------------------------ answers

    def filled(self, lease: Lease, message: Filled, seconds: float) -> None:
        work: _Filling = lease.subject
        batch = work.batch
        count = min(max(message.count, 0), batch.count)
        head, tail = batch.split(count)
        if tail and batch.suspect:
            self._put_back(Batch(tail, batch.urgent, batch.strikes, suspect=True, killed=batch.killed))
        else:
            self._return(tail)
        failures = {row: reason for row, reason in message.failures if 0 <= row < count}
        filled = self._current(Batch(head, batch.urgent, batch.strikes, batch.suspect, failures, batch.killed))
        for segment in head:
            self._board.slides[segment.slide].spend("read", seconds * len(segment.patches) / max(1, count))
        if filled is None:
            self.slots.release(work.slot)
        elif len(failures) == count:
            self.slots.release(work.slot)
            self._settle(filled, np.full((count, self._board.settings.columns), np.nan, np.float32), failures)
        else:
            self.slots.ready(work.slot, filled)
        for number, reason in message.lost:
            slide = self._board.slides.get(number)
            if slide is not None:
                self._lose(slide, reason)

    def consumed(self, lease: Lease) -> None:
        work: _Running = lease.subject
        if work.slot is not None:
            self.slots.release(work.slot)
            work.slot = None

    def inferred(self, lease: Lease, message: Inferred, seconds: float) -> None:
        self.consumed(lease)
        batch: Batch = lease.subject.batch
        shape = (batch.count, self._board.settings.columns)
        failures = dict(batch.failures)
        failures.update((row, reason) for row, reason in message.failures if row not in failures)
        if len(message.probabilities) == 4 * shape[0] * shape[1]:
            probabilities = np.frombuffer(message.probabilities, "<f4").reshape(shape)
        else:
            probabilities = np.full(shape, np.nan, np.float32)
        # A number that is none never becomes a result, whatever the worker said of it. Where some models gave numbers, the
        # row goes on, and is a failure of the others alone (results.columns).
        for row in np.flatnonzero(unanswered(probabilities, self._board.settings.classes)):
            failures.setdefault(int(row), NOT_A_NUMBER)
        for segment in batch.segments:
            self._board.slides[segment.slide].spend("infer", seconds * len(segment.patches) / batch.count)
        self._settle(batch, probabilities, failures)

    def _settle(self, batch: Batch, probabilities: np.ndarray, failures: dict[int, str]) -> None:
        """Every row of the batch has an outcome: on to the journal, slide by slide."""
        row = 0
        for segment in batch.segments:
            slide = self._board.slides[segment.slide]
            if not failures:
                self._records.add(slide, segment.patches, probabilities[row : row + len(segment.patches)], [])
                row += len(segment.patches)
                continue
            rows = np.arange(row, row + len(segment.patches))
            good = np.array([r not in failures for r in rows], bool)
            failed = [[int(p), failures[r]] for p, r in zip(segment.patches, rows.tolist(), strict=True) if r in failures]
            self._records.add(slide, segment.patches[good], probabilities[rows[good]], failed)
            row += len(rows)

    # ------------------------------------------------------------ what goes wrong

    def worker_died(self, lease: Lease, blame: bool, cause: str) -> None:
        """A reader or inference worker died with this lease, by its work (`blame`) or killed from outside."""
        work = lease.subject
        if lease.kind == "run" and not blame and work.slot is not None:
            if (batch := self._current(work.batch)) is not None:
                self.slots.again(work.slot, batch)
            else:
                self.slots.release(work.slot)
            return
        if work.slot is not None:
            self.slots.release(work.slot)
        if blame:
            if (batch := self._cut(work.batch)) is not None:
                self._blame(batch, READER if lease.kind == "fill" else INFERENCE, lease.worker.name, cause)
        elif work.batch.suspect:
            self._put_back(work.batch)
        else:
            self._return(work.batch.segments)

    def refused(self, lease: Lease, reason: str) -> None:
        """The worker lives, but this batch is beyond it: treated as a death, so that the guilty patch is found."""
        self.worker_died(lease, blame=True, cause=reason)

    def _blame(self, batch: Batch, kind: str, worker: str, cause: str) -> None:
        for segment in self.suspects.blame(batch, kind, worker):
            deed = "reading it" if kind == READER else "inferring it"
            slide = self._board.slides[segment.slide]
            self.quarantined += len(segment.patches)
            self._records.fail(slide, segment.patches, f"quarantined: {deed} stopped the {kind} twice ({cause})")

    def _return(self, segments: tuple[Segment, ...]) -> None:
        for segment in reversed(segments):
            slide = self._board.slides[segment.slide]
            slide.give_back(segment.patches)
            if slide.has_pending:
                self._schedule.add(slide)

    def _put_back(self, batch: Batch) -> None:
        if (wanted := self._cut(batch)) is not None:
            self.suspects.put_back(wanted)

    # ------------------------------------------------------------ slides that are amended

    def amended(self) -> None:
        """Slides are of another class, or cancelled: so are the batches that wait for inference, or for a trial."""
        for slot in self.slots.ready_slots:
            self.slots.refile(slot, self._current(self.slots.batches[slot]))
        self.suspects.sift(self._cut)

    def _current(self, batch: Batch) -> Batch | None:
        """A batch in a slot as it is now: urgent where any of its slides is; None where all are cancelled.

        Rows of a cancelled slide beside others stay where they are, and are dropped in the end.
        """
        slides = self._board.slides
        wanted = [slide for s in batch.segments if not (slide := slides[s.slide]).cancelled]
        if batch.segments and not wanted:
            self._drop(batch.segments)
            return None
        return replace(batch, urgent=any(slide.urgent for slide in wanted) if wanted else batch.urgent)

    def _cut(self, batch: Batch) -> Batch | None:
        """A batch that is in no slot as it is now: without the rows of cancelled slides."""
        slides = self._board.slides
        self._drop(tuple(s for s in batch.segments if slides[s.slide].cancelled))
        wanted = tuple(s for s in batch.segments if not slides[s.slide].cancelled)
        return replace(batch, segments=wanted, urgent=any(slides[s.slide].urgent for s in wanted)) if wanted else None

    def _drop(self, segments: tuple[Segment, ...]) -> None:
        for segment in segments:
            self._board.slides[segment.slide].drop(len(segment.patches))

    @property
    def idle(self) -> bool:
        """Nothing is in any slot."""
        counts = self.slots.counts()
        return counts["free"] == len(self.slots.states)


class _Filling:
    __slots__ = ("batch", "slot")

    def __init__(self, batch: Batch, slot: int):
        self.batch = batch
        self.slot: int | None = slot


class _Running(_Filling):
    """`slot` is None once the pixels are consumed."""

    __slots__ = ()
