"""The aggregator: keeps the journal of every slide in work, and acknowledges only what is on disk.

Applying a record twice changes nothing, so the batcher may repeat itself after any crash. Results are grouped: one write
and one sync for all that came within `aggregator.flush_ms`, or up to the last result of a slide, whose files wait for it.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from pipeline import log
from pipeline.link import Link
from pipeline.rundir import work_folder
from pipeline.wire import Ask, Begin, Begun, Forget, Journaled, Known, Message, Record
from pipeline.worker import Post, main
from results.journal import PENDING, Journal, JournalError


class Aggregator:
    """The open journals, and what has been taken in but is not on disk yet."""

    def __init__(self, link: Link, private: Path, flush_s: float):
        self._link = link
        self._private = private
        self._flush_s = flush_s
        self._journals: dict[int, Journal] = {}
        self._unflushed: list[int] = []
        self._dirty: dict[int, Journal] = {}
        self._since = 0.0
        self._log = log.get_logger()

    def wait_s(self, idle_s: float) -> float:
        """How long there is time to wait for the next message."""
        return max(0.0, self._since + self._flush_s - time.monotonic()) if self._unflushed else idle_s

    def take(self, message: Message) -> None:
        match message:
            case Record():
                self._record(message)
            case Ask():
                self._ask(message)
            case Begin():
                self._begin(message)
            case Forget():
                self._forget(message)

    def _record(self, record: Record) -> None:
        journal = self._journals.get(record.slide)
        if journal is None:
            return  # it will be repeated after the Begin that is on its way
        try:
            journal.append(record.patches, record.probabilities, record.failures)
        except JournalError as error:
            self._log.error("record refused", slide=journal.header["id"], reason=str(error))
            return
        if not self._unflushed:
            self._since = time.monotonic()
        self._unflushed.append(record.record)
        self._dirty[record.slide] = journal
        if not (journal.patches.states == PENDING).any():
            self._since = -self._flush_s  # due now

    def _ask(self, ask: Ask) -> None:
        journal = self._open(ask.slide, ask.id, ask.key)
        if journal is None:
            self._link.send(Known(ask.slide, None, b""))
            return
        if ask.retry:
            journal.retry()
        journal.flush()  # what a batcher is told of must be on disk
        self._link.send(Known(ask.slide, journal.header, journal.patches.states.tobytes()))

    def _begin(self, begin: Begin) -> None:
        journal = self._open(begin.slide, begin.id, begin.header["key"])
        if journal is None:
            journal = Journal.create(work_folder(self._private, begin.id), begin.header)
            self._journals[begin.slide] = journal
        journal.flush()
        self._link.send(Begun(begin.slide))

    def _open(self, slide: int, slide_id: str, key: dict) -> Journal | None:
        journal = self._journals.get(slide)
        if journal is None:
            journal = Journal.open_or_none(work_folder(self._private, slide_id), key)
            if journal is not None:
                self._journals[slide] = journal
        return journal

    def _forget(self, forget: Forget) -> None:
        journal = self._journals.pop(forget.slide, None)
        self._dirty.pop(forget.slide, None)
        if journal is not None:
            journal.flush()
            journal.close()
        if not forget.keep:
            shutil.rmtree(work_folder(self._private, forget.id), ignore_errors=True)

    def flush_if_due(self) -> None:
        if not self._unflushed or time.monotonic() < self._since + self._flush_s:
            return
        for journal in self._dirty.values():
            journal.flush()
        self._link.send(Journaled(self._unflushed))
        self._unflushed = []
        self._dirty.clear()


def work(post: Post) -> None:
    link = post.connect(credit=0)
    private = Path(post.settings["private"])
    aggregator = Aggregator(link, private, post.config["aggregator"]["flush_ms"] / 1000)
    while True:
        message = link.receive(aggregator.wait_s(post.config["supervisor"]["beat_s"]))
        if message is not None:
            aggregator.take(message)
        aggregator.flush_if_due()


if __name__ == "__main__":
    main("aggregator", work)
