"""The dispatcher in a world where everything dies: thousands of random orders of events."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline.dispatch.simulator import Scenario, Slide, World

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
def slides(draw, number: int) -> Slide:
    patches = draw(st.integers(0, 14))
    fates = draw(st.dictionaries(st.integers(0, 13), st.sampled_from(FATES), max_size=2)) if draw(st.booleans()) else {}
    kind = draw(st.sampled_from(["sound"] * 7 + BROKEN))
    urgent = draw(st.sampled_from([False, False, True]))
    due = draw(st.sampled_from([0, 0, 60, 200]))
    return Slide(number, f"slide-{number}", patches, urgent, kind, {p: f for p, f in fates.items() if p < patches}, due)


@st.composite
def scenarios(draw) -> Scenario:
    count = draw(st.integers(1, 4))
    slots = draw(st.integers(1, 5))
    return Scenario(
        slides=[draw(slides(number)) for number in range(1, count + 1)],
        readers=draw(st.integers(1, 3)),
        inferences=draw(st.integers(1, 2)),
        contexts=draw(st.integers(1, 3)),
        batch=draw(st.sampled_from([1, 3, 4, 8])),
        slots=slots,
        reserved=draw(st.integers(0, 1)) if slots > 2 else 0,
        overview_slots=draw(st.integers(1, 2)),
        ahead=draw(st.integers(1, 3)),
        window=draw(st.integers(1, 6)),
        floor=draw(st.sampled_from([0.0, 0.1, 0.5])),
        deaths=draw(st.integers(0, 10)),
        batcher_deaths=draw(st.integers(0, 3)),
        accidents=draw(st.integers(0, 1)),
        early=draw(st.sampled_from([0.0, 0.1, 0.5])),
        drain_at=draw(st.sampled_from([None, None, 40, 150, 400])),
        real_wire=draw(st.sampled_from([False, False, False, True])),
    )


def live_through(scenario: Scenario, seed: int) -> None:
    """Run a world to its end; where it is drained, a second one goes on from its journals."""
    world = World(scenario, seed).run()
    world.audit()
    if world.unsubmitted or world.under_way:
        scenario.drain_at = None
        rest = World(scenario, seed + 1, world.disk)
        rest.unsubmitted = type(rest.unsubmitted)(s for s in rest.unsubmitted if s.number not in world.done)
        rest.run()
        world.results.update(rest.results)
        rest.results = world.results
        world = rest
    world.check_end()


QUICK = settings(
    max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
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
    """The same, thirty times as often and never twice alike."""
    live_through(scenario, seed)
