"""Real results, the real server, a real browser: each made once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slides.synthetic import SyntheticSlide, make_slide
from tests.end_to_end import runs
from tests.review.browser.desk import PASSWORDS, Desk
from tests.slides.damage import corrupt_tiles, tiles_under

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[3]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ROLES = {"vera": "viewer", "rosa": "reviewer", "ruth": "reviewer"}
LIMIT_S = 60.0

LUNG, DAMAGED, BROKEN = "lung 肺", "stat/damaged", "broken"
# The damaged part of DAMAGED, level-0 px.
HOLE = (1800, 1100, 500, 400)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a file; they skip where there is none.

    Not one for all: while Playwright is open, an event loop runs in this thread, and no test elsewhere could start one.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (set test-browser)")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    # In a container root has no user namespace for the sandbox; only this machine's own page is opened.
    flags = ["--no-sandbox"] if os.getuid() == 0 else []
    with playwright.sync_playwright() as started, started.chromium.launch(executable_path=path, args=flags) as launched:
        yield launched


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole slide, one with a hole (urgent), one that is none."""
    folder = tmp_path_factory.mktemp("slides")
    (folder / "stat").mkdir()
    make_slide(folder / f"{LUNG}.tif", SyntheticSlide(4000, 3000, tissue=0.5, tumour=0.3, seed=1))
    make_slide(folder / f"{DAMAGED}.tif", SyntheticSlide(4000, 3000, tissue=0.5, tumour=0.3, seed=2))
    corrupt_tiles(folder / f"{DAMAGED}.tif", tiles_under(folder / f"{DAMAGED}.tif", 0, *HOLE))
    (folder / f"{BROKEN}.svs").write_text("This is no slide.\n")
    for truth in [*folder.rglob("*.truth.*")]:
        truth.unlink()
    return folder


@pytest.fixture(scope="session")
def results(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `slidestream run` makes of them."""
    out = tmp_path_factory.mktemp("results")
    done = runs.command("run", slides, "--out", out, "--no-progress", "--set", 'batcher.urgent=["stat/*"]', limit_s=240)
    assert done.returncode == 1, done.stderr  # not all are complete
    return out


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A viewer and two reviewers."""
    path = tmp_path_factory.mktemp("users") / "users.json"
    for name, role in ROLES.items():
        command = [sys.executable, "-m", "pipeline.cli", "user", "add", name, "--role", role, "--users", str(path)]
        subprocess.run(command, input=PASSWORDS[name] + "\n", text=True, check=True, capture_output=True, cwd=ROOT)
    return path


@dataclass
class Server:
    """`slidestream review`, in a process of its own."""

    address: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def serve(users: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Server]]:
    """Starts the page over a results folder."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(results: Path) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "pipeline.cli", "review", "--results", str(results), "--users", str(users)]
        console = tmp_path_factory.mktemp("console") / "console.txt"
        with console.open("wb") as file:
            process = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file, cwd=ROOT)
        started.append(process)
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/session", timeout=5)
            except urllib.error.HTTPError as error:
                assert error.code == 401
                return Server(f"http://127.0.0.1:{port}", process)
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, console.read_text()
                time.sleep(0.1)

    yield begin
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def server(serve: Callable[[Path], Server], results: Path) -> Server:
    """The page over the results that all tests share."""
    return serve(results)


@pytest.fixture(scope="session")
def fresh_names(request: pytest.FixtureRequest) -> list[str]:
    """As many slides as tests want one of their own."""
    return [
        f"slide-{i}" for i, item in enumerate(request.session.items) if "fresh" in getattr(item, "fixturenames", ())
    ]


@pytest.fixture(scope="session")
def acts_server(
    serve: Callable[[Path], Server], slides: Path, fresh_names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """The page over results that tests may act upon, each on a slide of its own."""
    folder, out = tmp_path_factory.mktemp("many"), tmp_path_factory.mktemp("reviewed")
    for name in fresh_names:
        shutil.copyfile(slides / f"{LUNG}.tif", folder / f"{name}.tif")
    done = runs.command("run", folder, "--out", out, "--no-progress", limit_s=240)
    assert done.returncode == 0, done.stderr
    return serve(out)


@pytest.fixture(scope="session")
def unused(fresh_names: list[str]) -> Iterator[str]:
    """Names of slides that nobody has reviewed yet."""
    return iter(fresh_names)


@pytest.fixture
def fresh(unused: Iterator[str]) -> str:
    """A slide that nobody has reviewed yet."""
    return next(unused)


@pytest.fixture
def sit(browser: Browser) -> Iterator[Callable[..., Desk]]:
    """Another person at the page, in a window of their own; what the browser complained of fails the test."""
    desks: list[Desk] = []

    def begin(address: str, **settings: Any) -> Desk:
        settings = {"viewport": {"width": 1280, "height": 720}, "locale": "en-GB", **settings}
        context = browser.new_context(**settings)
        context.set_default_timeout(30_000)
        desks.append(Desk(context.new_page(), address))
        return desks[-1]

    yield begin
    complaints = [complaint for desk in desks for complaint in desk.complaints]
    for desk in desks:
        desk.page.context.close()
    assert not complaints, complaints


@pytest.fixture
def desk(sit: Callable[..., Desk], server: Server) -> Desk:
    """Somebody who has not signed in yet."""
    return sit(server.address)
