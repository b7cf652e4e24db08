"""`slidestream bench pipeline`: that it measures the system and its parts, and names what limits it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from pipeline import bench_loader, pipeline_bench
from pipeline.config import ConfigError
from tests.engines.tiny import tiny_model


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    pipeline_bench.add_arguments(parser)
    return parser.parse_args(list(words))


def test_whole_system_and_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs over many slides, over one, and with no engine; the engine alone; ratios and a bottleneck."""
    if not (pipeline_bench.DEMO_MODEL / "model.onnx").exists():
        pytest.skip("the demonstration model is not there")
    options = ("--slides", "2", "--size", "1500x1200", "--seconds", "0.2", "--no-loader", "--json")
    sets = ("--set", "reader.workers=1", "--set", "inference.workers=1", "--set", "results.formats=[csv]")
    assert pipeline_bench.run(arguments(*options, *sets, "--folder", str(tmp_path))) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(ran["what"], ran["slides"]) for ran in record["runs"]] == [
        ("many slides", 2),
        ("one slide", 1),
        ("readers alone", 2),
    ]
    assert all(ran["patches"] > 0 and ran["per_s"] > 0 for ran in record["runs"])
    assert record["runs"][0]["patches"] == record["runs"][2]["patches"]
    assert record["engine"]["engine"] == "onnx" and record["readers"] == 1
    assert record["patches_per_s"]["engine alone"] > 0 and record["loader"] == {"skipped": "left out"}
    assert record["bottleneck"] and record["shared_limit"] > 0 and record["again_s"] > 0
    assert "many slides" in pipeline_bench.text(record)


@pytest.mark.long
def test_several_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--model` twice: one pass for both, a run for each, and what the pass saves; nobody's engine is left out."""
    models = [tiny_model(tmp_path / name) for name in ("first", "second")]
    options = ("--slides", "1", "--size", "1200x900", "--seconds", "0.2", "--no-one", "--json")
    sets = ("--set", "reader.workers=1", "--set", "inference.workers=1", "--set", "results.formats=[csv]")
    named = (word for model in models for word in ("--model", str(model)))
    assert pipeline_bench.run(arguments(*options, *sets, *named, "--folder", str(tmp_path))) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["model"] == "first + second"
    ran = {ran["what"]: ran["patches"] for ran in record["runs"]}
    assert list(ran) == ["many slides", "only first", "only second", "readers alone"] and len(set(ran.values())) == 1
    speeds = record["patches_per_s"]
    expected = speeds["many slides"] * (1 / speeds["only first"] + 1 / speeds["only second"])
    assert record["ratios"]["one pass to a run for each model"] == pytest.approx(expected)
    assert record["bottleneck"] and "one model" in record["loader"]["skipped"]
    assert "only second" in pipeline_bench.text(record)


def test_engine_alone_of_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every patch goes through all of them, each by its own engine of the same GPU."""
    asked = []

    def engine_alone(configuration, model, folded, seconds, plans, visible):
        asked.append((model["name"], folded.name, [plan.name for plan in plans]))
        return {"first": 300.0, "second": 600.0}[model["name"]]

    monkeypatch.setattr(pipeline_bench, "engine_alone", engine_alone)
    record = {
        "configuration": {"inference": {"engines": "/engines"}},
        "models": [{"name": "first"}, {"name": "second"}],
        "gpus": [{"engines": ["a.engine", "b.engine"], "uuid": "GPU-1"}],
    }
    assert pipeline_bench.alone(record, [Path("1.onnx"), Path("2.onnx")], 1.0) == pytest.approx(200.0)
    assert asked == [("first", "1.onnx", ["a.engine"]), ("second", "2.onnx", ["b.engine"])]


def test_nonsense_is_refused(tmp_path: Path) -> None:
    """No slides, no time, no size: one line."""
    for words in (("--slides", "0"), ("--seconds", "0"), ("--size", "big")):
        with pytest.raises(ConfigError):
            pipeline_bench.run(arguments(*words, "--folder", str(tmp_path)))


@pytest.mark.parametrize(
    ("engine", "readers", "reached", "words"),
    [
        (1000.0, 5000.0, 980.0, "the engine (98%"),
        (5000.0, 1000.0, 970.0, "the readers (97%"),
        (1000.0, 5000.0, 500.0, "neither part alone: the engine alone would reach 1,000"),
    ],
)
def test_bottleneck_beside_a_gpu(engine: float, readers: float, reached: float, words: str) -> None:
    """The slower part, if the whole is hardly slower than that; else neither."""
    per_s = {"engine alone": engine, "readers alone": readers, "many slides": reached}
    assert pipeline_bench._bottleneck(reached, min(engine, readers), None, per_s).startswith(words)


def test_bottleneck_on_shared_cores() -> None:
    """Where both compute on the same cores: who takes the most of them."""
    per_s = {"engine alone": 1000.0, "readers alone": 4000.0, "many slides": 800.0}
    said = pipeline_bench._bottleneck(800.0, 1000.0, 800.0, per_s)
    assert said == (
        "the cores: engine and readers share them (100% of what both can do together); 80% of the time goes to the engine"
    )


def test_no_torch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyTorch there is no DataLoader to measure, and the table says why."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench_loader.loader_alone({}) == {"skipped": "PyTorch is not installed"}
