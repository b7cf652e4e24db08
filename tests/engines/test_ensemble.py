"""Several models as one engine: with real ones on the CPU, and on a GPU of arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engines.engine import Engine, open_engine
from engines.ensemble import Ensemble, open_models
from engines.errors import EngineError
from engines.fold import fold, save_folded
from engines.gpu_engine import GpuEngine
from engines.model import load_model
from tests.engines.fake_gpu import FakeDevice, FakeNetwork
from tests.engines.tiny import tiny_model

SIDE = 64
SMALL = 8
ON_CPU = {"engine": "onnx", "threads": 1, "cuda_graphs": None}
THREE = ("stroma", "normal", "tumour")


def noise(n: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(n).integers(1, 256, (n, side, side, 3), np.uint8)


def folded(directory: Path, **options) -> tuple[dict, Path]:
    """(description, folded file) of a tiny model."""
    model = load_model(tiny_model(directory, **options))
    path = directory.with_suffix(".onnx")
    save_folded(fold(model), path)
    return model.describe(), path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, Path]]:
    folder = tmp_path_factory.mktemp("models")
    return [folded(folder / "a"), folded(folder / "b", classes=THREE)]


def opened(models: list[tuple[dict, Path]], **changes) -> Engine:
    about, files = zip(*models, strict=True)
    return open_models(ON_CPU | changes, about, folded=files, plans=(), max_batch=8)


def on_gpu(device: FakeDevice, function, classes: int = 1, **network) -> GpuEngine:
    net = FakeNetwork(device, function, patch_px=SMALL, classes=classes, **network)
    return GpuEngine("fake", device, net, classes=classes, patch_px=SMALL, max_batch=4)


def mean(patches: np.ndarray) -> np.ndarray:
    return patches.reshape(len(patches), -1).mean(axis=1, keepdims=True) / 255


def highest(patches: np.ndarray) -> np.ndarray:
    return patches.reshape(len(patches), -1).max(axis=1, keepdims=True) / 255


def test_columns_are_each_models_own_side_by_side(two: list[tuple[dict, Path]]) -> None:
    """Bit for bit what each model gives alone, in the order of the models."""
    patches = noise(5)
    alone = []
    for model in two:
        context = opened([model]).contexts(1)[0]
        context.submit(patches)
        alone.append(context.result())
    context = opened(two).contexts(1)[0]
    assert not context.done() and not context.consumed()
    context.submit(patches)
    assert context.wait(1.0) and context.consumed() and context.done()
    found = context.result()
    assert found.dtype == np.float32 and found.shape == (5, 5)
    assert found.tobytes() == np.concatenate(alone, axis=1).tobytes()
    assert not context.done()


def test_one_model_is_its_own_engine(two: list[tuple[dict, Path]]) -> None:
    """With one model there is nothing in between."""
    assert type(opened(two[:1])).__name__ == "OnnxEngine"


def test_each_model_is_described(two: list[tuple[dict, Path]]) -> None:
    """The keys that every engine has, and below "models" what each one's engine says; JSON can say it."""
    about = json.loads(json.dumps(opened(two).describe()))
    assert about["engine"] == "onnx" and about["max_batch"] == 8 and about["precision"] == "fp32"
    assert set(about["models"]) == {"a", "b"} and about["models"]["b"]["provider"] == "CPUExecutionProvider"


def test_a_model_that_cannot_be_opened_is_named(two: list[tuple[dict, Path]], tmp_path: Path) -> None:
    """Of several models, the error says which one it is about."""
    (about, _), missing = two[1], tmp_path / "missing.onnx"
    with pytest.raises(EngineError, match=r"model b: .*missing\.onnx"):
        opened([two[0], (about, missing)])


def test_a_wrong_batch_is_refused_and_the_context_stays_idle(two: list[tuple[dict, Path]]) -> None:
    """A breach of the contract leaves no model at work."""
    context = opened(two).contexts(1)[0]
    with pytest.raises(ValueError, match="patches must be uint8"):
        context.submit(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="submit first"):
        context.result()
    context.submit(noise(2))
    assert context.result().shape == (2, 5)


def test_a_slot_is_free_when_the_last_copy_is_done() -> None:
    """Not when one model has copied the pixels; and the result is there when both have computed."""
    device = FakeDevice(auto=False)
    ensemble = Ensemble({"mean": on_gpu(device, mean), "highest": on_gpu(device, highest)})
    context = ensemble.contexts(1)[0]
    slot = noise(4, SMALL)
    raw = slot.copy().reshape(-1)
    ensemble.attach(raw)
    view = raw.reshape(slot.shape)
    first, second = device.queues
    context.submit(view)
    for _ in range(3):
        device.step(first)
    assert not context.consumed()
    for _ in range(3):
        device.step(second)
    assert context.consumed() and not context.done()
    view[:] = 0
    while device.queues[first]:
        device.step(first)
    assert not context.done() and not context.wait(0.001)
    device.settle()
    assert context.done()
    np.testing.assert_allclose(context.result(), np.concatenate([mean(slot), highest(slot)], axis=1), rtol=1e-6)


def test_a_failure_of_one_model_fails_the_batch_and_leaves_all_idle() -> None:
    """The error is not fatal: the next batch is served as ever."""
    device = FakeDevice()
    bad = on_gpu(device, highest)
    context = Ensemble({"mean": on_gpu(device, mean), "highest": bad}).contexts(1)[0]
    bad.network.refuse = "no room for this batch"
    context.submit(noise(3, SMALL))
    with pytest.raises(EngineError, match="no room") as caught:
        context.result()
    assert not caught.value.fatal
    bad.network.refuse = ""
    patches = noise(2, SMALL)
    context.submit(patches)
    np.testing.assert_allclose(context.result()[:, 0], mean(patches)[:, 0], rtol=1e-6)


def test_a_lost_gpu_counts_more_than_a_failed_batch() -> None:
    """Where both happen, the worker must know that it is lost."""
    device, other = FakeDevice(), FakeDevice()
    failing, dying = on_gpu(device, mean), on_gpu(other, highest, poison=7)
    context = Ensemble({"mean": failing, "highest": dying}).contexts(1)[0]
    failing.network.refuse = "no room"
    patches = noise(2, SMALL)
    patches[:, 0, 0, 0] = 7
    context.submit(patches)
    with pytest.raises(EngineError) as caught:
        context.result()
    assert caught.value.fatal


def test_a_model_that_does_not_fit_beside_the_others_is_named() -> None:
    """The second model's contexts meet the memory that the first one's have left."""
    device = FakeDevice(memory=10_000)
    parts = {"mean": on_gpu(device, mean), "highest": on_gpu(device, highest, context_bytes=9_000)}
    with pytest.raises(EngineError, match="model highest: inference.contexts=1 .* need"):
        Ensemble(parts).contexts(1)


def test_figures_are_told_by_model() -> None:
    """What is of the batch or of the GPU is told once, the rest also under the model's name; a batch is as slow as the
    slowest."""
    device = FakeDevice()
    ensemble = Ensemble({"mean": on_gpu(device, mean), "highest": on_gpu(device, highest)})
    context = ensemble.contexts(1)[0]
    context.submit(noise(3, SMALL))
    context.result()
    figures = ensemble.telemetry()
    assert (figures["batches"], figures["rows"]) == (1, 3)
    own = [figures[f"{name}: batch_ms_p50"] for name in ("mean", "highest")]
    assert min(own) > 0 and figures["batch_ms_p50"] == max(own)
    assert [name for name in figures if "gpu_free_mib" in name] == ["gpu_free_mib"]


def test_close_closes_all() -> None:
    """Every model gives back what it holds."""
    device = FakeDevice()
    ensemble = Ensemble({"mean": on_gpu(device, mean), "highest": on_gpu(device, highest)})
    ensemble.contexts(2)
    ensemble.close()
    assert not device.blocks and not device.queues and not device.host


def test_an_engine_of_no_pixels_joins_in() -> None:
    """The engine for benchmarks is an engine like any other."""
    parts = {
        name: open_engine("null", Path("none"), classes=classes, patch_px=SMALL, threads=1, max_batch=4)
        for name, classes in (("a", 2), ("b", 4))
    }
    context = Ensemble(parts).contexts(1)[0]
    context.submit(noise(1, SMALL))
    assert context.result().tolist() == [[0.5, 0.5, 0.25, 0.25, 0.25, 0.25]]
