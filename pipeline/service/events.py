"""Events for the world outside on their way from the ledger's outbox to a receiver: in order, retried, bounded.

A `Courier` serves one sink (webhook, spool folder) in a thread of its own, in the process that serves HTTP: neither results nor
health wait for a receiver that is slow or gone. What it has delivered it tells the supervisor, which alone writes the ledger.
After a crash an event may come twice, with the same id; none is lost but those that are older than `keep_s`, those above
`most`, and those that the receiver itself calls wrong, and each of these is said in the log.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from pipeline import log
from pipeline.service.migrations import LedgerError
from pipeline.service.records import Told
from pipeline.service.view import View

AT_ONCE = 100
IDLE_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
TRIES_OF_REFUSED = 3
MOST_WAITING = 10_000


class Undelivered(Exception):
    """A receiver did not take an event; the text says why, in one line.

    `hopeless`: this event is what it does not want, others may pass. `pause_s`: the receiver said when to come again.
    """

    def __init__(self, reason: str, hopeless: bool = False, pause_s: float | None = None):
        super().__init__(reason)
        self.hopeless, self.pause_s = hopeless, pause_s


class Sink(Protocol):
    """A receiver. `name` is what the ledger calls it."""

    name: str

    def send(self, event: Told) -> None:
        """Hand it over, within a bounded time. Undelivered where that fails."""


class Outbox(View):
    """The events of the ledger, for one who remembers by himself how far he is."""

    def waiting(self, sink: str, after: int, limit: int) -> list[Told]:
        """The oldest events that a sink has not confirmed and whose id is above `after`, in order."""
        rows = self._connection.execute(
            "SELECT * FROM events WHERE id > max(?, coalesce((SELECT sent FROM sinks WHERE name = ?), 0)) "
            "ORDER BY id LIMIT ?",
            (after, sink, limit),
        )
        return [Told(row["id"], row["time"], row["event"], row["slide"], json.loads(row["body"])) for row in rows]

    def surplus(self, sink: str, after: int, most: int) -> tuple[int, int]:
        """(id of the newest event, how many) of those before the last `most` that wait; (0, 0) where there are no more."""
        row = self._connection.execute(
            "SELECT max(id), count(*) FROM (SELECT id FROM events "
            "WHERE id > max(?, coalesce((SELECT sent FROM sinks WHERE name = ?), 0)) ORDER BY id DESC LIMIT -1 OFFSET ?)",
            (after, sink, most),
        ).fetchone()
        return row[0] or 0, row[1]


def event_id(event: Told) -> str:
    """The same for every try, another for every event, also of another ledger: receivers drop what they have had."""
    return "evt_" + hashlib.sha256(f"{event.id} {event.time!r} {event.event}".encode()).hexdigest()[:24]


def envelope(event: Told) -> bytes:
    """What a receiver gets: JSON with the fields that https://www.standardwebhooks.com names (type, timestamp, data)."""
    when = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    message = {"id": event_id(event), "type": event.event, "timestamp": when, "data": event.body}
    return json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode()


def pause_s(tries: int, spread: float) -> float:
    """Seconds before the next try after so many in vain; `spread`, from 0 to 1, keeps senders from coming all at once."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries - 1, 30)) * (1.0 - 0.2 * spread)


class Courier:
    """Brings the events of one ledger to one sink."""

    def __init__(
        self,
        ledger: Path,
        sink: Sink,
        confirm: Callable[[str, int], None],
        wanted: Sequence[str] = ("*",),
        keep_s: float = 259_200.0,
        most: int = MOST_WAITING,
    ) -> None:
        """`confirm(sink, id)` tells the supervisor what has arrived; OSError where it does not listen. `wanted` are patterns
        of events; the others are passed over."""
        self._path, self._sink, self._confirm = ledger, sink, confirm
        self._wanted, self._keep_s, self._most = tuple(wanted), keep_s, most
        self._outbox: Outbox | None = None
        self._done = self._confirmed = self._tries = 0
        self._log = log.get_logger()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. For a thread of its own."""
        logger = self._log
        while not stop.is_set():
            try:
                pause = self.step(time.time(), stop)
            except (LedgerError, sqlite3.Error) as error:
                logger.warning("events cannot be read", sink=self._sink.name, reason=str(error))
                self._close()
                pause = FIRST_PAUSE_S * 5
            except Exception:  # a thread that ends would be silent; the next event may pass
                logger.exception("delivery of events crashed", sink=self._sink.name)
                pause = LONGEST_PAUSE_S
            stop.wait(pause)
        self._close()

    def step(self, now: float, stop: threading.Event | None = None) -> float:
        """Deliver what waits, up to the first that cannot be. Gives the seconds to wait before the next step."""
        if self._outbox is None:
            self._outbox = Outbox.open(self._path)
        self._drop_surplus()
        events = self._outbox.waiting(self._sink.name, self._done, AT_ONCE)
        pause = 0.0 if len(events) == AT_ONCE else IDLE_S
        for event in events:
            if stop is not None and stop.is_set():
                break
            if any(fnmatchcase(event.event, pattern) for pattern in self._wanted):
                wait = self._deliver(event, now)
                if wait is not None:
                    pause = wait
                    break
            self._done = event.id
        self._tell()
        return pause

    def _deliver(self, event: Told, now: float) -> float | None:
        """None where the event is done with, else the seconds until it should be tried again."""
        about = {"sink": self._sink.name, "event_type": event.event, "id": event_id(event)}
        if now - event.time > self._keep_s:
            self._log.error("event dropped: too old", age_s=round(now - event.time), **about)
            return None
        try:
            self._sink.send(event)
        except Undelivered as failure:
            self._tries += 1
            if failure.hopeless and self._tries >= TRIES_OF_REFUSED:
                self._log.error("event dropped: refused", reason=str(failure), **about)
                self._tries = 0
                return None
            wait = pause_s(self._tries, random.random())
            if failure.pause_s is not None:
                wait = min(LONGEST_PAUSE_S, max(wait, failure.pause_s))
            if self._tries & (self._tries - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: a receiver may be gone for a weekend
                self._log.warning("event not delivered", reason=str(failure), tries=self._tries, **about)
            return wait
        if self._tries:
            self._log.info("events are delivered again", sink=self._sink.name, tries=self._tries + 1)
        self._tries = 0
        return None

    def _drop_surplus(self) -> None:
        last, count = self._outbox.surplus(self._sink.name, self._done, self._most)
        if count:
            self._log.error("events dropped: too many wait", sink=self._sink.name, dropped=count, most=self._most)
            self._done, self._tries = last, 0

    def _tell(self) -> None:
        if self._done > self._confirmed:
            try:
                self._confirm(self._sink.name, self._done)
            except OSError:
                return  # told with the next; what comes twice after a crash has the same id
            self._confirmed = self._done

    def _close(self) -> None:
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
