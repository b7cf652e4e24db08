"""Whether a slide will be late."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.service.deadlines import FIRST_GUESS_S, Pace, risk
from pipeline.service.lifecycle import State, Urgency


def slide(state: State = State.RUNNING, deadline: float | None = 160.0, started: float | None = 100.0):
    return SimpleNamespace(id=1, state=state, urgency=Urgency.STAT, deadline=deadline, started=started)


def test_before_any_slide_was_done_a_guess_stands_in() -> None:
    """And then what they took, the latest most."""
    pace = Pace()
    assert pace.left_s(slide(State.QUEUED), 100.0) == FIRST_GUESS_S
    for seconds in (40.0, 40.0, 20.0):
        pace.took(Urgency.STAT, seconds)
    assert 20 < pace.left_s(slide(State.QUEUED), 100.0) < 40


def test_a_slide_under_way_is_judged_by_its_own_speed() -> None:
    """200 patches in 10 s, 700 to go: 35 s and a little."""
    pace = Pace()
    pace.see(0.0, {1: (100, 1000)})
    pace.see(10.0, {1: (300, 1000)})
    assert pace.left_s(slide(), 110.0) == pytest.approx(35, abs=3)
    pace.see(11.0, {})
    assert pace.left_s(slide(), 101.0) == FIRST_GUESS_S - 1.0  # another attempt is not judged by the last


@pytest.mark.parametrize(
    ("deadline", "left_s", "words"),
    [(None, 1e6, ""), (160.0, 59.0, ""), (160.0, 61.0, "its deadline is in 60 s"), (90.0, 1.0, "is over since 10 s")],
)
def test_the_alarm_comes_before_the_deadline_when_it_cannot_be_met(deadline, left_s, words) -> None:
    """In words, with what is left."""
    said = risk(slide(deadline=deadline), left_s, 100.0)
    assert words in said and bool(said) == bool(words)
