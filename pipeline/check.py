"""What `slidestream check` tells: the resolved plan, what each stage will use, and whether this machine can do it.

Each finding is one line that starts with ok, warn or FAIL. The probes touch the machine but change nothing on it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.errors import ModelError
from engines.probe import probe
from pipeline import __version__
from pipeline.config import Config, ConfigError, memory_bound, resolve
from pipeline.gpus import ON_GPUS, Placement
from pipeline.machine import MIB, Machine, available_memory, detect
from pipeline.models import load_models, prove_size, size_notices
from pipeline.outdir import unwritable
from pipeline.placement import place_all
from pipeline.sizing import (
    SLIDE_PATCHES,
    TYPICAL_CLASSES,
    TYPICAL_MODEL_BYTES,
    TYPICAL_PATCH_PX,
    bytes_per_patch,
    slots_wanted,
)

GPU_PROBE_S = 10.0
FILES_WANTED = 1024  # of one process: sockets, pipes and the files of the slides held open
DISK_WANTED = 1 << 30
# OpenSlide has no call that lists them; these are the vendors of OpenSlide 4.
OPENSLIDE_FORMATS = (
    "Aperio SVS, DICOM, generic tiled TIFF, Hamamatsu NDPI and VMS, Leica SCN, MIRAX, Philips TIFF, Sakura, Trestle, "
    "Ventana BIF, Zeiss CZI"
)

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: str() is the line that is printed."""

    level: Level
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what:<12} {self.text}"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What sizes need to know of a model, or of several together."""

    patch_px: int = TYPICAL_PATCH_PX
    classes: int = TYPICAL_CLASSES
    bytes: int = TYPICAL_MODEL_BYTES
    models: int = 1


def report(config: Config, out: Path | None = None, machine: Machine | None = None) -> tuple[list[str], bool]:
    """All findings as lines, and whether this machine can do it (no FAIL). `out` is the results folder, if it is known."""
    machine = detect() if machine is None else machine
    service: list[Finding] = []
    if config.service.routes:
        from pipeline.service.check_routes import check_service

        service = [Finding(*found) for found in check_service(config, machine, probe)]
        config = config.service.routes[0].over(config)  # the rest is told of the first lane
    facts, model = check_model(config)
    placement, gpus = check_gpus(config)
    sized = resolve(
        placement.config,
        machine,
        patch_px=facts.patch_px,
        classes=facts.classes,
        model_bytes=facts.bytes,
        models=facts.models,
        gpus=len(placement.devices),
        gpu_batch=placement.batch,
    )
    findings = [
        *check_versions(),
        Finding("ok", "cores", f"{machine.cores} ({machine.cores_source})"),
        Finding("ok", "memory", f"{size(machine.memory_bytes)} ({machine.memory_source})"),
        *check_openslide(),
        *check_onnxruntime(),
        *gpus,
        *model,
        *plan(sized, machine),
        *check_memory(sized, machine, facts, available_memory()),
        *check_limits(sized),
        *(check_out(out) if out is not None else ()),
        *service,
    ]
    return [str(finding) for finding in findings], all(finding.level != "FAIL" for finding in findings)


def size(count: float) -> str:
    """Bytes in words: 512 MiB, 1.5 GiB."""
    return f"{count / MIB:,.0f} MiB" if count < 1024 * MIB else f"{count / MIB / 1024:,.1f} GiB"


def check_versions() -> Iterator[Finding]:
    yield Finding("ok", "slidestream", f"{__version__} on Python {platform.python_version()}, {platform.platform()}")


def check_openslide() -> Iterator[Finding]:
    try:
        import openslide
    except (ImportError, OSError) as error:
        yield Finding(
            "FAIL", "OpenSlide", f"cannot be loaded: {_line(error)}; install openslide-python and openslide-bin"
        )
        return
    versions = f"{openslide.__library_version__}, openslide-python {openslide.__version__}"
    yield Finding("ok", "OpenSlide", f"{versions}: {OPENSLIDE_FORMATS}")


def check_onnxruntime() -> Iterator[Finding]:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        yield Finding("FAIL", "ONNX Runtime", f"cannot be loaded: {_line(error)}; install onnxruntime")
        return
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    yield Finding("ok", "ONNX Runtime", f"{onnxruntime.__version__}, providers: {providers}")


def check_gpus(config: Config) -> tuple[Placement, list[Finding]]:
    """Where a run would infer, and the GPUs and engines that it would use."""
    if config.inference.engine not in ON_GPUS:
        return Placement(config), [check_unused_gpu()]
    try:
        models = load_models(config)
    except (ModelError, ConfigError):
        return Placement(config), []  # check_model tells
    try:
        placement = place_all(config, models, probe)
    except ConfigError as error:
        return Placement(config), [Finding("FAIL", "GPU", _line(error))]
    findings = [Finding("warn", "GPU", notice) for notice in placement.notices]
    for device in placement.devices:
        cpus = f"; cores {device.cpus}" if device.cpus else ""
        memory = f"{size(device.gpu.memory_bytes)}, driver {device.gpu.driver}"
        plans = ", ".join(plan.name for plan in device.plans)
        findings.append(Finding("ok", "GPU", f"{device.gpu}, {memory}: {plans}{cpus}"))
    return placement, findings


def check_unused_gpu() -> Finding:
    """A GPU is not needed; one that is there but not used is worth saying."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Finding("ok", "GPU", "no GPU found: CPU engine")
    try:
        done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=GPU_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("warn", "GPU", f"nvidia-smi does not answer ({_line(error)}): CPU engine")
    names = [line.split(" (UUID")[0].partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    if done.returncode != 0 or not names:
        return Finding("ok", "GPU", "no GPU found: CPU engine")
    return Finding(
        "ok",
        "GPU",
        f"{len(names)} found ({', '.join(sorted(set(names)))}), not used by the engine onnx; docs/engines.md",
    )


def check_model(config: Config) -> tuple[ModelFacts, list[Finding]]:
    """Facts of the models (typical ones where they cannot be read or do not go together), and what was found."""
    try:
        models = load_models(config)
    except (ModelError, ConfigError) as error:
        return ModelFacts(), [Finding("FAIL", "model", _line(error))]
    findings, total = [], 0
    for model in models:
        weights = model.network_path.stat().st_size
        with contextlib.suppress(OSError):  # weights kept beside the graph, as ONNX does above 2 GB
            weights = sum(item.stat().st_size for item in model.directory.iterdir() if item.is_file())
        text = (
            f"{model.name}: classes {', '.join(model.classes)}; patches of {model.patch_px} px at {model.spacing:g} µm/px; "
            f"{size(weights)}; sha256 {model.sha256[:12]}"
        )
        findings.append(Finding("ok", "model", text))
        try:
            prove_size(model)
        except ModelError as error:
            findings.append(Finding("FAIL", "model", _line(error)))
        else:
            findings += [Finding("warn", "model", notice) for notice in size_notices([model])]
        total += weights
    classes = sum(len(model.classes) for model in models)
    return ModelFacts(models[0].patch_px, classes, total, len(models)), findings


def plan(config: Config, machine: Machine) -> Iterator[Finding]:
    """What each stage will use; `config` is resolved."""
    reader, inference, batcher = config.reader, config.inference, config.batcher
    yield Finding("ok", "readers", f"{_count(reader.workers, 'process')}, {config.slides.cache_mb} MiB of cache each")
    yield Finding("ok", "tissue", f"{_count(config.tissue.workers, 'process')}, method {config.tissue.method}")
    delays = batcher.max_delay_ms
    yield Finding(
        "ok",
        "batcher",
        f"{batcher.slots} slots of {batcher.batch} patches; waits {delays.urgent:g} ms (urgent), {delays.routine:g} ms (routine)",
    )
    wanted = slots_wanted(config, reader.workers, inference.workers)
    if batcher.slots < wanted:
        yield Finding(
            "warn", "batcher", f"batcher.slots is {batcher.slots}; with less than {wanted} workers wait for room"
        )
    threads = (
        f"{_count(inference.workers, 'process')} of {_count(inference.threads, 'thread')}, engine {inference.engine}"
    )
    yield Finding("ok", "inference", threads)
    if inference.workers * inference.threads > 2 * machine.cores:
        text = f"{inference.workers * inference.threads} threads on {_count(machine.cores, 'core')} hinder each other"
        yield Finding("warn", "inference", f"{text}; lower inference.workers or inference.threads")
    yield Finding(
        "ok",
        "writers",
        f"{_count(config.writer.workers, 'process')}: {', '.join(config.results.formats) or 'summaries only'}",
    )


def check_memory(config: Config, machine: Machine, facts: ModelFacts, available: int) -> Iterator[Finding]:
    """The bound on memory, part by part, against what there is; `config` is resolved, `available` 0 means unknown."""
    parts = memory_bound(config, facts.patch_px, facts.classes, facts.bytes, facts.models)
    total = sum(count for _, count in parts)
    for what, count in parts:
        yield Finding("ok", "bound", f"{size(count):>9}  {what}")
    more = f"beyond {SLIDE_PATCHES:,} patches in a slide, {bytes_per_patch(facts.classes)} bytes each more"
    text = f"{size(total):>9}  in all at most, of {size(machine.memory_bytes)}; {more}"
    if total > machine.memory_bytes:
        remedy = "lower reader.workers, inference.workers or batcher.batch"
        yield Finding("FAIL", "bound", f"{text}; {remedy}")
    elif 0 < available < total:
        yield Finding("warn", "bound", f"{text}; only {size(available)} are free now")
    else:
        yield Finding("ok", "bound", text)


def check_limits(config: Config) -> Iterator[Finding]:
    """Limits of this process, which its workers inherit, and the kind of shared memory that is used."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{_limit(files[1])} open files in each process"  # a run raises the soft limit itself
    enough = files[1] == resource.RLIM_INFINITY or files[1] >= FILES_WANTED
    yield Finding("ok" if enough else "warn", "limits", text if enough else f"{text}; better: ulimit -n {FILES_WANTED}")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    amount = "any amount of" if locked == resource.RLIM_INFINITY else size(locked)
    yield Finding("ok", "limits", f"{amount} locked memory (only GPUs need it)")
    yield check_shared_memory()


def check_shared_memory() -> Finding:
    """Patches lie in a memfd that is allocated before use: try a page."""
    try:
        fd = os.memfd_create("slidestream-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, MIB)
        finally:
            os.close(fd)
    except (OSError, AttributeError) as error:
        return Finding("FAIL", "memfd", f"shared memory cannot be made: {_line(error)}; Linux 3.17 or newer is needed")
    return Finding("ok", "memfd", "shared memory can be made (needs no /dev/shm)")


def check_out(out: Path) -> Iterator[Finding]:
    """Whether results can be written to `out`, or to the nearest folder above it that exists."""
    folder, why = unwritable(out)
    if why:
        yield Finding("FAIL", "results", f"{folder} {why}; give another --out")
        return
    free = shutil.disk_usage(folder).free
    enough = free >= DISK_WANTED
    yield Finding("ok" if enough else "warn", "results", f"{size(free)} free in {folder}")


def _limit(value: int) -> str:
    return "any number of" if value == resource.RLIM_INFINITY else f"{value:,}"


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _line(error: object) -> str:
    return " ".join(str(error).split())
