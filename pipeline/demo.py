"""`slidestream demo`: a synthetic slide whose tumour is known, through the whole pipeline, and how well it was found."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import Config, ConfigError
from pipeline.run import Options, run_slides
from results.layout import output_path
from slides.discover import Found
from slides.synthetic import SyntheticSlide, make_slide
from slides.truth import Truth, read_truth

SLIDE = "demo"
SETTINGS = SyntheticSlide(width=12_000, height=9_000, seed=20)
# A patch counts as tumour when at least half of it is, as normal when none of it is; those in between are left out.
TUMOUR_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The area under the ROC curve over `tumour` + `normal` patches."""

    auc: float
    tumour: int
    normal: int


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half (Mann-Whitney U).

    `scores` float (n,), `positive` bool (n,); NaN where one of the two is missing.
    """
    if not positive.any() or positive.all():
        return float("nan")
    order = np.sort(scores)
    below = np.searchsorted(order, scores, "left")
    upto = np.searchsorted(order, scores, "right")
    ranks = (below + upto + 1) / 2.0
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def accuracy(csv_file: Path, truth: Truth, tumour_class: str) -> Accuracy:
    """How well the probabilities of a result file tell the slide's tumour from the rest of it."""
    with open(csv_file, newline="") as file:
        rows = list(csv.DictReader(file))
    boxes = np.array([[float(row[k]) for k in ("minx", "miny", "width", "height")] for row in rows]).reshape(-1, 4)
    scores = np.array([float(row[f"prob_{tumour_class}"]) for row in rows])
    share = truth.tumour_fraction(*boxes.T)
    judged = (share >= TUMOUR_SHARE) | (share == 0)
    positive = share[judged] >= TUMOUR_SHARE
    return Accuracy(auc(scores[judged], positive), int(positive.sum()), int((~positive).sum()))


def demo(config: Config, out: Path, progress: str) -> int:
    """Make the slide (once), run, and tell; the exit code. ConfigError where `out` cannot be written to."""
    slide = out / "slides-in" / f"{SLIDE}.tif"
    try:
        slide.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror} ({error.filename}); name a folder that this user may write to"
        ) from error
    if not slide.exists():
        print(f"Making a synthetic slide of {SETTINGS.width} x {SETTINGS.height} pixels: {slide}", file=sys.stderr)
        make_slide(slide, SETTINGS, percent)
    result = run_slides([Found(SLIDE, slide)], config, Options(out, progress), [])
    models = result.record.get("models") or [result.record["model"]]
    for model in models:
        folder, of = (out, "") if len(models) == 1 else (out / model["name"], f" of {model['name']}")
        table = folder / output_path(SLIDE, "csv")
        if result.code == 0 and "tumour" in model["classes"] and table.exists():
            found = accuracy(table, read_truth(slide), "tumour")
            print(
                f"accuracy{of}: AUC {found.auc:.3f} against the known truth ({found.tumour} patches of tumour, "
                f"{found.normal} without)"
            )
        picture = folder / output_path(SLIDE, "heatmap_png")
        if picture.exists():
            print(f"heatmap:  {picture}")
    return result.code


def percent(part: float) -> None:
    """A line that counts up, on a terminal only: the whole takes some ten seconds."""
    if sys.stderr.isatty():
        print(f"\r  {part:4.0%}", end="\n" if part >= 1 else "", file=sys.stderr, flush=True)
