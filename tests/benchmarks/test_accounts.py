"""The audit of a day in fast motion sees what is lost, doubled or different, and the soak what grows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import accounts, soak
from benchmarks.arrivals import AGAIN, DAMAGED, GOOD, RUBBISH, SLOW, Arrival, content, damaged, plan
from benchmarks.kills import Sample
from pipeline.service.ledger import Ledger
from pipeline.service.lifecycle import State
from pipeline.service.reasons import Kind
from pipeline.service.records import Delivery
from pipeline.service.view import View

CSV = "minx,miny,width,height,prob_a\n0,0,64,64,0.5\n64,0,64,64,0.25\n"
CAME = [
    Arrival("a", GOOD, False, 0.0, Path("1")),
    Arrival("b", RUBBISH, False, 1.0, Path("2")),
    Arrival("copy", AGAIN, False, 2.0, Path("1")),
]


class Day:
    """What a service leaves that has done everything right: `a` complete, also known as `copy`; `b` in quarantine."""

    def __init__(self, folder: Path) -> None:
        self.out, self.temporary, self.undisturbed = (folder / name for name in ("out", "tmp", "undisturbed"))
        self.temporary.mkdir()
        for path in (self.out, self.undisturbed):
            (path / accounts.RESULTS).mkdir(parents=True)
            (path / accounts.RESULTS / "a.csv").write_text(CSV)
        (self.out / "slides").mkdir()
        (self.out / "slides" / "a.json").write_text(json.dumps({"state": "complete"}))
        self.file = folder / "ledger.sqlite"
        with Ledger(self.file) as ledger:
            ledger.add_sink("spool")
            self.deliver(ledger, "a", "one")
            self.deliver(ledger, "copy", "one")
            self.deliver(ledger, "b", "two", problem=Kind.BAD_SLIDE, reason="is no slide")
            self.complete(ledger)
            self.events = [
                {"id": told.id, "type": told.event, "data": told.body} for told in ledger.unsent("spool", 100)
            ]

    def deliver(self, ledger: Ledger, name: str, fingerprint: str, **more) -> None:
        path = f"/in/{name}.tif".encode()
        ledger.deliver(Delivery(path, "/in", name, f"{name} 1", fingerprint, 1, 1, 1.0, 1.0, ("day",), **more), 2.0)

    def complete(self, ledger: Ledger) -> None:
        slide = ledger.started(ledger.named("a")[0].id, 3.0)
        ledger.finished(slide.id, slide.attempts, State.COMPLETE, {"planned": 2, "inferred": 2, "failed": 0}, 4.0)

    def family(self) -> list:
        return []

    @contextlib.contextmanager
    def view(self) -> Iterator[View]:
        view = View.open(self.file)
        try:
            yield view
        finally:
            view.close()

    def audit(self) -> accounts.Faults:
        return accounts.audit(self, CAME, self.events, self.undisturbed)


@pytest.fixture
def day(tmp_path: Path) -> Day:
    return Day(tmp_path)


def test_where_all_is_right_nothing_is_found(day: Day) -> None:
    """Also where an event was delivered twice under its id, which a receiver has to expect."""
    day.events += day.events[-1:]
    assert day.audit().lines() == []


def test_a_missing_file_is_a_lost_slide(day: Day) -> None:
    """Whatever the ledger says."""
    (day.out / accounts.RESULTS / "a.csv").unlink()
    assert day.audit().lost == ["a: has no result"]


def test_a_slide_that_is_not_done_is_lost(day: Day) -> None:
    """As one that never came to the ledger."""
    with Ledger(day.file) as ledger:
        ledger.retry(ledger.named("a")[0].id, 5.0)
    assert day.audit().lost[0].startswith("a: good, and queued")
    lost = accounts.audit(day, [*CAME, Arrival("c", SLOW, False, 0.0, Path("3"))], day.events, day.undisturbed).lost
    assert "c: slow, and not in the ledger" in lost and "c: has no result" in lost


def test_a_slide_done_twice_is_doubled(day: Day) -> None:
    """By the ledger's history, although the files are the same."""
    with Ledger(day.file) as ledger:
        ledger.retry(ledger.named("a")[0].id, 5.0)
        day.complete(ledger)
    assert day.audit().doubled == ["a: became complete 2 times"]


def test_an_event_told_twice_or_never(day: Day) -> None:
    """With two ids it is doubled; a broken slide that nobody was told of is lost."""
    complete = next(event for event in day.events if event["type"] == "slide.complete")
    day.events = [event for event in day.events if event["type"] != "slide.quarantined"] + [{**complete, "id": 99}]
    faults = day.audit()
    assert faults.doubled == ["a: 2 events slide.complete"] and faults.lost == ["b: 0 events slide.quarantined"]


def test_another_result_and_a_patch_twice(day: Day) -> None:
    """Both are seen in the bytes of the file."""
    with (day.out / accounts.RESULTS / "a.csv").open("a") as file:
        file.write("0,0,64,64,0.5\n")
    faults = day.audit()
    assert faults.different == ["a"] and faults.doubled == ["a: 1 patches more than once"]


def test_results_under_a_second_name(day: Day) -> None:
    """Content that came twice must be one slide; results that belong to none are told."""
    (day.out / accounts.RESULTS / "copy.csv").write_text(CSV)
    with Ledger(day.file) as ledger:
        day.deliver(ledger, "copy", "three")
    doubled = day.audit().doubled
    assert "copy: a result that belongs to no slide" in doubled and "a: is also a slide of its own as copy" in doubled


def test_journals_and_files_that_are_left(day: Day) -> None:
    """Those of a partial slide are kept for another try; others must be gone."""
    for name in ("0" * 32, accounts.work_folder("", "d").name):
        (day.out / ".slidestream" / "work" / name).mkdir(parents=True)
    (day.temporary / "slidestream-x").mkdir()
    left = accounts.audit(day, [*CAME, Arrival("d", DAMAGED, False, 0.0, Path("4"))], day.events, day.undisturbed).left
    assert left == [f"a journal: {'0' * 32}", str(day.temporary / "slidestream-x")]


def test_the_plan_has_its_parts_and_is_the_same_every_time() -> None:
    """So many broken, urgent and slow ones; in order of time."""
    slides = [Path(str(number)) for number in range(200)]
    came = plan(slides, 100.0, 0.05, 0.03, 1)
    hows = [one.how for one in came]
    assert (hows.count(DAMAGED), hows.count(SLOW), hows.count(AGAIN), len(came)) == (4, 6, 4, 204)
    assert sum(one.urgent for one in came) == 6 and all(one.how == GOOD for one in came if one.urgent)
    assert came == plan(slides, 100.0, 0.05, 0.03, 1) and came == sorted(came, key=lambda one: one.at)


def test_broken_slides_are_broken_in_their_way(tmp_path: Path) -> None:
    """A damaged one differs in one JPEG stream alone; a truncated one is shorter; content is the same every time."""
    data = b"head" + b"\xff\xd8\xff" + b"a" * 50 + b"\xff\xd9" + b"\xff\xd8\xff" + b"b" * 90 + b"\xff\xd9" + b"tail"
    found = damaged(data)
    assert found == data[:59] + b"\xaa" * 95 + b"tail"
    source = tmp_path / "s"
    source.write_bytes(data * 100)
    for how in ("truncated", "rubbish"):
        one = Arrival("x", how, False, 0.0, source)
        assert content(one, 1) == content(one, 1) != source.read_bytes()


def _samples(memory: float, descriptors: float, ledger: int = 0) -> list[Sample]:
    def one(i: int) -> Sample:
        own = {kind: (1, 100 << 20, 40) for kind in ("serve", "web")}
        own["lane"] = (1, int((100 + memory * i) * (1 << 20)), int(40 + descriptors * i))
        return Sample(at=i, pss=0, own=own, segments=1, ledger=ledger, wal=0, log=0, temporary=2, kills=i)

    return [one(i) for i in range(40)]


@pytest.mark.parametrize(
    ("samples", "grown"),
    [
        (_samples(0.0, 0.0), []),
        (_samples(0.1, 0.1), []),
        (_samples(1.0, 0.0), ["lane: anonymous memory, MiB"]),
        (_samples(0.0, 1.0), ["lane: descriptors"]),
        (_samples(0.0, 0.0, 50 << 20), ["ledger, MiB"]),
    ],
)
def test_the_soak_sees_what_grows(samples: list[Sample], grown: list[str]) -> None:
    """Memory and descriptors over the calm part, the ledger by slide."""
    assert [one.what for one in soak.measures(samples, 0.0, 100) if not one.kept] == grown


def test_a_soak_that_is_too_short_says_so() -> None:
    """Nothing is called flat that was hardly looked at."""
    with pytest.raises(RuntimeError, match="too few"):
        soak.measures(_samples(0.0, 0.0)[:5], 0.0, 100)
