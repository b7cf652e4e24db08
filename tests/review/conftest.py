"""Results of real runs, made once for the tests that read them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from slides.synthetic import SyntheticSlide, make_slide
from tests.end_to_end import runs
from tests.engines.tiny import tiny_model
from tests.slides.damage import corrupt_tiles


@dataclass(frozen=True)
class Results:
    """A results folder, its slides, and the model that made it."""

    out: Path
    slides: Path
    model: Path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 px at 0.5 µm/px, two classes."""
    return tiny_model(tmp_path_factory.mktemp("review-model") / "tiny")


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Results:
    """complete `ward 3/Präparat`, urgent `ward 3/frozen`, partial `torn`, failed `text`; real slides where they are."""
    folder = tmp_path_factory.mktemp("review-results")
    slides = folder / "slides"
    (slides / "ward 3").mkdir(parents=True)
    make_slide(slides / "ward 3" / "Präparat.tif", SyntheticSlide(3000, 2000, mpp=0.5, tissue=0.5, seed=1))
    make_slide(slides / "ward 3" / "frozen.tif", SyntheticSlide(1536, 1152, mpp=0.5, tissue=0.5, seed=3))
    shutil.copyfile(slides / "ward 3" / "frozen.tif", slides / "torn.tif")
    corrupt_tiles(slides / "torn.tif", [(0, 8), (0, 15)])
    (slides / "text.svs").write_text("no slide")
    run = runs.start([slides], folder / "out", small_model, 'batcher.urgent=["*frozen*"]')
    finished = run.finish()
    run.destroy()
    assert finished.code == 1, finished.console
    return Results(folder / "out", slides, small_model)
