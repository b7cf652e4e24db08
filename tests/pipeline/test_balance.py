"""The bottleneck in words, and the number of workers that would mend it."""

from __future__ import annotations

import pytest

from pipeline.balance import Step, balanced, bottleneck, step
from pipeline.status import StageStatus


def stage(kind: str, workers: int, busy: float, room: float = 0.0, seconds: float = 100.0) -> StageStatus:
    """A stage at work for a share `busy` of its time, waiting for room for a share `room`."""
    total = workers * seconds
    return StageStatus(kind, workers, total * busy, total * (1 - busy - room), total * room)


def test_idle_gpus_behind_busy_readers_want_more_readers():
    """GPUs that idle 43 % of the time behind 12 readers always at work: 18 would let them work 85 %."""
    stages = [stage("reader", 12, 1.0), stage("batcher", 1, 0.1), stage("inference", 8, 0.57)]
    words = bottleneck(stages, backlog=40, on_gpu=True)
    assert words == "GPUs idle 43 %: add slide readers (12 -> 18)"


def test_readers_that_are_not_always_at_work_need_fewer_more():
    """Readers at work 80 % of their time have some room of their own."""
    assert balanced(10, 0.8, 0.5) == 14
    assert balanced(10, 1.0, 0.5) == 17


def test_advice_is_at_least_one_more_and_at_most_four_times():
    """An inference that has hardly worked tells little, so the step is bounded; a small lack is still one worker."""
    assert balanced(3, 1.0, 0.01) == 12
    assert balanced(1, 0.76, 0.84) == 2


def test_says_when_there_are_not_so_many_cores():
    """Where the advice is more readers than cores, it says so."""
    stages = [stage("reader", 12, 1.0), stage("inference", 1, 0.3)]
    assert "there are 16 cores" in bottleneck(stages, backlog=4, on_gpu=True, cores=16)


def test_busy_gpus_are_the_limit_and_spare_readers_are_counted():
    """With the GPUs always at work, it names how many of the readers would do."""
    stages = [stage("reader", 16, 0.2, room=0.7), stage("inference", 2, 0.97)]
    words = bottleneck(stages, backlog=4, on_gpu=True)
    assert words == "GPUs busy 97 %: the model's own speed is the limit; 4 of 16 slide readers would do"


def test_tissue_masks_can_be_the_limit():
    """Many small slides: masks are at work all the time, readers wait."""
    stages = [stage("reader", 8, 0.3), stage("tissue", 1, 0.98), stage("inference", 1, 0.3)]
    assert bottleneck(stages, backlog=99, on_gpu=True) == "GPUs idle 70 %: add tissue masks (1 -> 3)"


def test_batcher_has_no_number():
    """There is one batcher: the advice is a key of the configuration."""
    stages = [stage("reader", 8, 0.3), stage("batcher", 1, 0.95), stage("inference", 1, 0.5)]
    assert "raise batcher.batch" in bottleneck(stages, backlog=9, on_gpu=True)


def test_inference_that_waits_for_room_waits_for_the_journal():
    """Nobody is at work, and the inference may not hand on its results: the disk of the results."""
    stages = [stage("reader", 8, 0.3, room=0.6), stage("inference", 1, 0.4, room=0.5)]
    assert "waits for the journal" in bottleneck(stages, backlog=9, on_gpu=True)


@pytest.mark.parametrize("stages", [[], [stage("reader", 2, 0.0)]])
def test_nothing_to_do(stages):
    """An idle service is no bottleneck."""
    assert bottleneck(stages, backlog=0, on_gpu=False) == "nothing to do"


def test_idle_without_backlog_advises_nothing():
    """GPUs that idle because no slide waits need no more readers, however busy those were."""
    stages = [stage("reader", 12, 1.0), stage("inference", 1, 0.2)]
    assert bottleneck(stages, backlog=0, on_gpu=True) == "GPUs idle 80 %: no slide waits"


def test_only_the_time_since_the_older_look_counts():
    """A month of idling does not hide what the last minute was like."""
    older = [stage("reader", 12, 0.0, seconds=1e6), stage("inference", 1, 0.0, seconds=1e6)]
    newer = [
        StageStatus("reader", 12, 720.0, older[0].waiting_input, 0.0),
        StageStatus("inference", 1, 34.2, older[1].waiting_input + 25.8, 0.0),
    ]
    assert bottleneck(newer, older, backlog=5, on_gpu=True) == "GPUs idle 43 %: add slide readers (12 -> 18)"


def test_step_is_what_the_words_say():
    """A program gets the same advice as a person: more readers, fewer where half would do, or nothing."""
    slow = [stage("reader", 12, 1.0), stage("batcher", 1, 0.1), stage("inference", 8, 0.57)]
    assert step(slow) == Step("reader", 12, 18)
    spare = [stage("reader", 16, 0.2, room=0.7), stage("inference", 2, 0.97)]
    assert step(spare) == Step("reader", 16, 4)
    full = [stage("reader", 4, 0.7), stage("inference", 2, 0.97)]
    assert step(full) is None
    assert step([stage("reader", 8, 0.3), stage("batcher", 1, 0.95), stage("inference", 1, 0.5)]) is None
    assert step([stage("reader", 8, 0.3)]) is None
