"""A snapshot of a run, and what can be said of it: speed, time left, and how stages spend their time. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One kind of process. The seconds are cumulative, summed over its workers, those that died included."""

    kind: str  # reader, tissue, batcher, inference, aggregator, writer
    workers: int
    busy: float
    waiting_input: float
    waiting_room: float
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """A run at one moment. `slides_done` are complete; failed and partial slides are counted apart.

    `patches_planned` counts the slides whose tissue mask is known; `active` has (slide id, patches done, patches planned).
    """

    slides_total: int
    slides_done: int = 0
    slides_failed: int = 0
    slides_partial: int = 0
    patches_planned: int = 0
    patches_inferred: int = 0
    patches_failed: int = 0
    stages: tuple[StageStatus, ...] = ()
    active: tuple[tuple[str, int, int], ...] = ()
    elapsed_s: float = 0.0

    @property
    def slides_finished(self) -> int:
        return self.slides_done + self.slides_failed + self.slides_partial

    @property
    def patches_finished(self) -> int:
        return self.patches_inferred + self.patches_failed


_WORDS = {
    "reader": "slide readers",
    "tissue": "tissue masks",
    "batcher": "batcher",
    "inference": "inference",
    "aggregator": "aggregator",
    "writer": "result writers",
}


def times(stages: Iterable[StageStatus]) -> dict[str, dict[str, float]]:
    """Workers and seconds of each stage by its kind, as run.json and the review page tell them."""
    return {
        stage.kind: {
            "workers": stage.workers,
            "working_s": round(stage.busy, 3),
            "waiting_input_s": round(stage.waiting_input, 3),
            "waiting_room_s": round(stage.waiting_room, 3),
            "restarts": stage.restarts,
        }
        for stage in stages
    }


def stage_name(kind: str) -> str:
    """A kind of process in words."""
    return _WORDS.get(kind, kind)


def rate(older: Status, newer: Status) -> float:
    """Patches a second between two snapshots."""
    seconds = newer.elapsed_s - older.elapsed_s
    return max(0.0, (newer.patches_finished - older.patches_finished) / seconds) if seconds > 0 else 0.0


def patches_left(status: Status) -> float | None:
    """Patches still to do; slides not yet planned count as the average of those that are. None when nothing is known."""
    left = max(0, status.patches_planned - status.patches_finished)
    planned = min(status.slides_total, status.slides_finished + len(status.active))
    unplanned = status.slides_total - planned
    if unplanned == 0:
        return float(left)
    counted = planned - status.slides_failed  # a failed slide may never have had a plan
    return None if counted <= 0 else left + unplanned * status.patches_planned / counted


def eta_s(status: Status, patches_per_s: float) -> float | None:
    """Seconds left at this speed, or None when that cannot be told."""
    left = patches_left(status)
    if left is None or (patches_per_s <= 0 and left > 0):
        return None
    return left / patches_per_s if left > 0 else 0.0


def shares(stage: StageStatus, older: StageStatus | None = None) -> tuple[float, float, float]:
    """(busy, waiting for input, waiting for room) as fractions of the time since `older`, or since the start."""
    spans = [
        stage.busy - (older.busy if older else 0.0),
        stage.waiting_input - (older.waiting_input if older else 0.0),
        stage.waiting_room - (older.waiting_room if older else 0.0),
    ]
    spans = [max(0.0, span) for span in spans]
    total = sum(spans)
    return (spans[0] / total, spans[1] / total, spans[2] / total) if total > 0 else (0.0, 0.0, 0.0)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
