"""One run over some slides: everything between the command line and the supervisor."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from engines.model import Model
from engines.probe import probe
from pipeline import __version__, log, memory
from pipeline.config import Config, ConfigError, memory_bound, resolve
from pipeline.crew import Member, crew, member
from pipeline.gpus import Placement, build_engine
from pipeline.log import LogSink
from pipeline.machine import MIB, detect
from pipeline.models import joint_key, load_models, result_folders, result_keys, sizes, targets
from pipeline.outcome import exit_code, run_record, snapshot, summary
from pipeline.outdir import hold, run_directory
from pipeline.placement import place_all, result_hashes
from pipeline.progress import Progress
from pipeline.rundir import RunDir, work_folder
from pipeline.staging import Staging, StagingError
from pipeline.status import bottleneck
from pipeline.submissions import Earlier, Submissions, Verdict
from pipeline.supervisor import Ending, Supervisor
from pipeline.watch import Watch
from results.atomic import write_atomic
from results.journal import inferred_before
from results.summary import is_complete, read_summary
from slides.discover import Found, fingerprint
from slides.errors import SlideError

LIBRARIES = ("numpy", "onnxruntime", "openslide-python", "openslide-bin", "pyzmq", "msgpack")


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
        sink = _open_sink(config, out, progress)
        log.configure("supervisor", "json", config.log.level, sink)
        logger = structlog.get_logger()
        for notice in (*placement.notices, *notices):
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
            settings = _settings(private, out, config, models, keys)
            look = _looker(folders, private, keys, config.results.formats)
            staging = _staging(config)
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
        print(summary(record, shown), file=sys.stderr, flush=True)
    return Result(code, record)


def _staging(config: Config) -> Staging | None:
    if config.slides.stage_dir is None:
        return None

    def warn(slide: str, reason: str) -> None:
        structlog.get_logger().warning(reason, slide=slide)

    limit, patience_s = int(config.slides.stage_gb * 1e9), config.slides.read_timeout_s
    try:
        return Staging(Path(config.slides.stage_dir).expanduser().absolute(), limit, patience_s, warn)
    except StagingError as error:
        raise ConfigError(f"slides.stage_dir {error}") from error


def _open_sink(config: Config, out: Path, progress: Progress) -> LogSink:
    try:
        return LogSink(
            config.log.format, sys.stderr, out / "slidestream.log" if config.log.file else None, progress.log
        )
    except OSError as error:
        raise ConfigError(f"--out {out}: the log cannot be written ({error.strerror})") from error


def _settings(
    private: Path, out: Path, config: Config, models: Sequence[Model], keys: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """What the workers read: plain JSON, so that they need neither YAML nor pydantic."""
    batcher = config.batcher
    layout = memory.Layout(
        batcher.slots, batcher.batch, models[0].patch_px, batcher.overview_slots, config.slides.overview_px
    )
    return {
        "run": uuid.uuid4().hex,
        "out": str(out),
        "private": str(private),
        "layout": layout.to_dict(),
        "config": config.model_dump(mode="json"),
        "models": [model.describe() for model in models],
        "results": targets(models, out, keys, config.results.heatmap_class),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"slidestream": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def _looker(
    folders: Sequence[Path], private: Path, keys: Sequence[dict[str, str]], formats: Collection[str]
) -> Callable[[Found], Earlier]:
    """What is known of a slide before it is submitted. It is complete when the results of all models are."""
    key = joint_key(keys)

    def look(slide: Found) -> Earlier:
        try:
            digest = fingerprint(slide.path)
        except SlideError as error:
            return Earlier({"fingerprint": "", **key}, error.reason)
        mine = {"fingerprint": digest, **key}
        earlier = [read_summary(folder, slide.id) for folder in folders]
        if all(
            is_complete(summary, {"fingerprint": digest, **own}, folder, formats)
            for summary, own, folder in zip(earlier, keys, folders, strict=True)
        ):
            shutil.rmtree(work_folder(private, slide.id), ignore_errors=True)
            return Earlier(mine, complete=earlier[0])
        begun = any(summary is not None for summary in earlier)
        return Earlier(mine, retry=begun, carried=inferred_before(work_folder(private, slide.id), mine))

    return look


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
    from engines.check import prepare

    submissions.skim()
    if submissions.finished:
        return Ending(0), Watch(started_at=time.monotonic()), 0.0
    layout = memory.Layout(**settings["layout"])
    run.settings.write_text(json.dumps(settings))
    logger = structlog.get_logger()

    def watching(watch: Watch) -> None:
        progress.update(snapshot(watch, submissions, time.monotonic() - watch.started_at))

    def ended(verdict: Verdict) -> None:
        say = logger.info if verdict.state == "complete" else logger.warning
        reason = {"reason": verdict.reason} if verdict.reason else {}
        say(f"slide {verdict.state}", slide=verdict.id, inferred=verdict.inferred, failed=verdict.failed, **reason)

    def status(question: dict[str, Any]) -> dict[str, Any]:
        now = snapshot(supervisor.watch, submissions, time.monotonic() - supervisor.watch.started_at)
        lines = [progress.now(), bottleneck(now.stages)]
        lines += [f"{name} was given up: {reason}" for name, reason in supervisor.watch.lost.items()]
        report = {name: supervisor.watch.report.get(name) for name in ("slots", "suspects", "records", "telemetry")}
        return {"lines": lines, "run": {**asdict(now), **report, "lost": supervisor.watch.lost}}

    def ready() -> None:
        if not placement.devices:  # an engine for a GPU has the folded model in it, and was found right
            for number, model in enumerate(models):
                prepare(model, run.folded(number))

    def recruit(kind: str, index: int) -> Member:
        return member(kind, index, placement.devices)

    memory_fd = memory.create(layout)
    try:
        workers = crew(config, placement.devices)
        supervisor = Supervisor(
            run, memory_fd, settings, workers, recruit, submissions, sink, watching, ended, {"status": status}
        )
        began = time.monotonic()
        ending = supervisor.run(ready)
        return ending, supervisor.watch, time.monotonic() - began
    finally:
        os.close(memory_fd)
