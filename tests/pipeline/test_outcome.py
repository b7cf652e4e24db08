"""pipeline.outcome: what is said of a run as a whole."""

from __future__ import annotations

from typing import Any

from pipeline.outcome import said_bottleneck
from pipeline.watch import Watch


def stage(workers: int, working: float, for_input: float = 0.0, for_room: float = 0.0) -> dict[str, Any]:
    return {"workers": workers, "working_s": working, "waiting_input_s": for_input, "waiting_room_s": for_room}


LOADING = {"reader": stage(16, 16.0, for_room=144.0), "inference": stage(1, 0.1)}
"""Sixteen readers filled what room there was, and then waited nine seconds for the engine."""


class TestBottleneck:
    """The bottleneck of a run, in words."""

    def test_leaves_out_what_was_before_the_first_result(self):
        """Readers that waited while the engine loaded are not idle readers: they are what limits the run."""
        end = {"reader": stage(16, 91.0, for_room=149.0), "inference": stage(1, 2.6, for_input=2.5)}
        said = said_bottleneck(Watch(stages=end, at_first_result=LOADING), True)
        assert said.startswith("GPUs idle 50 %: add slide readers (16 -> ")
        assert "slide readers" not in said_bottleneck(Watch(stages=end), True)

    def test_of_a_run_that_was_over_with_its_first_result_is_that_of_all_of_it(self):
        """Its reports had nothing to compare."""
        watch = Watch(stages=LOADING, at_first_result=LOADING)
        assert said_bottleneck(watch, True) == said_bottleneck(Watch(stages=LOADING), True)

    def test_without_any_result_says_so(self):
        """Nothing has been measured."""
        assert "not at work yet" in said_bottleneck(Watch(stages={"reader": stage(2, 1.0)}), False)
