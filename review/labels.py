"""Label and macro images of slides. A label often names the patient: it is read only when somebody who may asks for it, and each
time it is shown is an act in the log.

    POST /api/slides/{key}/labels {"image": "label" | "macro"}      -> a JPEG

Who may is configured; by default nobody.
"""

from __future__ import annotations

import io

import openslide
from anyio import to_thread
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline import log as logs
from review.acts import LABEL
from review.errors import Refused
from review.facts import Slides
from review.guard import Guard, Identity
from review.log import Reviews
from review.routes import read_json
from review.users import ROLES

NOBODY = "nobody"
IMAGES = ("label", "macro")
_LONGEST_PX, _QUALITY = 1600, 90
# A macro image has one or two megapixels.
_PIXELS_MOST = 50_000_000


def may_see(role: str, identity: Identity) -> bool:
    """Whether somebody may see these images where `role` may (or NOBODY)."""
    return role in ROLES and ROLES.index(identity.role) >= ROLES.index(role)


def available(path: str) -> tuple[str, ...]:
    """Which of IMAGES a slide has; nothing of them is read. None where it cannot be opened."""
    try:
        with openslide.OpenSlide(path) as slide:
            return tuple(name for name in IMAGES if name in slide.associated_images)
    except (openslide.OpenSlideError, OSError):
        return ()


def picture(path: str, name: str) -> bytes:
    """One of IMAGES as a JPEG, at most 1600 px on its longer side. Refused (404, 422) where it cannot be had."""
    try:
        with openslide.OpenSlide(path) as slide:
            if name not in slide.associated_images:
                raise Refused(404, "no_image", f"the slide has no {name} image")
            sides = (slide.properties.get(f"openslide.associated.{name}.{side}", "0") for side in ("width", "height"))
            width, height = map(int, sides)
            if width * height > _PIXELS_MOST:
                raise Refused(422, "slide_unreadable", f"the {name} image is too large to be one")
            image = slide.associated_images[name]
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        raise Refused(422, "slide_unreadable", f"the {name} image cannot be read") from error
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    white.thumbnail((_LONGEST_PX, _LONGEST_PX))
    out = io.BytesIO()
    white.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def routes(role: str, guard: Guard, log: Reviews, slides: Slides) -> list[Route]:
    """The route above, for `role` and those above it."""

    def show(key: str, identity: Identity, name: str) -> Response:
        facts = slides.facts(key) if key.isalnum() and key.isascii() else None
        if facts is None:
            raise Refused(404, "not_found", "there is no such slide")
        if not facts.path:
            raise Refused(404, "slide_gone", "the slide's file is not there, or may not be read")
        shown = slides.bounded(facts.key, lambda: picture(facts.path, name))
        # Before it is sent: what cannot be noted is not shown.
        log.add(facts.key, identity.user, LABEL, None, lambda review: {"image": name})
        logs.get_logger().info("label shown", user=identity.user, slide=facts.key, image=name)
        return Response(shown, media_type="image/jpeg")

    async def respond(request: Request) -> Response:
        identity = guard.require(request, "viewer")
        body = await read_json(request)
        if not may_see(role, identity):
            raise Refused(403, "labels_hidden", "label and macro images are hidden from you here")
        name = body.get("image")
        if name not in IMAGES:
            raise Refused(422, "bad_input", f"image must be one of {', '.join(IMAGES)}")
        return await to_thread.run_sync(show, request.path_params["key"], identity, name)

    return [Route("/api/slides/{key}/labels", respond, methods=["POST"])]
