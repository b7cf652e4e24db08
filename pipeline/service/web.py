"""The HTTP process of the service: health, metrics and status for whoever watches it. It can die without harm.

    python -m pipeline.service.web --run RUN --parent PID

    /healthz     200 while the supervisor answers, else 503
    /readyz      200 while slides can be taken in and inferred, else 503
    /progress    200 unless there is work and no result has come for too long, then 503
    /metrics     for Prometheus
    /api/status  everything, as JSON (pipeline.service.snapshot)

It reads the ledger, asks the supervisor's control socket, and changes nothing. Events are delivered from here too, in threads
of their own (pipeline.service.events). RUN/web.json, from the supervisor, has its settings; RUN/http is its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import h11
import uvicorn
import zmq
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline import log
from pipeline.control import put
from pipeline.machine import detect
from pipeline.rundir import RunDir
from pipeline.service import health, metrics
from pipeline.service.events import Courier
from pipeline.service.looker import Looker
from pipeline.service.sampler import Ask, Sampler, Unanswered
from pipeline.service.snapshot import Snapshot
from pipeline.service.spool import Spool
from pipeline.service.urls import LOOPBACK, WebhookError
from pipeline.service.webhook import Webhook, read_secret
from pipeline.worker import EXIT_CONFIGURATION, EXIT_FAULT, begun

SETTINGS, ADDRESS = "web.json", "http"
CONNECTIONS = 128
REQUEST_S = 10.0  # from a connection's beginning, or its last answer, to a whole request
HEAD_BYTES = 16 << 10
ADDRESS_SPACE = 2 << 30  # threads and SQLite's map are address space, too; it takes some 60 MiB of memory
CONFIRM_S = 2.0

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def application(looker: Looker, stuck_s: float, names: Sequence[str], more: Sequence[BaseRoute] = ()) -> ASGIApp:
    """The routes above, and `more`. Asked under other names than `names`, it refuses."""

    def answer(judge: Callable[[Snapshot], health.Verdict], word: str) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            verdict = judge(await looker.look())
            body = {word: verdict.good, "reasons": verdict.reasons, "notes": verdict.notes}
            return JSONResponse(body, 200 if verdict.good else 503)

        return respond

    async def prometheus(request: Request) -> Response:
        return Response(metrics.text(await looker.look(), stuck_s), media_type=metrics.CONTENT_TYPE)

    async def status(request: Request) -> Response:
        return JSONResponse((await looker.look()).to_dict())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(looker.keep_looking())
        yield
        looking.cancel()

    routes = [
        Route("/healthz", answer(health.live, "live")),
        Route("/readyz", answer(health.ready, "ready")),
        Route("/progress", answer(lambda look: health.progressing(look, stuck_s), "progressing")),
        Route("/metrics", prometheus),
        Route("/api/status", status),
        *more,
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(names), www_redirect=False)
    return SecurityHeaders(Starlette(routes=routes, middleware=[hosts], lifespan=lifespan))


class SecurityHeaders:
    """Adds HEADERS to every answer that does not have its own, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


class Impatient(H11Protocol):
    """uvicorn's HTTP, but a connection on which no whole request comes is closed: it would take a place for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._before: object = None
        self._watch = self.loop.call_later(REQUEST_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        idle = self.conn.their_state is h11.IDLE
        # Idle for the whole stretch: the same (or no) request was the last one at its beginning.
        if idle and self.cycle is self._before and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
            return
        self._before = self.cycle
        self._watch = self.loop.call_later(REQUEST_S, self._look)


def command(run: RunDir) -> list[str]:
    """How the supervisor starts this process, from its main thread."""
    return [sys.executable, "-m", "pipeline.service.web", "--run", str(run.path), "--parent", str(os.getpid())]


def write_settings(run: RunDir, ledger: Path, version: str, level: str, http: dict, webhook: dict, spool: dict) -> bool:
    """What this process reads. `http`, `webhook`, `spool` are the sections of pipeline.service.outward as plain JSON."""
    values = {"ledger": str(ledger), "version": version, "level": level}
    text = json.dumps({**values, "http": http, "webhook": webhook, "spool": spool})
    (run.path / SETTINGS).write_text(text)
    return True


def address(run: RunDir) -> str | None:
    """Where this process listens ("http://127.0.0.1:8750"), or None while it does not."""
    with contextlib.suppress(OSError):
        return (run.path / ADDRESS).read_text().strip() or None
    return None


def asker(run: RunDir) -> Ask:
    """Questions to the supervisor's control socket."""

    def ask(question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            answer = put(run.control, question, timeout_s)
        except TimeoutError:
            raise Unanswered(f"the supervisor does not answer within {timeout_s:g} s") from None
        except (zmq.ZMQError, ValueError) as error:
            raise Unanswered(f"the supervisor cannot be asked: {error}") from error
        if not answer.get("ok"):
            raise Unanswered(f"the supervisor refuses: {answer.get('said', '')}")
        return answer

    return ask


def couriers(settings: dict[str, Any], ask: Ask) -> list[Courier]:
    """One for each receiver of events. WebhookError where one cannot be used as configured."""

    def confirm(sink: str, event: int) -> None:
        try:
            ask({"do": "sent", "sink": sink, "event": event}, CONFIRM_S)
        except Unanswered as silence:
            raise ConnectionError(str(silence)) from silence

    found, ledger = [], Path(settings["ledger"])
    if (hook := settings["webhook"])["url"] is not None:
        sink = Webhook(hook["url"], read_secret(Path(hook["secret_file"])), hook["timeout_s"], hook["ca_file"])
        found.append(Courier(ledger, sink, confirm, hook["events"], hook["keep_h"] * 3600))
    if (spool := settings["spool"])["path"] is not None:
        folder = Spool(Path(spool["path"]), spool["most"])
        found.append(Courier(ledger, folder, confirm, spool["events"], spool["keep_h"] * 3600))
    return found


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. OSError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only for a socket that says it is TCP does asyncio turn off Nagle's algorithm; with it a body would wait up to 40 ms for
    # the other side to acknowledge the head.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(CONNECTIONS)
    except OSError:
        made.close()
        raise
    return made


def server(app: Any, **own: Any) -> uvicorn.Config:
    """How this project serves HTTP; `own` are uvicorn's other settings."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=Impatient,
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=HEAD_BYTES,
        **own,
    )


def allowed_names(http: dict[str, Any]) -> list[str]:
    """The names under which it may be asked."""
    host = http["host"]
    own = [] if host in ("0.0.0.0", "::") else [host]  # that is no name anybody asks under
    return [f"[{name}]" if ":" in name else name for name in (*LOOPBACK, *own, *http["names"])]


def serve(run: RunDir, settings: dict[str, Any]) -> int:
    """Until SIGTERM. Gives the exit code."""
    http, logger = settings["http"], log.get_logger()
    ask = asker(run)
    try:
        deliveries = couriers(settings, ask)
    except WebhookError as error:
        logger.critical(f"service.{error}")
        return EXIT_CONFIGURATION
    try:
        listening = listen(http["host"], http["port"])
    except OSError as error:
        logger.critical(
            f"service.http: {http['host']} port {http['port']}: {error.strerror or error}; name another in service.http.host or service.http.port"
        )
        return EXIT_CONFIGURATION
    stop = threading.Event()
    for courier in deliveries:
        threading.Thread(target=courier.run, args=(stop,), daemon=True).start()
    sampler = Sampler(Path(settings["ledger"]), ask, settings["version"], detect().cores)
    app = application(Looker(sampler), http["stuck_s"], allowed_names(http))
    config = server(app, log_config=None, limit_concurrency=CONNECTIONS, timeout_keep_alive=5)
    host, port = listening.getsockname()[:2]
    run.publish(ADDRESS, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    logger.info("HTTP is served", host=host, port=port)
    uvicorn.Server(config).run(sockets=[listening])
    stop.set()
    return 0


def main() -> None:
    arguments = begun("pipeline.service.web", "service")
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    run = RunDir(arguments.run)
    try:
        settings = json.loads((run.path / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        log.configure_later("web", "json", "info", sys.stderr)
        log.get_logger().critical(f"{run.path / SETTINGS}: {error}; the supervisor writes it")
        sys.exit(EXIT_FAULT)
    log.configure_later("web", "json", settings["level"], sys.stderr)
    sys.exit(serve(run, settings))


if __name__ == "__main__":
    main()
