"""The slides of a run: which are still to be submitted, which are under way, and what became of the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Protocol

from pipeline.staging import Staging
from pipeline.wire import SlideDone, Submit
from slides.discover import Found

# Slides that the batcher knows of at a time: enough to look ahead, few enough that ten thousand take no memory.
UNDER_WAY = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one slide."""

    id: str
    path: str
    state: str
    reason: str
    planned: int
    inferred: int
    failed: int
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of a slide before it is submitted: its key, why it cannot be read, the summary of an earlier run,
    how many patches its journal has inferred."""

    key: dict
    problem: str = ""
    complete: dict | None = None
    retry: bool = False
    carried: int = 0


@dataclass(slots=True)
class Tally:
    """Slides by what became of them; patches of those that were done by this process, not of what it found complete."""

    slides: dict[str, int] = field(default_factory=dict)
    planned: int = 0
    inferred: int = 0
    failed: int = 0

    @property
    def over(self) -> int:
        """Slides that are done, whatever became of them."""
        return sum(self.slides.values())

    def add(self, verdict: Verdict) -> None:
        self.slides[verdict.state] = self.slides.get(verdict.state, 0) + 1
        if not verdict.skipped:
            self.planned += verdict.planned
            self.inferred += verdict.inferred
            self.failed += verdict.failed


class Source(Protocol):
    """Where a supervisor has its slides from. `under_way`: those that the batcher knows of, by number."""

    tally: Tally
    under_way: dict[int, Submit]

    def next(self) -> Submit | None:
        """The next slide to be submitted; None if none is due yet."""

    def again(self) -> list[Submit]:
        """What a new batcher must be told."""

    def done(self, message: SlideDone) -> Verdict | None:
        """Take in the end of a slide; None if it was known."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to do, for ever."""

    @property
    def total(self) -> int:
        """Slides, those to come included."""


@dataclass(slots=True)
class Submissions:
    """Urgent slides first, then in the order given. `look(found)` reads what is known of a slide from disk.

    With `staging`, a routine slide is submitted when its copy is there, in order.
    """

    found: list[Found]
    urgent: tuple[str, ...]
    look: Callable[[Found], Earlier]
    staging: Staging | None = None
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    under_way: dict[int, Submit] = field(default_factory=dict)
    carried: dict[str, int] = field(default_factory=dict)
    _queue: deque[int] = field(default_factory=deque)
    _staged: deque[Submit] = field(default_factory=deque)  # known, but for where to read them

    def __post_init__(self) -> None:
        numbers = range(1, len(self.found) + 1)
        self._queue.extend(sorted(numbers, key=lambda number: not self._is_urgent(self._slide(number))))

    def _slide(self, number: int) -> Found:
        return self.found[number - 1]

    def _is_urgent(self, slide: Found) -> bool:
        return any(fnmatch(slide.id, pattern) or fnmatch(str(slide.path), pattern) for pattern in self.urgent)

    def skim(self) -> None:
        """Pass over what is complete at the head of the queue: where that is all, no process need be started."""
        while self._queue and self._complete(self._queue[0]):
            self._queue.popleft()

    def _complete(self, number: int) -> bool:
        earlier = self.look(self._slide(number))
        if earlier.complete is not None:
            self._skip(number, earlier.complete)
        return earlier.complete is not None

    def next(self) -> Submit | None:
        """The next slide to be submitted, passing over those that are complete already; None if none is due yet."""
        while self._queue and len(self.under_way) + len(self._staged) < UNDER_WAY:
            number = self._queue.popleft()
            slide = self._slide(number)
            earlier = self.look(slide)
            if earlier.complete is not None:
                self._skip(number, earlier.complete)
                continue
            submit = Submit(
                number,
                slide.id,
                str(slide.path),
                earlier.key,
                self._is_urgent(slide),
                earlier.retry,
                earlier.problem,
            )
            self.carried[slide.id] = earlier.carried
            if self.staging is None or submit.urgent or submit.problem:
                self.under_way[number] = submit
                return submit
            self.staging.want(number, slide.path)
            self._staged.append(submit)
        return self._arrived()

    def _arrived(self) -> Submit | None:
        """The first of the slides that wait for their copies, if its own is there."""
        if self.staging is None or not self._staged:
            return None
        submit = self._staged[0]
        place = self.staging.place(submit.slide)
        if place is None:
            return None
        self._staged.popleft()
        if str(place) != submit.path:
            submit = replace(submit, place=str(place))
        self.under_way[submit.slide] = submit
        return submit

    def again(self) -> list[Submit]:
        """What a new batcher must be told: all that is under way, but for what was complete before the old one said so."""
        for number in list(self.under_way):
            earlier = self.look(self._slide(number))
            if earlier.complete is not None:
                del self.under_way[number]
                self._release(number)
                self._skip(number, earlier.complete, skipped=False)
        return [replace(submit, retry=False) for submit in self.under_way.values()]

    def _skip(self, number: int, summary: dict, skipped: bool = True) -> None:
        slide, patches = self._slide(number), summary["patches"]
        counts = (patches["planned"], patches["inferred"], patches["failed"])
        self._settle(number, Verdict(slide.id, str(slide.path), "complete", "", *counts, skipped))

    def _settle(self, number: int, verdict: Verdict) -> None:
        self.verdicts[number] = verdict
        self.tally.add(verdict)

    def done(self, message: SlideDone) -> Verdict | None:
        """Take in the end of a slide; None if it was known."""
        if self.under_way.pop(message.slide, None) is None:
            return None
        self._release(message.slide)
        slide = self._slide(message.slide)
        verdict = Verdict(
            slide.id,
            str(slide.path),
            message.state,
            message.reason,
            message.planned,
            message.inferred,
            message.failed,
        )
        self._settle(message.slide, verdict)
        return verdict

    @property
    def finished(self) -> bool:
        return not self._queue and not self._staged and not self.under_way

    def _release(self, number: int) -> None:
        if self.staging is not None:
            self.staging.release(number)

    @property
    def total(self) -> int:
        return len(self.found)
