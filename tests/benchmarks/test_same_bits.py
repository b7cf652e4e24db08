"""benchmarks.same_bits on a GPU of arrays, and with the engine for CPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs import tiny
from benchmarks.same_bits import compare, same
from engines.gpu_engine import GpuEngine
from tests.benchmarks.test_gpu_benchmarks import ran
from tests.engines.fake_gpu import FakeDevice, FakeNetwork

SIDE, BATCH = 8, 6


def answer(patches: np.ndarray) -> np.ndarray:
    mean = patches.reshape(len(patches), -1).mean(axis=1) / 255.0
    return np.stack([1.0 - mean, mean], axis=1)


def engine(function=answer) -> GpuEngine:
    device = FakeDevice()
    network = FakeNetwork(device, function, patch_px=SIDE)
    return GpuEngine("fake", device, network, classes=2, patch_px=SIDE, max_batch=BATCH)


def patches() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)


def test_the_same_everywhere() -> None:
    """A function of the patch alone differs nowhere."""
    found, answers = compare(engine().contexts(3), patches())
    assert found.none
    np.testing.assert_array_equal(answers, answer(patches()).astype(np.float32))


def test_a_row_that_computes_otherwise_is_found() -> None:
    """It shows where patches change places, and in no other column."""

    def function(batch: np.ndarray) -> np.ndarray:
        return answer(batch) + np.where(np.arange(len(batch)) == 2, 0.25, 0.0)[:, None]

    found, _ = compare(engine(function).contexts(2), patches())
    assert found.rows == pytest.approx(0.25) and found.contexts == found.load == 0.0


def test_a_context_that_computes_otherwise_is_found() -> None:
    """As the first one did on an H100: every context agrees with itself."""
    contexts = engine().contexts(1) + engine(lambda batch: answer(batch) + 0.125).contexts(2)
    found, _ = compare(contexts, patches())
    assert found.contexts == pytest.approx(0.125, abs=1e-6) and found.rows == found.batches == found.load == 0.0


def test_processes_are_compared(tmp_path: Path) -> None:
    """Three of them, with the engine for CPUs, for which nothing differs."""
    model = tiny(tmp_path / "tiny")
    words = ["--network", str(model), "--engine", "onnx", "--batch", "4", "--contexts", "2", "--seconds", "0.05"]
    rows = ran("same_bits", *words, "--out", str(tmp_path / "out.json"))["rows"]
    assert [row["process"] for row in rows] == [0, 1, 2] and same(rows)
    assert all(row["patches/s"] > 0 for row in rows)
    assert not same([*rows, {**rows[0], "processes": 1e-9}])
