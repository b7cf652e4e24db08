"""Whose turn it is: urgent slides first with a floor for routine, and fair shares among the slides of a class.

Within a class, deficit round-robin (Shreedhar and Varghese, 1995) with one batch as quantum: a slide of a million
patches cannot hold up a biopsy. Between the classes, routine gets `floor` of the rows while urgent work is waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pipeline.dispatch.slidework import SlideWork


class Schedule:
    """The slides that have pending patches, by class, in the order of their turns."""

    def __init__(self, quantum: int, floor: float):
        self._quantum = quantum
        self._floor = floor
        self._turns: dict[bool, deque[SlideWork]] = {True: deque(), False: deque()}
        self._owed = 0.0  # rows that routine has yet to get of its floor

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

    def next_class(self) -> bool | None:
        """True: an urgent batch is due; False: a routine one; None: nothing is pending."""
        urgent, routine = self.waiting(True), self.waiting(False)
        if urgent and routine:
            return self._owed < self._quantum
        if not urgent:
            self._owed = 0.0
        return True if urgent else False if routine else None

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
        if urgent:
            self._owed += drawn * self._floor / max(1e-9, 1.0 - self._floor)
        else:
            self._owed = max(0.0, self._owed - drawn)

    def _trim(self, urgent: bool) -> None:
        turns = self._turns[urgent]
        while turns and not turns[0].has_pending:
            turns.popleft()
