"""What a run amounts to: the snapshot for the display, the final summary, and run.json. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.balance import bottleneck
from pipeline.machine import detect
from pipeline.status import StageStatus, Status, duration, times
from pipeline.submissions import Source, Submissions, Verdict
from pipeline.supervisor import Ending
from pipeline.watch import Gauge, Watch

STAGES = ("reader", "tissue", "batcher", "inference", "aggregator", "writer")
FAILURES_SHOWN = 20


def snapshot(watch: Watch, submissions: Source, elapsed_s: float) -> Status:
    """The run at this moment."""
    tally = submissions.tally
    # The last report may still have slides in it that are done since: each counts once.
    active = [entry[1:] for entry in watch.report.get("active", []) if entry[0] in submissions.under_way]
    return Status(
        slides_total=submissions.total,
        slides_done=tally.slides.get("complete", 0),
        slides_failed=tally.slides.get("failed", 0),
        slides_partial=tally.slides.get("partial", 0),
        patches_planned=tally.planned + sum(planned for _, _, _, planned in active),
        patches_inferred=tally.inferred + sum(inferred for _, inferred, _, _ in active),
        patches_failed=tally.failed + sum(failed for _, _, failed, _ in active),
        stages=stages(watch),
        active=tuple((slide, inferred + failed, planned) for slide, inferred, failed, planned in active),
        elapsed_s=elapsed_s,
    )


def said_bottleneck(watch: Watch, on_gpu: bool) -> str:
    """The bottleneck of a run since its first result, in words; of one that had none, or was over with it, since its start.

    While an engine loads, the others wait, and nothing that is said of that would make a longer run faster.
    """
    first = watch.at_first_result if _inferring_s(watch.stages) > _inferring_s(watch.at_first_result) else {}
    return bottleneck(stages(watch), _stages(first, {}), backlog=1, on_gpu=on_gpu, cores=detect().cores)


def _inferring_s(measured: Mapping[str, Mapping[str, Any]]) -> float:
    return measured.get("inference", {}).get("working_s", 0.0)


def stages(watch: Watch) -> tuple[StageStatus, ...]:
    """The stages in the order of the data."""
    return _stages(watch.stages, watch.restarts)


def _stages(measured: Mapping[str, Mapping[str, Any]], restarts: Mapping[str, int]) -> tuple[StageStatus, ...]:
    return tuple(
        StageStatus(
            kind,
            measured[kind]["workers"],
            measured[kind]["working_s"],
            measured[kind]["waiting_input_s"],
            measured[kind]["waiting_room_s"],
            restarts.get(kind, 0),
        )
        for kind in STAGES
        if kind in measured
    )


def run_record(
    settings: dict[str, Any],
    watch: Watch,
    submissions: Submissions,
    ending: Ending,
    elapsed_s: float,
    memory_bound_bytes: int,
    invocation: dict[str, Any],
) -> dict[str, Any]:
    """The contents of run.json: see docs/results.md."""
    status = snapshot(watch, submissions, elapsed_s)
    verdicts = sorted(submissions.verdicts.items())
    begun = {v.id for _, v in verdicts if not v.skipped} | {entry[1] for entry in watch.report.get("active", [])}
    carried = sum(submissions.carried.get(slide, 0) for slide in begun)
    done_now = max(0, status.patches_inferred - carried)
    models = settings["models"]
    return {
        **invocation,
        "run": settings["run"],
        "versions": settings["versions"],
        "exit_code": ending.code,
        "reason": ending.reason,
        "seconds": round(elapsed_s, 3),
        "first_result_s": None if watch.first_result_s is None else round(watch.first_result_s, 3),
        "slides": {
            "total": status.slides_total,
            "complete": status.slides_done,
            "skipped": sum(1 for _, v in verdicts if v.skipped),
            "partial": status.slides_partial,
            "failed": status.slides_failed,
            "unfinished": status.slides_total - status.slides_finished,
        },
        "patches": {
            "planned": status.patches_planned,
            "inferred": status.patches_inferred,
            "failed": status.patches_failed,
            "inferred_before": carried,
        },
        "patches_per_s": round(done_now / elapsed_s, 2) if elapsed_s > 0 else 0.0,
        "stages": {
            kind: {**spent, "cpu_s": round(watch.cpu_s.get(kind, 0.0), 2)}
            for kind, spent in times(status.stages).items()
        },
        "bottleneck": said_bottleneck(watch, bool(invocation.get("gpus"))),
        "memory_bound_bytes": memory_bound_bytes,
        **({"model": models[0]} if len(models) == 1 else {"models": models}),
        "engine": watch.report.get("engine", {}),
        "engines": {name: engine_record(engine, watch.gauges.get(name)) for name, engine in watch.engines.items()},
        "lost": watch.lost,
        "configuration": settings["config"],
        "failures": [
            {"slide": v.id, "path": v.path, "state": v.state, "reason": v.reason}
            for _, v in verdicts
            if v.state != "complete"
        ],
    }


def engine_record(engine: dict[str, Any], gauge: Gauge | None) -> dict[str, Any]:
    """What one inference worker ran, and how it went, for run.json."""
    if gauge is None:
        return {**engine}
    return {**engine, **gauge.last, "memory_mib_over_seconds": gauge.memory_mib}


def summary(record: dict[str, Any], results: Sequence[str]) -> str:
    """The last words of a run, for a person; `results` are the folders that they lie in."""
    slides, patches = record["slides"], record["patches"]
    skipped = f" ({slides['skipped']} of them before this run)" if slides["skipped"] else ""
    parts = [f"{slides['complete']} of {_slides(slides['total'])} complete{skipped}"]
    parts += [f"{slides[state]} {state}" for state in ("partial", "failed", "unfinished") if slides[state]]
    lines = [", ".join(parts)]
    if patches["planned"]:
        failed = f", {patches['failed']} failed" if patches["failed"] else ""
        lines.append(
            f"{patches['inferred']} patches inferred{failed} in {duration(record['seconds'])}: "
            f"{record['patches_per_s']:.0f} patches/s"
        )
        lines.append(f"bottleneck: {record['bottleneck']}")
    lines += [f"DEGRADED: {name} was given up: {reason}" for name, reason in record["lost"].items()]
    failures = record["failures"]
    lines += [f"{entry['state']}: {_shown(entry['slide'])}: {entry['reason']}" for entry in failures[:FAILURES_SHOWN]]
    if len(failures) > FAILURES_SHOWN:
        lines.append(f"... and {len(failures) - FAILURES_SHOWN} more: see run.json")
    if record["reason"]:
        lines.append(record["reason"])
    lines.append(f"results: {', '.join(results)}")
    return "\n".join(lines)


def exit_code(ending: Ending, verdicts: list[Verdict]) -> int:
    """That of the ending, or 1 where every slide is done but not every one is complete."""
    if ending.code:
        return ending.code
    return 0 if all(verdict.state == "complete" for verdict in verdicts) else 1


def _slides(count: int) -> str:
    return "1 slide" if count == 1 else f"{count} slides"


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)
