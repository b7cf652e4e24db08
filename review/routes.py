"""The routes that know people and change reviews: session, acts, review, log, export. The application mounts them.

Every one blocks only in a thread. What a request may say is checked in `review.acts`; what only the server knows (a region's
outline, what a signature is over) is added here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from review import acts, export, signoff
from review.acts import BadAct, NotAllowed, Review
from review.errors import Refused
from review.facts import Facts, Slides
from review.guard import Guard, Identity
from review.log import Conflict, Reviews
from review.users import HASHES_AT_A_TIME

BODY_BYTES = 256 << 10
SIGNING_IN_MOST = 32
_CONFLICTS = frozenset(
    (
        *("signed", "not_signed", "not_opened", "not_finished", "result_changed"),
        *("changed_since", "no_finding", "drawn", "opened", "too_many"),
    )
)
Answer = Callable[[Request], Awaitable[Response]]


def routes(
    guard: Guard, log: Reviews, slides: Slides, changed: Callable[[str, int], None] = lambda key, revision: None
) -> list[Route]:
    """The routes. `changed(key, revision)` is called in the event loop after each act."""
    desk, hashing = Desk(guard, log, slides), CapacityLimiter(HASHES_AT_A_TIME)

    def answering(role: str, work: Callable[[Request, Identity], Response]) -> Answer:
        async def respond(request: Request) -> Response:
            return await to_thread.run_sync(work, request, guard.require(request, role))

        return respond

    async def sign_in(request: Request) -> Response:
        body = await read_json(request)
        user, password = body.get("user"), body.get("password")
        if (
            not isinstance(user, str)
            or not isinstance(password, str)
            or not 0 < len(user) <= 256
            or len(password) > 1024
        ):
            raise Refused(401, "wrong", "name or password is wrong")
        # Strangers may ask this: they must not take the threads that others' slides are read in, nor queue without end.
        if hashing.statistics().tasks_waiting >= SIGNING_IN_MOST:
            raise Refused(503, "busy", "too many people sign in just now; try again", retry_after=2)
        token, identity = await to_thread.run_sync(guard.sign_in, request, user, password, limiter=hashing)
        response = JSONResponse(desk.session(identity))
        guard.set_cookie(request, response, token)
        return response

    async def session(request: Request) -> Response:
        return JSONResponse(desk.session(guard.require(request, "viewer", touch=False)))

    async def sign_out(request: Request) -> Response:
        guard.sign_out(guard.require(request, "viewer"))
        response = JSONResponse({"user": None})
        guard.set_cookie(request, response, None)
        return response

    async def act(request: Request) -> Response:
        identity = guard.require(request, "reviewer")
        body = await read_json(request)
        document, added = await to_thread.run_sync(desk.act, request, identity, body)
        if added:
            changed(request.path_params["key"], document["revision"])
        return JSONResponse(document)

    return [
        Route("/api/session", sign_in, methods=["POST"]),
        Route("/api/session", session, methods=["GET"]),
        Route("/api/session", sign_out, methods=["DELETE"]),
        Route("/api/slides/{key}/acts", act, methods=["POST"]),
        Route("/api/slides/{key}/review", answering("viewer", desk.review), methods=["GET"]),
        Route("/api/slides/{key}/log", answering("viewer", desk.rows), methods=["GET"]),
        Route("/api/slides/{key}/export/{form}", answering("viewer", desk.export), methods=["GET"]),
    ]


async def read_json(request: Request) -> Mapping[str, Any]:
    """The object in a request's body. Refused: 415 for another type (a form of another site could send those), 413, 400."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "not_json", "the body must be application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise Refused(413, "too_large", f"the body is larger than {BODY_BYTES >> 10} KiB")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "not_json", "the body is no JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, "not_json", "the body is no JSON object")
    return value


class Desk:
    """What the routes do, in a thread."""

    def __init__(self, guard: Guard, log: Reviews, slides: Slides) -> None:
        self._guard, self._log, self._slides = guard, log, slides

    def session(self, identity: Identity) -> dict[str, Any]:
        """Who is signed in, for the page."""
        until = identity.expires and datetime.fromtimestamp(identity.expires, UTC).isoformat(timespec="seconds")
        return {
            "user": identity.user,
            "role": identity.role,
            "csrf": identity.csrf,
            "expires": until and until.replace("+00:00", "Z"),
            "implicit": identity.implicit,
            "way": identity.way,
            "sign_password": self._guard.sign_password,
        }

    def document(self, review: Review, facts: Facts) -> dict[str, Any]:
        """The full review document; where nobody has set them, the settings are the catalogue's."""
        document = review.document() | {"outdated": signoff.outdated(review, facts), "result": facts.result}
        if review.settings is None and facts.classes:
            document["class"], document["threshold"], document["min_um2"] = self._slides.defaults(facts.key)
        return document

    def review(self, request: Request, identity: Identity) -> Response:
        facts = self._facts(request)
        return JSONResponse(self.document(self._log.review(facts.key), facts))

    def rows(self, request: Request, identity: Identity) -> Response:
        facts = self._facts(request)
        found = self._log.rows(facts.key)
        names = ("n", "at", "user", "act", "fields", "hash", "previous")
        return JSONResponse([{name: getattr(row, name) for name in names} for row in found])

    def act(self, request: Request, identity: Identity, body: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The document after the act, and whether it was one."""
        facts = self._facts(request)
        review = self._log.review(facts.key)
        try:
            act, fields = acts.parse(body, facts, review)
            revision = body.get("revision")
            if act == "open":
                revision, fields = None, {"id": facts.id, "result": facts.result, "state": facts.state}
            elif not isinstance(revision, int) or isinstance(revision, bool):
                raise BadAct("revision", "revision must be the number of the review document that you saw")
            elif revision != review.revision:
                raise Conflict(review)
            if act in ("verdict", "comment") and fields["finding"] not in review.findings:
                fields["region"] = self._region(fields["finding"], body, facts, review)
            if act == "sign":
                self._sign_allowed(request, identity, body, review, facts)
                fields["left"] = self._left(review, facts)
            after = self._log.add(
                facts.key, identity.user, act, revision, lambda now: self._fields(act, fields, now, facts)
            )
        except BadAct as error:
            raise Refused(422, error.code, str(error)) from error
        except Conflict as error:
            raise Refused(
                409,
                "conflict",
                "somebody else has changed this review; look at it again",
                {"revision": error.review.revision, "review": self.document(error.review, facts)},
            ) from error
        except NotAllowed as error:
            now = self._log.review(facts.key)
            more = {"revision": now.revision, "review": self.document(now, facts)}
            raise Refused(409 if error.code in _CONFLICTS else 422, error.code, str(error), more) from error
        return self.document(after, facts), acts.needs_appending(review, act, identity.user)

    def _fields(self, act: str, fields: dict[str, Any], review: Review, facts: Facts) -> dict[str, Any]:
        return signoff.sign_fields(review, facts, fields["statement"], fields["left"]) if act == "sign" else fields

    def _left(self, review: Review, facts: Facts) -> int | None:
        """How many regions nobody has judged; None where there is no table to find them in."""
        document = self.document(review, facts)
        if not facts.classes:
            return None
        try:
            found = self._slides.regions(facts.key, document["class"], document["threshold"], document["min_um2"])
        except Refused:
            return None
        return signoff.unjudged(review, found)

    def _sign_allowed(
        self, request: Request, identity: Identity, body: Mapping[str, Any], review: Review, facts: Facts
    ) -> None:
        """What can be refused is refused before the password is looked at, and without a guess being counted."""
        self._log.proven(facts.key)
        signoff.sign_fields(review, facts, "")
        if "result" in body and body["result"] != facts.result:
            raise NotAllowed("result_changed", "the slide has been analysed again since you looked at it; look again")
        if review.state == acts.SIGNED:
            raise NotAllowed("signed", "the review is signed; reopen it, with a reason, to change it")
        if self._guard.sign_password:
            password = body.get("password")
            if not isinstance(password, str) or not 0 < len(password) <= 1024:
                raise Refused(422, "password_needed", "a signature needs your password")
            self._guard.check_password(request, identity, password)

    def _region(self, finding: str, body: Mapping[str, Any], facts: Facts, review: Review) -> dict[str, Any]:
        """What is known of a region that nobody has judged yet."""
        if any(name in body for name in ("class", "threshold", "min_um2")):
            given = acts.parse_settings(body, facts)
            settings = given["class"], given["threshold"], given["min_um2"]
        elif review.settings is not None:
            settings = review.settings.name, review.settings.threshold, review.settings.min_um2
        elif facts.classes:
            settings = self._slides.defaults(facts.key)
        else:
            raise BadAct("no_finding", "there are no regions yet")
        for region in self._slides.regions(facts.key, *settings):
            if region["id"] == finding:
                return acts.region_fields(region)
        raise BadAct("no_finding", "there is no such finding at this class and threshold")

    def export(self, request: Request, identity: Identity) -> Response:
        # As a whole: a file that does not answer must not look like one that is not there.
        return self._slides.bounded(self._facts(request).key, lambda: self._export(request, identity))

    def _export(self, request: Request, identity: Identity) -> Response:
        facts = self._facts(request)
        form = export.FORMS.get(request.path_params["form"])
        if form is None:
            raise Refused(404, "not_found", f"there is {', '.join(export.FORMS)}")
        review, head = self._log.proven(facts.key), self._log.head_of(facts.key)
        document = self.document(review, facts)
        regions = []
        if (
            facts.classes and document["class"] is not None and facts.state != "failed"
        ):  # of a failed one nothing was inferred
            regions = self._slides.regions(facts.key, document["class"], document["threshold"], document["min_um2"])
        reviewed = export.Reviewed(
            facts, document, export.merged(document, regions), str(head), identity.user, self._slides.picture
        )
        language = "zh" if request.query_params.get("lang", "").startswith("zh") else "en"
        try:
            content = form.make(reviewed, language)
        except export.NotInstalled as error:
            raise Refused(501, "not_installed", str(error)) from error
        except export.CannotSay as error:
            raise Refused(422, "cannot_say", str(error)) from error
        headers = {"content-disposition": export.disposition(facts, form)}
        return Response(content, media_type=form.media_type, headers=headers)

    def _facts(self, request: Request) -> Facts:
        key = request.path_params["key"]
        facts = self._slides.facts(key) if key.isalnum() and key.isascii() else None
        if facts is None:
            raise Refused(404, "not_found", "there is no such slide")
        return facts
