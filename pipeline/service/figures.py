"""Figures of the ledger for health and metrics. Reads only, and counts history once: a look takes milliseconds after months."""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.service.lifecycle import AT_REST, UNFINISHED, State, Urgency
from pipeline.service.reasons import Kind
from pipeline.service.snapshot import Risk, Turnaround
from pipeline.service.view import View

LATEST = 200  # complete slides, of both classes, that the turnaround is told of
RISKS_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger says at one moment; as the fields of Snapshot that are called the same."""

    slides: dict[str, dict[str, int]]
    finished: dict[str, dict[str, int]]
    failures: dict[str, int]
    failing: dict[str, int]
    oldest_s: dict[str, float]
    turnaround: dict[str, Turnaround]
    risks: tuple[Risk, ...]
    backlog: int
    workable: bool
    held: dict[str, int]
    troubles: dict[str, int]
    stuck: int
    unsent: dict[str, int]
    last_result: float | None


class Figures(View):
    """A view of the ledger that remembers up to where it has counted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._counted = 0
        self._finished = {state: dict.fromkeys(Urgency, 0) for state in sorted(AT_REST)}
        self._failures = {str(kind): 0 for kind in Kind}

    def facts(self, now: float) -> Facts:
        """All figures, of one moment. `now` in seconds since 1970. sqlite3.Error where the file cannot be read."""
        self._connection.execute("BEGIN")
        try:
            return self._facts(now)
        finally:
            self._connection.rollback()

    def _facts(self, now: float) -> Facts:
        self._count()
        slides = self.counts()
        unfinished = sum(sum(slides[state].values()) for state in UNFINISHED)
        held: defaultdict[str, int] = defaultdict(int)
        for hold in self.holds():
            held[hold.kind] += 1
        troubles: defaultdict[str, int] = defaultdict(int)
        for trouble in self.troubles().values():
            troubles[trouble.kind] += 1
        run = self._connection.execute
        last = run("SELECT time FROM steps WHERE new IN ('complete', 'partial') ORDER BY id DESC LIMIT 1").fetchone()
        return Facts(
            slides={str(state): _by_class(counts) for state, counts in slides.items()},
            finished={str(state): _by_class(counts) for state, counts in self._finished.items()},
            failures=dict(self._failures),
            failing={str(kind): count for kind, count in self.kinds().items()},
            oldest_s=self._oldest(now),
            turnaround=self._turnaround(),
            risks=self._risks(now),
            backlog=unfinished,
            workable=bool(sum(slides[State.RUNNING].values()) or self.next_due(now)),
            held=dict(held),
            troubles=dict(troubles),
            stuck=run("SELECT count(*) FROM arrivals WHERE stuck").fetchone()[0],
            unsent=self._unsent(),
            last_result=None if last is None else last["time"],
        )

    def _count(self) -> None:
        rows = self._connection.execute(
            "SELECT steps.old, steps.new, slides.urgency, steps.kind, count(*), max(steps.id) "
            "FROM steps JOIN slides ON slides.id = steps.slide WHERE steps.id > ? GROUP BY 1, 2, 3, 4",
            (self._counted,),
        ).fetchall()
        for old, new, urgency, kind, count, last in rows:
            self._counted = max(self._counted, last)
            if old == new:  # another class, and no change of state
                continue
            if new in self._finished:
                self._finished[new][urgency] += count
            if kind is not None:
                self._failures[kind] += count

    def _oldest(self, now: float) -> dict[str, float]:
        rows = self._connection.execute(
            f"SELECT urgency, min(delivered) FROM slides WHERE state IN {_list(sorted(UNFINISHED))} GROUP BY 1"
        )
        since = dict(iter(rows))
        return {str(u): max(0.0, now - since[u]) if u in since else 0.0 for u in Urgency}

    def _turnaround(self) -> dict[str, Turnaround]:
        rows = self._connection.execute(
            "SELECT slides.urgency, latest.time - slides.delivered FROM (SELECT slide, time FROM steps "
            "WHERE new = 'complete' ORDER BY id DESC LIMIT ?) AS latest JOIN slides ON slides.id = latest.slide",
            (LATEST,),
        )
        seconds: defaultdict[str, list[float]] = defaultdict(list)
        for urgency, span in rows:
            seconds[urgency].append(max(0.0, span))
        return {
            urgency: Turnaround(len(spans), quantile(spans, 0.5), quantile(spans, 0.99))
            for urgency, spans in seconds.items()
        }

    def _risks(self, now: float) -> tuple[Risk, ...]:
        rows = self._connection.execute(
            f"SELECT id, urgency, deadline FROM slides WHERE state IN {_list(sorted(UNFINISHED))} "
            "AND deadline IS NOT NULL AND (alarmed IS NOT NULL OR deadline < ?) ORDER BY deadline LIMIT ?",
            (now, RISKS_SHOWN),
        )
        return tuple(Risk(row["id"], row["urgency"], row["deadline"] - now) for row in rows)

    def _unsent(self) -> dict[str, int]:
        rows = self._connection.execute(
            "SELECT name, (SELECT count(*) FROM events WHERE events.id > sinks.sent) FROM sinks ORDER BY name"
        )
        return dict(iter(rows))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _list(words: Sequence[str]) -> str:
    return f"({', '.join(repr(str(word)) for word in words)})"


def _by_class(counts: dict[Urgency, int]) -> dict[str, int]:
    return {str(urgency): count for urgency, count in counts.items()}
