"""What the pipeline that writes a results folder is doing: the run that is under way, else what the last one said."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from review.catalogue import Catalogue
from review.entry import Entry, iso

ANSWER_S = 2.0
_FAILURES = 50


def operations(catalogue: Catalogue) -> dict[str, Any]:
    """The figures. `live`: a run is under way and answered; `source`: whose figures these are, "run" or "none"."""
    entries = catalogue.look()
    status = _ask(catalogue.results) if catalogue.run.alive else None
    now = iso(time.time())
    base = {"at": now, "live": status is not None, "failures": failures(entries.values())}
    if status is not None:
        return {**base, "source": "service", **running(status)}
    if catalogue.run.record is not None:
        return {**base, "source": "run", **over(catalogue.run.record)}
    return {
        **base,
        "source": "none",
        "bottleneck": "",
        "patches_per_s": None,
        "slides": {},
        "stages": {},
        "queues": {},
        "gpus": [],
    }


def running(status: Mapping[str, Any]) -> dict[str, Any]:
    """From the answer of a run's control socket."""
    from pipeline.balance import bottleneck
    from pipeline.status import StageStatus, times

    stages = [StageStatus(**stage) for stage in status["stages"]]
    done = sum(status[f"slides_{name}"] for name in ("done", "partial", "failed"))
    elapsed = status["elapsed_s"]
    finished = status["patches_inferred"] + status["patches_failed"]
    engines = status.get("engines") or {}
    return {
        "bottleneck": bottleneck(stages, backlog=1, on_gpu=any(engine.get("gpu") for engine in engines.values())),
        "patches_per_s": round(finished / elapsed, 2) if elapsed > 0 else None,
        "slides": {
            "total": status["slides_total"],
            "complete": status["slides_done"],
            "partial": status["slides_partial"],
            "failed": status["slides_failed"],
            "unfinished": status["slides_total"] - done,
        },
        "patches": {name: status[f"patches_{name}"] for name in ("planned", "inferred", "failed")},
        "stages": times(stages),
        "queues": {"slots": status.get("slots"), "records": status.get("records"), "suspects": status.get("suspects")},
        "gpus": [
            {"name": engine.get("gpu") or name, **engine} for name, engine in engines.items() if engine.get("gpu")
        ],
        "lost": status.get("lost") or {},
    }


def over(record: Mapping[str, Any]) -> dict[str, Any]:
    """From run.json."""
    return {
        "bottleneck": record.get("bottleneck") or "",
        "patches_per_s": record.get("patches_per_s"),
        "slides": record.get("slides") or {},
        "patches": record.get("patches") or {},
        "stages": record.get("stages") or {},
        "queues": {},
        "gpus": record.get("gpus") or [],
        "lost": record.get("lost") or {},
        "started": record.get("started"),
        "seconds": record.get("seconds"),
        "reason": record.get("reason") or None,
    }


def failures(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The latest slides that are not complete, with the reason."""
    bad = [entry for entry in entries if entry.state in ("failed", "partial")]
    bad.sort(key=lambda entry: entry.finished or "", reverse=True)
    return [
        {"slide": entry.id, "key": entry.key, "state": entry.state, "reason": entry.reason, "time": entry.finished}
        for entry in bad[:_FAILURES]
    ]


def _ask(results: Path) -> dict[str, Any] | None:
    from pipeline.control import ask
    from pipeline.overrides import ConfigError

    try:
        return ask(results, {"do": "status"}, ANSWER_S).get("run")
    except (ConfigError, OSError):
        return None  # it has just ended, or is too busy
