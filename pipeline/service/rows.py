"""Rows of the ledger as `pipeline.service.ledger` reads and writes them within its transactions."""

from __future__ import annotations

import itertools
import sqlite3

from pipeline.service.lifecycle import State
from pipeline.service.reasons import Kind
from pipeline.service.records import Delivery
from pipeline.service.view import name_key


def content_id(run: sqlite3.Connection, delivery: Delivery) -> int:
    """The id of a content; it is added where it is not known."""
    run.execute(
        "INSERT INTO contents (fingerprint, bytes, files, seen) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (delivery.fingerprint, delivery.bytes, delivery.files, delivery.seen),
    )
    row = run.execute("SELECT id FROM contents WHERE fingerprint = ?", (delivery.fingerprint,)).fetchone()
    return row["id"]


def free_name(run: sqlite3.Connection, route: str, delivery: Delivery) -> str:
    """The delivery's name, or that with a piece of the fingerprint where another slide of the route has it already."""
    mark = delivery.fingerprint[:8]
    for number in itertools.count():
        name = delivery.name + ("" if number == 0 else f"~{mark}" if number == 1 else f"~{mark}-{number}")
        taken = run.execute("SELECT 1 FROM slides WHERE route = ? AND name_key = ?", (route, name_key(name)))
        if taken.fetchone() is None:
            return name


def under_way(run: sqlite3.Connection, number: int, attempt: int) -> bool:
    """Whether this attempt is the one that runs. KeyError for an id that is not there."""
    row = run.execute("SELECT state, attempts FROM slides WHERE id = ?", (number,)).fetchone()
    if row is None:
        raise KeyError(f"no slide has the id {number}")
    return row["state"] == State.RUNNING and row["attempts"] == attempt


def add_step(
    run: sqlite3.Connection, slide: int, old: State, new: State, kind: Kind | None, reason: str, by: str, now: float
) -> None:
    """A line of history."""
    run.execute(
        "INSERT INTO steps (slide, time, old, new, kind, reason, by) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (slide, now, old, new, kind, reason, by),
    )
