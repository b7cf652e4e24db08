"""The log of acts: an SQLite file to which rows are only added, each with the hash of the one before.

    hash = SHA-256 (hex) of the canonical JSON of {"act", "at", "fields", "n", "previous", "slide", "user"}
    previous = the hash of row n-1; of row 1: SHA-256 of "slidestream-review/1"

A changed, dropped, added or moved row breaks the chain, and `verify` says where. What a chain cannot show by itself is a tail
that was cut off, or a whole log written anew: for that a head (number and hash of the last row) has to be kept elsewhere. Every
signature, report and export carries one, and `verify` compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from review.acts import Row
from review.errors import AuditError
from review.signoff import canonical

FORMAT = "slidestream-review/1"
GENESIS = hashlib.sha256(FORMAT.encode()).hexdigest()
APPLICATION = 0x53_53_52_56  # "SSRV", in the file's header
BUSY_S = 5.0
_COLUMNS = "n, at, user, slide, act, fields, previous, hash"

_SCHEMA = (
    """\
CREATE TABLE acts (
    n INTEGER PRIMARY KEY CHECK (n > 0),
    at TEXT NOT NULL,
    user TEXT NOT NULL,
    slide TEXT NOT NULL,
    act TEXT NOT NULL,
    fields TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE
) STRICT""",
    "CREATE INDEX acts_of_slide ON acts (slide, n)",
    "CREATE TRIGGER acts_stay BEFORE UPDATE ON acts BEGIN SELECT raise(ABORT, 'acts are never changed'); END",
    "CREATE TRIGGER acts_remain BEFORE DELETE ON acts BEGIN SELECT raise(ABORT, 'acts are never removed'); END",
    f"""\
CREATE TRIGGER acts_follow BEFORE INSERT ON acts
WHEN new.n <> (SELECT coalesce(max(n), 0) + 1 FROM acts)
  OR new.previous <> coalesce((SELECT hash FROM acts ORDER BY n DESC LIMIT 1), '{GENESIS}')
BEGIN SELECT raise(ABORT, 'an act follows the last one'); END""",
)


@dataclass(frozen=True, slots=True)
class Head:
    """The last row: its number (0: no rows) and hash."""

    n: int
    hash: str

    def __str__(self) -> str:
        return f"{self.n}:{self.hash}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found: the head as far as the log is whole, and the problem where it is not."""

    head: Head
    problem: str | None


def parse_head(text: str) -> Head:
    """`N:HASH`, as reports and exports show it. AuditError for anything else."""
    found = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text.strip())
    if found is None:
        raise AuditError(f"head {text.strip()!r}: is not N:HASH, as reports and `verify-log` show it")
    return Head(int(found[1]), found[2])


def row_hash(n: int, at: str, user: str, slide: str, act: str, fields: str, previous: str) -> str:
    """The hash of a row; `fields` is canonical JSON already, and is put where sorting puts it."""
    parts = [
        ("act", act),
        ("at", at),
        ("fields", None),
        ("n", n),
        ("previous", previous),
        ("slide", slide),
        ("user", user),
    ]
    text = ",".join(f'"{name}":{fields if value is None else json.dumps(value)}' for name, value in parts)
    return hashlib.sha256(f"{{{text}}}".encode("utf-8", "surrogatepass")).hexdigest()


def check_row(raw: Sequence[Any], last: Head) -> Row:
    """A row as it lies in the file, checked against the one before. AuditError says what is wrong with it."""
    n, at, user, slide, act, text, previous, stored = raw
    if n != last.n + 1:
        raise AuditError(f"row {last.n + 1} is missing: row {n} comes after row {last.n}")
    if previous != last.hash:
        raise AuditError(f"row {n} does not follow row {last.n}: one of the two was changed or replaced")
    try:
        good = row_hash(n, at, user, slide, act, text, previous) == stored
        fields = json.loads(text)
        good = good and isinstance(fields, dict)
    except (ValueError, TypeError, RecursionError):
        good = False
    if not good:
        raise AuditError(f"row {n} ({at}, {user}, {act}) was changed after it was written: its hash does not fit")
    return Row(n, at, user, slide, act, fields, previous, stored)


class AuditFile:
    """One connection to the log. Not for several threads at once."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        """Open the log; made where there is none, unless read only. AuditError where that cannot be."""
        self.path = path
        try:
            if not read_only:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            elif not path.is_file():
                raise AuditError(f"{path}: no log is there; nothing was reviewed in this folder")
            mode = "ro" if read_only else "rw"
            self.connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
        except OSError as error:
            raise AuditError(
                f"{path}: {error.strerror}; reviews are kept there: give a folder this user may write to"
            ) from error
        except sqlite3.Error as error:
            raise AuditError(f"{path}: cannot be opened: {error}") from error
        try:
            with self._said():
                self._prepare(read_only)
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self, read_only: bool) -> None:
        run = self.connection.execute
        if read_only:
            run("PRAGMA query_only = ON")
        else:
            if run("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise AuditError(f"{self.path}: this file system cannot hold the log; results must lie on a local disk")
            run("PRAGMA synchronous = FULL")
            with self.transaction():
                if not run("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                    run(f"PRAGMA application_id = {APPLICATION}")
                    run("PRAGMA user_version = 1")
                    for statement in _SCHEMA:
                        run(statement)
        if run("PRAGMA application_id").fetchone()[0] != APPLICATION:
            raise AuditError(f"{self.path}: is no log of reviews; move it away")
        if run("PRAGMA user_version").fetchone()[0] != 1:
            raise AuditError(f"{self.path}: was written by another version of slidestream; use that one")

    def close(self) -> None:
        """Close the file; what lies in SQLite's own log is merged into it."""
        self.connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on disk at the end; other processes wait. AuditError where the file cannot be written."""
        with self._said():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            finally:
                if self.connection.in_transaction:
                    self.connection.rollback()

    def head(self) -> Head:
        """Of the rows as they lie there, unchecked."""
        with self._said():
            found = self.connection.execute("SELECT n, hash FROM acts ORDER BY n DESC LIMIT 1").fetchone()
        return Head(*found) if found else Head(0, GENESIS)

    def hash_of(self, n: int) -> str | None:
        """The hash stored with row n."""
        if n == 0:
            return GENESIS
        with self._said():
            found = self.connection.execute("SELECT hash FROM acts WHERE n = ?", (n,)).fetchone()
        return found and found[0]

    def rows(self, last: Head) -> Iterator[Row]:
        """The rows after `last`, each checked. AuditError at the first that does not fit."""
        with self._said():
            for raw in self.connection.execute(f"SELECT {_COLUMNS} FROM acts WHERE n > ? ORDER BY n", (last.n,)):
                last = Head(raw[0], raw[7]) if (row := check_row(raw, last)) else last
                yield row

    def rows_of(self, slide: str) -> list[Row]:
        """The rows of one slide; each fits its own hash, though what lies between is not looked at. AuditError where not."""
        with self._said():
            found = self.connection.execute(f"SELECT {_COLUMNS} FROM acts WHERE slide = ? ORDER BY n", (slide,))
            return [check_row(raw, Head(raw[0] - 1, raw[6])) for raw in found]

    def next_row(self, last: Head, user: str, slide: str, act: str, fields: Mapping[str, Any]) -> Row:
        """The row that would follow `last`, now; not written yet."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        n = last.n + 1
        text = canonical(fields)
        made = row_hash(n, at, user, slide, act, text, last.hash)
        return Row(n, at, user, slide, act, json.loads(text), last.hash, made)

    def append(self, row: Row) -> None:
        """Write a row of `next_row`, inside of a transaction that was open when its `last` was read."""
        self.connection.execute(
            f"INSERT INTO acts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (row.n, row.at, row.user, row.slide, row.act, canonical(row.fields), row.previous, row.hash),
        )

    def verify(self, heads: Sequence[Head] = ()) -> Verdict:
        """Read everything: the file's own structure, its triggers, each row's hash, and `heads` kept elsewhere."""
        last = Head(0, GENESIS)
        wanted = {head.n: head for head in heads}
        try:
            with self._said():
                damage = self.connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
                there = {row[0] for row in self.connection.execute("SELECT sql FROM sqlite_schema WHERE sql NOTNULL")}
            for row in self.rows(last):
                last = Head(row.n, row.hash)
                if row.n in wanted and wanted[row.n].hash != row.hash:
                    return Verdict(
                        last, f"row {row.n} is not the one of the head kept elsewhere: the log was written anew"
                    )
            if damage != "ok":
                return Verdict(last, f"the file is damaged: {damage}")
        except AuditError as error:
            return Verdict(last, str(error))
        for head in sorted(heads, key=lambda head: head.n):
            if head.n > last.n or head.n == 0 and head.hash != GENESIS:
                return Verdict(last, f"the log ends at row {last.n}, but there was a row {head.n}: its end was cut off")
        if missing := set(_SCHEMA) - there:
            names = ", ".join(sorted(statement.split()[2] for statement in missing))
            return Verdict(last, f"the rows fit, but what protects them was taken away or changed: {names}")
        return Verdict(last, None)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise AuditError(f"{self.path}: {error}") from error
