from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import load_config
from pipeline.service.config import Route, Service

ROUTE = {"name": "tumour", "out": "/results/tumour"}


def service(**more: Any) -> Service:
    folder = {"path": "/scans/", "routes": ["tumour"]}
    return Service.model_validate_json(json.dumps({"watch": [folder], "routes": [ROUTE], **more}))


def test_a_folder_and_a_route_suffice() -> None:
    """Everything else has a default."""
    made = service()
    assert made.watch[0].path == "/scans"
    assert made.deadline_s.stat == 60.0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"watch": [{"path": "scans", "routes": ["tumour"]}]}, "absolute path"),
        ({"watch": [{"path": "/a/../b", "routes": ["tumour"]}]}, "without .."),
        ({"watch": [{"path": "/a", "routes": ["other"]}]}, "names the route other"),
        ({"watch": [{"path": "/a", "routes": ["tumour"]}, {"path": "/a/b", "routes": ["tumour"]}]}, "lies within"),
        ({"watch": [{"path": "/a", "routes": ["tumour"]}, {"path": "/a/", "routes": ["tumour"]}]}, "named twice"),
        ({"routes": [ROUTE, {**ROUTE, "out": "/x"}]}, "a name is given twice"),
        ({"routes": [ROUTE, {**ROUTE, "name": "x"}]}, "one results folder"),
        ({"routes": [{**ROUTE, "out": "/scans/results"}]}, "within a watched folder"),
        ({"watch": [{"path": "/a", "routes": []}]}, "at least 1"),
        ({"routes": [{**ROUTE, "name": "../x"}]}, "pattern"),
    ],
)
def test_what_cannot_work_is_refused(more: dict[str, Any], words: str) -> None:
    """With the folder or route that is wrong."""
    with pytest.raises(ValidationError, match=words):
        service(**more)


def test_a_route_has_its_own_model_and_patch_size() -> None:
    """What it does not name is that of the configuration, also the size."""
    config = load_config(None, ["model=/models/a", "inference.patch_px=96", "inference.per_gpu=2"])
    own = Route(**ROUTE, model="/models/b", patch_px=128).over(config)
    assert (own.model, own.inference.patch_px, own.inference.per_gpu) == ("/models/b", 128, 2)
    assert Route(**ROUTE).over(config) == config
    assert Route(**ROUTE, patch_px="auto").over(config).inference.patch_px == "auto"
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Route(**ROUTE, patch_px=0)
