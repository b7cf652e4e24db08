"""A slide whose storage does not answer, for the whole server: another process holds a lease on the file (fcntl(2),
F_SETLEASE), so that the kernel keeps whoever opens it waiting, as a dead file server does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.review.conftest import Results
from tests.review.page import Answer
from tests.review.reading_page import Served, serve, until

HUNG, GOOD = "ward 3/Präparat", "ward 3/frozen"
LIMIT_S = 0.8

HOLD = """
import fcntl, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel asks for it back; it is kept
file = open(sys.argv[1], "r+b")
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def served(results: Results, tmp_path: Path) -> Iterator[Served]:
    with serve(results.out, tmp_path, results.slides) as page:
        readers = page.page.reading.readers
        readers._late_s, readers._limit_s = LIMIT_S / 4, LIMIT_S
        yield page


@pytest.fixture
def hold(results: Results) -> Iterator[subprocess.Popen[str]]:
    """Nobody can open HUNG until it is told to end."""
    path = results.slides / f"{HUNG}.tif"
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout.readline() != "held\n":
        pytest.skip("this file system has no leases")
    yield process
    process.stdin.close()
    process.wait(10)


def test_one_hung_slide_stops_nothing_else(served: Served, hold: subprocess.Popen[str]):
    """Its tiles and exports are refused with 503 and a code; other slides' tiles, worklist and signatures go on; when the
    storage answers again, so does the slide."""
    answers: list[Answer] = []
    hung = served.slide(HUNG)
    asking = [
        threading.Thread(target=lambda n=n: answers.append(served.get(f"{hung}/tile/0/{n}_0.jpg")), daemon=True)
        for n in range(30)
    ]
    for thread in asking:
        thread.start()
    time.sleep(0.1)
    browser, good = served.browser.start(), served.slide(GOOD)
    began = time.monotonic()
    assert served.get(f"{good}/tile/0/0_0.jpg").status == 200
    assert served.get("/api/worklist").status == 200
    assert browser.act(good.rpartition("/")[2], None, "open").status == 200
    revision = served.json(f"{good}/review")["revision"]
    assert browser.act(good.rpartition("/")[2], revision, "sign", statement="seen").json["state"] == "signed"
    assert time.monotonic() - began < 3
    for thread in asking:
        thread.join(20)
    assert {(answer.status, answer.json["code"]) for answer in answers} == {(503, "storage")} and len(answers) == 30

    # What is known without its file stands: it can be looked at as a result, and signed.
    began = time.monotonic()
    detail = served.json(hung)
    assert detail["problem"]["code"] == "storage" and not detail["levels"] and detail["width"]
    assert served.get(f"{hung}/heat").status == 200
    assert served.get(f"{hung}/export/pdf").json["code"] == "storage"
    browser.act(hung.rpartition("/")[2], None, "open")
    revision = served.json(f"{hung}/review")["revision"]
    assert browser.act(hung.rpartition("/")[2], revision, "sign", statement="seen").json["state"] == "signed"
    assert time.monotonic() - began < 6

    hold.stdin.close()
    until(lambda: served.get(f"{hung}/tile/0/0_0.jpg").status == 200)
    assert served.json(hung)["problem"] is None
