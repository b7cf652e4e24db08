"""The review page of a service, in a process of its own: over the results of all its routes.

    python -m review.served --run RUN --parent PID

RUN/review.json, from the service, says what is served and how (`pipeline.service.review_page`); RUN/review is its address.
It dies with the service, and the service starts it again when it dies. It asks the service as any operator may, and writes
nothing but reviews. It gives way to the pipeline: others get the cores first, and where memory is short it is killed before
any stage is.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from pipeline import log
from pipeline.machine import detect
from pipeline.rundir import RunDir
from pipeline.service import review_page
from pipeline.service.sampler import Sampler
from pipeline.service.web import asker
from pipeline.worker import EXIT_CONFIGURATION, EXIT_FAULT, begun
from review.app import Page, application
from review.catalogue import Catalogue
from review.errors import ReviewError
from review.ledger_facts import LedgerFacts
from review.library import Library
from review.library_log import LibraryLog, Place
from review.live import Live
from review.reading import Reading
from review.service_figures import ServiceFigures
from review.serving import Serving, give_way, names
from review.slide_pool import SlidePool

SESSIONS = "review-sessions.sqlite"
HANG_S = 60.0


def serve(run: RunDir, settings: dict[str, Any]) -> int:
    """Until SIGTERM; the exit code. ReviewError where it cannot be served as configured."""
    ledger = Path(settings["ledger"])
    serving = serving_of(settings["review"])
    serving.check()
    guard = serving.guard(ledger.with_name(SESSIONS), getpass.getuser())
    listening = serving.listen()
    slides = [Path(folder) for folder in settings["slides"]]
    library = Library(
        [
            (route["name"], Catalogue(Path(route["out"]), slides, LedgerFacts(ledger, route["name"])))
            for route in settings["routes"]
        ]
    )
    reviews = LibraryLog(library, [Place(Path(route["out"]), route["require_mount"]) for route in settings["routes"]])
    figures = ServiceFigures(Sampler(ledger, asker(run), settings["version"], detect().cores), library)
    page = Page(Reading(library, SlidePool()), guard, reviews, Live(library), figures, settings["review"]["labels"])
    app = application(page, names(serving.host, serving.names), serving.tls)
    address = serving.address(listening)
    run.publish(review_page.ADDRESS, address)
    log.get_logger().info("the review page is served", address=address, implicit=serving.implicit)
    server = Watched(serving.config(app, log_config=None))
    threading.Thread(target=watch, args=(server,), daemon=True).start()
    server.run(sockets=[listening])
    return 0


class Watched(uvicorn.Server):
    """A server that can be seen to be alive: `turned_at` is when its loop last turned."""

    turned_at = float("inf")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self.turned_at = time.monotonic()
        return await super().on_tick(counter)


def watch(server: Watched, hang_s: float = HANG_S, leave: Callable[[int], object] = os._exit) -> None:
    """End the process when its loop stands still: the service starts another."""
    while time.monotonic() - server.turned_at < hang_s:
        time.sleep(hang_s / 10)
    log.get_logger().critical(f"the review page has not answered for {hang_s:g} s; it is started again")
    sys.stderr.flush()
    leave(EXIT_FAULT)


def serving_of(section: dict[str, Any]) -> Serving:
    """The options of `service.review`."""

    def path(name: str) -> Path | None:
        return None if section[name] is None else Path(section[name])

    return Serving(
        host=section["host"],
        port=section["port"],
        users=path("users"),
        certificate=path("certificate"),
        key=path("certificate_key"),
        names=tuple(section["names"]),
        proxies=tuple(section["proxies"]),
        trusted_header=section["trusted_header"],
        default_role=section["default_role"],
        insecure=section["insecure"],
    )


_OPTIONS = {"key": "certificate_key", "name": "names", "proxy": "proxies"}


def as_keys(text: str) -> str:
    """A message that names options of `slidestream review`, with the keys of the configuration in their place."""

    def key(option: re.Match[str]) -> str:
        return f"service.review.{_OPTIONS.get(option[1], option[1].replace('-', '_'))}"

    return re.sub(r"--([a-z][a-z-]*)", key, text)


def main() -> None:
    arguments = begun("review.served", "service")
    os.umask(0o077)
    give_way()
    run = RunDir(arguments.run)
    settings = json.loads((run.path / review_page.SETTINGS).read_text())
    log.configure_later("review", "json", settings["level"], sys.stderr)
    try:
        code = serve(run, settings)
    except ReviewError as error:
        log.get_logger().critical(as_keys(str(error)))
        code = EXIT_CONFIGURATION
    sys.stderr.flush()
    os._exit(code)  # a thread that looks at a dead share must not hold it up


if __name__ == "__main__":
    main()
