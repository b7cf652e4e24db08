"""slidestream bench engine: what a machine without a GPU can show of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs import tiny
from pipeline import engine_bench
from pipeline.bare_loop import drive
from pipeline.cli import main
from pipeline.config import ConfigError
from pipeline.engine_bench import Plan, Subject, line, measure
from pipeline.engine_variants import ON_CPU


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A tiny model with patches of noise."""
    directory = tiny(tmp_path / "tiny")
    for name, count in (("patches", 20), ("calibration", 4)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 224, 224, 3), np.uint8)
        np.save(tmp_path / f"{name}.npy", pixels)
    return Subject("tiny", directory, tmp_path / "patches.npy", tmp_path / "calibration.npy")


def plan(*variants: str) -> Plan:
    return Plan(variants, batches=(2, 4), contexts=(1, 2), seconds=0.05, jobs=2, threads=2)


def test_a_row_has_every_point_the_best_of_them_latency_and_loss(subject: Subject, tmp_path: Path) -> None:
    """ONNX Runtime against itself: all points, the fastest as the best one, and no loss."""
    record = measure([subject], plan(ON_CPU), tmp_path, tell=lambda line: None)
    (row,) = record["networks"][0]["rows"]
    assert [(p["batch"], p["contexts"]) for p in row["points"]] == [(2, 1), (2, 2), (4, 1), (4, 2)]
    assert row["best"]["per_s"] == max(p["per_s"] for p in row["points"]) > 0
    assert row["latency_ms"] > 0
    assert row["loss"] == 0 and not row["problems"]
    assert "0.000%" in line(row)


def test_what_fails_is_a_row_with_its_reason_and_the_rest_goes_on(subject: Subject, tmp_path: Path) -> None:
    """Without a GPU the TensorRT rows say so; the row after them has figures; the file has all of them."""
    from engines.cuda import find_gpu

    if find_gpu() is not None:
        pytest.skip("there is a GPU")
    out = tmp_path / "out.json"
    told: list[str] = []
    measure([subject], plan("tensorrt fp16", ON_CPU), tmp_path, tell=told.append, out=out)
    failed, good = json.loads(out.read_text())["networks"][0]["rows"]
    assert "no GPU" in failed["problems"][0] and failed["best"] is None
    assert good["best"]["per_s"] > 0
    assert any("no GPU" in text and "TensorRT FP16" in text for text in told)


def test_a_worker_that_takes_too_long_keeps_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was said before the time was up counts, and the end is told."""
    code = "import time; print('{\"point\": 1}', flush=True); time.sleep(60)"
    monkeypatch.setattr(engine_bench, "_WORKER", [sys.executable, "-c", code])
    said = list(engine_bench._ask({"cache": str(tmp_path)}, 1.5))
    assert said == [{"point": 1}, {"failed": "not finished in 2 s"}]


def test_a_worker_that_dies_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A crash is a reason, not silence."""
    monkeypatch.setattr(engine_bench, "_WORKER", [sys.executable, "-c", "raise SystemExit('out of luck')"])
    assert list(engine_bench._ask({"cache": str(tmp_path)}, 30)) == [{"failed": "ended: out of luck"}]


def test_numbers_that_cannot_be_are_refused() -> None:
    """A batch of nothing is told with the option."""
    import argparse

    parser = argparse.ArgumentParser()
    engine_bench.add_plan(parser)
    with pytest.raises(ConfigError, match="--batches"):
        engine_bench.plan_of(parser.parse_args(["--batches", "0"]))


def test_the_command_line_makes_the_plan() -> None:
    """Without options the plan is the default one; what is given is taken."""
    import argparse

    parser = argparse.ArgumentParser()
    engine_bench.add_plan(parser)
    assert engine_bench.plan_of(parser.parse_args([])) == Plan()
    words = ["--variants", "aoti fp16", "--prepare-s", "7", "--contexts", "2", "4"]
    given = engine_bench.plan_of(parser.parse_args(words))
    assert (given.variants, given.prepare_s, given.contexts) == (("aoti fp16",), 7.0, (2, 4))


def test_drive_keeps_every_context_busy_and_counts_rows() -> None:
    """Each context gets work at once, places are taken in turn, and only finished rows count."""

    class Context:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def submit(self, patches: np.ndarray) -> None:
            self.seen.append(int(patches[0]))

        def wait(self, seconds: float) -> bool:
            return True

        def done(self) -> bool:
            return True

        def result(self) -> np.ndarray:
            return np.zeros((3, 2))

    contexts = [Context(), Context()]
    figures = drive(contexts, np.arange(4)[:, None], 0.05)
    assert figures["per_s"] > 0
    assert {place for context in contexts for place in context.seen} == {0, 1, 2, 3}
    assert abs(len(contexts[0].seen) - len(contexts[1].seen)) <= 1


def test_a_benchmark_of_nothing_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    """Where nothing can be measured, such as without a GPU, the command says so at its end, and by its exit code."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tiny(tmp_path / "tiny")
    arguments = [
        "bench",
        "engine",
        str(tmp_path / "tiny"),
        "--variants",
        "eager fp32",
        "--batches",
        "4",
        "--seconds",
        "0.1",
    ]
    assert main(arguments) == 2
    assert "slidestream: nothing could be measured here: " in capsys.readouterr().err
