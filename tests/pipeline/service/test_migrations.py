from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pipeline.service import migrations
from pipeline.service.ledger import Ledger
from pipeline.service.lifecycle import State
from pipeline.service.migrations import VERSION, LedgerError
from pipeline.service.view import View

FIXTURE = Path(__file__).parent / "ledger-version-1.sql"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(FIXTURE.read_text())
    connection.close()
    return path


def schema(path: Path) -> list[tuple]:
    connection = sqlite3.connect(path)
    tables = sorted(row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'"))
    columns = [
        (table, *row[1:]) for table in tables for row in sorted(connection.execute(f"PRAGMA table_info({table})"))
    ]
    indexes = sorted(row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index'"))
    connection.close()
    return [(table, *rest[1:]) for table, *rest in sorted(columns, key=str)] + [(name,) for name in indexes]


def test_a_ledger_of_version_1_goes_on(old: Path) -> None:
    """With all its slides, names, history and events; work continues where it was."""
    with Ledger(old) as ledger:
        done, waiting = ledger.slide(1), ledger.slide(2)
        assert (done.state, done.result, done.path, done.interruptions) == (
            State.COMPLETE, {"planned": 10}, b"/s/a.svs", 0,
        )  # fmt: skip
        assert [slide.id for slide in ledger.next_due(15.0)] == [waiting.id]
        assert [event.event for event in ledger.unsent("spool")] == ["slide.complete"]
        assert len(ledger.history(1)) == 1
        assert ledger.started(2, 15.0).attempts == 2


def test_a_migrated_ledger_has_the_tables_of_a_new_one(old: Path, tmp_path: Path) -> None:
    """Column by column and index by index."""
    Ledger(old).close()
    Ledger(tmp_path / "new").close()
    assert schema(old) == schema(tmp_path / "new")


def test_the_earlier_version_is_kept_as_a_copy(old: Path) -> None:
    """Whole, so that one can go back."""
    Ledger(old).close()
    copy = sqlite3.connect(old.with_name("ledger.sqlite.version-1"))
    assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    assert copy.execute("SELECT count(*) FROM slides").fetchone() == (2,)
    copy.close()


def test_a_step_that_fails_leaves_the_version_before(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the step is taken back; the next start tries again."""
    broken = (migrations.STEPS[0], "CREATE TABLE half (a) STRICT;", *migrations.STEPS[2:])
    monkeypatch.setattr(migrations, "STEPS", broken)
    with pytest.raises(LedgerError, match="cannot be brought to version 2"):
        Ledger(old)
    connection = sqlite3.connect(old)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone() == (0,)
    connection.close()
    monkeypatch.undo()
    Ledger(old).close()


def test_a_reader_of_an_earlier_version_is_told_to_wait(old: Path) -> None:
    """It cannot migrate; the service must have run."""
    with pytest.raises(LedgerError, match="start the service first"):
        View.open(old)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (f"PRAGMA user_version = {VERSION + 1}", "written by a later slidestream"),
        ("PRAGMA application_id = 7", "database of another program"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(old: Path, change: str, words: str) -> None:
    """A later version, or another program's file."""
    connection = sqlite3.connect(old)
    connection.execute(change)
    connection.close()
    before = old.read_bytes()
    with pytest.raises(LedgerError, match=words):
        Ledger(old)
    assert old.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """In one line, naming it."""
    path = tmp_path / "l"
    path.write_bytes(b"this is no ledger " * 100)
    with pytest.raises(LedgerError, match=f"{path}: cannot be read as a ledger"):
        Ledger(path)
    with pytest.raises(LedgerError, match="no ledger is there"):
        View.open(tmp_path / "none")


def test_a_damaged_ledger_is_refused(old: Path) -> None:
    """Rather than worked with."""
    Ledger(old).close()
    data = bytearray(old.read_bytes())
    for at in range(4096, len(data), 4096):  # the head of every page but the first
        data[at : at + 64] = b"\x00" * 64
    old.write_bytes(data)
    with pytest.raises(LedgerError, match="damaged|cannot be"):
        Ledger(old)
