"""The page within the service: what arrives while somebody looks, and what becomes of the page when its process dies."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.rundir import RunDir
from pipeline.service import review_page
from tests.end_to_end import runs
from tests.pipeline.service.services import Service, until
from tests.review.browser.desk import PASSWORDS, Desk

pytestmark = pytest.mark.long


@pytest.fixture
def service(tmp_path: Path, small_model: Path) -> Iterator[Service]:
    """With a reviewer and an administrator, to whom labels are shown."""
    file = tmp_path / "users.json"
    for name, role in (("rosa", "reviewer"), ("ruth", "admin")):
        command = [sys.executable, "-m", "pipeline.cli", "user", "add", name, "--role", role, "--users", str(file)]
        subprocess.run(command, input=f"{PASSWORDS[name]}\n", text=True, check=True, capture_output=True, cwd=runs.ROOT)
    review = {"enabled": True, "port": 0, "users": str(file), "labels": "admin"}
    made = Service(tmp_path / "service", small_model, review=review)
    made.start()
    yield made
    made.destroy()


def address(service: Service) -> str:
    """Of the page, as soon as it answers."""

    def look() -> str | None:
        try:
            found = review_page.address(RunDir(Path((service.state / "run").read_text().strip())))
            if found:
                urllib.request.urlopen(found, timeout=5).close()
            return found
        except OSError:
            return None

    return until(look, "the page answers").rstrip("/")


def test_a_slide_comes_is_signed_and_stays(service: Service, data_dir: Path, sit):
    """It appears in the list that is open; heatmap, regions, label, signature; after kill -9 of the page's process the page
    is there again by itself, and nothing is lost."""
    rosa: Desk = sit(address(service))
    rosa.sign_in("rosa")
    assert rosa.page.locator("tr", has_text="S26-1").count() == 0
    part = service.into / ".part"
    part.write_bytes((data_dir / "slides" / "CMU-1-Small-Region.svs").read_bytes())
    part.rename(service.into / "S26-1.svs")
    row = rosa.page.locator("tr", has_text="S26-1")
    row.locator(".state.complete").wait_for(timeout=120_000)
    rosa.slide("S26-1")
    rosa.until("document.querySelector('.overlay.heat').width > 0")
    rosa.page.locator("summary", has_text="About this slide").or_(
        rosa.page.locator(".panel summary").first
    ).first.click()
    assert rosa.page.get_by_role("button", name="Label image").count() == 0

    ruth: Desk = sit(rosa.address)
    ruth.sign_in("ruth")
    ruth.slide("S26-1")
    ruth.page.locator(".panel summary").first.click()
    ruth.page.get_by_role("button", name="Label image").click()
    ruth.until("document.querySelector('img.label-image')?.naturalWidth > 100")
    ruth.page.get_by_text("That you have seen it is in the log").wait_for()
    ruth.page.keyboard.press("Escape")

    rosa.page.keyboard.press("s")
    box = rosa.page.locator("dialog[open]")
    box.locator("input[type=password]").fill(PASSWORDS["rosa"])
    box.get_by_role("button", name="Sign", exact=True).click()
    rosa.page.get_by_text("Signed by rosa").wait_for()
    acts = [act["act"] for act in rosa.api(f"/api/slides/{rosa.page.url.partition('/slide/')[2][:20]}/log")]
    assert "label" in acts and acts[-1] == "sign"

    next(one for one in service.family() if "review.served" in one.cmdline()).kill()
    lanes = {process.pid for process in service.lanes()}
    again: Desk = sit(until(lambda: _other(service, rosa.address), "the page is back"))
    again.sign_in("rosa")
    again.page.locator("tr", has_text="S26-1").get_by_text("Signed").wait_for()
    assert {process.pid for process in service.lanes()} == lanes
    again.open("/#/operations")
    again.page.get_by_text("what is running now").wait_for()
    again.page.get_by_text("Slide readers").or_(again.page.get_by_text("Stages")).first.wait_for()
    again.shows_texts()


def _other(service: Service, before: str) -> str | None:
    now = address(service)
    return now if now != before else None
