"""Events for the world outside, written in the transaction of the change that they tell of.

A sink (a webhook, a spool folder) reads them in order and confirms the last that it has (`View.unsent`, `Ledger.sent`): after
a crash an event may be sent twice, but never lost; its id says that it is the same.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.service.lifecycle import Event
from pipeline.service.reasons import RULES
from pipeline.service.records import Slide


def tell(
    run: sqlite3.Connection, now: float, event: Event, slide: Slide, more: Mapping[str, Any] | None = None
) -> None:
    """Write an event about a slide as it is now."""
    body: dict[str, Any] = {
        "slide": slide.id,
        "name": slide.name,
        "route": slide.route,
        "path": shown(slide.path),
        "fingerprint": slide.fingerprint,
        "urgency": slide.urgency,
        "state": slide.state,
        "attempts": slide.attempts,
        "deadline": slide.deadline,
        "delivered": slide.delivered,
        "finished": slide.finished,
    }
    if slide.kind is not None:
        body |= {"kind": slide.kind, "reason": slide.reason, "remedy": RULES[slide.kind].remedy}
    elif slide.reason:
        body["reason"] = slide.reason
    if slide.due is not None:
        body["due"] = slide.due
    if slide.result is not None:
        body["result"] = slide.result
    _write(run, now, event, slide.id, {**body, **(more or {})})


def tell_of_intake(run: sqlite3.Connection, now: float, event: Event, body: Mapping[str, Any]) -> None:
    """Write an event that concerns no slide of the ledger."""
    _write(run, now, event, None, body)


def add_sink(run: sqlite3.Connection, name: str) -> None:
    """A new sink starts behind the last event there is."""
    # Not max(id): old events are deleted, and AUTOINCREMENT never gives an id again.
    last = run.execute("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)").fetchone()[0]
    run.execute("INSERT INTO sinks (name, sent) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, last))


def keep_sinks(run: sqlite3.Connection, names: Sequence[str]) -> None:
    """Forget all sinks but these."""
    run.execute(f"DELETE FROM sinks WHERE name NOT IN ({', '.join('?' * len(names))})", tuple(names))


def forget(run: sqlite3.Connection, before: float, unsent_before: float) -> int:
    """Delete events of before `before` that every sink has, and all of before `unsent_before`."""
    return run.execute(
        "DELETE FROM events WHERE time < ? "
        "OR (time < ? AND id <= coalesce((SELECT min(sent) FROM sinks), 9223372036854775807))",
        (unsent_before, before),
    ).rowcount


def shown(path: bytes) -> str:
    """A path as text that JSON can hold."""
    return path.decode("utf-8", "backslashreplace")


def _write(run: sqlite3.Connection, now: float, event: Event, slide: int | None, body: Mapping[str, Any]) -> None:
    run.execute(
        "INSERT INTO events (time, event, slide, body) VALUES (?, ?, ?, ?)",
        (now, event, slide, json.dumps(body, ensure_ascii=True)),
    )
