"""One model at two patch sizes: two routes of one service, side by side."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.service.lifecycle import State
from pipeline.service.view import View
from results.layout import output_path
from results.summary import read_summary
from tests.end_to_end import runs
from tests.engines.tiny import tiny_model
from tests.pipeline.service.services import Service

SIZES = {"small": 64, "wide": 96}
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made for 64 px; the network takes any size."""
    return tiny_model(tmp_path_factory.mktemp("free") / "free", free=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, free: Path, slides: dict[str, Path]) -> Iterator[Service]:
    """Slides in a folder with both routes, until all are done by both."""
    folder = tmp_path_factory.mktemp("both")
    routes = [
        {"name": "small", "out": str(folder / "small")},
        {"name": "wide", "out": str(folder / "wide"), "patch_px": 96},
    ]
    watch = [Service.watch(folder / "s" / "in", list(SIZES))]
    service = Service(folder / "s", free, routes=routes, watch=watch)
    for number, name in enumerate(NAMES):
        shutil.copyfile(slides["large"], service.into / f"{name}.tif")
        with (service.into / f"{name}.tif").open("ab") as file:  # content of its own: bytes that nobody reads
            file.write(bytes([number + 1]))
    service.start()
    for route in SIZES:
        for name in NAMES:
            service.until_state(name, State.COMPLETE, route=route)
    yield service
    service.destroy()


def spans(service: Service, route: str) -> list[tuple[float, float]]:
    """When each slide was at work in the lane of a route."""
    view = View.open(service.state / "ledger.sqlite")
    try:
        found = []
        for slide in service.slides(route=route):
            steps = view.history(slide.id)
            begun = next(step.time for step in steps if step.new == State.RUNNING)
            found.append((begun, next(step.time for step in steps if step.new == State.COMPLETE)))
        return found
    finally:
        view.close()


def test_both_run_at_once(both: Service) -> None:
    """Two lanes, whose slides are at work in the same seconds."""
    assert len(both.lanes()) == 2
    small, wide = spans(both, "small"), spans(both, "wide")
    assert len(small) == len(wide) == len(NAMES)
    assert any(a[0] < b[1] and b[0] < a[1] for a in small for b in wide), (small, wide)


@pytest.mark.parametrize("route", [pytest.param("small", marks=pytest.mark.long), "wide"])
def test_each_is_a_run_alone_at_its_size(both: Service, free: Path, tmp_path: Path, route: str) -> None:
    """The same bytes, the same key of what is done, and the mark of another size where it is one."""
    sets = ("results.formats=csv", *runs.FEWEST, f"inference.patch_px={SIZES[route]}")
    run = runs.start([both.into / "one.tif"], tmp_path / "out", free, *sets)
    alone = run.finish()
    run.destroy()
    out = both.folder.parent / route
    table = output_path("one", "csv")
    assert (out / table).read_bytes() == (alone.out / table).read_bytes()
    mine, other = read_summary(out, "one"), alone.summary("one")
    assert mine["model"] == other["model"] and mine["key"] == other["key"]
    assert mine["model"].get("own_patch_px") == (None if SIZES[route] == 64 else 64)


def test_a_lane_at_another_size_says_so(both: Service) -> None:
    """In the service's log, once, with its route."""
    said = [line for line in both.console().splitlines() if "was made for patches of 64 px" in line]
    assert len(said) == 1 and "wide" in said[0], both.console()


def test_a_route_whose_network_does_not_take_its_size_is_refused(service, tmp_path: Path) -> None:
    """The service ends as one that is wrongly configured, with the route's reason in one line."""
    made = service(routes=[{"name": "tumour", "out": str(tmp_path / "out"), "patch_px": 96}])
    made.start()
    assert made.process.wait(60) == 2
    said = [line for line in made.console().splitlines() if line.startswith("slidestream: ")]
    assert len(said) == 1 and "the network takes patches of one size, not 96 px" in said[0], made.console()
