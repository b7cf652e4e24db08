"""What `slidestream tune` proposes, from figures of machines of all kinds."""

from __future__ import annotations

import pytest

from pipeline.config import load_config, resolve
from pipeline.machine import MIB, Machine
from pipeline.status import StageStatus
from pipeline.tune import (
    Measured,
    Shape,
    Sizes,
    Storage,
    Tried,
    batches,
    best_of,
    enough_readers,
    fastest,
    next_sizes,
    outcome,
    propose,
    read_ahead,
    reader_counts,
    shapes,
    smallest_batch,
)

LOCAL = Storage(0.1, 500.0, 8, 900.0)
SHARE = Storage(4.0, 15.0, 8, 110.0)
CPU = Shape(2, 1, 1, 32)
GPU = Shape(1, 1, 3, 128)


def stage(kind: str, workers: int, busy: float, seconds: float = 10.0) -> StageStatus:
    return StageStatus(kind, workers, workers * seconds * busy, workers * seconds * (1 - busy), 0.0)


TWO = Sizes(2, 1, 2, 1)


def tried(per_s: float, sizes: Sizes = TWO, shape: Shape = CPU, *stages: StageStatus) -> Tried:
    return Tried("auto", shape, sizes, per_s, "in words", stages)


def values(measured: Measured, cores: int = 2) -> dict[str, object]:
    config = resolve(load_config(), Machine(cores, 64 * 1024 * MIB), gpus=1 if measured.on_gpu else 0, gpu_batch=128)
    return {setting.key: setting.value for setting in propose(measured, config)}


def test_shapes_fill_the_cores_and_begin_with_auto():
    """On a CPU processes times threads are the cores; on a GPU contexts vary."""
    found = shapes(8, Shape(4, 2, 1, 32), on_gpu=False)
    assert found[0] == Shape(4, 2, 1, 32) and Shape(8, 1, 1, 32) in found and Shape(1, 8, 1, 32) in found
    assert all(shape.workers * shape.threads <= 8 for shape in found) and len(set(found)) == len(found)
    assert [shape.contexts for shape in shapes(8, GPU, on_gpu=True)] == [3, 1, 2, 4]
    assert shapes(1, Shape(1, 1, 1, 32), on_gpu=False) == [Shape(1, 1, 1, 32)]


def test_another_shape_must_be_clearly_faster():
    """Two percent are within what two measurements of the same differ by."""
    other = Shape(1, 2, 1, 32)
    assert fastest({CPU: 100.0, other: 102.0}) == CPU
    assert fastest({CPU: 100.0, other: 110.0}) == other


def test_smallest_batch_that_is_as_fast():
    """Urgent slides wait less for a smaller batch; one that costs speed is not taken."""
    assert batches(GPU, on_gpu=True) == [Shape(1, 1, 3, 64), Shape(1, 1, 3, 32)]
    assert batches(CPU, on_gpu=False) == []
    figures = {GPU: 1000.0, Shape(1, 1, 3, 64): 990.0, Shape(1, 1, 3, 32): 700.0, Shape(1, 1, 1, 32): 999.0}
    assert smallest_batch(figures, GPU) == Shape(1, 1, 3, 64)


def test_readers_as_many_as_are_of_use():
    """What auto gives stays where it is nearly the best; storage with latency wants more; a GPU that is slower, no more."""
    assert reader_counts(6) == [1, 2, 4, 6, 12]
    assert enough_readers({1: 50.0, 2: 99.0, 4: 100.0}, auto=2) == 2
    assert enough_readers({1: 50.0, 2: 60.0, 4: 100.0}, auto=2) == 4
    assert enough_readers({1: 500.0, 8: 4000.0, 16: 8000.0}, auto=8, ceiling=1000.0) == 8
    assert enough_readers({1: 500.0, 8: 600.0, 16: 8000.0}, auto=8, ceiling=1000.0) == 16


def test_slow_storage_is_read_ahead_of():
    """4 ms for a read and 600 patches/s of a reader: several reads must be under way. A local disk needs nothing."""
    assert read_ahead(LOCAL, 600.0, 4, 2) == (4, 2)
    assert read_ahead(SHARE, 600.0, 4, 2) == (8, 4)
    assert read_ahead(SHARE, 3000.0, 4, 2) == (16, 8)
    assert read_ahead(SHARE, 3000.0, 32, 8) == (32, 8), "what the operator has chosen is never made less"
    assert read_ahead(Storage(4.0, 15.0, 8, 16.0), 600.0, 4, 2) == (4, 2), "more at a time gives no more"


def test_next_step_follows_the_bottleneck_within_the_machine():
    """Readers always at work behind an idle inference: more of them, but never more than twice the cores."""
    slow = tried(100.0, Sizes(2, 1, 2, 1), CPU, stage("reader", 2, 1.0), stage("inference", 2, 0.5))
    assert next_sizes(slow, cores=8) == Sizes(4, 1, 2, 1)
    assert next_sizes(slow, cores=1) is None
    masks = tried(
        100.0, Sizes(2, 1, 2, 1), CPU, stage("reader", 2, 0.3), stage("tissue", 1, 1.0), stage("inference", 2, 0.3)
    )
    assert next_sizes(masks, cores=8) == Sizes(2, 3, 2, 1)
    full = tried(100.0, Sizes(2, 1, 2, 1), CPU, stage("reader", 2, 0.9), stage("inference", 2, 0.95))
    assert next_sizes(full, cores=8) is None


def test_best_is_faster_or_leaner():
    """Auto's run stays unless another is 3 % faster, or as fast with fewer processes."""
    auto = tried(100.0, Sizes(8, 1, 2, 1))
    assert best_of([auto, tried(102.0, Sizes(9, 1, 2, 1))]) is auto
    more, lean = tried(110.0, Sizes(16, 1, 2, 1)), tried(99.0, Sizes(4, 1, 2, 1))
    assert best_of([auto, more]) is more
    assert best_of([auto, lean]) is lean
    assert "auto's own numbers stay" in outcome(Measured(8, False, LOCAL, {CPU: 1.0}, {1: 1.0}, [auto]))
    assert "(1.10x)" in outcome(Measured(8, False, LOCAL, {CPU: 1.0}, {1: 1.0}, [auto, more]))


def test_proposal_of_a_machine_on_which_auto_is_right():
    """Every number is the one that auto gives, slots included."""
    found = values(Measured(2, False, LOCAL, {CPU: 900.0}, {1: 500.0, 2: 990.0, 4: 1000.0}, [tried(400.0)]))
    assert found["reader.workers"] == 2 and found["inference.workers"] == 2 and found["inference.threads"] == 1
    assert (found["slides.preads"], found["reader.credit"], found["batcher.batch"]) == (4, 2, 32)
    assert found["batcher.slots"] == 2 * 3 + 2 * 2 + 1 and "inference.contexts" not in found


def test_proposal_of_a_gpu_behind_a_slow_share():
    """More readers that read further ahead, four contexts, and slots for all of them."""
    four = Shape(1, 1, 4, 128)
    runs = [tried(3000.0, Sizes(8, 1, 1, 1), GPU), tried(5200.0, Sizes(16, 2, 1, 1), four)]
    measured = Measured(8, True, SHARE, {GPU: 9000.0, four: 10000.0}, {1: 600.0, 8: 3000.0, 16: 5300.0}, runs, 120.0)
    found = values(measured, cores=8)
    assert found["reader.workers"] == 16 and found["tissue.workers"] == 2 and found["inference.contexts"] == 4
    assert (found["slides.preads"], found["reader.credit"]) == (8, 4)
    assert found["batcher.slots"] == 1 * (2 + 4) + 16 * 4 + 1
    assert found["aggregator.flush_ms"] == 240.0, "a disk that takes 120 ms must not be asked every 50"


def test_no_setting_that_results_depend_on():
    """A machine's speed must never change a probability."""
    from pipeline.keys import keys

    measured = Measured(2, True, SHARE, {GPU: 900.0}, {1: 500.0}, [tried(400.0, shape=GPU)], 1.0)
    assert not [key for key in values(measured) if keys()[key].changes_results]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_setting_says_why(on_gpu: bool):
    """No number without the figures that led to it."""
    shape = GPU if on_gpu else CPU
    measured = Measured(2, on_gpu, SHARE, {shape: 900.0}, {1: 500.0}, [tried(400.0, shape=shape)], 1.0)
    config = resolve(load_config(), Machine(2, 64 * 1024 * MIB), gpus=int(on_gpu), gpu_batch=128)
    assert all(setting.why for setting in propose(measured, config))
