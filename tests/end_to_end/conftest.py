"""Slides, models and finished runs that several tests look at: made once."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slides.synthetic import SyntheticSlide, make_slide
from tests.end_to_end import runs
from tests.end_to_end.runs import Finished, Run
from tests.engines.tiny import tiny_model


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """`runs.start`; whatever a test leaves running is ended after it."""
    started: list[Run] = []

    def begin(*arguments, **named) -> Run:
        run = runs.start(*arguments, **named)
        started.append(run)
        return run

    yield begin
    for run in started:
        run.destroy()


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("material")


@pytest.fixture(scope="session")
def model(material: Path) -> Path:
    """64 px at 0.5 µm/px, two classes."""
    return tiny_model(material / "tiny")


@pytest.fixture(scope="session")
def native(material: Path) -> Path:
    """A slide at the model's spacing: some 800 patches, read without resampling."""
    path = material / "native.tif"
    make_slide(path, SyntheticSlide(3072, 2304, mpp=0.5, tissue=0.5, seed=1))
    return path


@pytest.fixture(scope="session")
def fine(material: Path) -> Path:
    """A slide at twice the model's resolution: patches are shrunk by two."""
    path = material / "fine.tif"
    make_slide(path, SyntheticSlide(3000, 2400, mpp=0.25, tissue=0.5, seed=2))
    return path


@pytest.fixture(scope="session")
def small(material: Path) -> Path:
    """Some 200 patches."""
    path = material / "small.tif"
    make_slide(path, SyntheticSlide(1536, 1152, mpp=0.5, tissue=0.5, seed=3))
    return path


@pytest.fixture(scope="session")
def blank(material: Path) -> Path:
    path = material / "blank.tif"
    make_slide(path, SyntheticSlide(1536, 1152, mpp=0.5, tissue=0.0, tumour=0.0, seed=4))
    return path


ODD_NAMES = ("Präparat № 1 (a)", "two\nlines")


@dataclass(frozen=True)
class Clean:
    """An undisturbed run over several slides, and what was seen while it ran."""

    finished: Finished
    run: Run
    memory_bytes: int
    mode: int


def tree_memory(run: Run) -> int:
    """PSS of all processes of a run, in bytes: shared pages are counted once."""
    total = 0
    for pid in [run.process.pid, *(process.pid for process in run.stages())]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


@pytest.fixture(scope="session")
def clean(material: Path, model: Path, native: Path, fine: Path, small: Path, blank: Path) -> Iterator[Clean]:
    """native, blank, ward 3/<odd names>, and zz-frozen, which is urgent."""
    folder = material / "slides"
    (folder / "ward 3").mkdir(parents=True)
    for path, name in (
        (native, "native"),
        (blank, "blank"),
        (fine, "zz-frozen"),
        *((small, f"ward 3/{odd}") for odd in ODD_NAMES),
    ):
        shutil.copyfile(path, folder / f"{name}.tif")
    run = runs.start([folder], material / "clean", model, 'batcher.urgent=["*frozen*"]')
    seen, modes = [0], [0]

    def watch() -> None:
        while run.process.poll() is None:
            seen.append(tree_memory(run))
            directory = run.run_directory()
            try:
                modes.append(directory.stat().st_mode & 0o777 if directory is not None else 0)
            except FileNotFoundError:
                pass
            time.sleep(0.15)

    watcher = threading.Thread(target=watch)
    watcher.start()
    finished = run.finish()
    watcher.join()
    yield Clean(finished, run, max(seen), max(modes))
    run.destroy()


@pytest.fixture(scope="session")
def native_csv(clean: Clean):
    """The undisturbed result of `native`."""
    return clean.finished.table("native")


@pytest.fixture(scope="session")
def small_csv(clean: Clean):
    """The undisturbed result of `small`."""
    return clean.finished.table(f"ward 3/{ODD_NAMES[0]}")
