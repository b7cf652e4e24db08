"""The routes of the review page that show: worklist, slide, tiles, heatmap, regions, events. Those that change are in
`review.routes`; `application` puts both together with the page itself.

What blocks runs in threads: whatever reads slides in those of `review.patience`, so that storage that does not answer holds up
nothing else. Of what waits there, nothing is read for a window that has moved on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from review import heat, labels, openapi, slide_pool
from review.entry import Entry
from review.errors import Refused
from review.facts import Facts
from review.guard import Guard, Identity
from review.live import Live
from review.log import Reviews
from review.reading import MIN_UM2, REGIONS_MOST, THRESHOLD, Reading
from review.routes import Desk
from review.routes import routes as changing_routes
from review.security import SecurityHeaders, error_handlers
from review.tiles import Picture

STATIC = Path(__file__).parent / "static"
ROWS_MOST = 500
REGION_PX = 1024
STATES = ("waiting", "running", "complete", "partial", "failed")
URGENCIES = ("stat", "routine")
UNSIGNED = "unsigned"  # whatever is not signed: what there is left to do
REVIEWS = (UNSIGNED, "new", "in_review", "reopened", "signed")
SORTS = ("urgency", "id", "state", "score", "tumour_mm2", "tissue_mm2", "arrived", "finished", "review")
_REVIEW_ORDER = {"new": 0, "reopened": 1, "in_review": 2, "signed": 3}
_KEY = re.compile(r"[0-9a-f]{20}")
_PLACE = re.compile(r"(\d{1,9})_(\d{1,9})")
# Kept by the browser, but asked about each time: a window in which somebody else has signed in must not show it.
_PICTURE_CACHE = "private, no-cache"

Work = Callable[[Request, Identity], Response]


class Json(JSONResponse):
    """Also of text that is no Unicode: reasons may name files by bytes that are none."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True, slots=True)
class Page:
    """What the routes need. `figures`: for the operations page; may block. `labels`: the role from which on label and macro
    images are shown."""

    reading: Reading
    guard: Guard
    log: Reviews
    live: Live
    figures: Callable[[], Mapping[str, Any]]
    labels: str = labels.NOBODY


def application(page: Page, names: Sequence[str], tls: bool = False) -> ASGIApp:
    """The whole page by itself. Asked under other names than `names`, it refuses (DNS rebinding)."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # The first look reads every summary; whoever comes meanwhile waits for it.
        first = asyncio.create_task(to_thread.run_sync(page.reading.catalogue.look))
        yield
        first.cancel()
        page.live.close()
        page.reading.readers.close()
        page.reading.pool.close()

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(names), www_redirect=False)
    app = Starlette(
        routes=[*routes(page), *page_routes()],
        middleware=[hosts],
        exception_handlers=error_handlers(),
        lifespan=lifespan,
    )
    return SecurityHeaders(app, tls)


def page_routes() -> list[BaseRoute]:
    """The page's own files."""

    async def index(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    return [Route("/", index), Mount("/static", StaticFiles(directory=STATIC))]


def routes(page: Page) -> list[BaseRoute]:
    """All routes of the API."""
    show = Show(page)

    def answering(work: Work, role: str = "viewer", touch: bool = True) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            return await to_thread.run_sync(work, request, page.guard.require(request, role, touch))

        return respond

    def drawing(work: Work) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            identity = page.guard.require(request, "viewer")

            async def gone() -> None:
                while (await request.receive())["type"] != "http.disconnect":
                    pass

            answer = await page.reading.readers.run(request.path_params["key"], lambda: work(request, identity), gone)
            return answer or Response(status_code=499)

        return respond

    async def events(request: Request) -> Response:
        identity = page.guard.require(request, "viewer", touch=False)
        key = request.query_params.get("slide")
        if key is not None:
            await to_thread.run_sync(show.entry, key)
        stream = await page.live.stream(key, identity.user, lambda: page.guard.alive(identity))
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    return [
        Route("/api/worklist", answering(show.worklist, touch=False)),
        Route("/api/events", events),
        Route("/api/operations", answering(show.operations, touch=False)),
        Route("/api/openapi.json", answering(show.openapi)),
        Route("/api/slides/{key}", answering(show.slide)),
        Route("/api/slides/{key}/tile/{level}/{place}.jpg", drawing(show.tile)),
        Route("/api/slides/{key}/overview.jpg", drawing(show.overview)),
        Route("/api/slides/{key}/region.jpg", drawing(show.region)),
        Route("/api/slides/{key}/heat", answering(show.heat, touch=False)),
        Route("/api/slides/{key}/patch", answering(show.patch)),
        Route("/api/slides/{key}/regions", answering(show.regions, touch=False)),
        *labels.routes(page.labels, page.guard, page.log, page.reading),
        *changing_routes(page.guard, page.log, page.reading, page.live.reviewed),
    ]


class Show:
    """What the routes do, in a thread."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._reading = page.reading
        self._desk = Desk(page.guard, page.log, page.reading)

    def entry(self, key: str, fresh: bool = True) -> Entry:
        """The slide of a key. Refused (404)."""
        if not _KEY.fullmatch(key):
            raise Refused(404, "no_slide", "there is no such slide")
        return self._reading.catalogue.entry(key, fresh)

    def worklist(self, request: Request, identity: Identity) -> Response:
        wanted = Wanted(request)
        entries = self._reading.catalogue.look()
        # After the look: a slide that comes with its review, as when its share is back, is not new.
        reviews, present = self._page.log.reviews(), self._page.live.all_present()
        rows = []
        for entry in entries.values():
            review = reviews.get(entry.key)
            if wanted.fits(entry, review.state if review else "new", review.reviewer if review else None):
                rows.append((entry, review))
        ordered = wanted.order(rows)
        part = ordered[wanted.offset : wanted.offset + wanted.limit]
        return Json(
            {
                "total": len(rows),
                "slides": [
                    {**entry.to_row(), "review": _brief(review), "others": others(present, entry.key, identity.user)}
                    for entry, review in part
                ],
            }
        )

    def slide(self, request: Request, identity: Identity) -> Response:
        entry = self.entry(request.path_params["key"])
        facts = self._reading.facts(entry.key) or Facts(key=entry.key, id=entry.id, path="", state=entry.state)
        document = self._desk.document(self._page.log.review(entry.key), facts)
        detail = self._reading.detail(entry.key)
        return Json(
            {
                **detail,
                "review": document,
                "labels": [] if detail["problem"] else self._labels(identity, facts),
                "others": others(self._page.live.all_present(), entry.key, identity.user),
            }
        )

    def _labels(self, identity: Identity, facts: Facts) -> list[str]:
        """Which label and macro images whoever asks may see; none is read for that."""
        may = bool(facts.path) and labels.may_see(self._page.labels, identity)
        try:
            return list(self._reading.readers.call(facts.key, lambda: labels.available(facts.path))) if may else []
        except Refused:
            return []

    def tile(self, request: Request, identity: Identity) -> Response:
        entry = self.entry(request.path_params["key"], fresh=False)
        level, place = request.path_params["level"], _PLACE.fullmatch(request.path_params["place"])
        if place is None or not re.fullmatch(r"\d{1,3}", level):
            raise Refused(404, "no_tile", "there is no such tile")
        number, column, row, icc = int(level), int(place[1]), int(place[2]), flag(request, "icc")
        path, what = self._reading.catalogue.file(entry), ("tile", number, column, row, icc)
        pool = self._reading.pool

        def make() -> Picture:
            # Asked of the slide itself: what is passed through needs no room among what was made.
            with pool.slide(path) as slide:
                if slide.is_stored(number, column, row, icc):
                    return slide.tile(number, column, row, icc)
            return pool.picture(path, what, lambda slide: slide.tile(number, column, row, icc))

        return self._picture(request, path, what, make)

    def overview(self, request: Request, identity: Identity) -> Response:
        entry = self.entry(request.path_params["key"], fresh=False)
        icc = flag(request, "icc")
        path, what = self._reading.catalogue.file(entry), ("overview", icc)
        return self._picture(
            request, path, what, lambda: self._reading.pool.picture(path, what, lambda slide: slide.overview(icc))
        )

    def region(self, request: Request, identity: Identity) -> Response:
        entry = self.entry(request.path_params["key"], fresh=False)
        most = 1 << 24
        x, y = (integer(request, name, -most, most) for name in "xy")
        w, h = (integer(request, name, 1, most) for name in "wh")
        px, icc = integer(request, "px", 1, REGION_PX, 256), flag(request, "icc")
        width, height = entry.size or (most, most)
        if x + w <= 0 or y + h <= 0 or x >= width or y >= height or max(w, h) > 2 * max(width, height):
            raise Refused(422, "bad_input", "x, y, w, h: this lies beside the slide")
        path = self._reading.catalogue.file(entry)
        what = ("region", x, y, w, h, px, icc)
        return self._picture(request, path, what, lambda: self._reading.region(entry, x, y, w, h, px, icc))

    def heat(self, request: Request, identity: Identity) -> Response:
        entry = self.entry(request.path_params["key"])
        since = integer(request, "from", 0, heat.FINAL, 0)
        try:
            table = self._reading.catalogue.patches(entry.key)
        except Refused as refusal:
            if refusal.code != "no_table" or entry.state not in ("waiting", "running", "failed"):
                raise
            table = heat.nothing(entry.classes)
        return Response(heat.encode(table, since), media_type="application/octet-stream")

    def patch(self, request: Request, identity: Identity) -> Response:
        entry = self.entry(request.path_params["key"])
        column, row = (integer(request, name, 0, 1 << 24) for name in ("column", "row"))
        values = heat.patch(self._reading.catalogue.patches(entry.key), column, row)
        return Json({**values, **self._reading.identity(entry)})

    def regions(self, request: Request, identity: Identity) -> Response:
        entry = self.entry(request.path_params["key"])
        threshold = number(request, "threshold", 0.0, 1.0, THRESHOLD)
        min_um2 = number(request, "min_um2", 0.0, 1e15, MIN_UM2)
        if not entry.classes:
            return Json({"total": 0, "regions": []})
        found = self._reading.found(entry.key, request.query_params.get("class"), threshold, min_um2)
        return Json({"total": len(found), "regions": [region.to_dict() for region in found[:REGIONS_MOST]]})

    def operations(self, request: Request, identity: Identity) -> Response:
        return Json(dict(self._page.figures()))

    def openapi(self, request: Request, identity: Identity) -> Response:
        return Json(openapi.document())

    def _picture(self, request: Request, path: Path, what: tuple, make: Callable[[], Picture]) -> Response:
        tag = slide_pool.tag(path, what)
        headers = {"cache-control": _PICTURE_CACHE, "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        picture = make()
        if picture.problem:  # hatched: a later try may go better
            headers = {"cache-control": "no-store", "x-problem": picture.problem.encode("ascii", "replace").decode()}
        return Response(picture.jpeg, media_type="image/jpeg", headers=headers)


class Wanted:
    """Which rows of the worklist are asked for, and in which order. Refused (422) for what makes no sense."""

    def __init__(self, request: Request) -> None:
        query = request.query_params
        self.state = choice(request, "state", STATES)
        self.urgency = choice(request, "urgency", URGENCIES)
        self.review = choice(request, "review", REVIEWS)
        self.reviewer = folded(query.get("reviewer", ""))
        self.text = folded(query.get("q", ""))
        self.sort = choice(request, "sort", SORTS)
        self.descending = choice(request, "order", ("asc", "desc")) == "desc"
        self.offset = integer(request, "offset", 0, 1 << 31, 0)
        self.limit = integer(request, "limit", 0, ROWS_MOST, 100)

    def fits(self, entry: Entry, review: str, reviewer: str | None) -> bool:
        """Whether a slide is asked for."""
        return (
            (not self.state or entry.state == self.state)
            and (not self.urgency or entry.urgency == self.urgency)
            and (not self.review or self.review == review or (self.review == UNSIGNED and review != "signed"))
            and (not self.reviewer or self.reviewer in folded(reviewer or ""))
            and (not self.text or self.text in folded(entry.id))
        )

    def order(self, rows: list[tuple[Entry, Any]]) -> list[tuple[Entry, Any]]:
        """Urgent first, then the likeliest, then who came first; or by one column, what has no value there last."""
        rows = sorted(rows, key=lambda row: _first(row[0]))
        if not self.sort:
            return rows
        valued = [(value, row) for row in rows if (value := self._value(*row)) is not None]
        valued.sort(key=lambda pair: pair[0], reverse=self.descending)
        return [row for _, row in valued] + [row for row in rows if self._value(*row) is None]

    def _value(self, entry: Entry, review: Any) -> Any:
        match self.sort:
            case "urgency":
                return URGENCIES.index(entry.urgency)
            case "state":
                return STATES.index(entry.state)
            case "id":
                return folded(entry.id)
            case "review":
                return _REVIEW_ORDER.get(review.state if review else "new", 0), folded(
                    (review and review.reviewer) or ""
                )
        return getattr(entry, self.sort or "id")


def _first(entry: Entry) -> tuple[Any, ...]:
    return entry.urgency != "stat", -(entry.score if entry.score is not None else -1.0), entry.arrived or "~", entry.id


def _brief(review: Any) -> dict[str, Any]:
    if review is None:
        return {"state": "new", "reviewer": None, "open_regions": 0}
    return {"state": review.state, "reviewer": review.reviewer, "open_regions": review.open_regions()}


def others(present: Mapping[str, list[str]], key: str, user: str) -> list[str]:
    """Who else has a slide open."""
    return [name for name in present.get(key, ()) if name != user]


def folded(text: str) -> str:
    """As it is compared: without case, and one way of writing each letter."""
    return unicodedata.normalize("NFKC", text).casefold()


def choice(request: Request, name: str, known: Sequence[str]) -> str:
    """A parameter that is one of a few words; empty where it is not given."""
    value = request.query_params.get(name, "")
    if value and value not in known:
        raise Refused(422, "bad_input", f"{name}: must be one of {', '.join(known)}")
    return value


def integer(request: Request, name: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number within bounds. Refused (422)."""
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"-?[0-9]{1,12}", text) or not low <= int(text) <= high:
        raise Refused(422, "bad_input", f"{name}: must be a whole number from {low} to {high}")
    return int(text)


def number(request: Request, name: str, low: float, high: float, default: float) -> float:
    """A number within bounds. Refused (422)."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text) if len(text) < 40 else math.nan
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise Refused(422, "bad_input", f"{name}: must be a number from {low:g} to {high:g}")
    return value


def flag(request: Request, name: str) -> bool:
    """0 (also where it is not given) or 1. Refused (422)."""
    return bool(integer(request, name, 0, 1, 0))
