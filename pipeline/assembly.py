"""What a run and a lane of the service are put together from, beside their supervisor."""

from __future__ import annotations

import platform
import shutil
import sys
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from engines.model import Model
from pipeline import __version__, memory
from pipeline.config import Config, ConfigError
from pipeline.crew import Member, member
from pipeline.gpus import Placement
from pipeline.log import LogSink
from pipeline.models import joint_key, targets
from pipeline.rundir import RunDir, work_folder
from pipeline.staging import Staging, StagingError
from pipeline.status import Status
from pipeline.submissions import Earlier, Verdict
from pipeline.watch import Watch
from results.journal import inferred_before
from results.layout import name_problem
from results.summary import is_complete, read_summary
from slides.discover import Found, fingerprint
from slides.errors import SlideError

LIBRARIES = ("numpy", "onnxruntime", "openslide-python", "openslide-bin", "pyzmq", "msgpack")


def staging(config: Config) -> Staging | None:
    """The copies of slides on a local disk, where the configuration wants them. ConfigError: they cannot be made."""
    if config.slides.stage_dir is None:
        return None

    def warn(slide: str, reason: str) -> None:
        structlog.get_logger().warning(reason, slide=slide)

    limit, patience_s = int(config.slides.stage_gb * 1e9), config.slides.read_timeout_s
    try:
        return Staging(Path(config.slides.stage_dir).expanduser().absolute(), limit, patience_s, warn)
    except StagingError as error:
        raise ConfigError(f"slides.stage_dir {error}") from error


def open_sink(config: Config, out: Path, show: Callable[[str], None] | None = None) -> LogSink:
    """Where all log records of a run go. ConfigError where `out` cannot hold them."""
    try:
        file = out / "slidestream.log" if config.log.file else None
        return LogSink(config.log.format, sys.stderr, file, show, int(config.log.rotate_mb * 1e6), config.log.keep)
    except OSError as error:
        raise ConfigError(f"--out {out}: the log cannot be written ({error.strerror})") from error


def settings(
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
        "versions": versions(),
        "urgent_may_come": bool(batcher.urgent),
    }


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"slidestream": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def completed(
    folders: Sequence[Path], keys: Sequence[dict[str, str]], formats: Collection[str]
) -> Callable[[str, str], dict[str, Any] | None]:
    """Gives, for a slide's id and fingerprint, the (first) summary where the results of all models are complete."""

    def find(slide: str, digest: str) -> dict[str, Any] | None:
        earlier = [read_summary(folder, slide) for folder in folders]
        whole = all(
            is_complete(summary, {"fingerprint": digest, **own}, folder, formats)
            for summary, own, folder in zip(earlier, keys, folders, strict=True)
        )
        return earlier[0] if whole else None

    return find


def looker(
    folders: Sequence[Path], private: Path, keys: Sequence[dict[str, str]], formats: Collection[str]
) -> Callable[[Found], Earlier]:
    """What is known of a slide before it is submitted. It is complete when the results of all models are."""
    key, find = joint_key(keys), completed(folders, keys, formats)

    def look(slide: Found) -> Earlier:
        if too_long := name_problem(slide.id, formats):
            return Earlier({"fingerprint": "", **key}, too_long)
        try:
            digest = fingerprint(slide.path)
        except SlideError as error:
            return Earlier({"fingerprint": "", **key}, error.reason)
        mine = {"fingerprint": digest, **key}
        if (whole := find(slide.id, digest)) is not None:
            shutil.rmtree(work_folder(private, slide.id), ignore_errors=True)
            return Earlier(mine, complete=whole)
        begun = any(read_summary(folder, slide.id) is not None for folder in folders)
        return Earlier(mine, retry=begun, carried=inferred_before(work_folder(private, slide.id), mine))

    return look


def status_report(watch: Watch, now: Status) -> dict[str, Any]:
    """What `status` tells of a supervisor, as plain JSON."""
    report: Mapping[str, Any] = {name: watch.report.get(name) for name in ("slots", "suspects", "records", "telemetry")}
    return {**asdict(now), **report, "engines": watch.engines, "lost": watch.lost}


def recruiter(placement: Placement) -> Callable[[str, int], Member]:
    """For the supervisor: the worker of that number of a kind."""
    return lambda kind, index: member(kind, index, placement.devices)


def preparation(models: Sequence[Model], run: RunDir, placement: Placement) -> Callable[[], None]:
    """For the supervisor: makes what the inference workers need."""

    def ready() -> None:
        from engines.check import prepare

        if not placement.devices:  # an engine for a GPU has the folded model in it, and was found right
            for number, model in enumerate(models):
                prepare(model, run.folded(number))

    return ready


def tell_end(verdict: Verdict) -> None:
    """A slide is done: one line in the log."""
    logger = structlog.get_logger()
    say = logger.info if verdict.state == "complete" else logger.warning
    reason = {"reason": verdict.reason} if verdict.reason else {}
    say(f"slide {verdict.state}", slide=verdict.id, inferred=verdict.inferred, failed=verdict.failed, **reason)
