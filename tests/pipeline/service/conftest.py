"""A model, slides and their undisturbed results, made once for the tests of the service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slides.synthetic import SyntheticSlide, make_slide
from tests.end_to_end import runs
from tests.engines.tiny import tiny_model
from tests.pipeline.service.services import Service


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stock")


@pytest.fixture(scope="session")
def model(stock: Path) -> Path:
    """64 px at 0.5 µm/px, two classes."""
    return tiny_model(stock / "tiny")


@pytest.fixture(scope="session")
def slides(stock: Path) -> dict[str, Path]:
    """a, b, c: some 60 patches each, of different tissue; large: some 240."""
    made = {}
    for seed, (name, width, height) in enumerate(
        (("a", 768, 576), ("b", 768, 576), ("c", 768, 576), ("large", 1536, 1152)), start=11
    ):
        made[name] = stock / f"{name}.tif"
        make_slide(made[name], SyntheticSlide(width, height, mpp=0.5, tissue=0.5, seed=seed))
    return made


@pytest.fixture(scope="session")
def expected(stock: Path, model: Path, slides: dict[str, Path]) -> dict:
    """The table of each slide, as an undisturbed run over all of them gives it."""
    folder = stock / "all"
    folder.mkdir()
    for path in slides.values():
        shutil.copyfile(path, folder / path.name)
    run = runs.start([folder], stock / "undisturbed", model, *runs.FEWEST)
    finished = run.finish()
    assert finished.code == 0, finished.console
    tables = {name: finished.table(name) for name in slides}
    run.destroy()
    return tables


@pytest.fixture
def service(tmp_path: Path, model: Path) -> Iterator[Callable[..., Service]]:
    """Makes services; whatever a test leaves running is ended after it."""
    made: list[Service] = []

    def make(**more) -> Service:
        made.append(Service(tmp_path / f"s{len(made)}", model, **more))
        return made[-1]

    yield make
    for one in made:
        one.destroy()
