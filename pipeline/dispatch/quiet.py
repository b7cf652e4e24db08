"""Where inference is on the CPU, all processes share the cores: an urgent slide is slowed down by routine work in whatever
stage it is, not only where both wait for the same worker. So while one is under way, routine gets its floor and no more.

That lasts as long as the urgent slide gets on: one that a slow share or a hanging reader holds up does not stop the others.
"""

from __future__ import annotations

from pipeline.dispatch.board import READER, Board
from pipeline.dispatch.slidework import SlideState, SlideWork
from pipeline.wire import Recall

PATIENCE_S = 2.0  # without any progress of an urgent slide

_UNDER_WAY = {
    SlideState.WAITING,
    SlideState.OPENING,
    SlideState.MASKING,
    SlideState.BEGINNING,
    SlideState.READING,
    SlideState.WRITING,
}


class Quiet:
    """Watches the urgent slides, and sets `board.quiet`."""

    def __init__(self, board: Board):
        self._board = board
        self._marks: dict[int, tuple[tuple, float]] = {}  # by urgent slide: how far it is, and since when

    def look(self, now: float) -> None:
        if not self._board.settings.shared:
            return
        marks = {}
        for slide in self._board.slides.values():
            if slide.urgent and slide.state in _UNDER_WAY:
                far = _far(slide)
                old = self._marks.get(slide.number)
                marks[slide.number] = old if old is not None and old[0] == far else (far, now)
        self._marks = marks
        before = self._board.quiet
        self._board.quiet = not self._board.draining and any(now - since < PATIENCE_S for _, since in marks.values())
        if self._board.quiet and not before:
            for reader in self._board.leases.of_kind(READER):
                self._board.send(reader, Recall())


def _far(slide: SlideWork) -> tuple:
    return slide.state, slide.in_flight, slide.recorded, slide.inferred + slide.failed
