from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.service.config import Route, Service, WatchFolder
from pipeline.service.intake import SUBMITTED, Intake
from pipeline.service.ledger import Ledger, folder_key
from pipeline.service.lifecycle import State, Urgency
from pipeline.service.migrations import LedgerError
from pipeline.service.reasons import Kind
from pipeline.service.records import Filter, Slide
from tests.pipeline.service.folders import dicom_file, mirax, tiff

SETTLE_S = 0.4


class Bench:
    """A ledger and an intake over one folder or several, with short times."""

    def __init__(self, tmp_path: Path) -> None:
        self.shares = tmp_path / "shares"
        self.folder = self.shares / "scans"
        self.folder.mkdir(parents=True)
        self.path = tmp_path / "ledger.sqlite"
        self.ledger = Ledger(self.path)
        self.intake: Intake | None = None
        self.lines: list[str] = []

    def start(self, *folders: dict[str, Any], **more: Any) -> None:
        watch = tuple(
            WatchFolder(
                **{
                    "path": str(self.folder),
                    "routes": ("r",),
                    "poll_s": 0.05,
                    "settle_s": SETTLE_S,
                    "series_settle_s": 2 * SETTLE_S,
                    **folder,
                }
            )
            for folder in folders or ({},)
        )
        route = Route(name="r", out="/results")
        self.intake = Intake(Service(watch=watch, routes=(route,), **{"give_up_s": 1.5, **more}), self.ledger)

    def stop(self) -> None:
        if self.intake is not None:
            self.intake.close()
            self.intake = None

    def poll(self) -> None:
        self.lines += self.intake.poll(time.time(), time.monotonic())

    def until(self, met: Callable[[], Any], within_s: float = 20.0) -> Any:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            self.poll()
            if result := met():
                return result
            time.sleep(0.02)
        raise AssertionError(f"not met within {within_s} s: {self.slides()} {self.ledger.arrivals()} {self.lines}")

    def for_a_while(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.poll()
            time.sleep(0.02)

    def trials(self) -> list[tuple[bytes, float]]:
        """The trials from now on, as they are started: path and monotonic time."""
        started: list[tuple[bytes, float]] = []
        start = self.intake._trials.start
        self.intake._trials.start = lambda path, now: (started.append((path, now)), start(path, now))
        return started

    def slides(self) -> dict[str, Slide]:
        return {slide.name: slide for slide in self.ledger.rows(Filter(), 1000)}

    def count(self, number: int) -> Callable[[], bool]:
        return lambda: len(self.slides()) == number


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.stop()
    made.ledger.close()


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small slide."""
    return tiff(tmp_path_factory.mktemp("slide") / "a.tif").read_bytes()


def other(slide: bytes, number: int) -> bytes:
    """Another slide of the same pixels: bytes behind the end of a TIFF are nobody's."""
    return slide + b"%d" % number


def test_a_slide_is_taken_when_it_is_at_rest(bench: Bench, slide: bytes) -> None:
    """With its class, deadline, times and name."""
    bench.start({"urgency": "stat"})
    (bench.folder / "case 1").mkdir()
    began = time.time()
    (bench.folder / "case 1" / "S1.tif").write_bytes(slide)
    bench.until(bench.count(1))
    taken = bench.slides()["case 1/S1"]
    assert (taken.state, taken.urgency, taken.route) == (State.QUEUED, Urgency.STAT, "r")
    assert taken.delivered - taken.seen >= SETTLE_S
    assert began + 60 - 0.1 <= taken.deadline <= taken.delivered + 60 - SETTLE_S + 0.1
    assert bench.ledger.arrivals() == []


def test_a_slide_that_grows_is_waited_for(bench: Bench, slide: bytes) -> None:
    """Written in pieces with pauses shorter than the time of rest, it is taken once, whole."""
    bench.start()
    step = len(slide) // 8 + 1
    with open(bench.folder / "S1.tif", "wb", buffering=0) as file:
        for start in range(0, len(slide), step):
            file.write(slide[start : start + step])
            bench.for_a_while(SETTLE_S / 2)
            assert bench.slides() == {}
    assert [arrival.path for arrival in bench.ledger.arrivals()] == [os.fsencode(bench.folder / "S1.tif")]
    bench.until(bench.count(1))
    assert bench.slides()["S1"].bytes == len(slide)
    assert len(bench.ledger.history(1)) == 1


def test_a_slide_that_pauses_for_long_is_not_taken_before_it_is_whole(bench: Bench, slide: bytes) -> None:
    """At rest, but cut short: it waits with the format's own reason, and is taken when the rest has come."""
    bench.start({}, give_up_s=60.0)
    (bench.folder / "S1.tif").write_bytes(slide[:-200])
    arrival = bench.until(lambda: [a for a in bench.ledger.arrivals() if "past the end" in a.reason])[0]
    assert arrival.bytes == len(slide) - 200
    (bench.folder / "S1.tif").write_bytes(slide)
    bench.until(bench.count(1))
    assert bench.slides()["S1"].state is State.QUEUED


def test_a_slide_that_never_becomes_whole_is_quarantined(bench: Bench, slide: bytes) -> None:
    """After the time that was given to it; delivered again whole, it is another slide, and queued."""
    bench.start()
    (bench.folder / "S1.tif").write_bytes(slide[:-200])
    bench.until(bench.count(1))
    broken = bench.slides()["S1"]
    assert (broken.state, broken.kind) == (State.QUARANTINED, Kind.INCOMPLETE)
    (bench.folder / "S1.tif").write_bytes(slide)
    bench.until(bench.count(2))
    assert [s.state for n, s in bench.slides().items() if n.startswith("S1~")] == [State.QUEUED]


def test_rsync_copies_are_taken_by_their_last_name(bench: Bench, slide: bytes) -> None:
    """Written under a hidden temporary name, then renamed."""
    bench.start()
    with open(bench.folder / ".S1.tif.Ab3dEf", "wb") as file:
        file.write(slide)
        bench.for_a_while(2 * SETTLE_S)
    assert bench.slides() == {} and bench.ledger.arrivals() == []
    (bench.folder / ".S1.tif.Ab3dEf").rename(bench.folder / "S1.tif")
    bench.until(bench.count(1))
    assert list(bench.slides()) == ["S1"]


def test_the_same_slide_twice_is_one(bench: Bench, slide: bytes) -> None:
    """In another folder and under another name, at the same time or later."""
    more = bench.shares / "more"
    more.mkdir()
    bench.start({}, {"path": str(more), "urgency": "stat"})
    (bench.folder / "S1.tif").write_bytes(slide)
    bench.until(bench.count(1))
    (more / "T1.svs").write_bytes(slide)
    bench.until(lambda: len(bench.ledger.names(1)) == 2)
    assert len(bench.slides()) == 1
    assert bench.slides()["S1"].urgency is Urgency.STAT


def test_a_rename_is_followed_and_a_delete_noticed(bench: Bench, slide: bytes) -> None:
    """Without another trial; what is deleted before its turn goes into quarantine."""
    bench.start()
    path = bench.folder / "S1.tif"
    path.write_bytes(slide)
    bench.until(bench.count(1))
    path = path.rename(bench.folder / "S2.tif")
    bench.until(lambda: bench.ledger.slide(1).path == os.fsencode(path))
    assert list(bench.slides()) == ["S1"]
    path.unlink()
    bench.until(lambda: bench.ledger.slide(1).state is State.QUARANTINED)
    assert bench.ledger.slide(1).kind is Kind.VANISHED


def test_deletes_and_renames_in_the_middle_of_all_leave_what_is_there(bench: Bench, slide: bytes) -> None:
    """A hundred random writes, renames and deletes by another thread; in the end every file that is there, and no other,
    has a slide that can be read by that name."""
    bench.start()
    chance = random.Random(5)

    def disturb() -> None:
        for number in range(100):
            files = sorted(bench.folder.glob("*.tif"))
            action = chance.random()
            if action < 0.5 or not files:
                name = chance.choice("abcdefgh")
                (bench.folder / f"{name}.tif").write_bytes(other(slide, number))
            elif action < 0.75:
                chance.choice(files).rename(bench.folder / f"{chance.choice('abcdefgh')}.tif")
            else:
                chance.choice(files).unlink()
            time.sleep(chance.random() * 0.1)

    thread = threading.Thread(target=disturb)
    thread.start()
    while thread.is_alive():
        bench.poll()
        time.sleep(0.02)

    def settled() -> bool:
        there = {os.fsencode(path) for path in bench.folder.glob("*.tif")}
        return set(bench.ledger.there(str(bench.folder))) == there and not bench.ledger.arrivals()

    bench.until(settled)
    for path in bench.folder.glob("*.tif"):
        slides = [s for s in bench.slides().values() if s.path == os.fsencode(path) and s.state is State.QUEUED]
        assert [s.bytes for s in slides] == [path.stat().st_size]
    queued = [s for s in bench.slides().values() if s.state is State.QUEUED]
    assert len(queued) == len(list(bench.folder.glob("*.tif")))


def test_odd_names_are_taken_or_told(bench: Bench, slide: bytes) -> None:
    """Spaces, newlines, both forms of Unicode, the longest names and two that differ by case become slides with names
    of their own; a name that is not UTF-8 goes into quarantine until it is renamed."""
    bench.start()
    root = os.fsencode(bench.folder)
    good = [b"a b\n c.tif", "é.tif".encode(), "e\u0301.tif".encode(), b"x" * 251 + b".tif", b"s.tif", b"S.TIF"]
    for number, name in enumerate([*good, b"\xff.tif"]):
        with open(root + b"/" + name, "wb") as file:
            file.write(other(slide, number))
    bench.until(bench.count(7))
    bad = [s for s in bench.slides().values() if s.state is not State.QUEUED]
    assert [(s.name, s.kind) for s in bad] == [("\\xff", Kind.BAD_NAME)]
    keys = {name.casefold() for name in bench.slides()}
    assert len(keys) == 7
    assert all(len(name.encode()) <= 220 for name in bench.slides())
    os.rename(root + b"/\xff.tif", root + b"/ok.tif")
    bench.until(lambda: all(s.state is State.QUEUED for s in bench.slides().values()))
    assert len(bench.slides()) == 7


def test_what_was_taken_before_a_restart_is_not_tried_again(bench: Bench, slide: bytes) -> None:
    """What came, changed or went meanwhile is noticed; arrivals keep the time when they were first seen."""
    bench.start()
    for name in ("kept", "changed", "gone"):
        (bench.folder / f"{name}.tif").write_bytes(slide + name.encode())
    bench.until(bench.count(3))
    (bench.folder / "cut.tif").write_bytes(slide[:-200])
    first = bench.until(bench.ledger.arrivals)[0].seen
    bench.stop()
    (bench.folder / "gone.tif").unlink()
    (bench.folder / "changed.tif").write_bytes(slide + b"now")
    (bench.folder / "new.tif").write_bytes(slide + b"new")
    bench.start({}, give_up_s=60.0)
    trials = bench.trials()
    bench.until(bench.count(5))
    bench.until(lambda: bench.ledger.named("gone")[0].state is State.QUARANTINED)
    assert {os.path.basename(path) for path, _ in trials} <= {b"changed.tif", b"new.tif", b"cut.tif"}
    assert bench.ledger.arrivals()[0].seen == first


def test_a_share_that_goes_away_holds_its_slides_only(bench: Bench, slide: bytes) -> None:
    """With an event each way; nothing is taken for deleted, and all goes on by itself."""
    more = bench.shares / "more"
    more.mkdir()
    bench.start({}, {"path": str(more)})
    (bench.folder / "S1.tif").write_bytes(slide)
    bench.until(bench.count(1))
    away = bench.folder.rename(bench.shares / "away")
    bench.until(bench.ledger.holds)
    assert [hold.key for hold in bench.ledger.holds()] == [folder_key(str(bench.folder))]
    assert bench.ledger.next_due(time.time()) == []
    (more / "S2.tif").write_bytes(other(slide, 2))
    bench.until(lambda: [s.name for s in bench.ledger.next_due(time.time())] == ["S2"])
    away.rename(bench.folder)
    bench.until(lambda: len(bench.ledger.next_due(time.time(), 9)) == 2)
    assert bench.ledger.slide(1).state is State.QUEUED
    told = [event.event for event in bench.ledger.unsent("x")]
    assert (told.count("intake.held"), told.count("intake.released")) == (1, 1)
    assert len(bench.lines) == 2


def test_an_unmounted_share_that_looks_empty_after_a_start_is_gone(bench: Bench, slide: bytes) -> None:
    """Its slides are not taken for deleted."""
    bench.start()
    (bench.folder / "S1.tif").write_bytes(slide)
    bench.until(bench.count(1))
    bench.stop()
    away = bench.folder.rename(bench.shares / "away")
    bench.folder.mkdir()
    bench.start()
    bench.until(bench.ledger.holds)
    assert bench.ledger.slide(1).state is State.QUEUED
    bench.folder.rmdir()
    away.rename(bench.folder)
    bench.until(lambda: not bench.ledger.holds())
    assert [s.name for s in bench.ledger.next_due(time.time())] == ["S1"]


def test_a_series_waits_for_its_last_file(bench: Bench) -> None:
    """Its time of rest is that of all files."""
    bench.start({}, give_up_s=60.0)
    trials = bench.trials()
    dicom_file(bench.folder / "a.dcm", "1.2", b"first.")
    bench.for_a_while(SETTLE_S)
    last = time.monotonic()
    dicom_file(bench.folder / "b.dcm", "1.2", b"second")
    bench.until(lambda: trials)
    assert trials[0][0] == os.fsencode(bench.folder / "a.dcm")
    assert trials[0][1] - last >= 2 * SETTLE_S


def test_what_is_missing_of_a_slide_is_told(bench: Bench) -> None:
    """While there is time for it to come."""
    bench.start({}, give_up_s=60.0)
    files = mirax(bench.folder / "m.mrxs")
    files[-1].unlink()
    bench.until(lambda: [a for a in bench.ledger.arrivals() if "'Data0001.dat' is missing" in a.reason])
    assert bench.slides() == {}


def test_stat_comes_by_pattern_or_sidecar(bench: Bench, slide: bytes) -> None:
    """A sidecar that comes later makes the slide stat without doing it again."""
    bench.start({"stat_patterns": ("*frozen*",)})
    (bench.folder / "Frozen 7.tif").write_bytes(slide)
    (bench.folder / "S1.tif").write_bytes(other(slide, 1))
    bench.until(bench.count(2))
    assert {name: s.urgency for name, s in bench.slides().items()} == {"Frozen 7": "stat", "S1": "routine"}
    (bench.folder / "S1.tif.stat").touch()
    bench.until(lambda: bench.slides()["S1"].urgency is Urgency.STAT)
    assert len(bench.slides()) == 2


def test_a_submitted_slide_is_tried_at_once(bench: Bench, slide: bytes) -> None:
    """And delivered whatever comes of it."""
    bench.start()
    outside = bench.shares / "outside.tif"
    outside.write_bytes(slide)
    (bench.shares / "bad.tif").write_bytes(slide[:100])
    bench.intake.submit(os.fsencode(outside), ("r",), Urgency.STAT, "outside", time.monotonic())
    bench.intake.submit(os.fsencode(bench.shares / "bad.tif"), ("r",), Urgency.STAT, "bad", time.monotonic())
    bench.until(bench.count(2))
    assert bench.slides()["outside"].state is State.QUEUED
    assert bench.slides()["bad"].state is State.QUARANTINED
    assert bench.ledger.names(1)[0].folder == SUBMITTED


def test_a_ledger_that_cannot_be_written_loses_no_slide(
    bench: Bench, slide: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was being noted or delivered when its disk was full is noted and delivered later."""
    bench.start()
    failing = {"on": True}
    for name in ("waiting", "deliver"):
        whole = getattr(Ledger, name)

        def part(self: Ledger, *values: Any, whole: Callable = whole) -> Any:
            if failing["on"]:
                raise LedgerError("the disk is full")
            return whole(self, *values)

        monkeypatch.setattr(Ledger, name, part)
    (bench.folder / "S1.tif").write_bytes(slide)
    errors = 0
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            bench.poll()
        except LedgerError:
            errors += 1
        time.sleep(0.02)
        failing["on"] = time.monotonic() < end - 2 or (1.0 < end - time.monotonic() < 1.5)
    failing["on"] = False
    assert errors
    bench.until(bench.count(1))


def test_nothing_in_a_watched_folder_is_changed(bench: Bench, slide: bytes) -> None:
    """Contents, names and times are as they were, also of what was refused."""
    (bench.folder / "S1.tif").write_bytes(slide)
    (bench.folder / "cut.tif").write_bytes(slide[:-200])
    (bench.folder / "text.svs").write_text("no slide")
    mirax(bench.folder / "m.mrxs")

    def state() -> list[tuple[str, int, bytes]]:
        return [
            (str(p), p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
            for p in sorted(bench.folder.rglob("*"))
        ]

    before = state()
    bench.start()
    bench.until(bench.count(4))
    assert state() == before
    shutil.rmtree(bench.folder)
