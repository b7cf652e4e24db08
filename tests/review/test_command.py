"""`slidestream review` as an operator starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from results.write import write_failed
from review.serving import names
from tests.end_to_end import runs


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command over a small results folder, and the address that it says."""
    write_failed("a", "/slides/a.svs", "is no slide", tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "review", "--results", str(tmp_path / "out"), "--port", "0"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(runs._path())},
    )  # fmt: skip
    line = process.stderr.readline()
    assert " is served at http://127.0.0.1:" in line, line
    yield process, line.split()[-1]
    process.kill()
    process.wait()
    process.stderr.close()


def get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read()


def test_a_results_folder_is_served_until_it_is_told_to_stop(started):
    """Page, files and rows; on SIGTERM it leaves at once with 0, also while somebody listens."""
    process, address = started
    deadline = time.monotonic() + 30
    while True:
        try:
            rows = json.loads(get(f"{address}api/worklist"))
            break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
    assert [row["id"] for row in rows["slides"]] == ["a"] and rows["slides"][0]["reason"] == "is no slide"
    assert b"<script src=" in get(address)
    assert b"export" in get(f"{address}static/js/main.js") or b"import" in get(f"{address}static/js/main.js")
    listening = urllib.request.urlopen(f"{address}api/events", timeout=20)
    assert listening.readline().startswith(b"retry")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(20)
    assert code in (0, -signal.SIGTERM) and time.monotonic() - began < 10
    listening.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--results"),
        (["--results", "/nowhere"], "--results /nowhere"),
        (["--results", "OUT", "--slides", "/nowhere"], "--slides /nowhere"),
        (["--results", "OUT", "--host", "0.0.0.0"], "--users"),
        (["--results", "OUT", "--certificate", "cert.pem"], "--key"),
        (["--results", "OUT", "--certificate", "/no/cert", "--key", "/no/key"], "cannot be used"),
        (["--results", "OUT", "--trusted-header", "X-Remote-User"], "proxy"),
        (["--results", "OUT", "--users", "/no/users.json"], "/no/users.json"),
        (["--results", "OUT", "--port", "70000"], "--port 70000"),
        (["--results", "OUT", "--host", "203.0.113.7", "--insecure"], "--host 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path, arguments, words):
    """Exit code 2, naming the option; no traceback."""
    write_failed("a", "/slides/a.svs", "is no slide", tmp_path / "out")
    given = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    ended = runs.command("review", *given)
    assert ended.returncode == 2 and words in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


def test_the_page_is_asked_under_its_own_names():
    """Every address is no name; an IPv6 address is asked for in brackets."""
    assert names("0.0.0.0", ["pathology.example"]) == ["localhost", "127.0.0.1", "[::1]", "pathology.example"]
    assert "[fd00::5]" in names("fd00::5", [])


def test_nobody_else_loads_the_web(tmp_path):
    """The command line of a run imports neither Starlette nor Argon2."""
    code = "import sys, pipeline.cli; print([m for m in ('starlette', 'uvicorn', 'argon2', 'PIL') if m in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(runs._path())},
    )  # fmt: skip
    assert ended.stdout.strip() == "[]"
