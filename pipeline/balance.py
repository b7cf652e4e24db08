"""The bottleneck in words, with the number of workers that would mend it. Pure.

The stages are a line: what the slowest can do, all do. A stage's share of time at work says how much of what it can do is
asked of it. The inference is what the machine was bought for, so the question is why it idles, and what would let it work
`AIM` of the time: the stage that is most at work limits it, and needs as many more workers as the inference could do more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.status import StageStatus, shares, stage_name

AIM = 0.85  # share of the time at work that counts as full; the rest are the seams between batches and slides
LIMITS = 0.75  # a stage that is at work for less does not limit the others
MOST = 4.0  # never advise more than so many times the workers at once: what comes next is not known from here
SCALABLE = ("reader", "tissue", "inference", "writer")
_REMEDIES = {
    "batcher": "raise batcher.batch",
    "aggregator": "give the results a faster disk, or raise aggregator.flush_ms",
}


def bottleneck(
    newer: Sequence[StageStatus],
    older: Sequence[StageStatus] = (),
    *,
    backlog: int,
    on_gpu: bool,
    cores: int | None = None,
) -> str:
    """One line: how much the inference idles since `older` (since the start without it), why, and what to do.

    `backlog` counts unfinished slides; `cores` are those that the service may use.
    """
    before = {stage.kind: stage for stage in older}
    stages = {stage.kind: stage for stage in newer}
    share = {kind: shares(stage, before.get(kind)) for kind, stage in stages.items()}
    inference = "GPUs" if on_gpu else "inference"
    if "inference" not in share or not any(share["inference"]):
        if not backlog:
            return "nothing to do"
        return f"{inference} not at work yet: no process of it is ready, or no time has been measured"
    busy, _, blocked = share["inference"]
    idle = f"{inference} idle {100 * (1 - busy):.0f} %"
    if busy >= AIM or (busy >= LIMITS and busy >= max(part[0] for part in share.values())):
        return _inference_limits(inference, busy, stages, share, on_gpu)
    if not backlog:
        return f"{idle}: no slide waits"
    limiting = max((kind for kind in share if kind != "inference"), key=lambda kind: share[kind][0], default="")
    if not limiting or share[limiting][0] < LIMITS:
        if blocked > 1 - AIM:
            return f"{idle}: it waits for the journal; {_REMEDIES['aggregator']}"
        return f"{idle}: no stage is the limit, slides are small or few at a time; raise slides.ahead"
    at_work = f"{stage_name(limiting)} busy {100 * share[limiting][0]:.0f} %"
    if limiting not in SCALABLE:
        return f"{idle}, {at_work}: {_REMEDIES.get(limiting, 'it has one process')}"
    workers = stages[limiting].workers
    wanted = balanced(workers, share[limiting][0], busy)
    advice = f"{idle}: add {stage_name(limiting)} ({workers} -> {wanted})"
    if cores is not None and wanted > cores:
        return f"{advice}; there are {cores} cores, so more of those or faster storage may be needed"
    return advice


def balanced(workers: int, busy: float, inference_busy: float) -> int:
    """How many workers would let the inference work `AIM` of the time, where `workers`, `busy` of theirs, let it work
    `inference_busy` of its own. At least one more, at most `MOST` times as many."""
    growth = min(MOST, AIM / max(inference_busy, 1e-3))
    return max(workers + 1, min(math.ceil(workers * MOST), math.ceil(round(workers * busy * growth, 6))))


def _inference_limits(
    inference: str,
    busy: float,
    stages: dict[str, StageStatus],
    share: dict[str, tuple[float, float, float]],
    on_gpu: bool,
) -> str:
    text = f"{inference} busy {100 * busy:.0f} %: the model's own speed is the limit"
    readers, part = stages.get("reader"), share.get("reader", (1.0, 0.0, 0.0))[0]
    if readers is not None:
        enough = max(1, math.ceil(round(readers.workers * part / AIM, 6)))
        if enough <= readers.workers / 2:
            text += f"; {enough} of {readers.workers} slide readers would do"
    return text if on_gpu else f"{text}; add inference processes if cores are free, or a GPU"
