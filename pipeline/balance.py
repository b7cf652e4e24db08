"""The bottleneck in words, with the number of workers that would mend it. Pure.

The stages are a line: what the slowest can do, all do. A stage's share of time at work says how much of what it can do is
asked of it. The inference is what the machine was bought for, so the question is why it idles, and what would let it work
`AIM` of the time: the stage that is most at work limits it, and needs as many more workers as the inference could do more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    if _inference_is_the_limit(share):
        return _inference_limits(inference, busy, stages, share, on_gpu)
    if not backlog:
        return f"{idle}: no slide waits"
    limiting = _limiting(share)
    if not limiting:
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


@dataclass(frozen=True, slots=True)
class Step:
    """From `now` workers of a stage to `wanted`, which may be fewer."""

    stage: str
    now: int
    wanted: int


def step(newer: Sequence[StageStatus], older: Sequence[StageStatus] = ()) -> Step | None:
    """What `bottleneck` says as a number of workers, for a program that follows it: more of the stage that limits, or fewer
    readers where half would do. None where no number of workers would mend it."""
    before = {stage.kind: stage for stage in older}
    stages = {stage.kind: stage for stage in newer}
    share = {kind: shares(stage, before.get(kind)) for kind, stage in stages.items()}
    if "inference" not in share or not any(share["inference"]):
        return None
    if _inference_is_the_limit(share):
        enough = _enough_readers(stages, share)
        return None if enough is None else Step("reader", stages["reader"].workers, enough)
    limiting = _limiting(share)
    if limiting not in SCALABLE:
        return None
    workers = stages[limiting].workers
    return Step(limiting, workers, balanced(workers, share[limiting][0], share["inference"][0]))


def _inference_is_the_limit(share: Mapping[str, tuple[float, float, float]]) -> bool:
    busy = share["inference"][0]
    return busy >= AIM or (busy >= LIMITS and busy >= max(part[0] for part in share.values()))


def _limiting(share: Mapping[str, tuple[float, float, float]]) -> str:
    """The stage beside the inference that is most at work, if that is enough to limit the others; else empty."""
    found = max((kind for kind in share if kind != "inference"), key=lambda kind: share[kind][0], default="")
    return found if found and share[found][0] >= LIMITS else ""


def _enough_readers(stages: Mapping[str, StageStatus], share: Mapping[str, tuple[float, float, float]]) -> int | None:
    """How many readers would do beside an inference that is the limit, where half of them or fewer would."""
    readers = stages.get("reader")
    if readers is None:
        return None
    enough = max(1, math.ceil(round(readers.workers * share["reader"][0] / AIM, 6)))
    return enough if enough <= readers.workers / 2 else None


def _inference_limits(
    inference: str,
    busy: float,
    stages: Mapping[str, StageStatus],
    share: Mapping[str, tuple[float, float, float]],
    on_gpu: bool,
) -> str:
    text = f"{inference} busy {100 * busy:.0f} %: the model's own speed is the limit"
    if (enough := _enough_readers(stages, share)) is not None:
        text += f"; {enough} of {stages['reader'].workers} slide readers would do"
    return text if on_gpu else f"{text}; add inference processes if cores are free, or a GPU"
