"""The dispatcher in a world where everything dies: thousands of random orders of events."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline.dispatch.simchecks import audit, check_drained, check_end
from tests.pipeline.dispatch.simulator import Scenario, World
from tests.pipeline.dispatch.simworkers import AGAIN, CLASSES, FAILED, Journal, Slide

FATES = [
    "bad_tile",
    "kills_reader",
    "hangs_reader",
    "kills_inference",
    "hangs_inference",
    "refused",
    "nan",
    "engine_says_no",
]
BROKEN = ["problem", "unreadable", "kills_open", "hangs_open", "refuses_mask", "kills_mask", "lost"]


@st.composite
def slides(draw, number: int, poisonous: bool) -> Slide:
    patches = draw(st.integers(0, 14))
    fate = st.sampled_from([f for f in FATES if f.startswith("kills")] if poisonous else FATES)
    fates = draw(st.dictionaries(st.integers(0, 13), fate, max_size=4 if poisonous else 2))
    kind = draw(st.sampled_from(["sound"] * 7 + BROKEN))
    urgent = draw(st.sampled_from([False, False, True]))
    due = draw(st.sampled_from([0, 0, 60, 200]))
    steps = st.tuples(st.sampled_from([0, 10, 60, 150, 300]), st.booleans(), st.sampled_from([False, False, True]))
    amends = draw(st.lists(steps, max_size=3)) if draw(st.booleans()) else []
    fates = {p: f for p, f in fates.items() if p < patches}
    return Slide(number, f"slide-{number}", patches, urgent, kind, fates, due, amends)


@st.composite
def scenarios(draw) -> Scenario:
    poisonous = draw(st.sampled_from([False, False, False, True]))
    rough = draw(st.sampled_from([False, False, True]))
    slots = draw(st.integers(1, 5))
    return Scenario(
        slides=[draw(slides(number, poisonous)) for number in range(1, draw(st.integers(1, 4)) + 1)],
        readers=draw(st.integers(1, 3)),
        inferences=draw(st.integers(1, 2)),
        contexts=draw(st.integers(1, 3)),
        batch=draw(st.sampled_from([1, 3, 4, 8])),
        slots=slots,
        reserved=draw(st.integers(0, 1)) if slots > 2 else 0,
        shared=draw(st.booleans()),
        overview_slots=draw(st.integers(1, 2)),
        ahead=draw(st.integers(1, 3)),
        window=draw(st.integers(1, 6)),
        floor=draw(st.sampled_from([0.0, 0.1, 0.5])),
        deaths=draw(st.integers(0, 40 if rough else 10)),
        batcher_deaths=draw(st.integers(0, 3)),
        accidents=draw(st.integers(0, 1)),
        roughness=0.2 if rough else 0.04,
        early=draw(st.sampled_from([0.0, 0.1, 0.5])),
        end_at=draw(st.sampled_from([None, None, 40, 150, 400])),
        cut_off=draw(st.booleans()),
        frugal=draw(st.booleans()),
        real_wire=draw(st.sampled_from([False, False, False, True])),
    )


def live_through(scenario: Scenario, seed: int) -> None:
    """Run a world to its end; where it is drained or cut off, a second one goes on from its journals."""
    disk = {}
    if seed % 2:  # an earlier scan of the first slide, all failed
        old = np.full(3, FAILED)
        disk["slide-1"] = Journal(
            {"slide": "other"}, {}, old, np.full((3, CLASSES), np.nan), dict.fromkeys(range(3), "old")
        )
    first = last = World(scenario, seed, disk).run()
    audit(first)
    if first.draining and first.dispatcher is not None and first.dispatcher.drained:
        check_drained(first)
    if first.unsubmitted or first.under_way:
        first.power_cut()
        last = World(replace(scenario, end_at=None), seed + 1, disk)
        over = {number % AGAIN for number, done in first.done.items() if done.state != "cancelled"}
        last.unsubmitted = deque(slide for slide in last.unsubmitted if slide.number not in over)
        last.results.update(first.results)
        last.run()
    check_end(last)


QUICK = settings(
    max_examples=700, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@QUICK
@given(scenarios(), st.integers(0, 2**32))
def test_no_order_of_deaths_changes_the_result(scenario: Scenario, seed: int) -> None:
    """Whatever dies, hangs or is lost, and whenever: each patch has the outcome of the undisturbed run, exactly once."""
    live_through(scenario, seed)


@pytest.mark.long
@settings(QUICK, max_examples=60_000, derandomize=False)
@given(scenarios(), st.integers(0, 2**32))
def test_no_order_of_deaths_changes_the_result_in_many_worlds(scenario: Scenario, seed: int) -> None:
    """The same, many times as often and never twice alike."""
    live_through(scenario, seed)
