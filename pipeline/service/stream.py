"""The slides of a lane: they come one by one for as long as it lives, and are forgotten when they are done.

The counterpart of `pipeline.submissions.Submissions`, which has all slides of a run from the start. Files are looked at in
threads (errands): a share that hangs must not hold up the lane's loop.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.rundir import work_folder
from pipeline.service.errands import Errands
from pipeline.service.lanewire import Do, First, LaneMessage, Over
from pipeline.service.reasons import Kind
from pipeline.staging import Staging
from pipeline.submissions import Earlier, Tally, Verdict
from pipeline.wire import SlideDone, Submit
from results.summary import read_summary
from slides.discover import Found, fingerprint
from slides.errors import SlideError, one_line


@dataclass(slots=True)
class _Job:
    """A slide on its way through the lane. `until`: when a look at its files has taken too long (monotonic, s)."""

    order: Do
    until: float
    urgent: bool
    cancelled: bool = False
    first_told: bool = False
    key: dict[str, str] = field(default_factory=dict)
    verdict: Verdict | None = None
    carried: int = 0
    submit: Submit | None = None


@dataclass(slots=True)
class Stream:
    """A `pipeline.submissions.Source` without an end.

    `look(found)` reads what is known of a slide from disk, `complete(name, fingerprint)` whether its results are; `folders` are where the results of each model lie, `private` is
    where journals lie; `say` sends to the service. `patience_s`: a look at a slide's files may take so long.
    """

    look: Callable[[Found], Earlier]
    complete: Callable[[str, str], dict[str, Any] | None]
    say: Callable[[LaneMessage], None]
    errands: Errands
    folders: Sequence[Path]
    private: Path
    patience_s: float
    staging: Staging | None = None
    tally: Tally = field(default_factory=Tally)
    under_way: dict[int, Submit] = field(default_factory=dict)
    _jobs: dict[int, _Job] = field(default_factory=dict)
    _numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    _ready: deque[int] = field(default_factory=deque)
    _staged: deque[int] = field(default_factory=deque)
    _last: int = 0

    # From the service

    def add(self, order: Do) -> None:
        """A slide to be done. One that is here already under this attempt is not taken twice."""
        if (order.slide, order.attempt) in self._numbers:
            return
        self._last += 1
        number = self._last
        self._numbers[order.slide, order.attempt] = number
        self._jobs[number] = _Job(order, time.monotonic() + self.patience_s, order.urgent)
        found = Found(order.name, Path(order.path))
        self.errands.run(
            lambda: self.look(found),
            lambda earlier: self._looked(number, earlier),
            lambda error: self._fail(number, f"cannot be looked at: {one_line(str(error))}", Kind.INTERNAL),
        )

    def amend(self, slide: int, attempt: int, urgent: bool) -> int | None:
        """Another class; the number by which the batcher knows the slide, where it does."""
        number = self._numbers.get((slide, attempt))
        if number is None:
            return None
        job = self._jobs[number]
        job.urgent = urgent
        if job.submit is not None:
            job.submit = replace(job.submit, urgent=urgent)
        if number in self._staged and urgent:  # urgent slides are never copied
            self._staged.remove(number)
            self._ready.append(number)
        if number in self.under_way:
            self.under_way[number] = replace(self.under_way[number], urgent=urgent)
            return number
        return None

    def cancel(self, slide: int, attempt: int) -> int | None:
        """Not wanted any more; the number by which the batcher knows the slide, where it does."""
        number = self._numbers.get((slide, attempt))
        if number is None:
            return None
        self._jobs[number].cancelled = True
        if number in self.under_way:
            return number
        if self._jobs[number].verdict is None:
            self._drop(number, Over(slide, attempt, "cancelled", "", "", {}))
        return None

    # For the supervisor

    def next(self) -> Submit | None:
        """The next slide for the batcher: urgent ones first, then as they came. None if none is due yet."""
        self._find_overdue()
        names = {submit.id for submit in self.under_way.values()}
        for number in sorted(self._ready, key=lambda one: not self._jobs[one].urgent):
            job = self._jobs[number]
            if job.order.name in names:  # an earlier attempt is not out of the batcher yet
                continue
            self._ready.remove(number)
            if self.staging is None or job.urgent:
                return self._begin(number, job.submit)
            self.staging.want(number, Path(job.order.path))
            self._staged.append(number)
        return self._arrived(names)

    def _arrived(self, names: set[str]) -> Submit | None:
        if self.staging is None:
            return None
        for number in self._staged:
            place = self.staging.place(number)
            job = self._jobs[number]
            if place is not None and job.order.name not in names:
                self._staged.remove(number)
                submit = job.submit
                return self._begin(number, submit if str(place) == submit.path else replace(submit, place=str(place)))
        return None

    def _begin(self, number: int, submit: Submit) -> Submit:
        self.under_way[number] = submit
        return submit

    def again(self) -> list[Submit]:
        """What a new batcher must be told: all that is under way, but for what was complete before the old one said so."""
        for number, submit in list(self.under_way.items()):
            whole = self.complete(submit.id, submit.key.get("fingerprint", ""))
            if whole is not None:
                patches = whole["patches"]
                counts = (patches["planned"], patches["inferred"], patches["failed"])
                del self.under_way[number]
                self._end(number, "complete", "", counts)
            elif self._jobs[number].cancelled:
                del self.under_way[number]
                self._end(number, "cancelled", "", (0, 0, 0))
        return [replace(submit, retry=False) for submit in self.under_way.values()]

    def done(self, message: SlideDone) -> Verdict | None:
        """Take in the end of a slide; None if it was known. Whether it changed meanwhile is found out in a thread."""
        if self.under_way.pop(message.slide, None) is None:
            return None
        counts = (message.planned, message.inferred, message.failed)
        return self._end(message.slide, message.state, message.reason, counts)

    @property
    def finished(self) -> bool:
        """Never: a lane ends when it is told to."""
        return False

    @property
    def total(self) -> int:
        """Slides that were done or are here."""
        return self.tally.over + len(self._jobs)

    def watch(self, active: Sequence[Sequence[Any]]) -> list[list[int]]:
        """`active` is the batcher's (number, id, inferred, failed, planned). Tells of first results; gives [slide, attempt,
        patches done, planned] for each."""
        found = []
        for number, _, inferred, failed, planned in active:
            job = self._jobs.get(number)
            if job is None or number not in self.under_way:
                continue
            if inferred > job.carried and not job.first_told:
                job.first_told = True
                self.say(First(job.order.slide, job.order.attempt))
            found.append([job.order.slide, job.order.attempt, inferred + failed, planned])
        return found

    def close(self) -> None:
        """Copies are removed."""
        if self.staging is not None:
            self.staging.close()

    # Inside

    def _looked(self, number: int, earlier: Earlier) -> None:
        job = self._jobs.get(number)
        if job is None:  # cancelled, or given up
            return
        job.until = float("inf")
        job.key = earlier.key
        if earlier.complete is not None:
            patches = earlier.complete["patches"]
            counts = (patches["planned"], patches["inferred"], patches["failed"])
            self._end(number, "complete", "", counts, skipped=True)
            return
        if earlier.problem:  # no result yet: it may be a share that comes back
            self._fail(number, earlier.problem)
            return
        job.carried = earlier.carried
        order = job.order
        job.submit = Submit(number, order.name, order.path, earlier.key, job.urgent, earlier.retry, earlier.problem)
        self._ready.append(number)

    def _find_overdue(self) -> None:
        now = time.monotonic()
        for number in [number for number, job in self._jobs.items() if now > job.until]:
            self._fail(number, f"its files could not be looked at within {self.patience_s:g} s", Kind.TIMEOUT)

    def _fail(self, number: int, reason: str, kind: Kind | None = None) -> None:
        job = self._jobs.get(number)
        if job is None:
            return
        if job.verdict is not None:  # only the look afterwards hangs: what was done is done
            self._closed(number, ("", {}))
            return
        self.tally.add(Verdict(job.order.name, job.order.path, "failed", reason, 0, 0, 0))
        self._drop(number, Over(job.order.slide, job.order.attempt, "failed", reason, kind or "", {}))

    def _end(
        self, number: int, state: str, reason: str, counts: tuple[int, int, int], skipped: bool = False
    ) -> Verdict:
        job = self._jobs[number]
        verdict = job.verdict = Verdict(job.order.name, job.order.path, state, reason, *counts, skipped)
        self.tally.add(verdict)
        if self.staging is not None:
            self.staging.release(number)
        job.until = time.monotonic() + self.patience_s
        self.errands.run(
            lambda: self._close(job.order, job.key, state),
            lambda found: self._closed(number, found),
            lambda error: self._closed(number, ("", {})),
        )
        return verdict

    def _close(self, order: Do, key: dict[str, str], state: str) -> tuple[str, dict[str, Any]]:
        """In a thread: (fingerprint now, what the summaries say). A file that was removed meanwhile has not changed."""
        if state == "complete":  # an aggregator that was killed at the end may have left its journal
            shutil.rmtree(work_folder(self.private, order.name), ignore_errors=True)
        digest = ""
        if state in ("complete", "partial"):
            try:
                digest = fingerprint(order.path) if os.path.exists(order.path) else ""
            except SlideError:
                digest = ""
        found = {folder.name: read_summary(folder, order.name) for folder in self.folders}
        return digest, {name: _brief(summary) for name, summary in found.items() if summary is not None}

    def _closed(self, number: int, found: tuple[str, dict[str, Any]]) -> None:
        job = self._jobs.get(number)
        if job is None:
            return
        digest, summaries = found
        verdict, order = job.verdict, job.order
        state, reason = verdict.state, verdict.reason
        if job.cancelled and state != "complete":
            state, reason = "cancelled", ""
        elif digest and digest != job.key.get("fingerprint"):
            state, reason = "changed", "it was changed while it was read"
        result = {
            "planned": verdict.planned,
            "inferred": verdict.inferred,
            "failed": verdict.failed,
            "skipped": verdict.skipped,
        }
        if len(self.folders) == 1:
            result |= next(iter(summaries.values()), {})
        else:
            result["models"] = summaries
        self._drop(number, Over(order.slide, order.attempt, state, reason, "", result))

    def _drop(self, number: int, over: Over) -> None:
        job = self._jobs.pop(number)
        self._numbers.pop((job.order.slide, job.order.attempt), None)
        for queue in (self._ready, self._staged):
            if number in queue:
                queue.remove(number)
        if self.staging is not None:
            self.staging.release(number)
        self.say(over)


def _brief(summary: dict[str, Any]) -> dict[str, Any]:
    """What the ledger, the events and the lists of slides need of a summary."""
    model = summary.get("model") or {}
    return {
        "model": {name: model.get(name) for name in ("name", "sha256")},
        "probabilities": summary.get("probabilities") or {},
        "seconds": summary.get("seconds") or {},
    }
