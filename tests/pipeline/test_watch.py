"""pipeline.watch: reports of several batchers added up, and memory on GPUs over time."""

from __future__ import annotations

import itertools
from typing import Any

from pipeline.outcome import engine_record
from pipeline.watch import GROWTH_MIB, SAMPLES, Gauge, Watch


def report(boot: int, working_s: float = 0.0, *, workers: int = 2, kind: str = "reader", **more: Any) -> dict[str, Any]:
    stage = {"workers": workers, "working_s": working_s, "waiting_input_s": 0.0, "waiting_room_s": 0.0}
    return {"boot": boot, "stages": {kind: stage}, "telemetry": {}, "engines": {}, **more}


def fed(*mib: float, batches: int = 1) -> Gauge:
    """One sample a second."""
    gauge = Gauge()
    for second, value in enumerate(mib):
        gauge.take({"batches": batches + second, "gpu_mib": value}, float(second))
    return gauge


class TestGrowth:
    """A warning where the memory of a worker grows."""

    def test_is_told_once(self):
        """By how much since it was warm; then never again."""
        gauge = fed(900, 1000, 1000, 1000, 1000 + GROWTH_MIB + 1)
        assert gauge.grown_mib() == GROWTH_MIB + 1
        gauge.take({"batches": 99, "gpu_mib": 9000.0}, 99.0)
        assert gauge.grown_mib() == 0

    def test_warming_up_is_no_growth(self):
        """The first samples come while contexts are still being made."""
        assert fed(10, 2000, 5000).grown_mib() == 0
        assert fed(10, 2000, 5000, 5000, 5100).grown_mib() == 0

    def test_a_little_more_is_no_growth(self):
        """Up to 256 MiB, or a tenth of what it was, is an allocator at work."""
        assert fed(1000, 1000, 1000, 1000 + GROWTH_MIB).grown_mib() == 0
        assert fed(20000, 20000, 20000, 21900).grown_mib() == 0
        assert fed(20000, 20000, 20000, 22100).grown_mib() == 2100

    def test_slow_growth_is_seen_however_long_it_takes(self):
        """What it is compared with is not thinned out."""
        gauge, told = Gauge(), []
        for second in range(20 * SAMPLES):
            gauge.take({"batches": second, "gpu_mib": 1000.0 + second / 4}, float(second))
            if grown := gauge.grown_mib():
                told.append(grown)
        assert len(told) == 1 and GROWTH_MIB < told[0] < GROWTH_MIB + 60

    def test_a_new_process_starts_anew(self):
        """It has counted fewer batches than its predecessor: neither the samples nor the warning are its own."""
        gauge = fed(1000, 1000, 1000, 2000, batches=50)
        assert gauge.grown_mib()
        gauge.take({"batches": 1, "gpu_mib": 500.0}, 10.0)
        assert gauge.memory_mib == [(10.0, 500.0)] and not gauge.warned
        for second in range(11, 16):
            gauge.take({"batches": second, "gpu_mib": 500.0 if second < 14 else 1500.0}, float(second))
        assert gauge.grown_mib() == 1000

    def test_an_engine_that_tells_no_memory_has_none(self):
        """On a CPU."""
        gauge = Gauge()
        for second in range(9):
            gauge.take({"batches": second}, float(second))
        assert gauge.memory_mib == [] and gauge.grown_mib() == 0


class TestSamples:
    """Memory over time."""

    def test_are_thinned_but_reach_from_the_beginning_to_now(self):
        """However long a run is there are at most so many, about evenly spread."""
        gauge = Gauge()
        for tenth in range(36000):  # an hour, ten reports a second
            gauge.take({"batches": tenth, "gpu_mib": float(tenth)}, tenth / 10)
            assert len(gauge.memory_mib) <= SAMPLES
        times = [at for at, _ in gauge.memory_mib]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert times[0] == 0.0 and times[-1] > 3600 - 2 * max(gaps) and max(gaps) <= 2.1 * min(gaps)
        assert len(times) > SAMPLES // 3

    def test_go_into_the_record_with_the_last_word(self):
        """run.json has the engine, its latest telemetry, and the curve."""
        record = engine_record({"engine": "fake"}, fed(1, 2))
        assert record["engine"] == "fake" and record["batches"] == 2
        assert record["memory_mib_over_seconds"] == [(0.0, 1), (1.0, 2)]
        assert engine_record({"engine": "onnx"}, None) == {"engine": "onnx"}


class TestSums:
    """Seconds of stages over all batchers of a run."""

    def test_seconds_of_earlier_batchers_are_added(self):
        """Each counts from its own start; workers are those of now."""
        watch = Watch()
        for boot, seconds, workers in ((1, 3.0, 2), (1, 5.0, 2), (2, 1.0, 4), (2, 2.0, 4), (3, 0.5, 1)):
            watch.take(report(boot, seconds, workers=workers), 0.0)
        assert watch.stages["reader"]["working_s"] == 5.0 + 2.0 + 0.5
        assert watch.stages["reader"]["workers"] == 1

    def test_a_stage_that_the_new_batcher_has_not_met_yet_is_kept(self):
        """With nobody in it."""
        watch = Watch()
        watch.take(report(1, 4.0, kind="writer"), 0.0)
        watch.take(report(2, 1.0, kind="reader"), 0.0)
        assert watch.stages["writer"] == {
            "workers": 0, "working_s": 4.0, "waiting_input_s": 0.0, "waiting_room_s": 0.0,
        }  # fmt: skip
        watch.take(report(2, 1.0, kind="writer"), 0.0)
        assert watch.stages["writer"]["working_s"] == 5.0

    def test_engines_and_gauges_outlive_their_workers(self):
        """What ran and how it went is known at the end although the worker is gone."""
        watch = Watch()
        watch.take(report(1, telemetry={"inference-0": {"batches": 3}}, engines={"inference-0": {"engine": "a"}}), 0.0)
        watch.take(report(1), 1.0)
        assert watch.engines == {"inference-0": {"engine": "a"}}
        assert watch.gauges["inference-0"].last == {"batches": 3}
