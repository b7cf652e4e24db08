"""Removing results by age or for room, and journals that nobody goes on with."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.rundir import PRIVATE, work_folder
from pipeline.service.config import Retention
from pipeline.service.errands import Errands
from pipeline.service.keeper import DAY_S, Keeper, _remove
from pipeline.service.ledger import Ledger
from pipeline.service.lifecycle import State
from pipeline.service.retention import remove_journals, remove_results
from results.layout import FORMATS, output_path
from tests.pipeline.service.ledgers import delivery


def results(out: Path, name: str) -> list[Path]:
    made = [out / output_path(name, kind) for kind in ("summary", *FORMATS)]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return made


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.sqlite")
    yield made
    made.close()


def finish(ledger: Ledger, name: str, at: float, **result) -> int:
    (slide,) = ledger.deliver(delivery(name), at)
    attempt = ledger.started(slide.id, at).attempts
    ledger.finished(slide.id, attempt, State.COMPLETE, {"planned": 1, **result}, at)
    return slide.id


def test_all_files_of_a_slide_go_and_those_of_others_stay(tmp_path: Path) -> None:
    """Also the folders that are empty then, but none of the results folder's own."""
    gone, kept = results(tmp_path, "ward/a"), results(tmp_path, "b")
    remove_results([tmp_path], "ward/a")
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)
    assert not (tmp_path / "slides" / "ward").exists() and (tmp_path / "slides").exists()
    remove_results([tmp_path], "ward/a")  # what is gone already is no error


def test_journals_stay_for_unfinished_slides_and_for_a_while(tmp_path: Path) -> None:
    """What is neither is removed."""
    for name, age_s in (("queued", 100.0), ("old", 100.0), ("new", 0.0)):
        folder = work_folder(tmp_path / PRIVATE, name)
        folder.mkdir(parents=True)
        (folder / "journal").write_bytes(b"x")
        then = time.time() - age_s
        for path in (folder / "journal", folder):
            os.utime(path, (then, then))
    assert remove_journals(tmp_path, {"queued"}, 50.0) == 1
    assert not work_folder(tmp_path / PRIVATE, "old").exists()
    assert remove_journals(tmp_path / "nothing", set(), 0.0) == 0


def test_by_age_and_the_ledger_knows(tmp_path: Path, ledger: Ledger) -> None:
    """Off unless configured; the slide stays complete, and is not looked at again."""
    now = 100 * DAY_S
    old, new = finish(ledger, "old", now - 31 * DAY_S), finish(ledger, "new", now - DAY_S)
    files = results(tmp_path, "old"), results(tmp_path, "new")
    errands = Errands()
    keeper = Keeper(ledger, errands)
    lanes = [SimpleNamespace(route=SimpleNamespace(name="tumour", out=str(tmp_path)))]

    def look(clock: float, **keys: float) -> list[str]:
        section = SimpleNamespace(retention=Retention(**keys))
        lines = keeper.look(section, lanes, now, clock)
        while errands.under_way:
            select.select([errands.descriptor], [], [], 1.0)
            errands.collect()
        return lines

    look(0.0)
    assert all(path.exists() for path in files[0])
    look(1000.0, days=30.0)
    assert not any(path.exists() for path in files[0]) and all(path.exists() for path in files[1])
    assert look(2000.0, days=30.0) == ["tumour: results of 1 slides were removed (service.retention)"]
    assert ledger.slide(old).state is State.COMPLETE and ledger.slide(old).result["removed"] == now
    assert ledger.with_results("tumour", now) == [ledger.slide(new)]


def test_for_room_the_oldest_go_until_there_is_enough(tmp_path: Path, ledger: Ledger) -> None:
    """Also where the slide has results of several models."""
    for number in range(4):
        finish(ledger, f"s{number}", float(number), models={"one": {}, "two": {}})
        results(tmp_path / "one", f"s{number}")
        results(tmp_path / "two", f"s{number}")
    slides = ledger.with_results("tumour", 100.0)
    room = iter([1, 2, 10])
    removed = _remove(tmp_path, [], slides, 5, lambda out: next(room))
    assert [slide.name for slide in removed] == ["s0", "s1"]
    assert not (tmp_path / "two" / output_path("s1", "csv")).exists()
    assert (tmp_path / "two" / output_path("s2", "csv")).exists()
