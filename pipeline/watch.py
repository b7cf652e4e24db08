"""What the supervisor knows of a run: the batcher's reports added up, the telemetry of engines, and what was lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SAMPLES = 120  # of each worker's memory; when they are full every other one is dropped
GROWTH_MIB = 256  # more than this, and more than a tenth, since a worker was warm: it grows
_WARM_SAMPLES = 3


@dataclass(slots=True)
class Gauge:
    """The telemetry of one inference worker: its last word, and its memory on the GPU over time."""

    last: dict[str, float] = field(default_factory=dict)
    memory_mib: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the run began, MiB)."""
    warned: bool = False
    _every_s: float = 1.0

    def take(self, values: dict[str, float], at: float) -> None:
        if values.get("batches", 0) < self.last.get("batches", 0):  # another process under the same name
            self.memory_mib, self.warned = [], False
        self.last = values
        memory = values.get("gpu_mib")
        if memory is None or (self.memory_mib and at - self.memory_mib[-1][0] < self._every_s):
            return
        self.memory_mib.append((round(at, 1), memory))
        if len(self.memory_mib) > SAMPLES:
            self.memory_mib = self.memory_mib[::2]
            self._every_s *= 2

    def grown_mib(self) -> float:
        """MiB that it has grown by since it was warm, where that is worth a warning; told once, then 0."""
        if self.warned or len(self.memory_mib) <= _WARM_SAMPLES:
            return 0.0
        first, now = self.memory_mib[_WARM_SAMPLES - 1][1], self.memory_mib[-1][1]
        self.warned = now - first > max(GROWTH_MIB, first / 10)
        return now - first if self.warned else 0.0


@dataclass(slots=True)
class Watch:
    """For the display and run.json. `lost`: workers that were given up, with the reason. `cpu_s`: processor time by kind of
    worker, of those that have ended."""

    report: dict[str, Any] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    started_at: float = 0.0
    first_result_s: float | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    at_first_result: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`stages` when the first result was known: before it, processes start and engines are loaded."""
    gauges: dict[str, Gauge] = field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    _before: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, report: dict[str, Any], at: float) -> None:
        """A report of the batcher. Each batcher counts seconds from its own start; `stages` has the sums over all."""
        if report["boot"] != self.report.get("boot"):
            self._before = self.stages
        self.report = report
        self.stages = {
            kind: {name: value + self._earlier(kind, name) for name, value in stage.items()}
            for kind, stage in report["stages"].items()
        }
        for kind, stage in self._before.items():
            self.stages.setdefault(kind, {**stage, "workers": 0})
        for name, values in report["telemetry"].items():
            self.gauges.setdefault(name, Gauge()).take(values, at)
        self.engines.update(report["engines"])

    def _earlier(self, kind: str, name: str) -> float:
        return self._before.get(kind, {}).get(name, 0.0) if name.endswith("_s") else 0
