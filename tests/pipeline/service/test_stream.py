"""The slides of a lane: looked at in threads, submitted one by one, forgotten when they are done."""

from __future__ import annotations

import select
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.service.errands import Errands
from pipeline.service.lanewire import Do, LaneMessage, LaneProtocolError, Over, Told, decode, encode
from pipeline.service.stream import Stream
from pipeline.submissions import Earlier
from pipeline.wire import SlideDone, Submit
from slides.discover import Found, fingerprint

DONE = {"patches": {"planned": 5, "inferred": 5, "failed": 0}}


class Bench:
    """A stream over files of `folder`, with what it says in `said`; `complete` are the names whose results are on disk."""

    def __init__(self, folder: Path, look: Callable[[Found], Earlier] | None = None, patience_s: float = 30.0) -> None:
        self.folder, self.said = folder, []
        self.complete: set[str] = set()
        self.errands = Errands()
        self.stream = Stream(
            look or self._look, lambda name, digest: DONE if name in self.complete else None, self.said.append,
            self.errands, [folder / "out"], folder / "private", patience_s,
        )  # fmt: skip

    def _look(self, found: Found) -> Earlier:
        if not found.path.exists():
            return Earlier({"fingerprint": ""}, "does not exist")
        return Earlier({"fingerprint": fingerprint(found.path)}, complete=DONE if found.id in self.complete else None)

    def order(self, slide: int, name: str = "", urgent: bool = False, attempt: int = 1) -> Do:
        name = name or f"s{slide}"
        path = self.folder / f"{name}.tif"
        if not path.exists():
            path.write_bytes(name.encode() * 100)
        return Do(slide, attempt, name, str(path), urgent)

    def settle(self) -> None:
        """Until all threads have said what they found."""
        until = time.monotonic() + 20
        while self.errands.under_way and time.monotonic() < until:
            select.select([self.errands.descriptor], [], [], 0.1)
            self.errands.collect()

    def add(self, *orders: Do) -> None:
        for order in orders:
            self.stream.add(order)
            self.settle()

    def drain(self) -> list[Submit]:
        found = []
        while (submit := self.stream.next()) is not None:
            found.append(submit)
        return found

    def done(self, submit: Submit, state: str = "complete") -> None:
        self.stream.done(SlideDone(submit.slide, state, "", 5, 5, 0))
        self.settle()

    @property
    def over(self) -> list[Over]:
        return [message for message in self.said if isinstance(message, Over)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_urgent_ones_go_first_the_others_as_they_came(bench: Bench) -> None:
    """Each with the name that its results are to have."""
    bench.add(bench.order(1), bench.order(2), bench.order(3, urgent=True))
    assert [(submit.id, submit.urgent) for submit in bench.drain()] == [("s3", True), ("s1", False), ("s2", False)]


def test_what_is_done_is_told_and_forgotten(bench: Bench) -> None:
    """The end of an attempt with its counts; nothing of the slide stays in memory but the sums."""
    bench.add(bench.order(7))
    (submit,) = bench.drain()
    bench.done(submit)
    (over,) = bench.over
    assert (over.slide, over.attempt, over.state, over.result["inferred"]) == (7, 1, "complete", 5)
    assert bench.stream.under_way == {} and bench.stream._jobs == {} and bench.stream._numbers == {}
    assert bench.stream.tally.slides == {"complete": 1} and bench.stream.total == 1
    assert not bench.stream.finished
    bench.stream.done(SlideDone(submit.slide, "complete", "", 5, 5, 0))
    assert len(bench.over) == 1  # said twice, known once


def test_what_is_complete_on_disk_is_not_submitted(bench: Bench) -> None:
    """It is over at once, and says that it was there."""
    bench.complete.add("s1")
    bench.add(bench.order(1))
    bench.settle()
    assert bench.drain() == [] and bench.over[0].state == "complete" and bench.over[0].result["skipped"]
    assert bench.stream.tally.inferred == 0


def test_a_slide_that_changes_while_it_is_read_is_told_so(bench: Bench) -> None:
    """One that is removed meanwhile has been read to its end."""
    bench.add(bench.order(1), bench.order(2))
    first, second = bench.drain()
    (bench.folder / "s1.tif").write_bytes(b"another scan")
    (bench.folder / "s2.tif").unlink()
    bench.done(first)
    bench.done(second)
    assert [over.state for over in bench.over] == ["changed", "complete"]


def test_a_slide_that_cannot_be_read_writes_no_result(bench: Bench) -> None:
    """It may lie on a share that comes back: the reason goes to the service, which knows what follows."""
    order = bench.order(1)
    Path(order.path).unlink()
    bench.add(order)
    assert bench.drain() == [] and (bench.over[0].state, bench.over[0].reason) == ("failed", "does not exist")


def test_the_next_attempt_waits_until_the_last_is_out_of_the_batcher(bench: Bench) -> None:
    """Two attempts at one slide would write to one journal."""
    bench.add(bench.order(1))
    (first,) = bench.drain()
    bench.add(bench.order(1, attempt=2), bench.order(2))
    assert [submit.id for submit in bench.drain()] == ["s2"]
    bench.done(first, "cancelled")
    assert [submit.id for submit in bench.drain()] == ["s1"]


def test_the_same_attempt_is_not_taken_twice(bench: Bench) -> None:
    """A message that comes again changes nothing."""
    bench.add(bench.order(1), bench.order(1))
    assert len(bench.drain()) == 1


def test_cancelled_before_it_is_submitted_it_never_is(bench: Bench) -> None:
    """And it is over at once; afterwards only the batcher can stop it, so its number is given."""
    bench.add(bench.order(1), bench.order(2))
    assert bench.stream.cancel(1, 1) is None
    (second,) = bench.drain()
    assert bench.over[0].state == "cancelled"
    assert bench.stream.cancel(2, 1) == second.slide
    bench.done(second, "cancelled")
    assert bench.over[1].state == "cancelled"


def test_another_class_counts_before_and_after_it_is_submitted(bench: Bench) -> None:
    """Also for the next batcher, which is told all anew."""
    bench.add(bench.order(1), bench.order(2))
    assert bench.stream.amend(2, 1, True) is None
    assert [submit.id for submit in bench.drain()] == ["s2", "s1"]
    number = bench.stream.amend(1, 1, True)
    assert {submit.slide: submit.urgent for submit in bench.stream.again()}[number]
    assert bench.stream.amend(9, 1, True) is None


def test_a_new_batcher_is_told_what_is_under_way_and_not_complete(bench: Bench) -> None:
    """What the old one had finished without saying so is over; what was cancelled is, too."""
    bench.add(bench.order(1), bench.order(2), bench.order(3))
    bench.drain()
    bench.complete.add("s1")
    bench.stream.cancel(2, 1)
    assert [submit.id for submit in bench.stream.again()] == ["s3"]
    bench.settle()
    assert sorted((over.slide, over.state) for over in bench.over) == [(1, "complete"), (2, "cancelled")]


def test_a_share_that_hangs_holds_up_only_its_own_slide(tmp_path: Path) -> None:
    """After the patience it has failed for the time it takes; the others were done meanwhile."""
    let_go = threading.Event()

    def look(found: Found) -> Earlier:
        if found.id == "s1":
            let_go.wait(20)
        return Earlier({"fingerprint": fingerprint(found.path)})

    bench = Bench(tmp_path, look, patience_s=0.5)
    bench.stream.add(bench.order(1))
    bench.stream.add(bench.order(2))
    found: list[Submit] = []
    until = time.monotonic() + 20
    while not bench.over and time.monotonic() < until:
        bench.errands.collect()
        found += bench.drain()
        time.sleep(0.02)
    assert [submit.id for submit in found] == ["s2"]
    assert (bench.over[0].slide, bench.over[0].kind) == (1, "timeout")
    let_go.set()
    bench.settle()
    assert bench.drain() == [] and len(bench.over) == 1


def test_first_results_are_told_once(bench: Bench) -> None:
    """When patches beyond those of the journal are inferred."""
    bench.add(bench.order(1))
    (submit,) = bench.drain()
    assert bench.stream.watch([[submit.slide, "s1", 0, 0, 9]]) == [[1, 1, 0, 9]]
    assert bench.said == []
    for _ in range(2):
        assert bench.stream.watch([[submit.slide, "s1", 2, 1, 9], [99, "other", 1, 0, 9]]) == [[1, 1, 3, 9]]
    assert [message.IS for message in bench.said] == ["first"]


def test_a_complete_slide_leaves_no_journal(bench: Bench, tmp_path: Path) -> None:
    """An aggregator that was killed at the very end may have left it."""
    from pipeline.rundir import work_folder

    bench.add(bench.order(1))
    (submit,) = bench.drain()
    journal = work_folder(tmp_path / "private", "s1")
    journal.mkdir(parents=True)
    (journal / "journal").write_bytes(b"x")
    bench.done(submit)
    assert not journal.exists()
    shutil.rmtree(tmp_path / "private")


class TestLaneWire:
    """Messages between service and lane."""

    @pytest.mark.parametrize(
        "message",
        [Do(1, 2, "a\n№", "/x/ü.svs", True), Over(1, 2, "failed", "why", "crash", {"a": [1]}), Told({}, {}, [])],
    )
    def test_come_through(self, message: LaneMessage) -> None:
        """As they were sent."""
        assert decode(encode(message)) == message

    @pytest.mark.parametrize(
        "frame",
        [b"", b"{}", b"[]", b'{"is": "no"}', b'{"is": "do"}', b'{"is": []}', b"\xff", b"[" * 100_000,
         b'{"is": "cancel", "slide": 1, "attempt": "2"}', b'{"is": "cancel", "slide": true, "attempt": 2}',
         b'{"is": "cancel", "slide": 1, "attempt": 2, "more": 3}'],
    )  # fmt: skip
    def test_nonsense_is_refused(self, frame: Any) -> None:
        """Unknown kinds, missing or strange fields, wrong types."""
        with pytest.raises(LaneProtocolError):
            decode(frame)
