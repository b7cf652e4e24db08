"""Label and macro images: hidden, unless the configuration gives them to a role; noted whenever one is shown."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import openslide
import pytest
from PIL import Image

from results.write import write_failed
from review import guard as guards
from review import users
from review.facts import slide_key
from tests.end_to_end import runs
from tests.review.page import PASSWORD, Browser
from tests.review.reading_page import Served, serve

KEY = slide_key("S26-1")


@pytest.fixture(scope="module")
def real(data_dir: Path) -> Path:
    path = data_dir / "slides" / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip("needs CMU-1-Small-Region.svs")
    return path


@pytest.fixture
def page(real: Path, tmp_path: Path) -> Iterator[Callable[[str], Served]]:
    """The page over one real slide, with a user of each role."""
    write_failed("S26-1", str(real), "for the test", tmp_path / "out")
    file = tmp_path / "users.json"
    for role in users.ROLES:
        users.add_user(file, role, role, PASSWORD)
    with ExitStack() as stack:
        yield lambda labels: stack.enter_context(
            serve(tmp_path / "out", tmp_path / "out", guard=guards.password_users(file, None, tls=False), labels=labels)
        )


def someone(page: Served, name: str) -> Browser:
    browser = Browser(page.browser.port)
    assert browser.sign_in(name).status == 200
    return browser


def ask(browser: Browser, image: str = "label"):
    return browser.ask("POST", f"/api/slides/{KEY}/labels", {"image": image})


def test_by_default_nobody_sees_them(page):
    """Neither an administrator: no button, no picture, no address that has one."""
    admin = someone(page("nobody"), "admin")
    assert admin.ask("GET", f"/api/slides/{KEY}").json["labels"] == []
    assert (ask(admin).status, ask(admin).json["code"]) == (403, "labels_hidden")
    assert admin.ask("GET", f"/api/slides/{KEY}/labels").status == 405
    assert admin.ask("GET", f"/api/slides/{KEY}/log").json == []


def test_a_role_that_may_sees_them_and_it_is_noted(page, real, tmp_path):
    """The picture of the file; the log names who, when and which, stays whole, and the review is as it was."""
    served = page("admin")
    admin, reviewer = someone(served, "admin"), someone(served, "reviewer")
    assert admin.ask("GET", f"/api/slides/{KEY}").json["labels"] == ["label", "macro"]
    assert reviewer.ask("GET", f"/api/slides/{KEY}").json["labels"] == []
    assert ask(reviewer).json["code"] == "labels_hidden" and ask(someone(served, "viewer")).status == 403
    shown = ask(admin)
    assert shown.status == 200 and shown.headers["cache-control"] == "no-store"
    with openslide.OpenSlide(real) as slide:
        assert Image.open(io.BytesIO(shown.body)).size == slide.associated_images["label"].size
    (row,) = admin.ask("GET", f"/api/slides/{KEY}/log").json
    assert (row["user"], row["act"], row["fields"]) == ("admin", "label", {"image": "label"})
    assert admin.ask("GET", f"/api/slides/{KEY}/review").json["revision"] == 0

    # Also of a signed review, which stays signed.
    assert reviewer.act(KEY, 0, "open").status == 200
    assert reviewer.act(KEY, 1, "sign", statement="seen", password=PASSWORD).status == 200
    assert ask(admin, "macro").status == 200
    review = reviewer.ask("GET", f"/api/slides/{KEY}/review").json
    assert (review["state"], review["revision"]) == ("signed", 2)
    proof = runs.command("review", "verify-log", "--results", tmp_path / "out")
    assert proof.returncode == 0 and "4 acts" in proof.stdout, proof.stdout


def test_a_request_from_elsewhere_or_of_something_else_shows_nothing(page):
    """Without the page's token, of no image, of no slide; and the act cannot be made up."""
    served = page("viewer")
    viewer, reviewer = someone(served, "viewer"), someone(served, "reviewer")
    viewer.csrf = None
    assert ask(viewer).json["code"] == "csrf"
    assert ask(reviewer, "thumbnail").status == 422
    assert reviewer.ask("POST", f"/api/slides/{'0' * 20}/labels", {"image": "label"}).status == 404
    assert reviewer.act(KEY, 0, "label", image="label").status == 422
    assert reviewer.ask("GET", f"/api/slides/{KEY}/log").json == []


def test_what_cannot_be_noted_is_not_shown(page, tmp_path):
    """A log that was tampered with takes no more acts."""
    import sqlite3

    served = page("admin")
    admin = someone(served, "admin")
    assert ask(admin).status == 200
    with sqlite3.connect(tmp_path / "out" / "review.sqlite") as file:
        for (name,) in file.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            file.execute(f"DROP TRIGGER {name}")
        file.execute("DELETE FROM acts")
    assert (ask(admin).status, ask(admin).json["code"]) == (503, "log_broken")
