"""Tissue patches from slides, to calibrate and to verify engines with: found, masked and read as a run would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from engines.calibration import Patches, pick
from engines.model import Model
from pipeline.config import Config, ConfigError
from slides.discover import Found, discover
from slides.errors import SlideError
from slides.geometry import geometry
from slides.plan import plan
from slides.source import open_source
from slides.tissue import overview_um_per_px, tissue_mask

# Candidates that are read for each patch that is wanted, so that there is something to choose from.
CANDIDATES = 3
_CHUNK = 16

Scorer = Callable[[np.ndarray], np.ndarray]
"""uint8 (n, P, P, 3) -> probabilities (n, classes)."""


def sample(
    inputs: Sequence[Path],
    model: Model,
    config: Config,
    wanted: int,
    seed: int,
    *,
    score: Scorer | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Patches:
    """At most `wanted` tissue patches, spread evenly over the slides and, where `score` is given, over the model's scores.

    The same inputs, configuration and seed give the same patches. A slide that cannot be read is told and left out.
    Raises ConfigError: no slides, or no tissue in them.
    """
    found, notices = discover(inputs)
    for notice in notices:
        tell(notice)
    if not found:
        raise ConfigError(f"{', '.join(map(str, inputs))}: no slides found; name a slide or a folder that holds some")
    each = -(-wanted * (CANDIDATES if score else 1) // len(found))
    pixels: list[np.ndarray] = []
    groups: list[int] = []
    for index, slide in enumerate(found):
        try:
            read = _from_slide(slide, model, config, each, seed + index)
        except SlideError as error:
            tell(f"{slide.id}: left out: {error.reason}")
            continue
        pixels.append(read)
        groups += [index] * len(read)
    candidates = np.concatenate(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)
    if not len(candidates):
        raise ConfigError(f"{', '.join(map(str, inputs))}: no tissue patch could be read from {len(found)} slides")
    owners = np.array(groups)
    scores = score(candidates)[:, -1] if score else np.zeros(len(candidates))
    chosen = pick(owners, scores, wanted, seed)
    return Patches(candidates[chosen], owners[chosen], tuple(slide.id for slide in found), seed)


def _from_slide(slide: Found, model: Model, config: Config, wanted: int, seed: int) -> np.ndarray:
    """uint8 (n, P, P, 3), n <= wanted: random ones of the slide's plan, read in its order. Raises SlideError."""
    settings = config.slides
    source = open_source(
        slide.path, settings.mpp, settings.source, settings.cache_mb << 20, settings.shrink == "exact"
    )
    try:
        grid = geometry(source.info, model.patch_px, model.spacing, config.tissue.overlap)
        overview = source.overview(config.slides.overview_px)
        settings = config.tissue
        mask = tissue_mask(
            overview,
            overview_um_per_px(source.info, overview.shape),
            settings.method,
            min_area_mm2=settings.min_area_mm2,
            max_hole_mm2=settings.max_hole_mm2,
        ).mask
        planned = plan(mask, source.info, grid, settings.min_fraction)
        chosen = np.sort(np.random.default_rng(seed).permutation(len(planned))[:wanted])
        xy = grid.xy(planned.columns[chosen], planned.rows[chosen])
        out = np.empty((len(xy), model.patch_px, model.patch_px, 3), np.uint8)
        good = np.ones(len(xy), bool)
        for start in range(0, len(xy), _CHUNK):
            failed = source.read(grid, xy[start : start + _CHUNK], out[start : start + _CHUNK])
            good[[start + index for index in failed]] = False
        return out[good]
    finally:
        source.close()
