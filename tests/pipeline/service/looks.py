"""Looks at a service, and a stand-in for its supervisor's answer, for tests."""

from __future__ import annotations

from typing import Any

from pipeline.service.snapshot import Gpu, Risk, Snapshot, Turnaround
from pipeline.status import StageStatus

KINDS = ("reader", "tissue", "batcher", "inference", "aggregator", "writer")


def snapshot(**more: Any) -> Snapshot:
    """A service that is well, with a figure in every field."""
    classes = {"stat": 1, "routine": 2}
    values: dict[str, Any] = {
        "time": 1_000_000.0,
        "version": "0.1.0",
        "started": 990_000.0,
        "answers": True,
        "ledger": True,
        "slides": {state: dict(classes) for state in ("waiting", "queued", "running", "retry_wait", "complete")},
        "finished": {state: dict(classes) for state in ("complete", "partial", "quarantined", "cancelled")},
        "failures": {"read_error": 3, "bad_slide": 1},
        "failing": {"bad_slide": 1},
        "oldest_s": {"stat": 12.5, "routine": 700.0},
        "turnaround": {"stat": Turnaround(4, 31.0, 44.0), "routine": Turnaround(90, 300.0, 900.0)},
        "risks": (Risk(7, "stat", -3.0),),
        "backlog": 9,
        "workable": True,
        "workable_s": 800.0,
        "held": {"disk_full": 1},
        "troubles": {"disk_full": 1, "disk_low": 2, "worker_lost": 1},
        "stuck": 1,
        "unsent": {"webhook": 2, "spool": 0},
        "patches_planned": 1000,
        "patches_inferred": 700,
        "patches_failed": 2,
        "patches_per_s": 55.5,
        "last_result": 999_990.0,
        "stages": tuple(StageStatus(kind, 2, 10.0, 5.0, 1.0, 1) for kind in KINDS),
        "slots": {"free": 3, "filling": 2, "ready": 1, "running": 4},
        "records": 5,
        "suspects": 1,
        "gpus": (Gpu("inference-0", "NVIDIA H100", 0.57, 5.7, 10, 600, 0.94, 8.1, 9.9, 4000.0, 70000.0, 410.0, 0.8),),
        "lost": {"inference-1": "killed by SIGKILL"},
        "bottleneck": "GPUs idle 43 %: add slide readers (12 -> 18)",
    }
    return Snapshot(**{**values, **more})


def answer(inferred: int = 100, **more: Any) -> dict[str, Any]:
    """What the supervisor answers to `status`, under "run"."""
    stages = [
        {"kind": kind, "workers": 1, "busy": 1.0, "waiting_input": 1.0, "waiting_room": 0.0, "restarts": 0}
        for kind in KINDS
    ]
    return {
        "patches_planned": 200,
        "patches_inferred": inferred,
        "patches_failed": 0,
        "stages": stages,
        "slots": {"free": 4},
        "records": 0,
        "suspects": 0,
        "telemetry": {"inference-0": {"seconds": 10.0, "busy_seconds": 5.0, "batches": 4, "rows": 100, "gpu_mib": 300}},
        "engines": {"inference-0": {"provider": "NVIDIA H100"}},
        "lost": {},
        "elapsed_s": 12.0,
        **more,
    }
