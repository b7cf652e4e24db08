"""Looking into the ledger: what the service, its status page and its command line ask. Changes nothing.

view = View.open(Path("ledger.sqlite"))     # beside a running service, in any process
view.counts()
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pipeline.service.lifecycle import UNFINISHED, State, Urgency
from pipeline.service.reasons import Kind
from pipeline.service.records import Arrival, Filter, Hold, Name, Slide, Standing, Step, Told, Trouble
from pipeline.service.store import open_reader

ROWS_AT_ONCE = 1000

# A name in a folder that is not held comes first, then one that is there, then the newest.
_SLIDE = """
SELECT slides.*, contents.fingerprint, contents.bytes, (
    SELECT path FROM names WHERE names.content = slides.content
    ORDER BY gone IS NOT NULL, 'folder:' || folder IN (SELECT key FROM holds), id DESC LIMIT 1
) AS path
FROM slides JOIN contents ON contents.id = slides.content
"""

_READABLE = """
EXISTS (SELECT 1 FROM names WHERE names.content = slides.content AND gone IS NULL
    AND 'folder:' || folder NOT IN (SELECT key FROM holds WHERE until IS NULL OR until > :now))
AND 'results:' || route NOT IN (SELECT key FROM holds WHERE until IS NULL OR until > :now)
"""


class View:
    """Questions to a ledger. Every answer is of one moment; two answers may be of different ones."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open for reading only, while the service may write. LedgerError where there is no ledger of this version."""
        return cls(open_reader(path))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def slide(self, number: int) -> Slide:
        """One slide. KeyError where there is none of this id."""
        row = self._connection.execute(f"{_SLIDE} WHERE slides.id = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(f"no slide has the id {number}")
        return _slide(row)

    def named(self, name: str) -> list[Slide]:
        """The slides of this name, one a route; also by their id as text, as a person types it."""
        rows = self._connection.execute(f"{_SLIDE} WHERE slides.name = ? ORDER BY slides.id", (name,)).fetchall()
        if not rows and name.isascii() and name.isdigit() and len(name) < 19:
            rows = self._connection.execute(f"{_SLIDE} WHERE slides.id = ?", (int(name),)).fetchall()
        return [_slide(row) for row in rows]

    def next_due(self, now: float, limit: int = 1, route: str | None = None) -> list[Slide]:
        """What is to be started next (of one route): stat before routine, earliest deadline, then first come.

        Leaves out what waits for its next try, and what cannot be read or written now because its folder, or its route's
        results, are held.
        """
        order = "urgency = 'routine', coalesce(deadline, 9e99), slides.seen, slides.id"
        # The few ids first: to find the paths of a long backlog takes far longer than to sort it.
        rows = self._connection.execute(
            f"{_SLIDE} WHERE slides.id IN (SELECT slides.id FROM slides "
            f"WHERE (state = 'queued' OR (state = 'retry_wait' AND due <= :now)) AND {_READABLE} "
            f"{'AND route = :route ' if route is not None else ''}"
            f"ORDER BY {order} LIMIT :limit) ORDER BY {order}",
            {"now": now, "limit": limit, "route": route},
        )
        return [_slide(row) for row in rows]

    def next_wake(self) -> float | None:
        """When the next slide in RETRY_WAIT is due, or None."""
        return self._connection.execute("SELECT min(due) FROM slides WHERE state = 'retry_wait'").fetchone()[0]

    def running(self) -> list[Slide]:
        """The slides under way."""
        rows = self._connection.execute(f"{_SLIDE} WHERE state = 'running' ORDER BY slides.id")
        return [_slide(row) for row in rows]

    def at_risk(self, before: float) -> list[Slide]:
        """Unfinished slides whose deadline lies before this time, and of which no alarm has been raised."""
        states = ", ".join(f"'{state}'" for state in sorted(UNFINISHED))
        rows = self._connection.execute(
            f"{_SLIDE} WHERE state IN ({states}) AND deadline < ? AND alarmed IS NULL ORDER BY deadline", (before,)
        )
        return [_slide(row) for row in rows]

    def counts(self) -> dict[State, dict[Urgency, int]]:
        """How many slides are in each state, by class; every state and class is there. WAITING counts arrivals."""
        counts = {state: dict.fromkeys(Urgency, 0) for state in State}
        for table, state in (("slides", "state"), ("arrivals", "'waiting'")):
            for row in self._connection.execute(f"SELECT {state}, urgency, count(*) FROM {table} GROUP BY 1, 2"):
                counts[State(row[0])][Urgency(row[1])] = row[2]
        return counts

    def kinds(self) -> dict[Kind, int]:
        """How many slides are in quarantine or wait for another try, by kind of reason."""
        rows = self._connection.execute(
            "SELECT kind, count(*) FROM slides WHERE state IN ('quarantined', 'retry_wait') GROUP BY 1"
        )
        return {Kind(kind): count for kind, count in rows if kind}

    def rows(self, which: Filter, limit: int = 100, before: int | None = None) -> list[Slide]:
        """Slides, newest first; the next page is asked for with `before` = the last id of this one."""
        where, values = _where(which)
        if before is not None:
            where.append("slides.id < ?")
            values.append(before)
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        values.append(max(0, min(limit, ROWS_AT_ONCE)))
        rows = self._connection.execute(f"{_SLIDE} {condition} ORDER BY slides.id DESC LIMIT ?", values)
        return [_slide(row) for row in rows]

    def count(self, which: Filter) -> int:
        """How many slides `rows` would give in all."""
        where, values = _where(which)
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        return self._connection.execute(f"SELECT count(*) FROM slides {condition}", values).fetchone()[0]

    def standings(self, route: str, after: int = 0) -> tuple[int, list[Standing]]:
        """How the slides of a route stand, oldest first: all of them, or those that may have changed since the step `after`.
        The number is the `after` of the next question."""
        with _one_moment(self._connection):
            last = self._connection.execute("SELECT coalesce(max(id), 0) FROM steps").fetchone()[0]
            # Of what is unfinished the class may change without a step: it was delivered again.
            newer = (
                "AND (state IN ('queued', 'running', 'retry_wait') OR id IN (SELECT slide FROM steps WHERE id > :after)) "
                if after
                else ""
            )
            rows = self._connection.execute(
                f"SELECT name, urgency, state, reason, seen, finished FROM slides WHERE route = :route {newer}ORDER BY id",
                {"route": route, "after": after},
            ).fetchall()
        return last, [
            Standing(
                row["name"], Urgency(row["urgency"]), State(row["state"]), row["reason"], row["seen"], row["finished"]
            )
            for row in rows
        ]

    def with_results(self, route: str, before: float, limit: int = 100) -> list[Slide]:
        """Slides of a route that were finished before this time and whose results were not removed, oldest first."""
        rows = self._connection.execute(
            f"{_SLIDE} WHERE route = ? AND state IN ('complete', 'partial') AND finished < ? "
            "AND json_extract(result, '$.removed') IS NULL ORDER BY finished LIMIT ?",
            (route, before, limit),
        )
        return [_slide(row) for row in rows]

    def unfinished_names(self, route: str) -> set[str]:
        """What the results of a route's unfinished slides will be called."""
        rows = self._connection.execute(
            "SELECT name FROM slides WHERE route = ? AND state IN ('queued', 'running', 'retry_wait')", (route,)
        )
        return {row["name"] for row in rows}

    def history(self, number: int) -> list[Step]:
        """All changes of state of a slide, oldest first."""
        rows = self._connection.execute("SELECT * FROM steps WHERE slide = ? ORDER BY id", (number,))
        return [
            Step(row["time"], State(row["old"]), State(row["new"]), _kind(row["kind"]), row["reason"], row["by"])
            for row in rows
        ]

    def names(self, number: int) -> list[Name]:
        """All names under which the content of a slide was delivered, oldest first."""
        rows = self._connection.execute(
            "SELECT names.* FROM names JOIN slides USING (content) WHERE slides.id = ? ORDER BY names.id", (number,)
        )
        return [Name(row["path"], row["folder"], row["seen"], row["delivered"], row["gone"]) for row in rows]

    def there(self, folder: str) -> dict[bytes, str]:
        """The stamps of all that was taken from a folder and is still there, by path: what the intake need not look at."""
        rows = self._connection.execute("SELECT path, stamp FROM names WHERE folder = ? AND gone IS NULL", (folder,))
        return {row["path"]: row["stamp"] for row in rows}

    def arrivals(self, limit: int = ROWS_AT_ONCE) -> list[Arrival]:
        """What lies in watched folders and is not taken yet, longest there first."""
        rows = self._connection.execute("SELECT * FROM arrivals ORDER BY seen, path LIMIT ?", (limit,))
        return [
            Arrival(
                row["path"],
                row["folder"],
                Urgency(row["urgency"]),
                row["seen"],
                row["changed"],
                row["bytes"],
                row["reason"],
                bool(row["stuck"]),
            )
            for row in rows
        ]

    def holds(self) -> list[Hold]:
        """What is held, longest first."""
        rows = self._connection.execute("SELECT * FROM holds ORDER BY since, key")
        return [Hold(row["key"], Kind(row["kind"]), row["reason"], row["since"], row["until"]) for row in rows]

    def troubles(self) -> dict[str, Trouble]:
        """Why the service goes on with less, by key, longest first."""
        rows = self._connection.execute("SELECT * FROM troubles ORDER BY since, key")
        return {row["key"]: Trouble(row["key"], row["kind"], row["reason"], row["since"]) for row in rows}

    def unsent(self, sink: str, limit: int = 100) -> list[Told]:
        """The oldest events that a sink has not confirmed, in order."""
        rows = self._connection.execute(
            "SELECT * FROM events WHERE id > coalesce((SELECT sent FROM sinks WHERE name = ?), 0) ORDER BY id LIMIT ?",
            (sink, limit),
        )
        return [Told(row["id"], row["time"], row["event"], row["slide"], json.loads(row["body"])) for row in rows]


@contextlib.contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """Several questions that see the ledger as it is at the first."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _where(which: Filter) -> tuple[list[str], list]:
    where: list[str] = []
    values: list = []
    if which.states:
        where.append(f"state IN ({', '.join('?' * len(which.states))})")
        values += [str(state) for state in which.states]
    for column, value in (("urgency", which.urgency), ("route", which.route)):
        if value is not None:
            where.append(f"slides.{column} = ?")
            values.append(str(value))
    if which.folder is not None:
        where.append("EXISTS (SELECT 1 FROM names WHERE names.content = slides.content AND folder = ?)")
        values.append(which.folder)
    if which.text:
        where.append("instr(name_key, ?) > 0")
        values.append(name_key(which.text))
    if which.since is not None:
        where.append("slides.delivered >= ?")
        values.append(which.since)
    return where, values


def name_key(name: str) -> str:
    """What two names have in common that one case-insensitive or normalising file system would take for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _kind(text: str | None) -> Kind | None:
    return None if text is None else Kind(text)


def _slide(row: sqlite3.Row) -> Slide:
    return Slide(
        id=row["id"],
        name=row["name"],
        route=row["route"],
        fingerprint=row["fingerprint"],
        bytes=row["bytes"],
        path=row["path"],
        urgency=Urgency(row["urgency"]),
        deadline=row["deadline"],
        state=State(row["state"]),
        kind=_kind(row["kind"]),
        reason=row["reason"],
        attempts=row["attempts"],
        failures=row["failures"],
        waits=row["waits"],
        interruptions=row["interruptions"],
        due=row["due"],
        seen=row["seen"],
        delivered=row["delivered"],
        started=row["started"],
        first_result=row["first_result"],
        finished=row["finished"],
        alarmed=row["alarmed"],
        result=None if row["result"] is None else json.loads(row["result"]),
    )
