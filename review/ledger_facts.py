"""What the ledger of a service knows of the slides of one route, for the worklist: also of those without any result."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import log
from pipeline.service.lifecycle import State
from pipeline.service.migrations import LedgerError
from pipeline.service.records import Standing
from pipeline.service.view import View
from review.entry import iso

# How the worklist calls what has no result, and what it says where the ledger gives no reason.
_STATES = {
    State.QUEUED: ("waiting", None),
    State.RUNNING: ("running", None),
    State.RETRY_WAIT: ("waiting", None),
    State.QUARANTINED: ("failed", "it cannot be analysed"),
    State.CANCELLED: ("failed", "cancelled by the operator; it was not analysed"),
}


class LedgerFacts:
    """A `review.catalogue.Beside`. Not for two threads at once. Where the ledger cannot be read, what was known stands."""

    def __init__(self, ledger: Path, route: str) -> None:
        self._ledger, self._route = ledger, route
        self._after = 0
        self._facts: dict[str, Mapping[str, Any]] = {}
        self._problem = ""

    def __call__(self) -> Mapping[str, Mapping[str, Any]]:
        """By the names of slides' results; what has not changed is the same object as before."""
        try:
            view = View.open(self._ledger)  # each time: a connection belongs to a thread
            try:
                self._after, standings = view.standings(self._route, self._after)
            finally:
                view.close()
        except (LedgerError, sqlite3.Error) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.get_logger().warning("the worklist lacks what waits", reason=self._problem)
            return self._facts
        self._problem = ""
        changed = {one.name: facts for one in standings if (facts := facts_of(one)) != self._facts.get(one.name)}
        if changed:
            self._facts = {**self._facts, **changed}
        return self._facts


def facts_of(slide: Standing) -> dict[str, Any]:
    """`state` and `reason` only where there is no result: a result says itself how it stands."""
    facts: dict[str, Any] = {"urgency": str(slide.urgency), "arrived": iso(slide.seen)}
    if slide.state in _STATES:
        state, otherwise = _STATES[slide.state]
        # The reason of an earlier attempt is none while it runs.
        reason = None if slide.state is State.RUNNING else slide.reason or None
        if slide.state is State.CANCELLED:
            reason = otherwise
        facts |= {"state": state, "reason": reason or otherwise}
        if state == "failed" and slide.finished is not None:
            facts["finished"] = iso(slide.finished)
    return facts
