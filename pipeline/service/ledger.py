"""The ledger: what became of every slide that was ever delivered, on disk before anything is done about it.

    with Ledger(Path("ledger.sqlite")) as ledger:
        ledger.recover(now)                       # what ran when the service was last stopped is queued again
        for slide in ledger.next_due(now, 4):
            slide = ledger.started(slide.id, now)
            ...
            ledger.finished(slide.id, slide.attempts, State.COMPLETE, {"planned": 100, ...}, now)

A row is a slide's content under one route (a model and a results folder): the same content delivered twice is one row with
two names; a slide for two models is two rows, each with a life of its own. Every operation is one transaction: the change
of state, its line of history and its event for the world outside are on disk together, or not at all. `now` is wall-clock
time in seconds since 1970.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pipeline.service import outbox, rows, troubles
from pipeline.service.lifecycle import (
    Event,
    NotAllowed,
    State,
    Urgency,
    check,
    more_urgent,
    requeued_by_delivery,
    told,
)
from pipeline.service.reasons import HOLD_FOLDER, HOLD_RESULTS, RULES, Kind, decide
from pipeline.service.records import Delivery, Slide, Trouble
from pipeline.service.store import Writer
from pipeline.service.view import View, name_key

SERVICE, OPERATOR = "service", "operator"


class Ledger(View):
    """The ledger for its one writer: all of `View`, and the changes. Not for sharing between threads.

    LedgerError from any operation where the file cannot be written; nothing is changed then. KeyError for an id that is
    not there, NotAllowed for a change that the lifecycle does not know.
    """

    def __init__(self, path: Path) -> None:
        """Open, make or migrate the ledger. LedgerError where it cannot be used or another process writes it."""
        self._writer = Writer(path)
        super().__init__(self._writer.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let another writer in."""
        self._writer.close()

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Several operations as one transaction, with one sync to disk: all of them are kept, or none."""
        with self._writer.transaction():
            yield

    # What comes in

    def deliver(self, delivery: Delivery, now: float) -> list[Slide]:
        """Take a finished slide in: one row a route. Gives the rows, in the order of `delivery.routes`.

        Content that is known is not done twice: its rows get the new name, the more urgent class and the earlier deadline.
        If it was in quarantine for something that a new copy may have mended, it is queued again. A path that held other
        content before is taken from that.
        """
        if not delivery.routes:
            raise ValueError(f"{delivery.name}: a delivery needs a route")
        with self._writer.transaction() as run:
            run.execute("DELETE FROM arrivals WHERE path = ?", (delivery.path,))
            content = rows.content_id(run, delivery)
            self._name(delivery, content, now)
            return [self._row(delivery, content, route, now) for route in delivery.routes]

    def _name(self, delivery: Delivery, content: int, now: float) -> None:
        with self._writer.transaction() as run:
            old = run.execute(
                "SELECT id, content FROM names WHERE path = ? AND gone IS NULL", (delivery.path,)
            ).fetchone()
            if old is not None and old["content"] == content:
                run.execute("UPDATE names SET stamp = ? WHERE id = ?", (delivery.stamp, old["id"]))
                return
            if old is not None:
                self._gone(old["id"], old["content"], now, "its file was replaced by another slide", running=True)
            run.execute(
                "INSERT INTO names (content, path, folder, stamp, seen, delivered) VALUES (?, ?, ?, ?, ?, ?)",
                (content, delivery.path, delivery.folder, delivery.stamp, delivery.seen, now),
            )

    def _row(self, delivery: Delivery, content: int, route: str, now: float) -> Slide:
        with self._writer.transaction() as run:
            row = run.execute("SELECT id FROM slides WHERE content = ? AND route = ?", (content, route)).fetchone()
            if row is not None:
                return self._again(self.slide(row["id"]), delivery, now)
            state = State.QUEUED if delivery.problem is None else State.QUARANTINED
            name = rows.free_name(run, route, delivery)
            number = run.execute(
                "INSERT INTO slides (content, route, name, name_key, urgency, deadline, state, kind, reason, seen, "
                "delivered, finished) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (content, route, name, name_key(name), delivery.urgency, delivery.deadline, state, delivery.problem)
                + (delivery.reason, delivery.seen, now, None if state is State.QUEUED else now),
            ).lastrowid
            rows.add_step(run, number, State.WAITING, state, delivery.problem, delivery.reason, SERVICE, now)
            slide = self.slide(number)
            outbox.tell(run, now, Event.DELIVERED, slide)
            if state is State.QUARANTINED:
                outbox.tell(run, now, Event.QUARANTINED, slide)
            return slide

    def _again(self, slide: Slide, delivery: Delivery, now: float) -> Slide:
        with self._writer.transaction() as run:
            deadline = min((d for d in (slide.deadline, delivery.deadline) if d is not None), default=None)
            run.execute(
                "UPDATE slides SET urgency = ?, deadline = ? WHERE id = ?",
                (more_urgent(slide.urgency, delivery.urgency), deadline, slide.id),
            )
            if requeued_by_delivery(slide.state, slide.kind) and delivery.problem is None:
                self._fresh(slide.id)
                self._move(slide.id, State.QUEUED, None, "delivered again", SERVICE, now)
            outbox.tell(run, now, Event.AGAIN, self.slide(slide.id))
            return self.slide(slide.id)

    def waiting(
        self, path: bytes, folder: str, urgency: Urgency, seen: float, size: int, reason: str, now: float
    ) -> None:
        """Note a slide that is not taken yet and why, or that its size or reason is another. `size` in bytes."""
        with self._writer.transaction() as run:
            run.execute(
                "INSERT INTO arrivals (path, folder, urgency, seen, changed, bytes, reason) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE SET urgency = excluded.urgency, changed = excluded.changed, "
                "bytes = excluded.bytes, reason = excluded.reason",
                (path, folder, urgency, seen, now, size, reason),
            )

    def stuck(self, path: bytes, reason: str, now: float) -> bool:
        """Raise an event for an arrival that does not come on. True the first time."""
        with self._writer.transaction() as run:
            changed = run.execute(
                "UPDATE arrivals SET stuck = 1, reason = ? WHERE path = ? AND stuck = 0", (reason, path)
            ).rowcount
            if changed:
                outbox.tell_of_intake(run, now, Event.STUCK, {"path": outbox.shown(path), "reason": reason})
            return bool(changed)

    def withdrawn(self, path: bytes, now: float) -> None:
        """A file is no longer in its folder. A slide that waits for its turn and has no other name goes into quarantine."""
        with self._writer.transaction() as run:
            run.execute("DELETE FROM arrivals WHERE path = ?", (path,))
            old = run.execute("SELECT id, content FROM names WHERE path = ? AND gone IS NULL", (path,)).fetchone()
            if old is not None:
                self._gone(old["id"], old["content"], now, "its file was removed before it was read")

    def _gone(self, name: int, content: int, now: float, reason: str, running: bool = False) -> None:
        # What is removed while it is read can be read to its end; what is replaced gives pixels of two slides.
        states = "('queued', 'retry_wait', 'running')" if running else "('queued', 'retry_wait')"
        with self._writer.transaction() as run:
            run.execute("UPDATE names SET gone = ? WHERE id = ?", (now, name))
            if run.execute("SELECT 1 FROM names WHERE content = ? AND gone IS NULL", (content,)).fetchone():
                return
            found = run.execute(f"SELECT id FROM slides WHERE content = ? AND state IN {states}", (content,)).fetchall()
            for row in found:
                self._move(row["id"], State.QUARANTINED, Kind.VANISHED, reason, SERVICE, now)

    def renamed(self, old: bytes, new: bytes, now: float) -> None:
        """A file, taken or still waiting, has another name in the same folder. Results keep the name they have."""
        with self._writer.transaction() as run:
            self.withdrawn(new, now)  # a rename over another file
            run.execute("UPDATE arrivals SET path = ? WHERE path = ?", (new, old))
            row = run.execute("SELECT * FROM names WHERE path = ? AND gone IS NULL", (old,)).fetchone()
            if row is not None:
                run.execute(
                    "INSERT INTO names (content, path, folder, stamp, seen, delivered) VALUES (?, ?, ?, ?, ?, ?)",
                    (row["content"], new, row["folder"], row["stamp"], now, now),
                )
                run.execute("UPDATE names SET gone = ? WHERE id = ?", (now, row["id"]))

    # What is worked on

    def recover(self, now: float) -> list[Slide]:
        """At the start: what was under way when the service ended is queued again, and is nobody's fault. Gives it."""
        with self._writer.transaction() as run:
            slides = self.running()
            for slide in slides:
                run.execute("UPDATE slides SET interruptions = interruptions + 1 WHERE id = ?", (slide.id,))
                self._move(slide.id, State.QUEUED, None, "the service ended while it ran", SERVICE, now)
            return [self.slide(slide.id) for slide in slides]

    def started(self, number: int, now: float) -> Slide:
        """A slide is being worked on. Its `attempts` is what `finished` and `fail` must be told."""
        with self._writer.transaction() as run:
            self._move(number, State.RUNNING, None, "", SERVICE, now)
            run.execute(
                "UPDATE slides SET attempts = attempts + 1, started = coalesce(started, ?), finished = NULL WHERE id = ?",
                (now, number),
            )
            return self.slide(number)

    def interrupted(self, number: int, attempt: int, reason: str, now: float) -> bool:
        """What worked on a slide has ended, for no fault of the slide: it is queued again. False where the attempt is over."""
        with self._writer.transaction() as run:
            if not rows.under_way(run, number, attempt):
                return False
            run.execute("UPDATE slides SET interruptions = interruptions + 1 WHERE id = ?", (number,))
            self._move(number, State.QUEUED, None, reason, SERVICE, now)
            return True

    def first_result(self, number: int, attempt: int, now: float) -> bool:
        """Note when the first patch was inferred. False where it is known, or the attempt is over."""
        with self._writer.transaction() as run:
            return bool(
                run.execute(
                    "UPDATE slides SET first_result = ? "
                    "WHERE id = ? AND attempts = ? AND state = 'running' AND first_result IS NULL",
                    (now, number, attempt),
                ).rowcount
            )

    def finished(self, number: int, attempt: int, state: State, result: Mapping[str, Any], now: float) -> bool:
        """A slide is done: COMPLETE or PARTIAL, with a summary (plain JSON values) of its results.

        False, and nothing is changed, where this attempt is over already: cancelled, replaced, or said before. A file may
        change while it is read, before the intake knows: compare `slides.discover.fingerprint` of before and after, and
        call `fail` with Kind.CHANGED where they differ.
        """
        if state not in (State.COMPLETE, State.PARTIAL):
            raise NotAllowed(f"a slide finishes complete or partial, not {state}")
        text = json.dumps(result, ensure_ascii=True, allow_nan=False)
        with self._writer.transaction() as run:
            if not rows.under_way(run, number, attempt):
                return False
            run.execute("UPDATE slides SET result = ? WHERE id = ?", (text, number))
            self._fresh(number)
            self._move(number, state, None, "", SERVICE, now)
            self._passed(self.slide(number), now)
            return True

    def fail(self, number: int, attempt: int, kind: Kind, reason: str, now: float) -> Slide | None:
        """An attempt failed: the slide waits for another, or goes into quarantine (`pipeline.service.reasons`).

        What is not the slide's own fault holds its folder, or its route's results, until the time of the next try. Gives
        the slide as it is now, or None, and nothing is changed, where this attempt is over already.
        """
        with self._writer.transaction() as run:
            if not rows.under_way(run, number, attempt):
                return None
            counter = "waits" if RULES[kind].attempts is None else "failures"
            run.execute(f"UPDATE slides SET {counter} = {counter} + 1 WHERE id = ?", (number,))
            slide = self.slide(number)
            decision = decide(kind, slide.waits if counter == "waits" else slide.failures, now)
            if decision.retry_at is None:
                self._move(number, State.QUARANTINED, kind, reason, SERVICE, now)
            else:
                self._move(number, State.RETRY_WAIT, kind, reason, SERVICE, now, due=decision.retry_at)
                for key in self._held_by(slide, decision.holds):
                    self.hold(key, kind, reason, now, decision.retry_at)
            return self.slide(number)

    def _held_by(self, slide: Slide, what: str) -> list[str]:
        if what == HOLD_RESULTS:
            return [results_key(slide.route)]
        if what != HOLD_FOLDER:
            return []
        found = self._connection.execute(
            "SELECT DISTINCT folder FROM names WHERE path = ? AND gone IS NULL", (slide.path,)
        )
        return [folder_key(row["folder"]) for row in found]

    def _passed(self, slide: Slide, now: float) -> None:
        """A slide came through: what its failures had held for a while is held no longer."""
        for what in (HOLD_RESULTS, HOLD_FOLDER):
            for key in self._held_by(slide, what):
                if self._connection.execute(
                    "SELECT until FROM holds WHERE key = ? AND until NOTNULL", (key,)
                ).fetchone():
                    self.release(key, now)

    # What is held

    def hold(self, key: str, kind: Kind, reason: str, now: float, until: float | None = None) -> bool:
        """Start nothing of a folder or of a route's results (`folder_key`, `results_key`), until a time or its release.

        True where it was not held before; then an event goes out.
        """
        with self._writer.transaction() as run:
            old = run.execute("SELECT until FROM holds WHERE key = ?", (key,)).fetchone()
            if old is None:
                run.execute("INSERT INTO holds VALUES (?, ?, ?, ?, ?)", (key, kind, reason, now, until))
                body = {"key": key, "kind": kind, "reason": reason, "remedy": RULES[kind].remedy}
                outbox.tell_of_intake(run, now, Event.HELD, body)
            elif old["until"] is not None:  # one that waits for its release is not cut short by one with an end
                later = None if until is None else max(until, old["until"])
                run.execute("UPDATE holds SET until = ?, reason = ? WHERE key = ?", (later, reason, key))
            return old is None

    def release(self, key: str, now: float) -> bool:
        """What was held goes on, and the slides that failed for it are due at once. False where it was not held."""
        with self._writer.transaction() as run:
            row = run.execute("SELECT * FROM holds WHERE key = ?", (key,)).fetchone()
            if row is None:
                return False
            run.execute("DELETE FROM holds WHERE key = ?", (key,))
            run.execute(
                "UPDATE slides SET due = ? WHERE state = 'retry_wait' AND kind = ? AND due > ? AND ("
                "'results:' || route = ? OR EXISTS (SELECT 1 FROM names WHERE names.content = slides.content "
                "AND 'folder:' || folder = ?))",
                (now, row["kind"], now, key, key),
            )
            outbox.tell_of_intake(run, now, Event.RELEASED, {"key": key, "held_s": round(now - row["since"], 3)})
            return True

    def troubled(self, found: Mapping[str, Trouble], now: float) -> tuple[Collection[Trouble], Collection[Trouble]]:
        """The troubles that there are, by key; gives those that have begun and those that are over, each told once."""
        standing = self.troubles()
        if standing.keys() == found.keys():
            return (), ()
        with self._writer.transaction() as run:
            return troubles.note(run, now, standing, found)

    # The operator's hands

    def retry(self, number: int, now: float, by: str = OPERATOR) -> Slide:
        """Queue a slide again, as if it had never failed. NotAllowed where it is queued or running, or no file is there.

        A slide that was complete is done again only if its results are moved away first: what is complete on disk counts.
        """
        with self._writer.transaction() as run:
            there = run.execute(
                "SELECT 1 FROM names JOIN slides USING (content) WHERE slides.id = ? AND gone IS NULL", (number,)
            ).fetchone()
            if self.slide(number).state is not State.QUEUED and there is None:
                raise NotAllowed("no file of this slide is there any more: deliver it again")
            self._fresh(number)
            self._move(number, State.QUEUED, None, "to be tried again", by, now)
            return self.slide(number)

    def cancel(self, number: int, now: float, by: str = OPERATOR, reason: str = "cancelled") -> Slide:
        """Take a slide out. If it is running, what still comes of this attempt is refused from now on; stop it, too."""
        with self._writer.transaction():
            self._move(number, State.CANCELLED, None, reason, by, now)
            return self.slide(number)

    def prioritise(
        self, number: int, urgency: Urgency, deadline: float | None, now: float, by: str = OPERATOR
    ) -> Slide:
        """Give an unfinished slide another class and deadline. NotAllowed where it is at rest."""
        with self._writer.transaction() as run:
            slide = self.slide(number)
            if slide.state not in (State.QUEUED, State.RUNNING, State.RETRY_WAIT):
                raise NotAllowed(f"the slide is {slide.state}, so its class makes no difference")
            run.execute(
                "UPDATE slides SET urgency = ?, deadline = ?, alarmed = NULL WHERE id = ?", (urgency, deadline, number)
            )
            rows.add_step(run, number, slide.state, slide.state, slide.kind, f"made {urgency}", by, now)
            return self.slide(number)

    def alarm(self, number: int, reason: str, now: float) -> bool:
        """Raise the event that a slide's deadline is at risk. True the first time."""
        with self._writer.transaction() as run:
            raised = run.execute(
                "UPDATE slides SET alarmed = ? WHERE id = ? AND alarmed IS NULL", (now, number)
            ).rowcount
            if raised:
                outbox.tell(run, now, Event.DEADLINE, self.slide(number), {"reason": reason})
            return bool(raised)

    # Events for the world outside

    def add_sink(self, name: str) -> None:
        """Make a receiver of events known; one that is new gets what happens from now on."""
        with self._writer.transaction() as run:
            outbox.add_sink(run, name)

    def keep_sinks(self, names: Iterable[str]) -> None:
        """Forget all receivers but these: events must not wait for one that is configured no more."""
        with self._writer.transaction() as run:
            outbox.keep_sinks(run, tuple(names))

    def sent(self, sink: str, event: int) -> None:
        """A sink has confirmed all events up to this id."""
        with self._writer.transaction() as run:
            run.execute("UPDATE sinks SET sent = max(sent, ?) WHERE name = ?", (event, sink))

    def forget_events(self, before: float, unsent_before: float) -> int:
        """Delete old events: those that all sinks have, and those too old to be of use to anyone. How many."""
        with self._writer.transaction() as run:
            return outbox.forget(run, before, unsent_before)

    # Housekeeping

    @property
    def changes(self) -> int:
        """Rises with every row that was changed."""
        return self._connection.total_changes

    def results_removed(self, number: int, now: float) -> None:
        """The result files of a finished slide are gone; it stays finished."""
        with self._writer.transaction() as run:
            run.execute(
                "UPDATE slides SET result = json_set(coalesce(result, '{}'), '$.removed', ?) WHERE id = ?",
                (now, number),
            )

    # Changes of state: here and nowhere else

    def _move(
        self, number: int, new: State, kind: Kind | None, reason: str, by: str, now: float, due: float | None = None
    ) -> None:
        with self._writer.transaction() as run:
            old = self.slide(number).state
            check(old, new)
            run.execute(
                "UPDATE slides SET state = ?, kind = ?, reason = ?, due = ? WHERE id = ?",
                (new, kind, reason, due, number),
            )
            if new in (State.COMPLETE, State.PARTIAL, State.QUARANTINED, State.CANCELLED):
                run.execute("UPDATE slides SET finished = ? WHERE id = ?", (now, number))
            elif new is State.QUEUED:
                run.execute("UPDATE slides SET finished = NULL, alarmed = NULL WHERE id = ?", (number,))
            rows.add_step(run, number, old, new, kind, reason, by, now)
            event = told(new)
            if event is not None:
                outbox.tell(run, now, event, self.slide(number))

    def _fresh(self, number: int) -> None:
        self._connection.execute("UPDATE slides SET failures = 0, waits = 0 WHERE id = ?", (number,))


def folder_key(folder: str) -> str:
    """The key under which a watched folder is held."""
    return f"folder:{folder}"


def results_key(route: str) -> str:
    """The key under which the results of a route are held."""
    return f"results:{route}"
