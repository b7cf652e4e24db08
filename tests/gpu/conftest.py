"""What the tests on a GPU share: the GPU, a network with its engines, slides, and undisturbed runs. Made once, when asked for."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.cache import EngineCache
from engines.flavour import FLAVOURS
from engines.gpu import Gpu
from engines.probe import Probe, probe
from slides.synthetic import SyntheticSlide, make_slide
from tests.conftest import ROOT
from tests.end_to_end import runs
from tests.end_to_end.conftest import start  # noqa: F401 (a fixture)
from tests.end_to_end.runs import Finished, command
from tests.gpu.network import model_directory

DEMO = ROOT / "models" / "demo-tumour"
BATCH = 32
FEW = ("reader.workers=2", "results.formats=[csv]", "aggregator.flush_ms=0")
NEVER_S = 240.0  # nothing takes so long


@dataclass(frozen=True)
class Answers:
    """A slide's CSV: places int64 (n, 4), probabilities float64 (n, classes), and its bytes."""

    places: np.ndarray
    probabilities: np.ndarray
    raw: bytes


def answers(out: Path, slide: str) -> Answers:
    path = out / "model-outputs-csv" / f"{slide}.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("prob_")]
    places = np.array([[int(row[name]) for name in ("minx", "miny", "width", "height")] for row in rows])
    values = np.array([[float(row[name]) for name in names] for row in rows])
    order = np.lexsort(places.T[::-1])
    return Answers(places[order], values[order], path.read_bytes())


@dataclass
class Lab:
    """This machine's GPU and all that is tried on it, below `folder`."""

    folder: Path
    found: Probe
    backends: tuple[str, ...]
    _kept: dict[Any, Any] = field(default_factory=dict)

    @property
    def gpu(self) -> Gpu:
        return self.found.gpus[0]

    @property
    def engines(self) -> Path:
        return self.folder / "engines"

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def need(self, engine: str) -> None:
        """Skips the test where this backend is not installed; `gpu` is any."""
        wanted = engine if engine != "gpu" else (self.backends or ("gpu",))[0]
        if wanted not in self.backends:
            pytest.skip(f"{engine}: {self.found.reasons.get(engine) or 'no backend for the GPU is installed'}")

    def any(self) -> str:
        self.need("gpu")
        return self.backends[0]

    def model(self, patch_px: int = 64) -> Path:
        return self.once(("model", patch_px), lambda: model_directory(self.folder, f"small-{patch_px}", patch_px))

    def slide(self) -> Path:
        """At the small network's spacing; some 900 patches of 64 px."""

        def make() -> Path:
            path = self.folder / "native.tif"
            make_slide(path, SyntheticSlide(3072, 2304, mpp=0.5, tissue=0.5, seed=1))
            return path

        return self.once("slide", make)

    def demo_slide(self) -> Path:
        """At the demonstration model's spacing; some 250 patches of 224 px."""

        def make() -> Path:
            path = self.folder / "demo.tif"
            make_slide(path, SyntheticSlide(5600, 4480, mpp=0.25, tissue=0.5, seed=1))
            return path

        return self.once("demo slide", make)

    def build(self, model: Path, slide: Path, backend: str, batch: int = BATCH) -> Path:
        """`slidestream engine build`, verified: the plan."""

        def make() -> Path:
            said = command(
                "engine", "build", model, "--backend", backend, "--precision", "fp16", "--batch", str(batch),
                "--verify-on", slide, "--patches", "256", "--engines", self.engines, limit_s=NEVER_S,
            )  # fmt: skip
            assert said.returncode == 0, said.stderr
            assert "verified: loss" in said.stderr
            return Path(said.stdout.splitlines()[-1])

        return self.once(("engine", model, backend, batch), make)

    def sets(self, engine: str, *more: str) -> list[str]:
        """On the first GPU, however many there are."""
        where = ("inference.devices=[0]", f"inference.engines={self.engines}")
        return [f"inference.engine={engine}", *where, *FEW, *more]

    def run(self, slide: Path, model: Path | list[Path], *sets: str, key: str) -> Finished:
        """An undisturbed, complete run, done once."""

        def make() -> Finished:
            run = runs.start([slide], self.folder / key, model, *sets)
            try:
                finished = run.finish(NEVER_S)
                assert finished.code == 0, finished.console
                assert run.left_behind() == []
                return finished
            finally:
                run.destroy()

        return self.once(("run", key), make)

    def on_cpu(self, slide: Path, model: Path) -> Answers:
        key = f"cpu-{model.name}"
        return answers(self.run(slide, model, *FEW, "inference.workers=2", key=key).out, slide.stem)

    def on_gpu(self, engine: str) -> Finished:
        """The small network on its slide, undisturbed."""
        self.prepare(engine)
        return self.run(self.slide(), self.model(), *self.sets(engine), key=f"gpu-{engine}")

    def prepare(self, engine: str) -> None:
        """The engines of the small network that such a run may choose from."""
        self.need(engine)
        for backend in self.backends if engine == "gpu" else (engine,):
            self.build(self.model(), self.slide(), backend)

    def cached(self) -> EngineCache:
        return EngineCache(self.engines)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Skips the test where there is no GPU."""
    found = probe()
    if not found.gpus:
        pytest.skip(f"no GPU: {found.problem}")
    folder = tmp_path_factory.mktemp("gpu")
    backends = []
    if any(flavour.name in FLAVOURS for flavour in found.flavours):
        backends.append("tensorrt")
    # aoti builds from PyTorch source, with a PyTorch that has CUDA in it.
    if found.flavour("aoti") is not None:
        import torch

        if torch.cuda.is_available():
            backends.append("aoti")
    return Lab(folder, found, tuple(backends))
