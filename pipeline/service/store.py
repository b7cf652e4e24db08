"""The ledger's SQLite file: opened for one writer or for any number of readers, with transactions that survive a power cut.

WAL lets readers look on while the writer commits (https://sqlite.org/wal.html); `synchronous=FULL` syncs the log at every
commit, so what is committed is on disk (https://sqlite.org/pragma.html#pragma_synchronous). WAL needs shared memory
between its processes: the file has to be on a local disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pipeline.service.migrations import VERSION, LedgerError, migrate, version_of

BUSY_S = 5.0
# The log is cut back to this after a checkpoint; it would stay as long as the longest stretch between two.
_LOG_BYTES = 16 << 20


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection that may be used while the service writes. LedgerError where there is no ledger."""
    if not path.is_file():
        raise LedgerError(f"{path}: no ledger is there; has the service run with this run directory?")
    connection = _connect(path, "mode=ro")
    try:
        if version_of(connection, path) < VERSION:
            raise LedgerError(f"{path}: was written by an earlier slidestream; start the service first")
        connection.execute("PRAGMA query_only = ON")
    except LedgerError:
        connection.close()
        raise
    return connection


class Writer:
    """The one connection that writes, from one thread. A lock file beside the ledger keeps a second one out."""

    def __init__(self, path: Path) -> None:
        """Open or make the ledger, and bring it to this version. LedgerError where that cannot be."""
        self.path = path
        self._depth = 0
        self._lock = _lock(path)
        try:
            # Made by us first, so that nobody else can read it for a moment.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.connection = _connect(path, "mode=rw")
            try:
                self._prepare()
            except BaseException:
                self.connection.close()
                raise
        except OSError as error:
            os.close(self._lock)
            raise LedgerError(f"{path}: {error.strerror}; name a folder that this user may write to") from error
        except BaseException:
            os.close(self._lock)
            raise

    def _prepare(self) -> None:
        run = self.connection.execute
        try:
            version_of(self.connection, self.path)
            if run("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise LedgerError(f"{self.path}: this file system cannot hold a ledger; use a folder on a local disk")
            run("PRAGMA synchronous = FULL")
            run("PRAGMA foreign_keys = ON")
            run(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            self.before = migrate(self.connection, self.path)
            problem = run("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be used: {error}") from error
        if problem != "ok":
            raise LedgerError(f"{self.path}: is damaged ({problem}); restore it from a copy")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, on disk when the outermost ends. LedgerError where the file cannot be written (disk full)."""
        if self._depth:
            yield self.connection
            return
        self._depth = 1
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection
            self.connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise LedgerError(f"{self.path}: cannot be written: {error}; free some space on its disk") from error
        finally:
            self._depth = 0
            if self.connection.in_transaction:
                self.connection.rollback()

    def close(self) -> None:
        """Close the file; the log is merged into it."""
        self.connection.close()
        os.close(self._lock)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_S, isolation_level=None
        )
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: cannot be opened: {error}") from error
    connection.row_factory = sqlite3.Row
    return connection


def _lock(path: Path) -> int:
    # Not the ledger itself: SQLite's own locks on it would fall when any descriptor of it is closed.
    name = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}; name a folder that this user may write to") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise LedgerError(f"{path}: another service writes it (process {holder}); stop that one first") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def held_by(path: Path) -> str:
    """The process that writes a ledger now, or empty where none does. Another may take it a moment later."""
    try:
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return ""
