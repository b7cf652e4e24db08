"""The HTTP process: a real one, a real ledger, and a small loop that answers the control socket in the supervisor's stead."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from pipeline.control import Control
from pipeline.rundir import RunDir
from pipeline.service import web
from pipeline.service.ledger import Ledger
from pipeline.service.lifecycle import State
from pipeline.service.looker import Looker
from pipeline.service.outward import Http, SpoolFolder, WebhookTarget
from pipeline.service.snapshot import Snapshot
from tests.pipeline.service.ledgers import delivery
from tests.pipeline.service.looks import answer

PATIENCE_S = 30.0


class StandIn(threading.Thread):
    """Answers the control socket of a run as the supervisor does, in a thread; `hush` makes it silent."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.hush, self.over, self.asked = run, False, False, 0
        self.confirmed: list[tuple[str, int]] = []
        self.ready = threading.Event()

    def run(self) -> None:
        context = zmq.Context()
        control = Control(context, self.run_dir.control, {"status": self._status, "sent": self._sent})
        self.ready.set()
        while not self.over:
            if control.socket.poll(20) and not self.hush:
                control.answer()
            elif self.hush:
                time.sleep(0.02)
        control.close()
        context.destroy(linger=0)

    def _status(self, question: dict) -> dict:
        self.asked += 1
        return {"run": answer(100)}

    def _sent(self, question: dict) -> dict:
        self.confirmed.append((question["sink"], question["event"]))
        return {"said": "noted"}


class Service:
    """What a test has in hand: the run, its ledger, the stand-in and the HTTP process."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(folder)
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.supervisor = StandIn(self.run)
        self.supervisor.start()
        self.supervisor.ready.wait(PATIENCE_S)
        self.process: subprocess.Popen | None = None

    def start(self, parent: list[str] | None = None, spool: str | None = None, **more: object) -> None:
        (self.run.path / web.ADDRESS).unlink(missing_ok=True)
        settings = Http(port=0, **more).model_dump(mode="json")
        web.write_settings(self.run, self.run.path / "ledger.sqlite", "1.2.3", "info", settings, *receivers(spool))
        self.process = subprocess.Popen(
            parent or web.command(self.run), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        until(lambda: web.address(self.run) or self.process.poll() is not None)

    def get(self, path: str, host: str = "", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(web.address(self.run))
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE_S)
        connection.request(method, path, headers={"host": host} if host else {})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, body

    def close(self) -> None:
        self.supervisor.over = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()
        self.supervisor.join()
        self.ledger.close()


def receivers(spool: str | None = None) -> list[dict]:
    """The sections webhook and spool."""
    return [section.model_dump(mode="json") for section in (WebhookTarget(), SpoolFolder(path=spool))]


def until(true: Callable[[], object]) -> None:
    """Wait for something that will come."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.02)


@pytest.fixture
def service(tmp_path_factory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("r"))  # short: a socket's path has at most 107 bytes
    yield service
    service.close()


def test_a_service_that_is_well(service):
    """All pages of a service with work and results: 200, and what the ledger and the supervisor say."""
    service.ledger.deliver(delivery("Jane Doe"), time.time())
    service.start()
    for path, word in (("/healthz", "live"), ("/readyz", "ready"), ("/progress", "progressing")):
        status, headers, body = service.get(path)
        assert (status, json.loads(body)) == (200, {word: True, "reasons": [], "notes": []})
        assert headers["content-type"] == "application/json"
    status, headers, body = service.get("/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {s.name: s.value for f in text_string_to_metric_families(body.decode()) for s in f.samples}
    assert samples["slidestream_up"] == 1 and samples["slidestream_patches_inferred_total"] == 100
    assert samples["slidestream_backlog_slides"] == 1
    status, _, body = service.get("/api/status")
    look = Snapshot.from_dict(json.loads(body))
    assert status == 200 and look.version == "1.2.3" and look.slides["queued"]["routine"] == 1
    assert b"Jane" not in body


def test_silent_supervisor_is_not_live(service):
    """A supervisor that does not answer within two seconds: 503, and the page is there all the same."""
    service.start()
    assert service.get("/healthz")[0] == 200
    service.supervisor.hush = True
    time.sleep(1.1)  # what was seen a second ago still counts
    began = time.monotonic()
    status, _, body = service.get("/healthz")
    assert status == 503 and time.monotonic() - began < 10
    assert json.loads(body)["reasons"] == ["the supervisor does not answer within 2 s"]
    assert b"slidestream_up 0.0" in service.get("/metrics")[2]
    service.supervisor.hush = False
    until(lambda: service.get("/healthz")[0] == 200)


def test_stopped_process_of_the_supervisor_is_not_live(service):
    """No control socket at all is the same."""
    service.supervisor.over = True
    service.supervisor.join()
    service.start()
    assert service.get("/healthz")[0] == 503


def test_pages_tell_no_more_than_they_must(service):
    """Wrong paths, methods and names get a word; every answer has the security headers and no name of the server."""
    service.start()
    for path, host, method, expected in (
        ("/", "", "GET", 404),
        ("/healthz/../../etc/passwd", "", "GET", 404),
        ("/healthz", "", "POST", 405),
        ("/healthz", "evil.example", "GET", 400),
        ("/healthz", "localhost:1", "GET", 200),
        ("/healthz", "[::1]:1", "GET", 200),
    ):
        status, headers, body = service.get(path, host, method)
        assert status == expected, (path, host, method)
        assert len(body) < 100
        assert "server" not in headers
        for name, value in web.HEADERS.items():
            assert headers[name] == value


def test_a_fault_of_ours_tells_nothing():
    """A page that crashes gives three words and the security headers, not its traceback."""

    async def crash(request):
        raise RuntimeError("secret")

    app = web.application(Looker(None), 300.0, ["localhost"], [Route("/crash", crash)])
    sent: list[dict] = []

    async def ask() -> None:
        async def receive() -> dict:
            return {"type": "http.request"}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/crash", "query_string": b"", "http_version": "1.1"}
        with contextlib.suppress(RuntimeError):  # raised again for the log of the server
            await app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)

    asyncio.run(ask())
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert sent[0]["status"] == 500 and sent[1]["body"] == b"Internal Server Error"
    assert headers["content-security-policy"] == web.HEADERS["content-security-policy"]


class Stub:
    """In place of a Sampler: does what it is told."""

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        self.look = look


def test_a_look_that_crashes_is_a_service_in_trouble(capsys):
    """Whatever goes wrong in looking: not live, and looking goes on."""

    def crash() -> Snapshot:
        raise KeyError("busy")

    look = asyncio.run(Looker(Stub(crash)).look())
    assert not look.answers and "crashed (KeyError)" in look.problem


def test_a_look_that_hangs_is_not_waited_for(monkeypatch):
    """A disk that hangs under the ledger makes no page wait for longer than its patience, and is asked once."""
    release, looks = threading.Event(), []

    def hang() -> Snapshot:
        looks.append(1)
        release.wait(PATIENCE_S)
        return Snapshot(1.0)

    monkeypatch.setattr("pipeline.service.looker.PATIENCE_S", 0.1)

    async def ask() -> list[Snapshot]:
        looker = Looker(Stub(hang))
        found = [await looker.look() for _ in range(3)]
        release.set()
        return found

    found = asyncio.run(ask())
    assert ["takes longer than 0.1 s" in look.problem for look in found] == [True] * 3
    assert len(looks) == 1


def test_names_can_be_allowed(service):
    """A scraper asks under the name that the operator configured."""
    service.start(names=("slide-server.lab",))
    assert service.get("/metrics", "slide-server.lab:8750")[0] == 200
    assert service.get("/metrics", "other.lab:8750")[0] == 400


def test_runs_on_loopback(service):
    """Without configuration nobody outside the machine reaches it."""
    service.start()
    assert web.address(service.run).startswith("http://127.0.0.1:")


def test_dies_with_its_parent(service):
    """kill -9 of the supervisor leaves no process behind, so that the next one finds the port free."""
    script = (
        "import subprocess, sys, os, time; from pathlib import Path; from pipeline.service import web; "
        "from pipeline.rundir import RunDir; "
        "child = subprocess.Popen(web.command(RunDir(Path(sys.argv[1])))); print(child.pid, file=sys.stderr, flush=True); "
        "time.sleep(60)"
    )
    service.start(parent=[sys.executable, "-c", script, str(service.run.path)])
    child = int(service.process.stderr.readline())
    service.process.kill()
    until(lambda: not _lives(child))


def test_a_webhook_without_its_secret_is_one_clear_line(service):
    """Exit code 2 and the key, before anything is served."""
    hook = WebhookTarget(url="https://example.org/x", secret_file=str(service.run.path / "none"))
    settings = [Http(port=0).model_dump(mode="json"), hook.model_dump(mode="json"), receivers()[1]]
    web.write_settings(service.run, service.run.path / "ledger.sqlite", "1", "info", *settings)
    done = subprocess.run(web.command(service.run), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert json.loads(done.stderr)["event"].startswith("service.webhook.secret_file: ")


def test_taken_port_is_one_clear_line(service):
    """Exit code 2 and the key to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Http(port=taken.getsockname()[1]).model_dump(mode="json")
        web.write_settings(service.run, service.run.path / "ledger.sqlite", "1", "info", settings, *receivers())
        done = subprocess.run(web.command(service.run), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    record = json.loads(done.stderr)
    assert record["level"] == "critical" and "service.http.port" in record["event"]


def test_many_askers_are_one_question(service):
    """However many ask at once, the supervisor is asked at most once a second, and nobody is refused."""
    service.start()
    answers: list[int] = []
    began, before = time.monotonic(), service.supervisor.asked
    threads = [threading.Thread(target=lambda: answers.append(service.get("/metrics")[0])) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 40
    assert service.supervisor.asked - before <= 2 + (time.monotonic() - began)


def test_memory_stays(service):
    """Five hundred questions do not make the process grow."""
    service.start()
    for _ in range(100):
        service.get("/metrics")
    before = _resident(service.process.pid)
    for _ in range(500):
        service.get("/metrics")
        service.get("/nowhere")
    assert _resident(service.process.pid) - before < 8 << 20


def test_terminated_politely_it_leaves(service):
    """SIGTERM ends it within its bound."""
    service.start()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)


def test_events_are_delivered_and_confirmed(service):
    """What happens in the ledger lies in the spool folder, and the supervisor is told so."""
    service.ledger.add_sink("spool")
    folder = service.run.path / "events"
    service.start(spool=str(folder))
    slide = service.ledger.deliver(delivery("A"), time.time())[0]
    service.ledger.finished(slide.id, service.ledger.started(slide.id, 1.0).attempts, State.COMPLETE, {}, time.time())
    until(lambda: service.supervisor.confirmed and service.supervisor.confirmed[-1][1] >= 2)
    kinds = [json.loads(path.read_text())["type"] for path in sorted(folder.iterdir())]
    assert kinds == ["slide.delivered", "slide.complete"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_half_a_request_is_not_waited_for(service):
    """A connection that sends no whole request is closed in the end; others are served meanwhile."""
    service.start(
        parent=[
            sys.executable,
            "-c",
            "from pipeline.service import web; web.REQUEST_S = 0.3; web.main()",
            *web.command(service.run)[3:],
        ]
    )
    parts = urlsplit(web.address(service.run))
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nhost: local")
        assert service.get("/healthz")[0] == 200
        assert slow.recv(1000) == b""


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")
