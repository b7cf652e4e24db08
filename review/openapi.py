"""The API of the review page as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from pipeline import __version__

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_WHOLE = {"type": "integer"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number"}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_FLAG = {"type": "boolean"}
_POINT = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_RING = {"type": "array", "items": _POINT}


def _object(properties: dict[str, Any], required: bool = True) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": sorted(properties)} if required else {})}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_ROW = {
    "key": _TEXT,
    "id": _TEXT,
    "state": {"enum": ["waiting", "running", "complete", "partial", "failed"]},
    "reason": _TEXT_OR_NULL,
    "urgency": {"enum": ["stat", "routine"]},
    "score": _NUMBER_OR_NULL,
    "tumour_mm2": _NUMBER_OR_NULL,
    "tissue_mm2": _NUMBER_OR_NULL,
    "patches": _object({"planned": _COUNT, "inferred": _COUNT, "failed": _COUNT}),
    "arrived": _TEXT_OR_NULL,
    "finished": _TEXT_OR_NULL,
    "others": _list(_TEXT),
}

SCHEMAS: dict[str, Any] = {
    "Error": _object({"error": _TEXT, "code": _TEXT}),
    "Session": _object(
        {
            "user": _TEXT, "role": {"enum": ["viewer", "reviewer", "admin"]}, "csrf": _TEXT, "expires": _TEXT_OR_NULL,
            "implicit": _FLAG, "way": _TEXT, "sign_password": _FLAG,
        }
    ),
    "Row": _object(
        {
            **_ROW,
            "model": _TEXT_OR_NULL,
            "review": _object({"state": _TEXT, "reviewer": _TEXT_OR_NULL, "open_regions": _COUNT}),
        }
    ),
    "Worklist": _object({"total": _COUNT, "slides": _list(_ref("Row"))}),
    "Level": _object({"width": _COUNT, "height": _COUNT, "tile": _COUNT, "downsample": _NUMBER, "passthrough": _FLAG}),
    "Slide": _object(
        {
            **_ROW,
            "width": {"type": ["integer", "null"]},
            "height": {"type": ["integer", "null"]},
            "mpp": _NUMBER_OR_NULL,
            "levels": _list(_ref("Level")),
            "tiles": {"enum": ["passthrough", "rendered", None]},
            "icc": _FLAG,
            "problem": {"anyOf": [_ref("Error"), {"type": "null"}]},
            "classes": _list(_TEXT),
            "heatmap_class": _TEXT_OR_NULL,
            "model": {"type": ["object", "null"]},
            "engine": {"type": ["object", "null"]},
            "grid": {"type": ["object", "null"]},
            "defaults": {"type": "object"},
            "review": _ref("Review"),
            "labels": _list({"enum": ["label", "macro"]}),
        }
    ),
    "Patch": _object(
        {
            "state": {"enum": ["pending", "inferred", "failed", None]},
            "reason": _TEXT_OR_NULL,
            "probabilities": {"type": "object", "additionalProperties": _SHARE},
            "model": _TEXT_OR_NULL,
            "engine": _TEXT_OR_NULL,
        }
    ),
    "Region": _object(
        {
            "id": _TEXT, "rank": _COUNT, "class": _TEXT, "max": _SHARE, "mean": _SHARE, "area_um2": _NUMBER,
            "patches": _COUNT, "bbox": _list(_WHOLE), "outline": _RING, "holes": _list(_RING),
        }
    ),
    "Regions": _object({"total": _COUNT, "regions": _list(_ref("Region"))}),
    "Finding": {"type": "object"},
    "Review": _object(
        {
            "revision": _COUNT, "state": {"enum": ["new", "in_review", "signed", "reopened"]}, "reviewer": _TEXT_OR_NULL,
            "signed": {"type": ["object", "null"]}, "class": _TEXT_OR_NULL, "threshold": _NUMBER_OR_NULL,
            "findings": _list(_ref("Finding")), "acts": _COUNT,
            # SHA-256 of the slide's summary, "" while there is none. A signature that gives it back is of this result only.
            "result": _TEXT,
        }
    ),
    "Act": {
        "type": "object",
        "properties": {
            "revision": _COUNT,
            "act": {"enum": ["open", "settings", "verdict", "comment", "draw", "erase", "undo", "sign", "reopen"]},
        },
        "required": ["act"],
        "additionalProperties": True,
    },
    "Log": _list(
        _object(
            {
                "n": _COUNT, "at": _TEXT, "user": _TEXT, "act": _TEXT, "fields": {"type": "object"}, "hash": _TEXT,
                "previous": _TEXT,
            }
        )
    ),
    "Operations": _object({"at": _TEXT, "live": _FLAG, "source": _TEXT, "bottleneck": _TEXT}, required=False),
}  # fmt: skip

_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "Of a slide: the first 20 hexadecimal digits of the SHA-256 of its id.",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{20}$"},
}
_ICC = (
    "icc",
    {"type": "integer", "enum": [0, 1], "default": 0},
    "1: in the colours of the slide's ICC profile, as sRGB.",
)
_CSRF = {"name": "X-CSRF", "in": "header", "required": True, "schema": _TEXT, "description": "The session's token."}

Query = tuple[str, dict[str, Any], str]


def _query(parameters: tuple[Query, ...], required: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema, "description": text}
        for name, schema, text in parameters
    ]


def _path(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "As asked.", "content": {"application/json": {"schema": schema}}}


def _file(kind: str) -> dict[str, Any]:
    return {"description": "As asked.", "content": {kind: {"schema": {"type": "string", "format": "binary"}}}}


def _exports() -> dict[str, Any]:
    kinds = ("text/csv", "application/pdf", "application/dicom")
    files = {kind: _file(kind)["content"][kind] for kind in kinds}
    return {"description": "As asked.", "content": {"application/geo+json": {"schema": {"type": "object"}}, **files}}


def _operation(
    summary: str,
    answer: dict[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
    errors: tuple[int, ...] = (400, 401, 403, 404, 405, 422, 429, 503),
) -> dict[str, Any]:
    refused = {"description": "Refused.", "content": {"application/json": {"schema": _ref("Error")}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": answer, **{str(status): refused for status in errors}},
    }
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _changing() -> tuple[int, ...]:
    return 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 503


def paths() -> dict[str, Any]:
    """Every path of the API."""
    from review.app import REGION_PX, REVIEWS, ROWS_MOST, SORTS, STATES, URGENCIES

    worklist = _query(
        (
            ("state", {"enum": list(STATES)}, "Only slides in this state."),
            ("urgency", {"enum": list(URGENCIES)}, "Only slides of this class."),
            ("review", {"enum": list(REVIEWS)}, "Only slides whose review is in this state."),
            ("reviewer", _TEXT, "Only slides whose reviewer's name holds this."),
            ("q", _TEXT, "Only slides whose id holds this."),
            ("sort", {"enum": list(SORTS)}, "By default: urgent first, then by score, then by arrival."),
            ("order", {"enum": ["asc", "desc"]}, "Of `sort`; slides without that value come last in both."),
            ("offset", {**_COUNT, "default": 0}, "Slides to pass over."),
            ("limit", {**_COUNT, "maximum": ROWS_MOST, "default": 100}, "Slides to give."),
        )
    )
    region = _query(
        (
            ("x", _WHOLE, "Left edge, level-0 px."),
            ("y", _WHOLE, "Upper edge, level-0 px."),
            ("w", {"type": "integer", "minimum": 1}, "Width, level-0 px."),
            ("h", {"type": "integer", "minimum": 1}, "Height, level-0 px."),
            (
                "px",
                {"type": "integer", "minimum": 1, "maximum": REGION_PX, "default": 256},
                "Longer side of the picture.",
            ),
            _ICC,
        ),
        ("x", "y", "w", "h"),
    )
    regions = _query(
        (
            ("class", _TEXT, "A class of the slide's model; by default the one that its heatmap shows."),
            ("threshold", {**_SHARE, "default": 0.5}, "Patches at or over it are joined."),
            ("min_um2", {"type": "number", "minimum": 0, "default": 0}, "Smaller regions are left out, µm²."),
        )
    )
    patch = _query((("column", _COUNT, "Of the grid."), ("row", _COUNT, "Of the grid.")), ("column", "row"))
    heat = _query((("from", {**_COUNT, "default": 0}, "`next` of the last answer; 0: all patches."),))
    events = _query((("slide", _TEXT, "Key of the slide that is open in this window."),))
    place = [
        _KEY,
        _path("level", {"type": "integer", "minimum": 0}),
        _path("column", {"type": "integer", "minimum": 0}),
        _path("row", {"type": "integer", "minimum": 0}),
        *_query((_ICC,)),
    ]
    form = _path("form", {"enum": ["geojson", "csv", "pdf", "dicom-seg", "dicom-sr"]})
    sign_in = _object({"user": _TEXT, "password": _TEXT})
    slide = "/api/slides/{key}"
    return {
        "/api/session": {
            "get": _operation("Who is signed in", _json(_ref("Session"))),
            "post": _operation("Sign in", _json(_ref("Session")), body=sign_in, errors=_changing()),
            "delete": _operation("Sign out", _json({"type": "object"}), [_CSRF], errors=_changing()),
        },
        "/api/worklist": {"get": _operation("The slides", _json(_ref("Worklist")), worklist)},
        "/api/events": {"get": _operation("What changes, as server-sent events", _file("text/event-stream"), events)},
        slide: {"get": _operation("One slide", _json(_ref("Slide")), [_KEY])},
        f"{slide}/tile/{{level}}/{{column}}_{{row}}.jpg": {
            "get": _operation("A tile; level 0 is full resolution", _file("image/jpeg"), place)
        },
        f"{slide}/overview.jpg": {"get": _operation("The whole slide", _file("image/jpeg"), [_KEY, *_query((_ICC,))])},
        f"{slide}/region.jpg": {"get": _operation("A part of the slide", _file("image/jpeg"), [_KEY, *region])},
        f"{slide}/heat": {
            "get": _operation("Its patches, binary (review/heat.py)", _file("application/octet-stream"), [_KEY, *heat])
        },
        f"{slide}/patch": {"get": _operation("One patch", _json(_ref("Patch")), [_KEY, *patch])},
        f"{slide}/regions": {"get": _operation("Suspicious regions", _json(_ref("Regions")), [_KEY, *regions])},
        f"{slide}/review": {"get": _operation("Its review", _json(_ref("Review")), [_KEY])},
        f"{slide}/acts": {
            "post": _operation("Act on it", _json(_ref("Review")), [_KEY, _CSRF], _ref("Act"), _changing())
        },
        f"{slide}/labels": {
            "post": _operation(
                "Its label or macro image, for those who may see them; noted in its log",
                _file("image/jpeg"),
                [_KEY, _CSRF],
                _object({"image": {"enum": ["label", "macro"]}}),
                _changing(),
            )
        },
        f"{slide}/log": {"get": _operation("Its audit log", _json(_ref("Log")), [_KEY])},
        f"{slide}/export/{{form}}": {
            "get": _operation(
                "The reviewed result", _exports(), [_KEY, form], errors=(400, 401, 403, 404, 405, 422, 501, 503)
            )
        },
        "/api/operations": {"get": _operation("What the pipeline is doing", _json(_ref("Operations")))},
        "/api/openapi.json": {"get": _operation("This document", _json({"type": "object"}))},
    }


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "slidestream review", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths(),
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"session": {"type": "apiKey", "in": "cookie", "name": "slidestream"}},
        },
        # Also without: a page for one machine has no users, and a proxy may sign in.
        "security": [{"session": []}, {}],
    }
