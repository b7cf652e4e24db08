"""Looking at the service from outside: the ledger, read-only, and one question to the supervisor. Gives a Snapshot.

Not for sharing between threads: the connection to the ledger belongs to the one that looks first.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.balance import bottleneck
from pipeline.service.figures import Facts, Figures
from pipeline.service.migrations import LedgerError
from pipeline.service.recent import Recent, Sample
from pipeline.service.snapshot import Gpu, Snapshot
from pipeline.status import StageStatus

ANSWER_S = 2.0  # a supervisor that is well answers within its loop, a tenth of a second

_STAGE_FIELDS = tuple(field.name for field in fields(StageStatus))
# Fields of Gpu by what engines call them (engines.engine.Engine.telemetry).
_TELEMETRY = {
    "busy_s": "busy_seconds",
    "batches": "batches",
    "rows": "rows",
    "fill": "fill",
    "p50_ms": "batch_ms_p50",
    "p99_ms": "batch_ms_p99",
    "memory_mib": "gpu_mib",
    "free_mib": "gpu_free_mib",
    "watts": "gpu_watts",
    "load": "gpu_load",
}


class Unanswered(Exception):
    """The supervisor does not answer; the text says why, in one line."""


Ask = Callable[[dict[str, Any], float], dict[str, Any]]
"""Question and patience in seconds; gives the answer, or raises Unanswered."""


class Sampler:
    """Looks when asked to, and remembers the last minute."""

    def __init__(self, ledger: Path, ask: Ask, version: str = "", cores: int | None = None) -> None:
        self._path, self._ask, self._version, self._cores = ledger, ask, version, cores
        self._figures: Figures | None = None
        self._recent = Recent()
        self._began = time.time()

    def look(self) -> Snapshot:
        """The service now. Never raises for what a service in trouble does: the Snapshot says what could not be seen."""
        now, problem = time.time(), ""
        try:
            run = self._ask({"do": "status"}, ANSWER_S).get("run", {})
        except Unanswered as silence:
            run, problem = None, str(silence)
        facts: Facts | None = None
        try:
            if self._figures is None:
                self._figures = Figures.open(self._path)
            facts = self._figures.facts(now)
        except (LedgerError, sqlite3.Error) as error:
            self._forget_ledger()
            problem = problem or f"the ledger cannot be read: {error}"
        if run is not None:
            self._recent.add(sample(run, time.monotonic()))
        return snapshot(facts, run, self._recent, now, time.monotonic(), problem, self._version, self._cores)

    def close(self) -> None:
        """Let go of the ledger."""
        self._forget_ledger()

    def _forget_ledger(self) -> None:
        if self._figures is not None:
            self._figures.close()
            self._figures = None


def sample(run: Mapping[str, Any], at: float) -> Sample:
    """The counters in what the supervisor answered."""
    return Sample(
        at=at,
        patches=int(run.get("patches_inferred", 0)) + int(run.get("patches_failed", 0)),
        stages=_stages(run),
        gpus=run.get("telemetry") or {},
    )


def snapshot(
    facts: Facts | None,
    run: Mapping[str, Any] | None,
    recent: Recent,
    now: float,
    at: float,
    problem: str = "",
    version: str = "",
    cores: int | None = None,
) -> Snapshot:
    """Puts together what was seen. `facts`: None where the ledger could not be read; `run`: the supervisor's answer, None
    where there was none; `recent` has had the answer's sample; `now` in seconds since 1970, `at` on the clock of `recent`.
    """
    ours = {
        "time": now,
        "version": version,
        "answers": run is not None,
        "ledger": facts is not None,
        "problem": problem,
    }
    ledger = {} if facts is None else {field.name: getattr(facts, field.name) for field in fields(facts)}
    last = ledger.pop("last_result", None)
    ledger["workable_s"] = recent.workable_s(facts is not None and facts.workable, at)
    if recent.progress_at is not None:
        last = max(last or 0.0, now - (at - recent.progress_at))
    if run is None:
        return Snapshot(**ours, **ledger, last_result=last)
    stages, older = _stages(run), recent.oldest
    gpus = _gpus(run, recent)
    elapsed = run.get("elapsed_s")
    return Snapshot(
        **ours,
        **ledger,
        last_result=last,
        started=None if elapsed is None else now - elapsed,
        draining=bool(run.get("draining", False)),
        patches_planned=recent.highest("planned", int(run.get("patches_planned", 0))),
        patches_inferred=recent.highest("inferred", int(run.get("patches_inferred", 0))),
        patches_failed=recent.highest("failed", int(run.get("patches_failed", 0))),
        patches_per_s=recent.patches_per_s(),
        stages=stages,
        slots=dict(run.get("slots") or {}),
        records=int(run.get("records") or 0),
        suspects=int(run.get("suspects") or 0),
        gpus=gpus,
        lost=dict(run.get("lost") or {}),
        bottleneck=bottleneck(
            stages,
            older.stages if older is not None else (),
            backlog=ledger.get("backlog", 0),
            on_gpu=bool(gpus),
            cores=cores,
        ),
    )


def _stages(run: Mapping[str, Any]) -> tuple[StageStatus, ...]:
    """As the supervisor has them: StageStatus as dicts."""
    return tuple(StageStatus(**{name: stage[name] for name in _STAGE_FIELDS}) for stage in run.get("stages", ()))


def _gpus(run: Mapping[str, Any], recent: Recent) -> tuple[Gpu, ...]:
    """Of an ensemble, whose engines have figures of their own as "<model>: <figure>", those that are common to all."""
    engines = run.get("engines") or {}
    return tuple(
        Gpu(
            worker=worker,
            name=str(engines.get(worker, {}).get("provider", "")),
            busy=recent.gpu_busy(worker),
            **{ours: values.get(theirs) for ours, theirs in _TELEMETRY.items()},
        )
        for worker, values in sorted((run.get("telemetry") or {}).items())
    )
