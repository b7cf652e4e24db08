"""The review page within a real service: slides that arrive, results that come, reviews that stay, processes that are killed."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.rundir import RunDir
from pipeline.service import review_page
from pipeline.service.lifecycle import State
from review.facts import slide_key
from slides.synthetic import SyntheticSlide, make_slide
from tests.end_to_end import runs
from tests.pipeline.service.services import Service, until
from tests.review.page import Browser
from tests.review.reading_page import Heat

PASSWORD = "rosa judges slides"


def drop(slide: Path, to: Path, more: bytes = b"") -> None:
    """As a scanner does. With `more` at its end it is another slide."""
    part = to.with_name(f".{to.name}.part")
    part.write_bytes(slide.read_bytes() + more)
    part.rename(to)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "a.tif"
    make_slide(path, SyntheticSlide(1536, 1152, mpp=0.5, tissue=0.5, seed=3))
    return path


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.json"
    command = [sys.executable, "-m", "pipeline.cli", "user", "add", "rosa", "--role", "reviewer", "--users", str(path)]
    subprocess.run(command, input=f"{PASSWORD}\n", text=True, check=True, capture_output=True, cwd=runs.ROOT)
    return path


@pytest.fixture
def service(tmp_path: Path, small_model: Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(**more: Any) -> Service:
        made.append(Service(tmp_path / f"s{len(made)}", small_model, **more))
        return made[-1]

    yield make
    for one in made:
        one.destroy()


def address(service: Service) -> str:
    """Of the page, as soon as it answers."""

    def look() -> str | None:
        try:
            run = RunDir(Path((service.state / "run").read_text().strip()))
        except OSError:
            return None
        found = review_page.address(run)
        try:
            if found:
                urllib.request.urlopen(f"{found}static/js/main.js", timeout=5).close()
        except OSError:
            return None
        return found

    return until(look, "the review page answers")


def browser(service: Service) -> Browser:
    return Browser(int(address(service).rstrip("/").rpartition(":")[2]))


def page_process(service: Service) -> psutil.Process:
    return until(
        lambda: next((one for one in service.family() if "review.served" in one.cmdline()), None), "the page's process"
    )


def rows(someone: Browser) -> dict[str, dict[str, Any]]:
    answer = someone.ask("GET", "/api/worklist")
    assert answer.status == 200, answer.body
    return {row["id"]: row for row in answer.json["slides"]}


def test_a_slide_arrives_is_seen_judged_signed_and_stays_so(service, slide, users, small_model):
    """Two routes, one page: what arrives is in the list without a restart, waiting ones too; a signature outlives kill -9 of
    the page and of everything, lies beside its route's results, and the page comes back by itself each time."""
    one = service(review={"enabled": True, "port": 0, "users": str(users)})
    other = one.folder / "other"
    section = one.config["service"]
    section["routes"].append({"name": "other", "out": str(other), "model": str(small_model)})
    section["watch"] = [Service.watch(one.into, ("tumour", "other"), urgency="stat")]
    one.start()
    rosa = browser(one)
    assert rosa.ask("GET", "/api/worklist").status == 401
    assert rosa.sign_in("rosa", PASSWORD).status == 200
    assert rows(rosa) == {}

    drop(slide, one.into / "first.tif")
    until(lambda: [row["state"] for row in rows(rosa).values()] == ["complete"] * 2, "both results are in the list")
    done = rows(rosa)
    assert set(done) == {"tumour/first", "other/first"}
    assert all(row["urgency"] == "stat" and row["score"] > 0 for row in done.values())
    key = slide_key("tumour/first")
    assert rosa.ask("GET", f"/api/slides/{key}/tile/0/0_0.jpg").status == 200
    detail = rosa.ask("GET", f"/api/slides/{key}").json
    assert detail["model"]["name"] == "tiny" and detail["width"] == 1536

    assert rosa.act(key, None, "open").status == 200
    signed = rosa.act(key, 1, "sign", statement="seen", password=PASSWORD)
    assert signed.status == 200 and signed.json["state"] == "signed", signed.body
    reviews = {row["id"]: row["review"]["state"] for row in rows(rosa).values()}
    assert reviews == {"tumour/first": "signed", "other/first": "new"}
    proof = runs.command("review", "verify-log", "--results", one.out)
    assert proof.returncode == 0 and "2 acts" in proof.stdout, proof.stdout + proof.stderr

    figures = rosa.ask("GET", "/api/operations").json
    assert figures["live"] and figures["slides"] == {"complete": 2} and "reader" in figures["stages"]

    # The page dies: the pipeline does not notice, and it comes back.
    lanes = {process.pid for process in one.lanes()}
    before = page_process(one)
    assert before.nice() == 10
    before.kill()
    before.wait(20)
    drop(slide, one.into / "second.tif", b"other bytes that nobody reads")
    one.until_state("second", State.COMPLETE)
    again = browser(one)
    assert page_process(one).pid != before.pid and {process.pid for process in one.lanes()} == lanes
    again.cookie = rosa.cookie  # sessions outlive it
    assert rows(again)["tumour/first"]["review"]["state"] == "signed" and len(rows(again)) == 4

    # Everything dies.
    one.kill()
    until(lambda: not one.family(), "all are gone")
    one.start()
    later = browser(one)
    later.cookie = rosa.cookie
    assert until(lambda: rows(later).get("tumour/first"), "the row")["review"]["state"] == "signed"


def test_a_page_that_cannot_be_served_stops_no_pipeline(service, slide, tmp_path):
    """The operator reads why; results come; with the cause put right and a reload the page is there, with another it is gone."""
    one = service(review={"enabled": True, "port": 0, "users": str(tmp_path / "missing.json")})
    drop(slide, one.into / "first.tif")
    one.start()
    one.until_state("first", State.COMPLETE)
    said = until(
        lambda: (text := one.command("status").stdout) and "review page is not served" in text and text, "the reason"
    )
    assert str(tmp_path / "missing.json") in said
    one.config["service"]["review"] = {"enabled": True, "port": 0}
    one.write()
    assert "service.review" in one.command("reload").stdout
    rosa = browser(one).start()
    assert rows(rosa)["first"]["state"] == "complete"
    assert rosa.ask("GET", "/api/session").json["implicit"] is True
    assert "review page: http://127.0.0.1:" in one.command("status").stdout
    one.config["service"]["review"] = {"enabled": False}
    one.write()
    assert "service.review" in one.command("reload").stdout
    until(lambda: not [p for p in one.family() if "review.served" in p.cmdline()], "no page")
    assert "review page" not in one.command("status").stdout


@pytest.mark.long
def test_a_slide_grows_while_the_service_reads_it(service, slide):
    """Its patches are there before it is complete: heatmap, class and state as in the list of a run."""
    one = service(sabotage={"inference": {"slow_s": 0.2}}, review={"enabled": True, "port": 0})
    one.start()
    somebody = browser(one).start()
    drop(slide, one.into / "slow.tif")
    key = slide_key("slow")
    growing = until(
        lambda: (
            (row := rows(somebody).get("slow")) and row["state"] == "running" and row["patches"]["inferred"] and row
        ),
        "patches of a running slide",
    )
    assert growing["patches"]["inferred"] < growing["patches"]["planned"]
    seen = Heat.of(somebody.ask("GET", f"/api/slides/{key}/heat").body)
    assert {0, 1} <= set(seen.states.tolist()) and len(seen.states) == growing["patches"]["planned"]
    assert somebody.ask("GET", f"/api/slides/{key}").json["classes"] == ["normal", "tumour"]
    one.until_state("slow", State.COMPLETE)
    until(lambda: rows(somebody)["slow"]["state"] == "complete", "the end is in the list")
