"""Whose turn it is: urgent slides first with a floor for routine, and fair shares among the slides of a class.

Within a class, deficit round-robin (Shreedhar and Varghese, 1995) with one batch as quantum: a slide of a million
patches cannot hold up a biopsy. Between the classes, routine gets `floor` of the rows while urgent work is waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pipeline.dispatch.slidework import SlideWork


class Floor:
    """Which class is next where urgent work goes first but routine gets a share of the rows beside it."""

    def __init__(self, quantum: int, share: float):
        """`quantum`: rows in a batch; `share`: of all rows, while both classes are waiting."""
        self._quantum = quantum
        self._ratio = share / max(1e-9, 1.0 - share)
        self._most = quantum * (1.0 + self._ratio)
        self._owed = 0.0  # rows that routine has yet to get
        self._contended = False

    def due(self, urgent: bool, routine: bool) -> bool | None:
        """Given who is waiting: True for an urgent batch, False for a routine one, None for nothing."""
        self._contended = urgent and routine
        if self._contended:
            return self._owed < self._quantum
        self._owed = 0.0  # who does not wait is owed nothing
        return True if urgent else False if routine else None

    def charge(self, urgent: bool, rows: int) -> None:
        """The class that `due` named got so many rows; or urgent did, where routine had no room for its own."""
        if urgent and self._contended:
            self._owed = min(self._most, self._owed + rows * self._ratio)
        elif not urgent:
            self._owed = max(0.0, self._owed - rows)


class Schedule:
    """The slides that have pending patches, by class, in the order of their turns."""

    def __init__(self, quantum: int):
        self._quantum = quantum
        self._turns: dict[bool, deque[SlideWork]] = {True: deque(), False: deque()}

    def add(self, slide: SlideWork) -> None:
        """The slide has pending patches (again). Adding it twice changes nothing."""
        turns = self._turns[slide.urgent]
        if slide not in turns:
            slide.deficit = 0
            turns.append(slide)

    def remove(self, slide: SlideWork) -> None:
        turns = self._turns[slide.urgent]
        if slide in turns:
            turns.remove(slide)

    def waiting(self, urgent: bool) -> bool:
        self._trim(urgent)
        return bool(self._turns[urgent])

    def draw(self, urgent: bool, rows: int, take: Callable[[SlideWork, int], int]) -> None:
        """Share out up to `rows` rows of a batch of one class; `take(slide, n)` takes at most n and says how many.

        Raises nothing; stops when the class has no more pending patches.
        """
        turns = self._turns[urgent]
        drawn = 0
        while drawn < rows and self.waiting(urgent):
            slide = turns[0]
            if slide.deficit <= 0:
                slide.deficit += self._quantum
            got = take(slide, min(rows - drawn, slide.deficit))
            slide.deficit -= got
            drawn += got
            if not slide.has_pending:
                turns.popleft()
            elif slide.deficit <= 0:
                turns.rotate(-1)

    def _trim(self, urgent: bool) -> None:
        turns = self._turns[urgent]
        while turns and not turns[0].has_pending:
            turns.popleft()
