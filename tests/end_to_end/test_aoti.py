"""A run with an AOTInductor package, with all of its processes: PyTorch and the package are real, on the processor.

A GPU that is stood in for (tests/end_to_end/machine) lends its name and its memory, which is the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `import`)")

from engines.aoti_build import AotiMaker, pytorch_source
from engines.cache import EngineCache, Entry
from engines.gpu import Gpu
from engines.import_model import import_model
from engines.model import Model, load_model
from engines.torch_reference import torch_reference
from tests.end_to_end import runs
from tests.end_to_end.runs import Run, command
from tests.end_to_end.test_gpus import ONE, fill
from tests.engines.test_import_model import inexpressible, wsinfer_folder
from tests.gpu.conftest import Answers, answers
from tests.gpu.network import model_directory

BATCH = 8
PROCESSOR = {**ONE, "name": "CPU"}  # which a package's target must begin with to be run on the processor
FEW = ("reader.workers=2", "aggregator.flush_ms=0", "supervisor.backoff_s=0", "results.formats=[csv]")


def package(model: Model, folder: Path) -> Entry:
    """Not verified yet."""
    maker = AotiMaker(EngineCache(folder))
    gpu = Gpu(PROCESSOR["name"], PROCESSOR["capability"], PROCESSOR["uuid"])
    kind, source = pytorch_source(model)
    built = maker._compile(kind, source, model, "fp32", BATCH, "cpu")
    return maker.cache.put(model.name, maker.identity(model, source, "fp32", BATCH, gpu), built, gpu)


@pytest.fixture(scope="module")
def torch_model(material: Path) -> Path:
    return model_directory(material, "torch", 64)


@pytest.fixture(scope="module")
def packages(torch_model: Path, material: Path, native: Path) -> Path:
    """A folder with a package of the model, verified by the command for it."""
    folder = material / "packages"
    entry = package(load_model(torch_model), folder)
    with pytest.MonkeyPatch.context() as patch:
        fill(patch, [PROCESSOR])
        said = command(
            "engine", "verify", entry.plan, "--engines", folder, "--model", torch_model, "--verify-on", native, limit_s=240
        )
    assert said.returncode == 0 and said.stdout.startswith("right: loss 0.000%"), said.stderr
    return folder


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch, packages: Path, tmp_path: Path, torch_model: Path, start) -> Callable[..., Run]:
    def run(slide: Path, **more: Any) -> Run:
        fill(monkeypatch, [PROCESSOR])
        wanted = ("inference.engine=aoti", f"inference.engines={packages}", *FEW)
        return start([slide], tmp_path / "out", torch_model, *wanted, **more)

    return run


@pytest.fixture(scope="module")
def expected(torch_model: Path, native: Path, material: Path) -> Answers:
    """ONNX Runtime's."""
    run = runs.start([native], material / "on-the-cpu", torch_model, *FEW)
    try:
        return answers(run.finish().out, "native")
    finally:
        run.destroy()


def assert_right(found: Answers, expected: Answers) -> None:
    assert (found.places == expected.places).all()
    assert abs(found.probabilities - expected.probabilities).max() < 1e-4


def test_gives_the_answers_of_onnx_runtime(begin, native: Path, expected: Answers) -> None:
    """Every patch; the record names the package and how it went; nothing is left."""
    run = begin(native)
    finished = run.finish()
    assert finished.code == 0, finished.console
    assert_right(answers(finished.out, "native"), expected)
    record = finished.record
    about = record["engines"]["inference-0"]
    assert about["engine"] == "aoti" and about["plan"] == record["gpus"][0]["engine"] and about["precision"] == "fp32"
    assert about["batches"] > 0 and about["batch_ms_p99"] >= about["batch_ms_p50"] > 0
    assert record["stages"]["inference"]["restarts"] == 0 and record["lost"] == {}
    assert run.left_behind() == []


def test_kill_9_in_mid_run_changes_nothing(begin, native: Path, expected: Answers) -> None:
    """Nor does the process that is killed leave anything."""
    run = begin(native, sabotage={"inference": {"slow_s": 0.01}})
    run.at_work()
    run.stages("inference")[0].kill()
    finished = run.finish()
    assert finished.code == 0, finished.console
    assert_right(answers(finished.out, "native"), expected)
    assert finished.record["stages"]["inference"]["restarts"] == 1
    assert run.left_behind() == []


def test_a_network_that_onnx_cannot_express(
    material: Path, native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start
) -> None:
    """It is imported without ONNX, its package is verified against PyTorch, and a run gives PyTorch's answers."""
    source = wsinfer_folder(torch, tmp_path / "source", inexpressible(torch))
    model = load_model(import_model(source, tmp_path / "gamma", export=False).model.directory)
    folder = tmp_path / "engines"
    entry = package(model, folder)
    fill(monkeypatch, [PROCESSOR])
    words = ("--engines", folder, "--model", model.directory, "--verify-on", native)
    said = command("engine", "verify", entry.plan, *words, limit_s=240)
    assert said.returncode == 0 and said.stdout.startswith("right: loss 0.000%"), said.stderr
    assert "reference: PyTorch on" in said.stderr
    wanted = ("inference.engine=aoti", f"inference.engines={folder}", *FEW)
    finished = start([native], tmp_path / "out", model.directory, *wanted).finish()
    assert finished.code == 0, finished.console
    found = answers(finished.out, "native")
    with openslide.OpenSlide(native) as slide:
        regions = [slide.read_region((x, y), 0, (side, side)) for x, y, side, _ in found.places[:40].tolist()]
    patches = np.stack([np.asarray(region.convert("RGB")) for region in regions])
    np.testing.assert_allclose(found.probabilities[:40], torch_reference(model)(patches), atol=1e-4)
