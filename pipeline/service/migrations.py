"""The ledger's tables, and how a file of an earlier version becomes one of this.

`PRAGMA user_version` is the version. Each step is one transaction with its new version, so a power cut in the middle leaves
the version before; steps are never edited once released, only added.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

# Marks the file as ours ("SSLG"), so that another program's database is never taken for a ledger.
APPLICATION_ID = 0x53534C47

_VERSION_1 = """
CREATE TABLE contents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint TEXT NOT NULL UNIQUE,
    bytes INTEGER NOT NULL,
    files INTEGER NOT NULL,
    seen REAL NOT NULL
) STRICT;

CREATE TABLE names (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    content INTEGER NOT NULL REFERENCES contents (id),
    path BLOB NOT NULL,
    folder TEXT NOT NULL,
    stamp TEXT NOT NULL,
    seen REAL NOT NULL,
    delivered REAL NOT NULL,
    gone REAL
) STRICT;
CREATE UNIQUE INDEX names_there ON names (path) WHERE gone IS NULL;
CREATE INDEX names_of_content ON names (content);

CREATE TABLE slides (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    content INTEGER NOT NULL REFERENCES contents (id),
    route TEXT NOT NULL,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    urgency TEXT NOT NULL CHECK (urgency IN ('stat', 'routine')),
    deadline REAL,
    state TEXT NOT NULL CHECK (state IN
        ('queued', 'running', 'retry_wait', 'complete', 'partial', 'quarantined', 'cancelled')),
    kind TEXT,
    reason TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    waits INTEGER NOT NULL DEFAULT 0,
    due REAL,
    seen REAL NOT NULL,
    delivered REAL NOT NULL,
    started REAL,
    first_result REAL,
    finished REAL,
    alarmed REAL,
    result TEXT,
    UNIQUE (content, route),
    UNIQUE (route, name_key),
    CHECK ((state = 'retry_wait') = (due IS NOT NULL))
) STRICT;
CREATE INDEX slides_by_state ON slides (state, urgency);

CREATE TABLE steps (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    slide INTEGER NOT NULL REFERENCES slides (id),
    time REAL NOT NULL,
    old TEXT NOT NULL,
    new TEXT NOT NULL,
    kind TEXT,
    reason TEXT NOT NULL,
    by TEXT NOT NULL
) STRICT;
CREATE INDEX steps_of_slide ON steps (slide);

CREATE TABLE arrivals (
    path BLOB PRIMARY KEY,
    folder TEXT NOT NULL,
    urgency TEXT NOT NULL CHECK (urgency IN ('stat', 'routine')),
    seen REAL NOT NULL,
    changed REAL NOT NULL,
    bytes INTEGER NOT NULL,
    reason TEXT NOT NULL,
    stuck INTEGER NOT NULL DEFAULT 0 CHECK (stuck IN (0, 1))
) STRICT, WITHOUT ROWID;

CREATE TABLE holds (
    key TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    since REAL NOT NULL,
    until REAL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    event TEXT NOT NULL,
    slide INTEGER REFERENCES slides (id),
    body TEXT NOT NULL
) STRICT;

CREATE TABLE sinks (
    name TEXT PRIMARY KEY,
    sent INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

_VERSION_2 = """
ALTER TABLE slides ADD COLUMN interruptions INTEGER NOT NULL DEFAULT 0;
CREATE INDEX slides_by_time ON slides (delivered);
"""

_VERSION_3 = """
CREATE TABLE troubles (
    key TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    since REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""

STEPS = (_VERSION_1, _VERSION_2, _VERSION_3)
VERSION = len(STEPS)


class LedgerError(Exception):
    """The ledger cannot be used. One line, naming the file, what is wrong and what to do."""


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of an open file, 0 if it is empty. LedgerError where it is none of ours, or too new."""
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise LedgerError(f"{path}: cannot be read as a ledger: {error}; restore it from a copy") from error
    if tables and owner != APPLICATION_ID:
        raise LedgerError(f"{path}: is a database of another program; name another file")
    if version > VERSION:
        raise LedgerError(
            f"{path}: was written by a later slidestream (ledger version {version}, this one knows {VERSION}); "
            "install that one again"
        )
    return version


def migrate(connection: sqlite3.Connection, path: Path) -> int:
    """Bring an open file (autocommit mode) to VERSION; gives the version it had. LedgerError as `version_of`.

    A file of an earlier version is first copied to `PATH.version-N`, unless that copy is there already.
    """
    before = version_of(connection, path)
    copy = path.with_name(f"{path.name}.version-{before}")
    if 0 < before < VERSION and not copy.exists():
        part = path.with_name(f"{copy.name}.part")
        part.unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (str(part),))
        part.replace(copy)
    for version in range(before + 1, VERSION + 1):
        script = f"PRAGMA user_version = {version}; PRAGMA application_id = {APPLICATION_ID};"
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {STEPS[version - 1]} {script} COMMIT;")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.rollback()
            raise LedgerError(f"{path}: cannot be brought to version {version}: {error}") from error
    return before
