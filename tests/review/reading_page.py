"""The review page over a results folder, as `slidestream review` serves it, in a thread; and answers taken apart."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from review.app import Page, application
from review.catalogue import Catalogue, key_of
from review.guard import Guard, implicit
from review.live import Live
from review.log import ReviewLog
from review.operations import operations
from review.reading import Reading
from review.slide_pool import SlidePool
from tests.review.page import Answer, Browser

PATIENCE_S = 60.0


@dataclass
class Served:
    """A page that is served, and who looks at it."""

    page: Page
    browser: Browser

    @property
    def catalogue(self) -> Catalogue:
        return self.page.reading.catalogue

    def get(self, path: str, **headers: str) -> Answer:
        return self.browser.ask("GET", path, **headers)

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status == 200, answer.body
        return answer.json

    def slide(self, name: str, rest: str = "") -> str:
        """The address of a slide."""
        return f"/api/slides/{key_of(name)}{rest}"


@contextlib.contextmanager
def serve(
    results: Path,
    log_folder: Path,
    slides: Path | None = None,
    guard: Guard | None = None,
    beside: Callable[[], dict] | None = None,
    poll_s: float = 0.1,
    labels: str = "nobody",
) -> Iterator[Served]:
    """On a free port of loopback. The log of reviews lies apart, so that results can be shared between tests."""
    catalogue = Catalogue(results, [slides] if slides else None, beside)
    log = ReviewLog(log_folder / "review.sqlite")
    page = Page(
        Reading(catalogue, SlidePool()),
        guard or implicit("tester"),
        log,
        Live(catalogue, poll_s=poll_s),
        lambda: operations(catalogue),
        labels,
    )
    app = application(page, ["127.0.0.1"])
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", proxy_headers=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Served(page, Browser(server.servers[0].sockets[0].getsockname()[1]))
    finally:
        server.should_exit = True
        thread.join(10)
        log.close()


def until(true: Callable[[], Any]) -> Any:
    """Wait for something that will come, and give it."""
    end = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < end, "did not come"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Heat:
    """An answer of /heat, decoded by what its description says, not by the code that made it."""

    following: int
    columns: np.ndarray
    rows: np.ndarray
    states: np.ndarray
    levels: np.ndarray

    @classmethod
    def of(cls, body: bytes) -> Heat:
        magic, version, n, classes, following = struct.unpack_from("<4sIIII", body)
        assert (magic, version) == (b"SSH1", 1)
        columns, rows = np.frombuffer(body, "<i4", 2 * n, 20).reshape(2, n)
        states = np.frombuffer(body, np.uint8, n, 20 + 8 * n)
        begin = 20 + 8 * n + (n + 3) // 4 * 4
        levels = np.frombuffer(body, np.uint8, n * classes, begin).reshape(n, classes)
        assert len(body) == begin + n * classes
        return cls(following, columns, rows, states, levels)

    def by_place(self) -> dict[tuple[int, int], tuple[int, tuple[int, ...]]]:
        """State and levels by column and row."""
        return {
            (int(c), int(r)): (int(s), tuple(levels.tolist()))
            for c, r, s, levels in zip(self.columns, self.rows, self.states, self.levels, strict=True)
        }


class Events:
    """Server-sent events as they come, read in a thread."""

    def __init__(self, port: int, path: str = "/api/events") -> None:
        import http.client

        self.seen: list[dict[str, Any]] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        self._connection.request("GET", path)
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        self._socket = self._connection.sock
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            for line in self._response:
                if line.startswith(b"data: "):
                    self.seen.append(json.loads(line[6:]))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.seen) if event["type"] == kind]

    def close(self) -> None:
        import socket

        with contextlib.suppress(OSError, AttributeError):
            self._response.fp.raw._sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()
