"""Results on their way to the journal: none is lost, none is believed to be safe too early."""

from __future__ import annotations

import numpy as np

from pipeline.dispatch.board import AGGREGATOR, Board, DispatchSettings
from pipeline.dispatch.leases import Leases, Worker
from pipeline.dispatch.records import FAILURES_PER_RECORD, Records
from pipeline.dispatch.slidework import SlideWork
from pipeline.wire import Journaled, Record

SETTINGS = DispatchSettings(
    "run", "/nowhere", 4, 3, 1, 0, False, 5.0, 200.0, 5.0, 0.1, ahead=2, window=3, classes=(2,), patience={AGGREGATOR: 9.0}
)


class Desk:
    """Records of a slide of `n` patches, all of them leased."""

    def __init__(self, n: int, boot: int = 1, aggregator: bool = True):
        self.board = Board(SETTINGS, Leases(boot))
        self.slide = SlideWork(1, "a", "/a", {})
        self.slide.begin(np.zeros((n, 2), np.int32))
        self.slide.take(n)
        self.board.slides[1] = self.slide
        self.settled: list[SlideWork] = []
        self.records = Records(self.board, self.settled.append)
        if aggregator:
            self.join()

    def join(self) -> None:
        self.board.leases.join(Worker("aggregator-0", 1, AGGREGATOR, 0, 0.0, {}))

    def add(self, *patches: int, failures: list | None = None) -> None:
        values = np.full((len(patches), 2), 0.5, np.float32)
        self.records.add(self.slide, np.array(patches, np.int32), values, failures or [])

    def sent(self) -> list[Record]:
        letters, self.board.outbox = self.board.outbox, []
        return [message for _, message in letters]


def test_a_record_is_sent_and_kept_until_it_is_on_disk() -> None:
    """Recorded when added, settled when acknowledged."""
    desk = Desk(3)
    desk.add(0, 1, failures=[[2, "bad tile"]])
    (record,) = desk.sent()
    assert np.frombuffer(record.patches, "<i4").tolist() == [0, 1] and record.failures == [[2, "bad tile"]]
    assert np.frombuffer(record.probabilities, "<f4").tolist() == [0.5] * 4
    assert (desk.slide.in_flight, desk.slide.recorded, len(desk.records)) == (0, 3, 1)
    desk.records.acknowledge(Journaled([record.record]), 1.0)
    assert (desk.slide.recorded, desk.slide.inferred, desk.slide.failed, len(desk.records)) == (0, 2, 1, 0)
    assert desk.settled == [desk.slide]


def test_an_acknowledgement_counts_once() -> None:
    """A second one, or one for a number that is not out, changes nothing."""
    desk = Desk(2)
    desk.add(0)
    (record,) = desk.sent()
    for _ in range(2):
        desk.records.acknowledge(Journaled([record.record, record.record, 77]), 1.0)
    assert desk.slide.inferred == 1 and len(desk.settled) == 1


def test_acknowledgements_of_an_earlier_boot_do_not_count() -> None:
    """The aggregator outlives the batcher, and may yet acknowledge what the dead one sent."""
    old, new = Desk(1, boot=1), Desk(1, boot=2)
    old.add(0)
    new.add(0)
    new.records.acknowledge(Journaled([record.record for record in old.sent()]), 1.0)
    assert len(new.records) == 1 and new.slide.inferred == 0


def test_without_an_aggregator_records_wait() -> None:
    """They are sent when the next one has begun the slide's journal, in order, and only that slide's."""
    desk = Desk(3, aggregator=False)
    desk.add(0)
    desk.add(1)
    assert desk.sent() == []
    desk.join()
    other = SlideWork(2, "b", "/b", {})
    desk.records.resend(other)
    assert desk.sent() == []
    desk.records.resend(desk.slide)
    numbers = [record.record for record in desk.sent()]
    assert len(numbers) == 2 and numbers == sorted(numbers)


def test_the_window_bounds_what_is_under_way() -> None:
    """No room once so many records wait for the disk."""
    desk = Desk(4)
    for patch in range(3):
        assert desk.records.room
        desk.add(patch)
    assert not desk.records.room
    desk.records.acknowledge(Journaled([desk.sent()[0].record]), 1.0)
    assert desk.records.room


def test_a_lost_slide_fails_in_pieces() -> None:
    """However many patches fail at once, a record stays small, and each patch is in one of them."""
    n = 2 * FAILURES_PER_RECORD + 5
    desk = Desk(n)
    desk.records.fail(desk.slide, np.arange(n, dtype=np.int32), "lost")
    records = desk.sent()
    assert [len(record.failures) for record in records] == [FAILURES_PER_RECORD, FAILURES_PER_RECORD, 5]
    assert [patch for record in records for patch, _ in record.failures] == list(range(n))
    assert desk.slide.recorded == n
