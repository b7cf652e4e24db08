"""One look at the service: what health, metrics, the status page and `top` are made of. Plain values, no names of slides.

Names of slides can name patients, so they stay out of what goes to a monitoring system: a slide is its id in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pipeline.status import StageStatus


@dataclass(frozen=True, slots=True)
class Gpu:
    """One inference worker as its engine tells of it (`Engine.telemetry`). None: not told, as on a CPU.

    `busy` is the share of the last minute in which a batch was under way; the other figures are since the worker was ready,
    but p50, p99 (of the latest batches), memory, power and load, which are of now.
    """

    worker: str
    name: str = ""
    busy: float | None = None
    busy_s: float | None = None
    batches: int | None = None
    rows: int | None = None
    fill: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    memory_mib: float | None = None
    free_mib: float | None = None
    watts: float | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Risk:
    """An unfinished slide whose deadline alarm was raised, or whose deadline is over (`left_s` < 0)."""

    slide: int
    urgency: str
    left_s: float


@dataclass(frozen=True, slots=True)
class Turnaround:
    """From delivery to the complete result, over the latest complete slides of a class."""

    slides: int
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The service at `time` (seconds since 1970, as `started` and `last_result`).

    `answers`: the supervisor answered; if it did not, `problem` says why and all that only it knows is empty. `ledger`: the
    ledger could be read. `slides`: by state and class of urgency, now; `finished`: how often that happened, by state and
    class; `failures`: how often, by kind of reason; `failing`: by kind, slides in quarantine or waiting for another try.
    `backlog` are the unfinished slides, `workable` says that one of them could be worked on now (its folder and results
    are not held, its next try is due), `workable_s` for how long that was seen at every look.
    `troubles`: by kind, why the service goes on with less (pipeline.service.troubles). `patches_*` are since the service started. `stages` have seconds since then, summed over their workers.
    """

    time: float
    version: str = ""
    started: float | None = None
    answers: bool = False
    ledger: bool = False
    problem: str = ""
    draining: bool = False
    slides: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    finished: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    failing: Mapping[str, int] = field(default_factory=dict)
    oldest_s: Mapping[str, float] = field(default_factory=dict)
    turnaround: Mapping[str, Turnaround] = field(default_factory=dict)
    risks: tuple[Risk, ...] = ()
    backlog: int = 0
    workable: bool = False
    workable_s: float = 0.0
    held: Mapping[str, int] = field(default_factory=dict)
    troubles: Mapping[str, int] = field(default_factory=dict)
    stuck: int = 0
    unsent: Mapping[str, int] = field(default_factory=dict)
    patches_planned: int = 0
    patches_inferred: int = 0
    patches_failed: int = 0
    patches_per_s: float | None = None
    last_result: float | None = None
    stages: tuple[StageStatus, ...] = ()
    slots: Mapping[str, int] = field(default_factory=dict)
    records: int = 0
    suspects: int = 0
    gpus: tuple[Gpu, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)
    bottleneck: str = ""

    @property
    def last_result_age_s(self) -> float | None:
        """Seconds since a patch was last settled, as far as is known."""
        return None if self.last_result is None else max(0.0, self.time - self.last_result)

    def workers(self, kind: str) -> int:
        """How many processes of a stage are at work or ready for it."""
        return sum(stage.workers for stage in self.stages if stage.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "last_result_age_s": self.last_result_age_s}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, also after a way through JSON. TypeError where it is something else."""
        fields = {name: value for name, value in values.items() if name != "last_result_age_s"}
        return cls(
            **{
                **fields,
                "turnaround": {name: Turnaround(**value) for name, value in fields.get("turnaround", {}).items()},
                "risks": tuple(Risk(**value) for value in fields.get("risks", ())),
                "stages": tuple(StageStatus(**value) for value in fields.get("stages", ())),
                "gpus": tuple(Gpu(**value) for value in fields.get("gpus", ())),
            }
        )
