"""The life of a slide in the batcher: asked for, opened, masked, planned, read, written, done."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from pipeline.dispatch.board import READER, TISSUE, WRITER, Board
from pipeline.dispatch.leases import Lease, Worker
from pipeline.dispatch.records import Records
from pipeline.dispatch.schedule import Schedule
from pipeline.dispatch.slidework import SlideState, SlideWork
from pipeline.dispatch.suspects import DEATHS_ALLOWED
from pipeline.rundir import work_folder
from pipeline.wire import (
    Amend,
    Ask,
    Begin,
    Begun,
    Forget,
    Known,
    Mask,
    Open,
    Opened,
    Planned,
    SlideDone,
    Submit,
    Write,
    Written,
)
from slides.geometry import Geometry
from slides.plan import Plan

_REMEMBERED = 256  # slides that are done

_KIND_OF = {"open": READER, "mask": TISSUE, "write": WRITER}


class Intake:
    """Moves slides from state to state; hands out the leases that concern a slide as a whole."""

    def __init__(self, board: Board, schedule: Schedule):
        self._board = board
        self._schedule = schedule
        self._free_overviews = list(range(board.settings.overview_slots))
        self._records: Records | None = None
        self._write_owed = False  # an urgent slide is done: routine ones may write once before the next
        # An aggregator that died may not have heard them. Bounded: what falls out, the end of the run sweeps.
        self._forgotten: OrderedDict[str, Forget] = OrderedDict()

    def use(self, records: Records) -> None:
        """Records and intake know each other: results settle slides, and lost slides make records."""
        self._records = records

    # ------------------------------------------------------------ in

    def submit(self, message: Submit) -> None:
        if message.slide in self._board.slides:
            return
        m = message
        slide = SlideWork(m.slide, m.id, m.path, m.key, m.urgent, m.retry, m.problem, place=m.place)
        self._board.slides[slide.number] = slide
        self._forgotten.pop(slide.id, None)
        if slide.problem:
            slide.state = SlideState.WRITING
        else:
            self._ask(slide)

    def _ask(self, slide: SlideWork) -> None:
        aggregator = self._board.aggregator()
        if aggregator is not None:
            self._board.send(aggregator, Ask(slide.number, slide.id, slide.key, slide.retry))

    def aggregator_joined(self) -> None:
        """A new aggregator knows nothing: ask again, and open the journals of all slides in work."""
        aggregator = self._board.aggregator()
        for forget in self._forgotten.values():
            self._board.send(aggregator, forget)
        for slide in self._board.slides.values():
            if slide.state is SlideState.ASKING:
                self._ask(slide)
            elif slide.state in (SlideState.BEGINNING, SlideState.READING):
                self._begin(slide)

    def known(self, message: Known) -> None:
        slide = self._board.slides.get(message.slide)
        if slide is None or slide.state is not SlideState.ASKING:
            return
        if message.header is None:
            slide.state = SlideState.WAITING
        else:
            self._start(slide, message.header, np.frombuffer(message.states, np.uint8))

    def amend(self, message: Amend) -> bool:
        """Another class, or the end, of a slide; False where that changes nothing. A slide that is done is left alone."""
        slide = self._board.slides.get(message.slide)
        if slide is None or slide.cancelled or not (message.cancel or message.urgent != slide.urgent):
            return False
        self._schedule.move(slide, message.urgent)
        if message.cancel and slide.state is SlideState.WRITING and self._leased(slide, "write"):
            slide.unwanted = True
        elif message.cancel:
            self._cancel(slide)
        return True

    def _cancel(self, slide: SlideWork) -> None:
        self._schedule.remove(slide)
        self._records.forget(slide)
        slide.cancel()

    # ------------------------------------------------------------ leases

    def offer(self, now: float) -> None:
        """Grant what can be granted: opening (as far ahead as configured), masking, writing. End what is cancelled."""
        slides = self._board.slides.values()
        for slide in [s for s in slides if s.cancelled and not s.in_flight]:
            if not any(self._leased(slide, kind) for kind in _KIND_OF):
                self._free_overview(slide)
                self._finish(slide, "cancelled", "", slide.planned, slide.inferred, slide.failed)
        ended = [s for s in slides if s.state is SlideState.WRITING and not self._leased(s, "write")]
        for slide in sorted(ended, key=lambda s: not s.urgent):
            writer = self._board.leases.able(WRITER, idle=slide.strikes > 0)
            if writer is None:
                break
            if not slide.urgent and self._last_writer_is_kept():
                if not self._write_owed:
                    break
                self._write_owed = False
            self._grant(writer, "write", slide, now)
        if self._board.draining:
            return
        for slide in [s for s in slides if s.state is SlideState.MASKING and not self._leased(s, "mask")]:
            worker = self._board.leases.able(TISSUE, idle=slide.strikes > 0)
            if worker is None:
                break
            self._grant(worker, "mask", slide, now)
        self._board.hold_fills = False
        waiting = [s for s in slides if s.state is SlideState.WAITING]
        for slide in sorted(waiting, key=lambda s: not s.urgent):  # stable: in the order of submission
            if not self._may_open(slide):
                break
            reader = self._board.leases.able(READER, idle=slide.strikes > 0, prompt=slide.urgent)
            if reader is None:
                self._board.hold_fills = slide.strikes > 0
                break
            slide.state = SlideState.OPENING
            slide.overview_slot = self._free_overviews.pop()
            self._grant(reader, "open", slide, now)

    def _may_open(self, slide: SlideWork) -> bool:
        """Whether there is a place for its overview, and it is time. The last place of several is kept for urgent slides."""
        if slide.urgent:
            return bool(self._free_overviews)
        settings = self._board.settings
        kept = settings.reserved > 0 and settings.overview_slots > 2
        if len(self._free_overviews) <= kept or self._prepared() >= settings.ahead:
            return False
        return not (self._board.quiet and self._schedule.waiting(False))  # with nothing to read, it would lose its floor

    def _last_writer_is_kept(self) -> bool:
        """For an urgent slide that is being read: a large slide's files may take longer than all of that one."""
        if self._board.draining:
            return False
        reading = (SlideState.BEGINNING, SlideState.READING)
        urgent = any(s.urgent and s.state in reading for s in self._board.slides.values())
        return urgent and sum(worker.room > 0 for worker in self._board.leases.of_kind(WRITER)) < 2

    def _prepared(self) -> int:
        """Slides of which nothing has been read yet, but can be, or soon can."""
        preparing = (SlideState.OPENING, SlideState.MASKING, SlideState.BEGINNING)
        slides = self._board.slides.values()
        return sum(1 for s in slides if s.state in preparing or (s.has_pending and not s.touched))

    def _leased(self, slide: SlideWork, kind: str) -> bool:
        return any(
            lease.kind == kind and lease.subject is slide
            for worker in self._board.leases.of_kind(_KIND_OF[kind])
            for lease in worker.leases.values()
        )

    def _grant(self, worker: Worker, kind: str, slide: SlideWork, now: float) -> None:
        prompt = slide.urgent and kind == "open"
        number = self._board.leases.grant(worker, kind, slide, now, slide.strikes > 0, prompt).number
        message: Any
        if kind == "open":
            message = Open(number, slide.number, slide.read_from, slide.overview_slot, prompt)
        elif kind == "mask":
            width, height = slide.header["overview"]
            folder = str(work_folder(self._board.settings.folder, slide.id))
            message = Mask(number, slide.number, slide.overview_slot, width, height, slide.info, slide.geometry, folder)
        else:
            seconds = {stage: round(value, 4) for stage, value in slide.seconds.items()}
            message = Write(
                number, slide.number, slide.id, slide.path, slide.key, self._board.engine, seconds, slide.problem
            )
        self._board.send(worker, message)

    # ------------------------------------------------------------ answers

    def opened(self, slide: SlideWork, message: Opened, seconds: float) -> None:
        if slide.cancelled:
            return
        slide.spend("open", seconds)
        slide.strikes = 0
        slide.info, slide.geometry = {**message.info, "path": slide.path}, message.geometry
        slide.source = message.source
        slide.header = {"overview": [message.width, message.height]}
        slide.state = SlideState.MASKING

    def planned(self, slide: SlideWork, message: Planned, seconds: float) -> None:
        if slide.cancelled:
            return
        slide.spend("mask", seconds)
        slide.strikes = 0
        self._free_overview(slide)
        slide.header = {
            "id": slide.id,
            "path": slide.path,
            "key": slide.key,
            "classes": self._board.settings.columns,
            "info": slide.info,
            "geometry": slide.geometry,
            "tissue": message.tissue,
            "plan": message.plan,
        }
        slide.state = SlideState.BEGINNING
        self._begin(slide)

    def _begin(self, slide: SlideWork) -> None:
        aggregator = self._board.aggregator()
        if aggregator is not None:
            self._board.send(aggregator, Begin(slide.number, slide.id, slide.header))

    def begun(self, message: Begun) -> None:
        slide = self._board.slides.get(message.slide)
        if slide is None:
            return
        if slide.state is SlideState.BEGINNING:
            self._start(slide, slide.header, None)
        elif slide.state is SlideState.READING:
            self._records.resend(slide)

    def _start(self, slide: SlideWork, header: dict, states: np.ndarray | None) -> None:
        """The slide is planned and has a journal: its patches may be read."""
        plan = Plan.from_bytes(header["plan"])
        geometry = Geometry.from_dict(header["geometry"])
        slide.header, slide.info, slide.geometry = header, header["info"], header["geometry"]
        slide.begin(geometry.xy(plan.columns, plan.rows).astype("<i4"), states)
        if slide.has_pending:
            self._schedule.add(slide)
        self.settled(slide)

    def settled(self, slide: SlideWork) -> None:
        """Something of the slide is on disk; perhaps it was the last of it."""
        if slide.state is SlideState.READING and slide.settled:
            slide.state = SlideState.WRITING
            self._schedule.remove(slide)

    def written(self, slide: SlideWork, message: Written) -> None:
        self._finish(slide, message.state, message.reason, message.planned, message.inferred, message.failed)

    def _finish(self, slide: SlideWork, state: str, reason: str, planned: int, inferred: int, failed: int) -> None:
        slide.state = SlideState.DONE
        self._write_owed = self._write_owed or slide.urgent
        del self._board.slides[slide.number]
        self._board.tell_supervisor(SlideDone(slide.number, state, reason, planned, inferred, failed))
        # A journal that nobody may ever go on with would lie there for ever: of a cancelled slide, none is left.
        keep = state not in ("complete", "cancelled")
        forget = self._forgotten[slide.id] = Forget(slide.number, slide.id, keep)
        if len(self._forgotten) > _REMEMBERED:
            self._forgotten.popitem(last=False)
        aggregator = self._board.aggregator()
        if aggregator is not None:
            self._board.send(aggregator, forget)

    # ------------------------------------------------------------ what goes wrong

    def refused(self, lease: Lease, reason: str) -> None:
        """The worker says that the slide cannot be opened, masked or written."""
        slide: SlideWork = lease.subject
        if slide.cancelled:
            return
        if slide.unwanted:
            self._cancel(slide)
        elif lease.kind == "write":
            self._finish(slide, "failed", reason, slide.planned, slide.inferred, slide.failed)
        else:
            self._give_up(slide, reason)

    def worker_died(self, lease: Lease, blame: bool, cause: str) -> None:
        """A worker died with a lease on this slide. From then on it is tried alone, and two deaths of that end it."""
        slide: SlideWork = lease.subject
        if slide.cancelled:
            return
        if slide.unwanted:
            self._cancel(slide)
            return
        if lease.kind == "open":
            slide.state = SlideState.WAITING
            self._free_overview(slide)
        if not blame:
            return
        slide.strikes += 1
        if slide.strikes > DEATHS_ALLOWED:
            deed = {"open": "opening it", "mask": "masking it", "write": "writing its results"}[lease.kind]
            self.refused(lease, f"{deed} killed the {_KIND_OF[lease.kind]} twice ({cause})")

    def lose(self, slide: SlideWork, reason: str) -> None:
        """The slide is beyond reading: what is still pending of it fails."""
        if slide.state is SlideState.READING:
            while slide.has_pending:
                self._records.fail(slide, slide.take(slide.pending), reason)

    def _give_up(self, slide: SlideWork, reason: str) -> None:
        self._free_overview(slide)
        slide.problem = reason
        slide.strikes = 0
        slide.state = SlideState.WRITING

    def _free_overview(self, slide: SlideWork) -> None:
        if slide.overview_slot is not None:
            self._free_overviews.append(slide.overview_slot)
            slide.overview_slot = None
