"""A review page's write side over real HTTP: uvicorn in a thread, slides that are made up, a browser of a few lines."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import argon2
import uvicorn
from PIL import Image
from starlette.applications import Starlette

from review import users
from review.facts import Facts, slide_key
from review.guard import Guard
from review.log import ReviewLog
from review.routes import routes
from review.security import SecurityHeaders, error_handlers

# As Argon2 as ever, but quick: a page's tests sign in a hundred times. The real costs are looked at in test_users.
users._hasher = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)

PASSWORD = "a long enough password"
TUMOUR = [[100, 100], [300, 100], [300, 250], [100, 250]]


def facts(slide: str = "ward/甲 1", **changes: Any) -> Facts:
    """A finished slide of 4000 x 3000 px at 0.5 µm/px."""
    values: dict[str, Any] = {
        "key": slide_key(slide),
        "id": slide,
        "path": f"/slides/{slide}.svs",
        "state": "complete",
        "width": 4000,
        "height": 3000,
        "mpp_x": 0.5,
        "mpp_y": 0.5,
        "classes": ("normal", "tumour"),
        "heatmap_class": "tumour",
        "model": {"name": "demo", "sha256": "ab" * 32, "classes": ["normal", "tumour"]},
        "engine": {"engine": "onnx", "version": "1.20"},
        "patches": {"planned": 10, "inferred": 10, "failed": 0},
        "result": "cd" * 32,
    }
    return Facts(**{**values, **changes})


def region(number: int = 1) -> dict[str, Any]:
    """A region as the catalogue gives it."""
    outline = [[x + 400 * (number - 1), y] for x, y in TUMOUR]
    return {
        "id": f"r{number}",
        "rank": number,
        "class": "tumour",
        "max": 0.98,
        "mean": 0.75,
        "area_um2": 7500.0,
        "patches": 6,
        "bbox": [100 + 400 * (number - 1), 100, 200, 150],
        "outline": outline,
    }


class MadeUp:
    """review.facts.Slides without files."""

    def __init__(self, *slides: Facts, regions: int = 3) -> None:
        self.slides = {slide.key: slide for slide in slides or (facts(),)}
        self.count = regions

    def facts(self, key: str) -> Facts | None:
        return self.slides.get(key)

    def regions(self, key: str, name: str, threshold: float, min_um2: float) -> list[dict[str, Any]]:
        return [region(number) for number in range(1, self.count + 1)] if threshold < 0.98 else []

    def picture(self, key: str, x: int, y: int, w: int, h: int, px: int) -> bytes:
        scale = px / max(w, h)
        image = Image.new("RGB", (max(1, round(w * scale)), max(1, round(h * scale))), (200, 150, 190))
        file = io.BytesIO()
        image.save(file, "JPEG")
        return file.getvalue()

    def bounded(self, key: str, work: Callable[[], Any]) -> Any:
        return work()

    def defaults(self, key: str) -> tuple[str, float, float]:
        return "tumour", 0.5, 0.0


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Browser:
    """Keeps its cookie and its X-CSRF token, as the page does."""

    port: int
    cookie: str | None = None
    csrf: str | None = None
    more: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        sent = {**self.more}
        if self.cookie:
            sent["cookie"] = self.cookie
        if self.csrf and method != "GET":
            sent["x-csrf"] = self.csrf
        raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        if raw is not None:
            sent["content-type"] = "application/json"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, raw, {name: value for name, value in sent.items() if value})
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        finally:
            connection.close()
        if given := answer.headers.get("set-cookie"):
            name, _, value = given.partition(";")[0].partition("=")
            self.cookie = f"{name}={value}" if value.strip('"') else None
        return answer

    def sign_in(self, user: str, password: str = PASSWORD) -> Answer:
        answer = self.ask("POST", "/api/session", {"user": user, "password": password})
        if answer.status == 200:
            self.csrf = answer.json["csrf"]
        return answer

    def start(self) -> Browser:
        """Learn the token of a session that needs no sign-in."""
        self.csrf = self.ask("GET", "/api/session").json["csrf"]
        return self

    def act(self, key: str, revision: int | None, act: str, **fields: Any) -> Answer:
        return self.ask("POST", f"/api/slides/{key}/acts", {"revision": revision, "act": act, **fields})


@dataclass
class Page:
    """A server that runs."""

    port: int
    log: ReviewLog
    slides: MadeUp
    told: list[tuple[str, int]]

    def browser(self, **headers: str) -> Browser:
        return Browser(self.port, more={name.replace("_", "-"): value for name, value in headers.items()})


@contextlib.contextmanager
def serve(guard: Guard, folder: Path, slides: MadeUp | None = None) -> Iterator[Page]:
    """The write side's routes on a free port of loopback."""
    slides, told = slides or MadeUp(), []
    log = ReviewLog(folder / "review.sqlite")
    mounted = routes(guard, log, slides, lambda key, revision: told.append((key, revision)))
    app = SecurityHeaders(Starlette(routes=mounted, exception_handlers=error_handlers()))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 10
    while not server.started:
        if time.monotonic() > until:
            raise TimeoutError("the server does not start")
        time.sleep(0.01)
    try:
        yield Page(server.servers[0].sockets[0].getsockname()[1], log, slides, told)
    finally:
        server.should_exit = True
        thread.join(10)
        log.close()
