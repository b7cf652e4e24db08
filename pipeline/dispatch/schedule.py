"""Whose turn it is: urgent slides first with a floor for routine, and fair shares among the slides of a class.

Within a class, each reader has a seat at one slide, for a quantum of rows, and then takes the one where the fewest
readers sit, in turns: deficit round-robin (Shreedhar and Varghese, 1995) by each reader. A slide of a million patches
cannot hold up a biopsy; and readers stay together with stored tiles that they have decoded, a small slide with few of
them. Between the classes, routine gets `floor` of the rows while urgent work is waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.dispatch.slidework import SlideWork

# Batches that a reader draws from a slide before it looks for another one: with fewer, tiles at the seams between readers
# are decoded twice more often; with more, a small slide waits longer for its turn.
SITTING = 16


# Full batches that routine is owed before its first turn beside urgent work: a frozen section is done before that, and what
# is owed is not forgotten in between, so the floor holds all the same.
GRACE = 8


class Floor:
    """Which class is next where urgent work goes first but routine gets a share of the rows beside it."""

    def __init__(self, quantum: int, share: float):
        """`quantum`: rows in a batch; `share`: of all rows, while both classes are waiting."""
        self._ratio = share / max(1e-9, 1.0 - share)
        self._due = quantum * GRACE
        self._most = self._due + quantum * self._ratio
        self._owed = 0.0  # rows that routine has yet to get
        self.contended = False

    def due(self, urgent: bool, routine: bool) -> bool | None:
        """Given who is waiting: True for an urgent batch, False for a routine one, None for nothing."""
        self.contended = urgent and routine
        if self.contended:
            return self._owed < self._due
        return True if urgent else False if routine else None

    def charge(self, urgent: bool, rows: int) -> None:
        """The class that `due` named got so many rows; or urgent did, where routine had no room for its own."""
        if urgent and self.contended:  # who does not wait is owed nothing
            self._owed = min(self._most, self._owed + rows * self._ratio)
        elif not urgent:
            self._owed = max(0.0, self._owed - rows)


@dataclass(slots=True)
class Seat:
    """Where a reader is: at a slide, for so many more rows."""

    slide: SlideWork
    rows: int


class Schedule:
    """The slides that have pending patches, by class, in the order of their coming, and where the readers are."""

    def __init__(self, batch: int, abreast: int):
        """`batch`: rows in a batch. `abreast`: routine slides that are read side by side; the others wait untouched."""
        self._quantum = SITTING * batch
        self._abreast = abreast
        self._turns: dict[bool, deque[SlideWork]] = {True: deque(), False: deque()}
        self._seats: dict[bool, dict[str, Seat]] = {True: {}, False: {}}
        self._clock = 0  # turns so far
        self._begun_at = 0  # when a slide was last begun

    def add(self, slide: SlideWork) -> None:
        """The slide has pending patches (again). Adding it twice changes nothing."""
        turns = self._turns[slide.urgent]
        if slide not in turns:
            turns.append(slide)

    def remove(self, slide: SlideWork) -> None:
        turns = self._turns[slide.urgent]
        if slide in turns:
            turns.remove(slide)
        seats = self._seats[slide.urgent]
        for reader in [reader for reader, seat in seats.items() if seat.slide is slide]:
            del seats[reader]

    def move(self, slide: SlideWork, urgent: bool) -> None:
        """The slide is of another class from now on: the next patch that is drawn of it is of that class."""
        self.remove(slide)
        slide.urgent = urgent
        if slide.has_pending:
            self.add(slide)

    def leave(self, reader: str) -> None:
        """A reader is gone."""
        for seats in self._seats.values():
            seats.pop(reader, None)

    def waiting(self, urgent: bool) -> bool:
        turns = self._turns[urgent]
        while turns and not turns[0].has_pending:
            turns.popleft()
        return bool(turns)

    def draw(self, urgent: bool, rows: int, take: Callable[[SlideWork, int], int], reader: str = "") -> None:
        """Share out up to `rows` rows of a batch of one class; `take(slide, n)` takes at most n and says how many.

        Raises nothing; stops when the class has no more pending patches.
        """
        drawn = 0
        while drawn < rows and self.waiting(urgent):
            seat = self._seat(urgent, reader)
            got = take(seat.slide, min(rows - drawn, seat.rows))
            seat.rows -= got
            drawn += got

    def _seat(self, urgent: bool, reader: str) -> Seat:
        seats = self._seats[urgent]
        seat = seats.get(reader)
        if seat is None or seat.rows <= 0 or not seat.slide.has_pending:
            seats.pop(reader, None)
            seat = seats[reader] = Seat(self._choose(urgent), self._quantum)
        return seat

    def _choose(self, urgent: bool) -> SlideWork:
        """Of the slides that are being read and, if it may be begun, the next one: where the fewest readers sit, and of
        those the one whose last turn is longest ago. All that are yet to be begun have one turn together."""
        turns = self._turns[urgent] = deque(slide for slide in self._turns[urgent] if slide.has_pending)
        begun = [slide for slide in turns if slide.touched]
        fresh = [slide for slide in turns if not slide.touched]
        if not urgent:
            fresh = fresh[: self._abreast - len(begun) > 0]
        sitting = Counter(seat.slide.number for seat in self._seats[urgent].values() if seat.rows > 0)
        chosen = min(
            [*fresh, *begun], key=lambda slide: (sitting[slide.number], slide.turn if slide.touched else self._begun_at)
        )
        self._clock += 1
        if not chosen.touched:
            self._begun_at = self._clock
        chosen.turn = self._clock
        return chosen
