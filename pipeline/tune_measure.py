"""What `slidestream tune` measures: storage, engine, readers, and the whole, each for a few seconds."""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

from engines.check import prepare
from engines.model import Model
from pipeline.bench_engine import engine_alone
from pipeline.config import Config, ConfigError, memory_bound
from pipeline.machine import Machine
from pipeline.models import sizes as model_sizes
from pipeline.placement import Placement
from pipeline.section import Section
from pipeline.sizing import MEMORY_SHARE, slots_wanted
from pipeline.tune import (
    Measured,
    Shape,
    Sizes,
    Storage,
    Tried,
    batches,
    best_of,
    enough_readers,
    fastest,
    next_sizes,
    reader_counts,
    shapes,
    smallest_batch,
)
from pipeline.tune_live import Forgetting, LiveRun, forget
from slides.discover import files

_S = TypeVar("_S", bound=Section)
MANY = 8  # reads at a time
STEPS = 3
_READ = 64 << 10
_JOURNAL_WRITES = 20
_ENGINE_S = 90.0  # until an engine is up; one that hangs must not hold up everything
# Shares of the time after which no more shapes of the engine, and no more numbers of readers, are tried.
_ENGINES_UNTIL, _READERS_UNTIL = 0.35, 0.6


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be measured. `auto` is resolved for `machine`, whose cores are those of one lane; `folder` is ours, empty;
    `results` is where results will lie, if it is known; `say` tells of progress."""

    auto: Config
    placement: Placement
    models: Sequence[Model]
    machine: Machine
    slides: Sequence[Path]
    folder: Path
    seconds: float
    say: Callable[[str], None]
    results: Path | None = None

    @property
    def on_gpu(self) -> bool:
        return bool(self.placement.devices)

    @property
    def window_s(self) -> float:
        """How long one figure of the whole is measured."""
        return min(10.0, max(1.5, self.seconds / 25))


@dataclass(slots=True)
class Clock:
    """The time that is left, as a share of what was given."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def gone(self) -> float:
        return (time.monotonic() - self.began) / self.seconds


def measure(job: Job) -> Measured:
    """All of it. ConfigError where a part cannot be measured, in one line."""
    clock = Clock(job.seconds)
    where = storage(job.slides, min(2.0, job.window_s))
    job.say(f"storage: a read takes {where.latency_ms:.2g} ms, {where.many_mb_per_s:,.0f} MB/s with {MANY} at a time")
    journal_ms = None
    if job.results is not None:
        journal_ms = journal(job.folder)
        job.say(f"results: 4 KiB are on disk after {journal_ms:.2g} ms")
    engines = _engines(job, clock)
    shape = smallest_batch(engines, fastest(engines))
    with Forgetting(job.slides):
        readers = _readers(job, clock)
        tried = _whole(job, clock, engines, readers, shape)
    return Measured(job.machine.cores, job.on_gpu, where, engines, readers, tried, journal_ms)


def storage(slides: Sequence[Path], seconds: float) -> Storage:
    """Reads of 64 KiB at random places of slides, none of them from memory: one at a time, then several. ConfigError."""
    names = [name for slide in slides for name in files(slide) if os.path.getsize(name) > _READ]
    if not names:
        raise ConfigError(f"{slides[0]}: too small to measure with; name a slide as your scanner makes them")
    for name in names:
        forget(name)
    times: list[float] = []
    one = _read_for(names, seconds, 1, times)
    many = _read_for(names, seconds, MANY, [])
    return Storage(1e3 * statistics.median(times), one, MANY, many)


def _read_for(names: Sequence[str], seconds: float, threads: int, times: list[float]) -> float:
    """MB/s of so many threads, each with one read at a time; `times` gets the seconds of each."""
    until = time.perf_counter() + seconds
    counts = [0] * threads

    def work(number: int) -> None:
        dice = random.Random(number)
        opened = [os.open(name, os.O_RDONLY) for name in names]
        try:
            for descriptor in opened:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            while time.perf_counter() < until:
                descriptor = dice.choice(opened)
                place = dice.randrange(0, os.fstat(descriptor).st_size - _READ) & ~4095
                began = time.perf_counter()
                counts[number] += len(os.pread(descriptor, _READ, place))
                times.append(time.perf_counter() - began)
                os.posix_fadvise(descriptor, place, _READ, os.POSIX_FADV_DONTNEED)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    began = time.perf_counter()
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / 1e6 / (time.perf_counter() - began)


def journal(folder: Path) -> float:
    """Milliseconds until 4 KiB more of a file are on disk, the median. OSError."""
    times = []
    path = folder / "journal"
    with path.open("wb", buffering=0) as file:
        for _ in range(_JOURNAL_WRITES):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return 1e3 * statistics.median(times)


# ------------------------------------------------------------ the engine alone


def _engines(job: Job, clock: Clock) -> dict[Shape, float]:
    auto = _shape(job.auto)
    folded = [_folded(job, number) for number in range(len(job.models))]
    figures: dict[Shape, float] = {}

    def one(shape: Shape) -> None:
        figures[shape] = _engine(job, shape, folded)
        job.say(f"engine alone, {shape}: {figures[shape]:,.0f} patches/s")

    for shape in shapes(job.machine.cores, auto, job.on_gpu):
        if not figures or clock.gone < _ENGINES_UNTIL:
            one(shape)
    for shape in batches(fastest(figures), job.on_gpu):
        if clock.gone < _ENGINES_UNTIL:
            one(shape)
    return figures


def _folded(job: Job, number: int) -> Path:
    path = job.folder / f"folded-{number}.onnx"
    if not job.on_gpu:
        prepare(job.models[number], path)
    return path


def _engine(job: Job, shape: Shape, folded: Sequence[Path]) -> float:
    """Of several models, which all see every patch: what they do together, one after the other."""
    seconds = min(3.0, job.window_s)
    took = 0.0
    devices = job.placement.devices
    visible = [{"CUDA_VISIBLE_DEVICES": device.visible} for device in devices]
    for number, model in enumerate(job.models):
        inference = job.placement.inferences[number] if job.placement.inferences else job.auto.inference
        inference = inference.model_copy(
            update={"workers": shape.workers, "threads": shape.threads, "contexts": shape.contexts}
        )
        configuration = {
            "inference": inference.model_dump(mode="json"),
            "batcher": {"batch": shape.batch},
        }
        plans = [device.plans[number] for device in devices]
        with _no_longer_than(_ENGINE_S + seconds, f"{model.name}: its engine"):
            took += 1 / max(
                1e-9, engine_alone(configuration, model.describe(), folded[number], seconds, plans, visible)
            )
    return 1 / took


@contextmanager
def _no_longer_than(seconds: float, what: str) -> Iterator[None]:
    """ConfigError after so long. For the main thread."""

    def late(_: int, __: FrameType | None) -> None:
        raise ConfigError(f"{what} gave no answer within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except RuntimeError as error:  # the last words of a process of the benchmark
        raise ConfigError(" ".join(str(error).split())) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------ readers alone, and the whole


def _readers(job: Job, clock: Clock) -> dict[int, float]:
    """The pipeline with an engine that computes nothing, and more and more readers."""
    counts = reader_counts(job.machine.cores)
    counts = [count for count in counts if _fits(job, _with(job.auto, _shape(job.auto), _sizes(job.auto, count)))]
    figures: dict[int, float] = {}
    config = _with(job.auto, Shape(1, 1, 1, _shape(job.auto).batch), _sizes(job.auto, max(counts, default=1), 1))
    nothing = config.inference.model_copy(update={"engine": "null", "precision": "auto"})
    config = config.model_copy(update={"inference": nothing, "reader": _workers(config.reader, min(counts, default=1))})
    with LiveRun(config, job.slides, _anew(job.folder / "readers")) as run:
        for count in counts or [1]:
            if figures and clock.gone > _READERS_UNTIL:
                break
            if figures:
                run.scale("reader", count)
            figures[count] = run.measure(job.window_s / 2).per_s
            job.say(f"readers alone, {count}: {figures[count]:,.0f} patches/s")
    return figures


def _whole(job: Job, clock: Clock, engines: dict[Shape, float], readers: dict[int, float], shape: Shape) -> list[Tried]:
    auto, sizes = _shape(job.auto), _sizes(job.auto)
    tried = [_try_once(job, "auto", job.auto, auto, sizes)]
    ceiling = engines[shape] if job.on_gpu else None
    guess = Sizes(enough_readers(readers, sizes.reader, ceiling), sizes.tissue, shape.workers, sizes.writer)
    if (shape, guess) == (auto, sizes):
        more = next_sizes(tried[0], job.machine.cores)
        if more is None:
            return tried
        guess = more
    config = _with(job.auto, shape, guess)
    roomy = _with(job.auto, shape, Sizes(2 * job.machine.cores, guess.tissue, guess.inference, guess.writer))
    if not _fits(job, config):
        job.say(f"{_show(shape, guess)}: left out, it would take too much memory")
        return tried
    if _fits(job, roomy):  # slots for the readers that may come
        config = config.model_copy(update={"batcher": config.batcher.model_copy(update={"slots": roomy.batcher.slots})})
    with LiveRun(config, job.slides, _anew(job.folder / "whole"), job.on_gpu) as run:
        for number in range(STEPS):
            tried.append(_measured(job, run, "tune", shape, guess))
            later = next_sizes(tried[-1], job.machine.cores)
            known = any((one.shape, one.sizes) == (shape, later) for one in tried)
            if later is None or known or number == STEPS - 1 or clock.gone > 0.9:
                break
            if best_of(tried) is not tried[-1] or not _fits(job, _with(job.auto, shape, later)):
                break
            for stage in ("reader", "tissue", "inference", "writer"):
                if getattr(later, stage) != getattr(guess, stage):
                    run.scale(stage, getattr(later, stage))
            guess = later
    return tried


def _try_once(job: Job, by: str, config: Config, shape: Shape, sizes: Sizes) -> Tried:
    with LiveRun(config, job.slides, _anew(job.folder / by), job.on_gpu) as run:
        return _measured(job, run, by, shape, sizes)


def _measured(job: Job, run: LiveRun, by: str, shape: Shape, sizes: Sizes) -> Tried:
    window = run.measure(job.window_s)
    job.say(f"whole, {_show(shape, sizes)} ({by}): {window.per_s:,.0f} patches/s; {window.words}")
    return Tried(by, shape, sizes, window.per_s, window.words, window.stages, window.before)


def _show(shape: Shape, sizes: Sizes) -> str:
    return f"{sizes.reader} readers, {shape}"


def _shape(config: Config) -> Shape:
    inference = config.inference
    return Shape(inference.workers, inference.threads, inference.contexts, config.batcher.batch)


def _sizes(config: Config, reader: int | None = None, inference: int | None = None) -> Sizes:
    return Sizes(
        config.reader.workers if reader is None else reader,
        config.tissue.workers,
        config.inference.workers if inference is None else inference,
        config.writer.workers,
    )


def _with(config: Config, shape: Shape, sizes: Sizes) -> Config:
    """The configuration with these numbers, and slots enough for them."""
    inference = config.inference.model_copy(
        update={"workers": sizes.inference, "threads": shape.threads, "contexts": shape.contexts}
    )
    found = config.model_copy(
        update={
            "inference": inference,
            "reader": _workers(config.reader, sizes.reader),
            "tissue": _workers(config.tissue, sizes.tissue),
            "writer": _workers(config.writer, sizes.writer),
        }
    )
    slots = slots_wanted(found, sizes.reader, sizes.inference)
    return found.model_copy(
        update={"batcher": config.batcher.model_copy(update={"batch": shape.batch, "slots": slots})}
    )


def _workers(section: _S, count: int) -> _S:
    return section.model_copy(update={"workers": count})


def _fits(job: Job, config: Config) -> bool:
    """Whether this machine has the memory for it."""
    needed = sum(size for _, size in memory_bound(config, **model_sizes(job.models)))
    return needed <= MEMORY_SHARE * job.machine.memory_bytes


def _anew(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
