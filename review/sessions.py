"""Who is signed in: random tokens, of which only hashes are kept, with an idle and an absolute end; and the brake on guessing.

Sessions lie in an SQLite file of their own, so that a restarted server does not send everybody away in mid-review.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from review.errors import ReviewError
from review.users import name_key

IDLE_S = 30 * 60.0
ABSOLUTE_S = 12 * 3600.0
PER_USER = 20  # the oldest one ends when a user signs in once more
_NOTED_S = 30.0  # a session's last use is written at most this often
_TOKEN_BYTES = 32

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    token BLOB PRIMARY KEY,  -- SHA-256 of the token
    name TEXT NOT NULL,      -- name_key of the user
    stamp BLOB NOT NULL,     -- SHA-256 of the password's hash: another password ends the session
    started REAL NOT NULL,
    used REAL NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Session:
    """A session that is good now. `csrf` is what changing requests must send; `expires`: seconds since 1970, at the latest."""

    name: str
    stamp: bytes
    csrf: str
    expires: float


class Sessions:
    """Sessions in a file (None: in memory). Thread-safe."""

    def __init__(
        self,
        path: Path | None,
        idle_s: float = IDLE_S,
        absolute_s: float = ABSOLUTE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """ReviewError where the file cannot be used."""
        self._idle_s, self._absolute_s, self._clock = idle_s, absolute_s, clock
        self._lock = threading.Lock()
        try:
            if path is not None:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may sign somebody out
            self._connection.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ReviewError(
                f"{path}: {error}; remove it (everybody has to sign in again) or free its disk"
            ) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def start(self, name: str, stamp: bytes) -> tuple[str, Session]:
        """A new session: the token for the cookie, and the session. The user's oldest end where there are too many."""
        token, now, key = secrets.token_urlsafe(_TOKEN_BYTES), self._clock(), name_key(name)
        with self._transaction() as run:
            run.execute(
                "DELETE FROM sessions WHERE used <= ? OR started <= ?", (now - self._idle_s, now - self._absolute_s)
            )
            run.execute(
                "DELETE FROM sessions WHERE token IN (SELECT token FROM sessions WHERE name = ? ORDER BY used DESC "
                "LIMIT -1 OFFSET ?)",
                (key, PER_USER - 1),
            )
            run.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", (_digest(token), key, stamp, now, now))
        return token, self._session(token, key, stamp, now, now)

    def find(self, token: str, touch: bool = True) -> Session | None:
        """The session of a token, if it is good; `touch` begins its idle time anew."""
        now, digest = self._clock(), _digest(token)
        with self._lock:
            row = self._connection.execute(
                "SELECT name, stamp, started, used FROM sessions WHERE token = ?", (digest,)
            ).fetchone()
            if row is None:
                return None
            name, stamp, started, used = row
            if not used - self._idle_s < now < min(used + self._idle_s, started + self._absolute_s):
                self._connection.execute("DELETE FROM sessions WHERE token = ?", (digest,))
                return None
            if touch:
                if now - used > _NOTED_S:
                    self._connection.execute("UPDATE sessions SET used = ? WHERE token = ?", (now, digest))
                used = now
        return self._session(token, name, stamp, started, used)

    def end(self, token: str) -> None:
        """Sign out."""
        with self._lock:
            self._connection.execute("DELETE FROM sessions WHERE token = ?", (_digest(token),))

    def _session(self, token: str, name: str, stamp: bytes, started: float, used: float) -> Session:
        # Derived from the token, so that it needs no place and nobody without the cookie can know it.
        csrf = hmac.new(token.encode(), b"slidestream csrf", hashlib.sha256).hexdigest()
        return Session(name, stamp, csrf, min(used + self._idle_s, started + self._absolute_s))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.rollback()


def _digest(token: str) -> bytes:
    # A token has 256 random bits: a plain hash is enough where a password needs a slow one.
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


@dataclass(frozen=True, slots=True)
class Pace:
    """After `free` failures each further one doubles the wait, from 1 s to `most_s`; all is forgotten after `forget_s`."""

    free: int
    most_s: float
    forget_s: float = 3600.0


# A user's wait stays short: otherwise anybody could lock a colleague out. An address has nobody else to harm; where many
# people share one (a proxy), name the proxy and the addresses behind it are told apart.
USER_PACE = Pace(free=5, most_s=60.0)
ADDRESS_PACE = Pace(free=20, most_s=900.0)


class Limiter:
    """Failures by key, in bounded memory; `now` is an argument. Thread-safe."""

    def __init__(self, pace: Pace, most: int = 10_000) -> None:
        self._pace, self._most = pace, most
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}  # count and time of the last, oldest first

    def attempt(self, key: str, now: float) -> float:
        """Seconds to wait; 0: go on, and the attempt counts as failed until `succeeded` says otherwise.

        It is counted before the work, so that a hundred attempts at once are not a hundred free ones.
        """
        with self._lock:
            count, last = self._failures.get(key, (0, now))
            if now - last > self._pace.forget_s:
                count = 0
            wait = last + self._delay(count) - now
            if wait > 0:
                return wait
            self._failures.pop(key, None)
            self._failures[key] = (count + 1, now)
            while len(self._failures) > self._most:
                del self._failures[next(iter(self._failures))]
            return 0.0

    def succeeded(self, key: str) -> None:
        """The last attempt was no guess."""
        with self._lock:
            self._failures.pop(key, None)

    def undo(self, key: str) -> None:
        """Take one attempt back: it was refused for another reason."""
        with self._lock:
            count, last = self._failures.get(key, (0, 0.0))
            if count > 1:
                self._failures[key] = (count - 1, last)
            else:
                self._failures.pop(key, None)

    def _delay(self, count: int) -> float:
        over = count - self._pace.free
        return 0.0 if over < 0 else min(self._pace.most_s, 2.0 ** min(over, 30))
