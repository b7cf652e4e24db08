"""pipeline.crew: how many workers of each kind, and where each may run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from engines.gpu import Gpu
from pipeline.config import load_config
from pipeline.crew import VISIBLE, Member, crew, member, starting_order
from pipeline.gpus import Device
from pipeline.worker import PLAN

ONE = Device(Gpu("A", "9.0", "GPU-1"), Path("/engines/a.engine"), "0,1", 0)
TWO = Device(Gpu("B", "8.9", "GPU-2"), Path("/engines/b.engine"), "", 1)
CONFIG = load_config(
    None, ["reader.workers=3", "tissue.workers=2", "inference.workers=5", "writer.workers=2", "batcher.batch=4"]
)


def test_everybody_is_there() -> None:
    """As many of each kind as the configuration says, one aggregator, and no batcher; each name once."""
    team = crew(CONFIG)
    assert Counter(one.kind for one in team) == {
        "aggregator": 1, "reader": 3, "tissue": 2, "inference": 5, "writer": 2,
    }  # fmt: skip
    assert len({one.name for one in team}) == len(team)


def test_on_a_cpu_nobody_is_told_where_to_run() -> None:
    """No variable, no cores."""
    assert all(not one.environment and not one.cpus for one in crew(CONFIG))


def test_on_a_gpu_inference_starts_first_and_on_a_cpu_last() -> None:
    """After the batcher, which all look for: a GPU's process takes longest to come up. On a CPU it waits for the model."""
    batcher = Member("batcher", "batcher")
    at_once, waiting = starting_order([batcher, *crew(CONFIG, [ONE, TWO])])
    assert [one.kind for one in at_once[:7]] == ["batcher", *["inference"] * 5, "aggregator"] and waiting == []
    assert len(at_once) == 1 + len(crew(CONFIG))
    at_once, waiting = starting_order([batcher, *crew(CONFIG)])
    assert [one.kind for one in waiting] == ["inference"] * 5
    assert at_once == [batcher, *(one for one in crew(CONFIG) if one.kind != "inference")]


def test_inference_goes_round_the_gpus() -> None:
    """Five processes on two GPUs: three and two; each sees its GPU alone, with that GPU's engine and nearest cores."""
    team = [one for one in crew(CONFIG, [ONE, TWO]) if one.kind == "inference"]
    assert [one.environment[VISIBLE] for one in team] == ["GPU-1", "GPU-2", "GPU-1", "GPU-2", "GPU-1"]
    assert [one.environment[PLAN] for one in team[:2]] == ["/engines/a.engine", "/engines/b.engine"]
    assert [one.cpus for one in team[:2]] == ["0,1", ""]


def test_only_inference_is_sent_to_gpus() -> None:
    """Readers keep their cores and their view of GPUs."""
    assert member("reader", 0, [ONE]) == Member("reader", "reader-0")


def test_a_worker_more_is_made_like_the_first() -> None:
    """`scale` recruits by the same rule, so a replacement has the same GPU as its predecessor."""
    assert [one for one in crew(CONFIG, [ONE, TWO]) if one.name == "inference-3"] == [
        member("inference", 3, [ONE, TWO])
    ]
