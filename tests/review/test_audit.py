"""The log of acts: nothing in it changes unnoticed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from review.acts import NotAllowed
from review.audit import AuditFile, Head, parse_head
from review.errors import AuditError
from review.log import NAME, Conflict, ReviewLog
from tests.review.page import region

FIELDS = {"class": "tumour", "max": 0.9, "mean": 0.5, "area_um2": 10.0, "outline": region()["outline"]}


def fill(log: ReviewLog, count: int = 6, slide: str = "aa") -> None:
    """Acts of two users on a slide."""
    for number in range(count):
        fields = {"finding": f"r{number}", "verdict": "accepted", "region": FIELDS}
        log.add(slide, "anna" if number % 2 else "王", "verdict", log.review(slide).revision, lambda _, f=fields: f)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    log = ReviewLog(path)
    fill(log)
    log.close()
    return path


def verdict(path: Path, *heads: Head) -> str | None:
    log = AuditFile(path, read_only=True)
    try:
        return log.verify(heads).problem
    finally:
        log.close()


def tamper(path: Path, *statements: str) -> None:
    """As somebody who knows SQLite would: triggers off, rows changed, triggers back on."""
    with sqlite3.connect(path) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)
    connection.close()


def test_a_log_that_nobody_touched_is_whole(file: Path) -> None:
    """With the head that it had, too; only its owner may read it."""
    log = AuditFile(file, read_only=True)
    head = log.head()
    log.close()
    assert head.n == 6 and verdict(file, head) is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_hash_is_that_of_the_documented_text(file: Path) -> None:
    """Anybody can compute it again with a JSON library and SHA-256."""
    rows = sqlite3.connect(file).execute("SELECT n, at, user, slide, act, fields, previous, hash FROM acts").fetchall()
    before = hashlib.sha256(b"slidestream-review/1").hexdigest()
    for n, at, user, slide, act, fields, previous, stored in rows:
        values = {"n": n, "at": at, "user": user, "slide": slide, "act": act, "previous": previous}
        text = json.dumps({**values, "fields": json.loads(fields)}, sort_keys=True, separators=(",", ":"))
        assert previous == before and hashlib.sha256(text.encode()).hexdigest() == stored
        before = stored


def test_rows_cannot_be_changed_or_removed_by_mistake(file: Path) -> None:
    """SQLite itself refuses, also a row that replaces one."""
    connection = sqlite3.connect(file)
    for statement in (
        "UPDATE acts SET user = 'x' WHERE n = 1",
        "DELETE FROM acts WHERE n = 6",
        "INSERT OR REPLACE INTO acts SELECT n, at, 'x', slide, act, fields, previous, hash FROM acts WHERE n = 6",
        "INSERT INTO acts SELECT n + 2, at, user, slide, act, fields, hash, 'h' FROM acts WHERE n = 6",
        "INSERT INTO acts SELECT n + 1, at, user, slide, act, fields, previous, 'h' FROM acts WHERE n = 6",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement)
    connection.close()
    assert verdict(file) is None


@pytest.mark.parametrize(
    "change",
    [
        "user = 'bo'",
        "at = '2026-01-01T00:00:00.000Z'",
        "slide = 'bb'",
        "act = 'comment'",
        "fields = replace(fields, 'accepted', 'rejected')",
        "fields = fields || ' '",
        "hash = replace(hash, substr(hash, 1, 1), 'x')",
        "previous = replace(previous, substr(previous, 1, 1), 'x')",
    ],
)
@pytest.mark.parametrize("n", [1, 4, 6])
def test_a_changed_row_is_found(file: Path, change: str, n: int) -> None:
    """Whatever was changed in it, first, middle or last; the number is told."""
    tamper(file, f"UPDATE acts SET {change} WHERE n = {n}")
    assert f"row {n}" in (verdict(file) or "")


def test_a_dropped_row_is_found(file: Path) -> None:
    """Also when the numbers are closed up over it."""
    tamper(file, "DELETE FROM acts WHERE n = 3")
    assert verdict(file) == "row 3 is missing: row 4 comes after row 2"
    tamper(file, "UPDATE acts SET n = n - 1 WHERE n > 3")
    assert "row 3 does not follow row 2" in (verdict(file) or "")


def test_an_added_and_a_moved_row_are_found(file: Path, tmp_path: Path) -> None:
    """A row of another log, and two rows in each other's place."""
    tamper(
        file,
        "UPDATE acts SET n = 100 WHERE n = 2",
        "UPDATE acts SET n = 2 WHERE n = 3",
        "UPDATE acts SET n = 3 WHERE n = 100",
    )
    assert "row 2" in (verdict(file) or "")


def test_a_cut_tail_is_found_with_a_head_kept_elsewhere(file: Path) -> None:
    """And without one it is not: that is why every report carries the head."""
    log = AuditFile(file, read_only=True)
    head = log.head()
    log.close()
    tamper(file, "DELETE FROM acts WHERE n > 4")
    assert verdict(file) is None
    assert "cut off" in (verdict(file, head) or "")


def test_a_log_written_anew_is_found_with_a_head_kept_elsewhere(file: Path, tmp_path: Path) -> None:
    """The same acts again, with hashes that fit, are not the same log."""
    log = AuditFile(file, read_only=True)
    head = log.head()
    log.close()
    other = ReviewLog(tmp_path / "other.sqlite")
    fill(other, 8)
    other.close()
    assert verdict(tmp_path / "other.sqlite") is None
    assert "written anew" in (verdict(tmp_path / "other.sqlite", head) or "")


def test_triggers_that_were_taken_away_are_found(file: Path) -> None:
    """Rows that fit are not enough."""
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TRIGGER acts_remain")
    connection.close()
    assert "acts_remain" in (verdict(file) or "")


def test_any_changed_byte_of_the_rows_is_found(file: Path) -> None:
    """On the disk, under SQLite: one bit in each byte of several fields, one after the other."""
    whole = file.read_bytes()
    places = [
        start + offset
        for word in (b"accepted", b'"area_um2":10.0', b"anna", b"verdict", b"2026-")
        for start in [whole.rfind(word)]
        for offset in range(len(word))
        if start >= 0
    ]
    assert len(places) > 20
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 0x02
        file.write_bytes(bytes(broken))
        assert verdict(file) is not None, place
    file.write_bytes(whole)
    assert verdict(file) is None


def test_damage_to_the_file_is_a_verdict_not_a_crash(file: Path) -> None:
    """Pages of noise, half a file."""
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:4096] + os.urandom(len(whole) - 4096)):
        file.write_bytes(broken)
        try:
            assert verdict(file) is not None
        except AuditError:
            pass


def test_a_page_over_a_broken_log_reads_and_writes_nothing(file: Path) -> None:
    """What was whole is still shown; a new act is refused."""
    tamper(file, "UPDATE acts SET user = 'bo' WHERE n = 4")
    log = ReviewLog(file)
    assert "row 4" in (log.problem or "")
    assert log.review("aa").revision == 3
    with pytest.raises(AuditError):
        fill(log, 1)
    log.close()


def test_tampering_while_the_page_is_served_is_noticed(file: Path) -> None:
    """When the last row it knows is another one or gone."""
    log = ReviewLog(file)
    assert log.problem is None
    tamper(file, "DELETE FROM acts WHERE n = 6")
    with pytest.raises(AuditError):
        fill(log, 1)
    assert "row 6" in (log.problem or "")
    log.close()


def test_an_act_that_is_refused_is_not_written(file: Path) -> None:
    """Neither one that is not allowed nor one of a stale revision."""
    log = ReviewLog(file)
    with pytest.raises(Conflict):
        log.add("aa", "anna", "undo", 3, lambda review: {})
    with pytest.raises(NotAllowed):
        log.add("bb", "anna", "reopen", 0, lambda review: {"reason": "r"})
    log.close()
    assert verdict(file) is None and AuditFile(file, read_only=True).head().n == 6


def test_an_act_that_the_disk_has_no_room_for_is_not_done(file: Path) -> None:
    """It is refused, the review stays as it was, and goes on when there is room again."""
    log = ReviewLog(file)
    run = log._file.connection.execute
    run(f"PRAGMA max_page_count = {run('PRAGMA page_count').fetchone()[0]}")
    before = log.review("aa")
    big = {"finding": "r1", "comment": "x" * 60_000, "region": FIELDS}
    with pytest.raises(AuditError, match="full"):
        log.add("aa", "anna", "comment", before.revision, lambda _: big)
    assert log.review("aa") == before and log.problem is None
    run("PRAGMA max_page_count = 100000")
    assert log.add("aa", "anna", "comment", before.revision, lambda _: big).revision == before.revision + 1
    log.close()
    assert verdict(file) is None


def _append(path: Path, user: str, count: int) -> None:
    log = ReviewLog(path)
    for number in range(count):
        while True:
            try:
                fields = {"finding": "r1", "comment": f"{user}{number}", "region": FIELDS}
                log.add("aa", user, "comment", log.review("aa").revision, lambda _, f=fields: f)
                break
            except Conflict:
                continue
    log.close()


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    """`serve` and `review` over one folder: every act once, the chain whole, both see the other's."""
    path = tmp_path / NAME
    watcher = ReviewLog(path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(path, user, 20)) for user in ("anna", "bo")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert verdict(path) is None
    assert watcher.review("aa").revision == 40
    assert watcher.review("aa").document()["opened"] in (["anna", "bo"], ["bo", "anna"])
    watcher.close()


@pytest.mark.parametrize("text", ["", "5", "5:abc", "x:" + "0" * 64, "-1:" + "0" * 64])
def test_a_head_that_is_none_is_refused(text: str) -> None:
    """One line says what it should be."""
    with pytest.raises(AuditError, match="N:HASH"):
        parse_head(text)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import argparse, sys\nfrom pipeline.overrides import ConfigError\nfrom review import verify_command as v\n"
        "p = argparse.ArgumentParser(); v.add_arguments(p)\n"
        "try: sys.exit(v.verify(p.parse_args()))\nexcept ConfigError as e: print(e, file=sys.stderr); sys.exit(2)"
    )
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )


def test_the_command_says_whole_or_where_not(file: Path, tmp_path: Path) -> None:
    """Exit codes 0, 1 and 2; heads are kept in a file and compared the next time."""
    heads = str(tmp_path / "heads")
    first = run("--results", str(file.parent), "--write-head", heads)
    assert first.returncode == 0 and "whole, 6 acts" in first.stdout
    again = run("--results", str(file.parent), "--heads", heads)
    assert again.returncode == 0 and "1 heads agree" in again.stdout
    tamper(file, "DELETE FROM acts WHERE n = 6")
    cut = run("--results", str(file.parent), "--heads", heads)
    assert cut.returncode == 1 and "cut off" in cut.stdout and "whole up to: 5:" in cut.stdout
    assert run("--results", str(tmp_path / "none")).returncode == 2
    assert run("--results", str(file.parent), "--head", "nonsense").returncode == 2
