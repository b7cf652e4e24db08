"""What `slidestream tune` proposes, from what it has measured. Pure: no processes, no files, no clock.

The rule for every setting is the same: what is not clearly faster than what `auto` gives is left as `auto` gives it. No
setting that results depend on is ever proposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.balance import AIM, step
from pipeline.sizing import contexts, slots_wanted
from pipeline.status import StageStatus

BETTER = 1.03  # so many times as fast counts as faster: less is how much two measurements of the same differ
AS_GOOD = 0.98  # so many times as fast with fewer processes counts as the same
ENOUGH = 0.95  # of the best speed of readers: those that bring the rest are better left out
WIDE_MS = 0.5  # a read that waits longer than this is worth having several under way
MOST_CONTEXTS = 4
_PREADS = ((8, 4), (16, 8))  # (slides.preads, reader.credit) beyond the defaults, for storage with latency


@dataclass(frozen=True, slots=True)
class Storage:
    """Where slides lie. `latency_ms`: median time of a read of 64 KiB that is not in memory; MB/s with one such read at a
    time and with `many`."""

    latency_ms: float
    mb_per_s: float
    many: int
    many_mb_per_s: float


@dataclass(frozen=True, slots=True)
class Shape:
    """How the model is run: processes, their threads and contexts, patches in a batch."""

    workers: int
    threads: int
    contexts: int
    batch: int

    def __str__(self) -> str:
        beside = (
            f"{self.contexts} contexts" if self.contexts > 1 else f"{self.threads} thread{'s' * (self.threads > 1)}"
        )
        return f"{self.workers} x {beside}, batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Processes of the stages that can be scaled."""

    reader: int
    tissue: int
    inference: int
    writer: int


@dataclass(frozen=True, slots=True)
class Tried:
    """The whole pipeline for a few seconds: patches a second, and what held it up, in words. `by`: who chose this."""

    by: str
    shape: Shape
    sizes: Sizes
    per_s: float
    words: str
    stages: tuple[StageStatus, ...] = ()
    before: tuple[StageStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures. `engines`: patches a second of the engine alone, `auto`'s shape first; `readers`: of so many slide
    readers with an engine that computes nothing; `tried`: whole runs, `auto`'s first; `journal_ms`: time until 4 KiB are on
    the results' disk for good, the median. `cores` are those of one lane."""

    cores: int
    on_gpu: bool
    storage: Storage
    engines: Mapping[Shape, float]
    readers: Mapping[int, float]
    tried: Sequence[Tried] = ()
    journal_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the configuration: what it should be, what `auto` (or the configuration) gives, and why."""

    key: str
    value: Any
    now: Any
    why: str


def shapes(cores: int, auto: Shape, on_gpu: bool) -> list[Shape]:
    """Which ways of running the model are worth measuring; `auto`'s own first."""
    found = [auto]
    if on_gpu:
        found += [replace(auto, contexts=count) for count in range(1, MOST_CONTEXTS + 1)]
    else:
        threads = {1, 2, 4, 8, max(1, cores // 2), cores}
        found += [
            replace(auto, workers=max(1, cores // each), threads=each) for each in sorted(threads) if each <= cores
        ]
    return list(dict.fromkeys(found))


def batches(best: Shape, on_gpu: bool) -> list[Shape]:
    """Smaller batches, which urgent slides wait less for. On a CPU the engine runs few rows at a time whatever the batch."""
    return [replace(best, batch=best.batch // part) for part in (2, 4) if best.batch // part >= 8] if on_gpu else []


def fastest(figures: Mapping[Shape, float]) -> Shape:
    """The shape to take: `auto`'s (the first) unless another is clearly faster; of those, the fastest."""
    first = next(iter(figures))
    best = max(figures, key=lambda shape: figures[shape])
    return best if figures[best] >= BETTER * figures[first] else first


def smallest_batch(figures: Mapping[Shape, float], chosen: Shape) -> Shape:
    """The smallest batch of those measured for this shape with which the engine is as fast."""
    same = [shape for shape in figures if replace(shape, batch=chosen.batch) == chosen]
    able = [shape for shape in same if figures[shape] >= AS_GOOD * figures[chosen]]
    return min(able, key=lambda shape: shape.batch, default=chosen)


def reader_counts(cores: int) -> list[int]:
    """How many readers to measure: doubled up to the cores, and twice those, which slow storage may need."""
    return sorted({1, *(1 << power for power in range(1, cores.bit_length())), cores, 2 * cores})


def enough_readers(readers: Mapping[int, float], auto: int, ceiling: float | None = None) -> int:
    """The fewest readers that are nearly as fast as the best number; on equal terms what `auto` gives. `ceiling`: what the
    engine beside them does at most, where it does not share their cores."""
    wanted = ENOUGH * max(readers.values())
    if ceiling is not None:
        wanted = min(wanted, ceiling / AIM)
    if readers.get(auto, 0.0) >= wanted:
        return auto
    return min(count for count, speed in readers.items() if speed >= wanted)


def read_ahead(storage: Storage, reader_per_s: float, preads: int, credit: int) -> tuple[int, int]:
    """(slides.preads, reader.credit): so many reads at a time that a reader has the next bytes when it has decoded a patch.

    What is configured stays where the storage answers at once, or has no more to give to several readers at a time.
    """
    gains = storage.many_mb_per_s >= 1.5 * storage.mb_per_s
    if storage.latency_ms < WIDE_MS or not gains or reader_per_s <= 0:
        return preads, credit
    wanted = 2 * storage.latency_ms * reader_per_s / 1000
    chosen = next((pair for pair in _PREADS if pair[0] >= wanted), _PREADS[-1])
    return (preads, credit) if wanted <= preads or chosen[0] <= preads else (chosen[0], max(credit, chosen[1]))


def next_sizes(last: Tried, cores: int) -> Sizes | None:
    """What to try next after a run: more of the stage that limits, or fewer readers where half would do; None: nothing."""
    advice = step(last.stages, last.before)
    if advice is None or advice.stage not in ("reader", "tissue", "inference", "writer"):
        return None
    most = 2 * cores if advice.stage == "reader" else cores
    wanted = min(advice.wanted, max(most, advice.now))
    sizes = replace(last.sizes, **{advice.stage: wanted})
    return None if sizes == last.sizes else sizes


def processes(tried: Tried) -> int:
    """How many processes it takes."""
    sizes = tried.sizes
    return sizes.reader + sizes.tissue + sizes.inference + sizes.writer


def best_of(tried: Sequence[Tried]) -> Tried:
    """The run to take: `auto`'s (the first) unless another is clearly faster, or as fast with fewer processes."""
    best = tried[0]
    for other in tried[1:]:
        leaner = processes(other) < processes(best) and other.per_s >= AS_GOOD * best.per_s
        if other.per_s >= BETTER * best.per_s or leaner:
            best = other
    return best


def propose(measured: Measured, config: Any) -> list[Setting]:
    """The settings, in the order of the configuration. `config` is resolved: what `auto` gives on this machine."""
    chosen = best_of(measured.tried)
    auto = measured.tried[0]
    sizes, shape = chosen.sizes, chosen.shape
    one = measured.readers.get(1, 0.0)
    preads, credit = read_ahead(measured.storage, one, config.slides.preads, config.reader.credit)
    final = config.model_copy(
        update={
            "reader": config.reader.model_copy(update={"workers": sizes.reader, "credit": credit}),
            "inference": config.inference.model_copy(
                update={"workers": sizes.inference, "threads": shape.threads, "contexts": shape.contexts}
            ),
        }
    )
    slots = slots_wanted(final, sizes.reader, sizes.inference)
    return [
        Setting("slides.preads", preads, config.slides.preads, _storage_words(measured.storage)),
        Setting("reader.workers", sizes.reader, config.reader.workers, _reader_words(measured, chosen)),
        Setting("reader.credit", credit, config.reader.credit, "goes with slides.preads"),
        Setting("tissue.workers", sizes.tissue, config.tissue.workers, _stage_words("tissue", auto, chosen)),
        Setting("batcher.batch", shape.batch, config.batcher.batch, _batch_words(measured, shape)),
        Setting(
            "batcher.slots",
            slots,
            config.batcher.slots,
            f"enough that {sizes.reader} readers and {sizes.inference} x {contexts(final)} batches under way never wait for room",
        ),
        Setting("inference.workers", sizes.inference, config.inference.workers, _engine_words(measured, chosen)),
        *(
            [Setting("inference.contexts", shape.contexts, config.inference.contexts, _side_by_side(measured, shape))]
            if measured.on_gpu
            else [
                Setting("inference.threads", shape.threads, config.inference.threads, "measured with inference.workers")
            ]
        ),
        *_journal(measured, config),
        Setting("writer.workers", sizes.writer, config.writer.workers, _stage_words("writer", auto, chosen)),
    ]


def outcome(measured: Measured) -> str:
    """One line: what the proposal reached, against what `auto` gives."""
    best, auto = best_of(measured.tried), measured.tried[0]
    if best is auto:
        return f"auto's own numbers stay: {auto.per_s:,.0f} patches/s, and nothing that was tried is {BETTER - 1:.0%} faster"
    return (
        f"{best.per_s:,.0f} patches/s, where auto gives {auto.per_s:,.0f} ({best.per_s / max(auto.per_s, 1e-9):.2f}x)"
    )


def _storage_words(storage: Storage) -> str:
    return (
        f"a read of 64 KiB takes {storage.latency_ms:.2g} ms; {storage.mb_per_s:,.0f} MB/s one at a time, "
        f"{storage.many_mb_per_s:,.0f} MB/s with {storage.many}"
    )


def _reader_words(measured: Measured, chosen: Tried) -> str:
    speeds = ", ".join(f"{count}: {speed:,.0f}" for count, speed in sorted(measured.readers.items()))
    need = f"the engine alone does {measured.engines.get(chosen.shape, 0.0):,.0f}"
    return f"readers alone, patches/s by number: {speeds}; {need}"


def _engine_words(measured: Measured, chosen: Tried) -> str:
    speeds = "; ".join(f"{shape}: {speed:,.0f}" for shape, speed in measured.engines.items())
    return f"engine alone, patches/s: {speeds}. Whole: {chosen.words}"


def _side_by_side(measured: Measured, shape: Shape) -> str:
    same = {s.contexts: v for s, v in measured.engines.items() if s.batch == next(iter(measured.engines)).batch}
    speeds = ", ".join(f"{count}: {speed:,.0f}" for count, speed in sorted(same.items()))
    return f"engine alone, patches/s by contexts: {speeds}"


def _batch_words(measured: Measured, shape: Shape) -> str:
    if not measured.on_gpu:
        return "as it is: the CPU engine runs a few rows at a time, whatever the batch"
    speeds = {s.batch: v for s, v in measured.engines.items() if replace(s, batch=shape.batch) == shape}
    return "engine alone, patches/s by batch: " + ", ".join(f"{b}: {v:,.0f}" for b, v in sorted(speeds.items()))


def _stage_words(kind: str, auto: Tried, chosen: Tried) -> str:
    before, after = getattr(auto.sizes, kind), getattr(chosen.sizes, kind)
    if before == after:
        return "not the limit in any run"
    return f"it was the limit: {auto.per_s:,.0f} patches/s with {before}, {chosen.per_s:,.0f} with {after}"


def _journal(measured: Measured, config: Any) -> list[Setting]:
    """A journal that is on disk only after a while must not be asked to be so more often than that."""
    if measured.journal_ms is None:
        return []
    now = config.aggregator.flush_ms
    wanted = float(math.ceil(2 * measured.journal_ms)) if 2 * measured.journal_ms > max(now, 50.0) else now
    return [
        Setting(
            "aggregator.flush_ms", wanted, now, f"4 KiB are on the results' disk after {measured.journal_ms:.2g} ms"
        )
    ]
