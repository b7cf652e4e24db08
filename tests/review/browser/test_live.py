"""A slide that is still being read, with the pipeline running beside the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slides.synthetic import SyntheticSlide, make_slide
from tests.end_to_end import runs
from tests.end_to_end.runs import Run
from tests.review.browser.conftest import Server
from tests.review.browser.desk import Desk

DEMO = Path(__file__).resolve().parents[3] / "models" / "demo-tumour"
PENDING = """() => Number(/\\d+/.exec(document.querySelector(".legend .key-pending")?.textContent ?? "0"))"""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], Run]]:
    """Starts a run that takes its time over one slide; its results folder is there already."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "out").mkdir()
    make_slide(tmp_path / "slides" / "slow.tif", SyntheticSlide(4000, 3000, tissue=0.5, tumour=0.3, seed=1))
    for truth in (tmp_path / "slides").glob("*.truth.*"):
        truth.unlink()
    slow = {"inference": {"slow_s": 0.05}}
    sets = ("batcher.batch=4", "inference.workers=1")
    started: list[Run] = []

    def start() -> Run:
        started.append(runs.start([tmp_path / "slides"], tmp_path / "out", DEMO, *sets, sabotage=slow))
        return started[0]

    yield start
    for run in started:
        run.destroy()


def test_a_slide_grows_while_it_is_read(begin: Callable[[], Run], tmp_path: Path, serve: Callable[[Path], Server], sit):
    """Patches not read yet are hatched and get fewer by themselves; regions come; at the end it can be signed."""
    # The page first: on a slow machine a person takes longer to sign in than a run takes.
    desk: Desk = sit(serve(tmp_path / "out").address)
    desk.sign_in("rosa")
    running = begin()
    row = desk.page.locator("table.worklist tbody tr", has_text="slow")
    row.get_by_text("Being read").wait_for()
    desk.slide("slow")
    desk.page.locator(".legend .key-pending").wait_for()
    first = desk.page.evaluate(PENDING)
    assert desk.page.get_by_role("button", name="Sign", exact=True).is_disabled()
    desk.until(f"() => {{ const left = ({PENDING})(); return left > 0 && left < {first}; }}")
    # Who comments on a region stays at it while it grows.
    desk.page.locator(".thumb").first.wait_for()
    desk.page.keyboard.press("n")
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("grows")
    assert running.finish().code == 0
    desk.page.locator(".legend .key-pending").wait_for(state="detached")
    desk.page.locator(".side .state", has_text="Complete").wait_for()
    desk.page.locator(".thumb[aria-current=true]").wait_for()
    desk.settle_requests()
    assert desk.page.evaluate("document.activeElement.value") == "grows"
    desk.until("!document.querySelector('.sign-off button.main').disabled")
