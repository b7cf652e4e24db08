"""Will a slide be late? From what is left of it, or from what slides of its class have taken. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.service.lifecycle import State, Urgency
from pipeline.service.records import Slide

FIRST_GUESS_S = 15.0  # until slides of a class have shown what they take
_WEIGHT = 0.2  # of the newest slide in the average
_SPAN_S = 10.0  # a slide's speed is taken over this time
_TAIL_S = 2.0  # from the last patch to the last file


@dataclass(slots=True)
class Pace:
    """How slides get on. Times are monotonic seconds."""

    typical_s: dict[Urgency, float] = field(default_factory=dict)
    _marks: dict[int, list[tuple[float, int, int]]] = field(default_factory=dict)

    def took(self, urgency: Urgency, seconds: float) -> None:
        """A slide was done in so many seconds."""
        before = self.typical_s.get(urgency, seconds)
        self.typical_s[urgency] = before + _WEIGHT * (seconds - before)

    def typical(self, urgency: Urgency) -> float:
        """What a slide of this class takes, from its start."""
        return self.typical_s.get(urgency, FIRST_GUESS_S)

    def see(self, at: float, slides: Mapping[int, tuple[int, int]]) -> None:
        """(patches done, planned) of all slides under way, by id."""
        self._marks = {number: marks for number, marks in self._marks.items() if number in slides}
        for number, (done, planned) in slides.items():
            marks = self._marks.setdefault(number, [])
            marks.append((at, done, planned))
            while len(marks) > 2 and at - marks[1][0] >= _SPAN_S:
                marks.pop(0)

    def left_s(self, slide: Slide, now: float) -> float:
        """Seconds that a slide still needs, once it is its turn. `now` is wall-clock time."""
        if slide.state is not State.RUNNING or slide.started is None:
            return self.typical(slide.urgency)
        marks = self._marks.get(slide.id, [])
        if len(marks) > 1 and marks[-1][1] > marks[0][1]:
            speed = (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
            return max(0, marks[-1][2] - marks[-1][1]) / speed + _TAIL_S
        return max(_TAIL_S, self.typical(slide.urgency) - max(0.0, now - slide.started))

    @property
    def horizon_s(self) -> float:
        """No slide whose deadline is farther away than this can be at risk by what is typical."""
        return 2 * max(30.0, *self.typical_s.values(), FIRST_GUESS_S)


def risk(slide: Slide, left_s: float, now: float) -> str:
    """Why a slide's deadline is at risk, in words; empty where it is not."""
    if slide.deadline is None or now + left_s <= slide.deadline:
        return ""
    over = slide.deadline - now
    time = f"is over since {-over:.0f} s" if over < 0 else f"is in {over:.0f} s"
    return f"the slide is {slide.state.replace('_', ' ')}, needs about {left_s:.0f} s, and its deadline {time}"
