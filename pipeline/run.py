"""One run over some slides: everything between the command line and the supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from engines.model import Model
from engines.probe import probe
from pipeline import assembly, log, memory
from pipeline.config import Config, memory_bound, resolve
from pipeline.crew import crew
from pipeline.gpus import Placement, build_engine
from pipeline.limits import bound_notices
from pipeline.log import LogSink
from pipeline.machine import MIB, detect
from pipeline.models import load_models, result_folders, result_keys, size_notices, sizes
from pipeline.outcome import exit_code, run_record, said_bottleneck, snapshot, summary
from pipeline.outdir import hold, run_directory
from pipeline.placement import place_all, result_hashes
from pipeline.progress import Progress
from pipeline.rundir import RunDir, work_folder
from pipeline.staging import Staging
from pipeline.submissions import Submissions
from pipeline.supervisor import Ending, Supervisor
from pipeline.watch import Watch
from results.atomic import write_atomic
from slides.discover import Found


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the configuration."""

    out: Path
    progress: str = "auto"


@dataclass(frozen=True, slots=True)
class Result:
    """Exit code, and the contents of run.json."""

    code: int
    record: dict[str, Any]


def run_slides(found: list[Found], config: Config, options: Options, notices: list[str]) -> Result:
    """Run the pipeline over `found`. ConfigError, ModelError, MemoryLack where it cannot start."""
    began = datetime.now(UTC)
    models = load_models(config)
    facts = sizes(models)
    placement = place_all(config, models, probe, lambda wanted, model: build_engine(wanted, model, found))
    config = resolve(placement.config, detect(), **facts, gpus=len(placement.devices), gpu_batch=placement.batch)
    bound = memory_bound(config, **facts)
    out = options.out.absolute()
    folders = result_folders(out, models)
    with hold(out, folders) as private, run_directory(private) as run:
        progress = Progress(options.progress, total_slides=len(found))
        sink = assembly.open_sink(config, out, progress.log)
        log.configure("supervisor", "json", config.log.level, sink)
        logger = structlog.get_logger()
        for notice in (*placement.notices, *size_notices(models), *bound_notices(bound, detect()), *notices):
            logger.warning(notice)
        logger.info(
            "starting",
            slides=len(found),
            model=", ".join(model.name for model in models),
            out=str(out),
            memory_at_most_mib=sum(size for _, size in bound) // MIB,
            **({"gpus": [str(device.gpu) for device in placement.devices]} if placement.devices else {}),
        )
        staging: Staging | None = None
        try:
            keys = result_keys(models, result_hashes(config, placement, models))
            settings = assembly.settings(private, out, config, models, keys)
            look = assembly.looker(folders, private, keys, config.results.formats)
            staging = assembly.staging(config)
            submissions = Submissions(found, config.batcher.urgent, look, staging)
            ending, watch, elapsed_s = _supervise(run, settings, config, models, placement, submissions, sink, progress)
        finally:
            if staging is not None:
                staging.close()
            progress.close()
        for verdict in submissions.verdicts.values():
            if verdict.state == "complete":  # an aggregator that was killed at the end may have left its journal
                shutil.rmtree(work_folder(private, verdict.id), ignore_errors=True)
        code = exit_code(ending, list(submissions.verdicts.values()))
        invocation = {"started": began.isoformat(timespec="seconds"), "command": sys.argv, "host": platform.node()}
        total = sum(size for _, size in bound)
        invocation["gpus"] = [device.to_dict() for device in placement.devices]
        record = run_record(settings, watch, submissions, Ending(code, ending.reason), elapsed_s, total, invocation)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomic(out / "run.json", lambda file: file.write(text.encode("utf-8", "surrogateescape")))
        except OSError as error:
            logger.error("run.json not written", reason=str(error))
        sink.close()
    if options.progress != "silent":
        shown = [str(folder) for folder in result_folders(options.out, models)]
        with contextlib.suppress(OSError):  # nobody listens any more; run.json has it all
            print(summary(record, shown), file=sys.stderr, flush=True)
    return Result(code, record)


def _supervise(
    run: RunDir,
    settings: dict[str, Any],
    config: Config,
    models: Sequence[Model],
    placement: Placement,
    submissions: Submissions,
    sink: LogSink,
    progress: Progress,
) -> tuple[Ending, Watch, float]:
    submissions.skim()
    if submissions.finished:
        return Ending(0), Watch(started_at=time.monotonic()), 0.0
    layout = memory.Layout(**settings["layout"])
    run.settings.write_text(json.dumps(settings))
    ready, recruit = assembly.preparation(models, run, placement), assembly.recruiter(placement)

    def watching(watch: Watch) -> None:
        progress.update(snapshot(watch, submissions, time.monotonic() - watch.started_at))

    def status(question: dict[str, Any]) -> dict[str, Any]:
        now = snapshot(supervisor.watch, submissions, time.monotonic() - supervisor.watch.started_at)
        lines = [progress.now(), said_bottleneck(supervisor.watch, bool(placement.devices))]
        lines += [f"{name} was given up: {reason}" for name, reason in supervisor.watch.lost.items()]
        return {"lines": lines, "run": assembly.status_report(supervisor.watch, now)}

    memory_fd = memory.create(layout)
    try:
        workers = crew(config, placement.devices)
        supervisor = Supervisor(
            run,
            memory_fd,
            settings,
            workers,
            recruit,
            submissions,
            sink,
            watching,
            assembly.tell_end,
            {"status": status},
        )
        began = time.monotonic()
        ending = supervisor.run(ready)
        return ending, supervisor.watch, time.monotonic() - began
    finally:
        os.close(memory_fd)
