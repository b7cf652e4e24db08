"""A look at the service as metrics in Prometheus's text format. Pure.

Names and units follow https://prometheus.io/docs/practices/naming/ (base units, `_total` for what only grows). Labels take
few values: states, classes, stages, workers, kinds of reasons; never a slide. Where the supervisor does not answer, what only
it knows is left out, so that no stale figure looks like a fresh one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from pipeline.service.health import progressing, ready
from pipeline.service.snapshot import Gpu, Snapshot

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_MIB = float(1 << 20)


def text(look: Snapshot, stuck_s: float) -> bytes:
    """The page for Prometheus. `stuck_s` as in pipeline.service.health."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(families(look, stuck_s))))
    return generate_latest(registry)


def names(look: Snapshot) -> set[str]:
    """The names of all samples that a look gives, as queries have them."""
    return {sample.name for family in families(look, 1.0) for sample in family.samples}


def families(look: Snapshot, stuck_s: float) -> Iterator[Metric]:
    """All metrics that this look has a value for."""
    for family in (*_service(look, stuck_s), *_ledger(look), *_patches(look), *_stages(look), *_gpus(look.gpus)):
        if family.samples:
            yield family


class _Once(Collector):
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def _service(look: Snapshot, stuck_s: float) -> Iterator[Metric]:
    yield _gauge("up", "Whether the supervisor answers (1) or not (0).", look.answers)
    yield _gauge("ledger_readable", "Whether the ledger can be read.", look.ledger)
    yield _gauge("ready", "Whether the service can take slides in and infer, as /readyz.", ready(look).good)
    yield _gauge(
        "progressing", "0 while there is work and no result has come for too long.", progressing(look, stuck_s).good
    )
    yield _gauge("build_info", "Version of slidestream, as a label.", {(look.version,): 1.0}, "version")
    yield _gauge("start_time_seconds", "When the service started, in seconds since 1970.", look.started)
    yield _gauge("draining", "Whether the service is on its way out.", look.draining if look.answers else None)


def _ledger(look: Snapshot) -> Iterator[Metric]:
    if not look.ledger:
        return
    yield _gauge("slides", "Slides in the ledger, by state and class of urgency.", _two(look.slides), "state", "class")
    yield _counter(
        "slides_finished",
        "Times that a slide came to rest in a state, by class of urgency.",
        _two(look.finished),
        "state",
        "class",
    )
    yield _counter("failures", "Failed attempts and refused slides, by kind of reason.", _one(look.failures), "kind")
    yield _gauge(
        "slides_failing",
        "Slides in quarantine or waiting for another try, by kind of reason.",
        _one(look.failing),
        "kind",
    )
    yield _gauge("backlog_slides", "Slides that are queued, running or waiting for another try.", look.backlog)
    yield _gauge("workable", "Whether one of those could be worked on now.", look.workable)
    yield _gauge(
        "oldest_unfinished_seconds",
        "Age of the oldest unfinished slide since its delivery.",
        _one(look.oldest_s),
        "class",
    )
    late = {urgency: 0.0 for urgency in look.oldest_s}
    over = dict(late)
    for risk in look.risks:
        late[risk.urgency] = late.get(risk.urgency, 0.0) + 1
        over[risk.urgency] = over.get(risk.urgency, 0.0) + (risk.left_s < 0)
    yield _gauge("deadlines_at_risk", "Unfinished slides whose deadline alarm was raised.", _one(late), "class")
    yield _gauge("deadlines_missed", "Unfinished slides whose deadline is over.", _one(over), "class")
    yield _gauge(
        "turnaround_seconds",
        "From delivery to complete result, as quantiles over the latest complete slides.",
        {
            (urgency, share): value
            for urgency, spans in look.turnaround.items()
            for share, value in (("0.5", spans.p50_s), ("0.99", spans.p99_s))
        },
        "class",
        "quantile",
    )
    yield _gauge("held", "Folders and results on which nothing is started, by kind of reason.", _one(look.held), "kind")
    yield _gauge("degraded", "1 while the service goes on with less than it should have.", bool(look.troubles))
    yield _gauge("troubles", "Why the service goes on with less, by kind.", _one(look.troubles), "kind")
    yield _gauge("arrivals_stuck", "Slides in watched folders that do not come to an end.", look.stuck)
    yield _gauge("events_unsent", "Events that a receiver has not confirmed.", _one(look.unsent), "sink")
    yield _gauge("last_result_timestamp_seconds", "When a patch was last settled, since 1970.", look.last_result)


def _patches(look: Snapshot) -> Iterator[Metric]:
    if not look.answers:
        return
    yield _counter("patches_planned", "Patches planned since the service started.", look.patches_planned)
    yield _counter("patches_inferred", "Patches inferred since the service started.", look.patches_inferred)
    yield _counter("patches_failed", "Patches that could not be read or inferred.", look.patches_failed)
    yield _gauge("patches_per_second", "Patches settled a second, over the last minute.", look.patches_per_s)


def _stages(look: Snapshot) -> Iterator[Metric]:
    if not look.answers:
        return
    yield _gauge("stage_workers", "Processes of a stage.", _one({s.kind: s.workers for s in look.stages}), "stage")
    yield _counter(
        "stage_seconds",
        "Time of a stage's processes, by what they did: busy, waiting_input or waiting_room.",
        {
            (stage.kind, doing): getattr(stage, doing)
            for stage in look.stages
            for doing in ("busy", "waiting_input", "waiting_room")
        },
        "stage",
        "doing",
    )
    restarts = {stage.kind: stage.restarts for stage in look.stages}
    yield _counter("stage_restarts", "Processes of a stage that died and were replaced.", _one(restarts), "stage")
    yield _gauge("slots", "Slots in shared memory, by state.", _one(look.slots), "state")
    yield _gauge("records", "Batches of results that wait for the journal.", look.records)
    yield _gauge("suspects", "Batches that are tried alone because a process died of one of them.", look.suspects)
    yield _gauge("workers_lost", "Workers that were given up.", len(look.lost))


def _gpus(gpus: tuple[Gpu, ...]) -> Iterator[Metric]:
    def rows(figure: str, by: float = 1.0) -> dict[tuple[str, ...], float]:
        values = {(gpu.worker,): getattr(gpu, figure) for gpu in gpus}
        return {labels: value * by for labels, value in values.items() if value is not None}

    label = "worker"
    yield _gauge("gpu_info", "Which GPU a worker has.", {(g.worker, g.name): 1.0 for g in gpus}, label, "gpu")
    yield _gauge("gpu_busy_ratio", "Share of the last minute in which a batch was under way.", rows("busy"), label)
    yield _counter("gpu_busy_seconds", "Time in which a batch was under way.", rows("busy_s"), label)
    yield _counter("gpu_batches", "Batches inferred.", rows("batches"), label)
    yield _counter("gpu_rows", "Patches inferred.", rows("rows"), label)
    yield _gauge("gpu_batch_fill_ratio", "How full batches were.", rows("fill"), label)
    yield _gauge(
        "gpu_batch_seconds",
        "From the start of a batch's copy to the end of its answer's, as quantiles of the latest batches.",
        {(*key, "0.5"): value for key, value in rows("p50_ms", 1e-3).items()}
        | {(*key, "0.99"): value for key, value in rows("p99_ms", 1e-3).items()},
        label,
        "quantile",
    )
    yield _gauge("gpu_memory_bytes", "Memory of the GPU that the worker takes.", rows("memory_mib", _MIB), label)
    yield _gauge("gpu_memory_free_bytes", "Memory of the GPU that is free.", rows("free_mib", _MIB), label)
    yield _gauge("gpu_power_watts", "Power that the GPU takes.", rows("watts"), label)
    yield _gauge("gpu_load_ratio", "Share of the time in which any kernel ran, as NVML says.", rows("load"), label)


def _one(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(key,): value for key, value in values.items()}


def _two(values: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, ...], float]:
    return {(outer, inner): value for outer, row in values.items() for inner, value in row.items()}


def _gauge(name: str, words: str, values: Mapping[tuple[str, ...], float] | float | None, *labels: str) -> Metric:
    return _fill(GaugeMetricFamily(f"slidestream_{name}", words, labels=labels), values)


def _counter(name: str, words: str, values: Mapping[tuple[str, ...], float] | float | None, *labels: str) -> Metric:
    return _fill(CounterMetricFamily(f"slidestream_{name}", words, labels=labels), values)


def _fill(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], float] | float | None
) -> Metric:
    if values is None:
        return family
    for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
        family.add_metric(labels, float(value))
    return family
