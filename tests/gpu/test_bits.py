"""A patch gets the same bits on a real GPU, whatever context, row, batch and load it meets, and in another process too.

Run like tests.gpu.test_runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.same_bits import compare
from engines.backend import open_plan
from tests.gpu.conftest import BATCH, Lab, answers

pytestmark = pytest.mark.gpu

SIDE = 64


def noise() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize("engine", ["tensorrt", "aoti"])
def test_in_all_contexts_at_once(engine: str, lab: Lab):
    """Three contexts at every row, in smaller batches, one after the other and all at once."""
    lab.need(engine)
    plan = lab.build(lab.model(), lab.slide(), engine)
    opened = open_plan(plan, classes=2, patch_px=SIDE, max_batch=BATCH)
    try:
        found, probabilities = compare(opened.contexts(3), noise())
    finally:
        opened.close()
    assert np.isfinite(probabilities).all() and found.none, found


def test_in_two_runs(lab: Lab, tmp_path: Path, start):
    """The same file, byte for byte: the kernels of the second are those that the first has kept."""
    lab.need("tensorrt")
    first = answers(lab.on_gpu("tensorrt").out, "native")
    finished = start([lab.slide()], tmp_path / "out", lab.model(), *lab.sets("tensorrt")).finish(240.0)
    assert finished.code == 0, finished.console
    assert answers(finished.out, "native").raw == first.raw


def test_without_the_kernels_of_an_earlier_process(lab: Lab, tmp_path: Path, start):
    """A process that compiles all by itself gives what one gives that finds everything compiled."""
    lab.need("tensorrt")
    first = answers(lab.on_gpu("tensorrt").out, "native")
    plan = lab.build(lab.model(), lab.slide(), "tensorrt")
    for kernels in plan.parent.glob(f"{plan.stem}.*.kernels"):
        kernels.unlink()
    finished = start([lab.slide()], tmp_path / "out", lab.model(), *lab.sets("tensorrt")).finish(240.0)
    assert finished.code == 0, finished.console
    assert answers(finished.out, "native").raw == first.raw
