"""A small slide with known answers, for every test of the result files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from results.record import SlideRecord

INFO = {
    "path": "/slides/a.svs", "format": "aperio", "width": 4000, "height": 3000, "mpp_x": 0.25, "mpp_y": 0.25,
    "mpp_source": "slide", "level_sizes": [[4000, 3000], [1000, 750]], "level_downsamples": [1.0, 4.0],
    "background": [255, 255, 255], "bounds": None, "objective_power": 40.0,
}  # fmt: skip
GEOMETRY = {
    "patch_px": 224, "spacing": 0.5, "level": 0, "level_downsample": 1.0, "region_px": [448, 448],
    "resampling": "area", "patch_width": 448, "patch_height": 448, "step_x": 448, "step_y": 448,
    "columns": 9, "rows": 7, "origin_x": 0, "origin_y": 0,
}  # fmt: skip


def build(
    cells: int = 20,
    failed: tuple[int, ...] = (),
    classes: tuple[str, ...] = ("normal", "tumour"),
    seed: int = 0,
    slide: str = "ward/slide 1",
    info: dict | None = None,
    geometry: dict | None = None,
    **changes: object,
) -> SlideRecord:
    """``cells`` patches at random places of the grid, in random read order; ``failed`` are indices."""
    rng = np.random.default_rng(seed)
    geometry = GEOMETRY | (geometry or {})
    places = rng.permutation(geometry["columns"] * geometry["rows"])[:cells]
    probabilities = rng.random((cells, len(classes)), dtype=np.float32)
    if len(classes) > 1 and cells:
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    state = np.ones(cells, np.uint8)
    state[list(failed)] = 2
    probabilities[list(failed)] = np.nan
    overview = np.full((300, 400, 3), 240, np.uint8)
    overview[60:240, 80:320] = (200, 120, 170)
    mask = np.zeros((300, 400), bool)
    mask[60:240, 80:320] = True
    record = SlideRecord(
        slide=slide,
        path=f"/slides/{slide}.svs",
        info=INFO | (info or {}),
        geometry=geometry,
        model={"name": "demo", "sha256": "5e" * 32, "classes": list(classes), "patch_px": 224, "spacing": 0.5},
        engine={"engine": "onnx", "version": "1.20"},
        columns=(places % geometry["columns"]).astype(np.int32),
        rows=(places // geometry["columns"]).astype(np.int32),
        fraction=rng.random(cells, dtype=np.float32),
        state=state,
        probabilities=probabilities,
        reasons={i: f"tile {i} cannot be decoded" for i in failed},
        tissue={"method": "brightfield", "threshold": 21.0, "area_mm2": 0.5, "um_per_px": 2.5},
        seconds={"read": 1.25, "inference": 2.5},
        key={"fingerprint": "f1", "model": "m1", "configuration": "c1"},
        versions={"slidestream": "0.1.0"},
        overview=overview,
        mask=mask,
    )
    return replace(record, **changes) if changes else record


@pytest.fixture
def make_record() -> Callable[..., SlideRecord]:
    return build
