"""pipeline.models: which models go together, and what a run needs to know of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import ModelError
from engines.model import Model, load_model
from pipeline.check import check_model
from pipeline.cli import _config, _parser
from pipeline.config import Config, ConfigError, load_config, model_directories, model_directory
from pipeline.machine import Machine
from pipeline.models import (
    discord,
    joint_key,
    load_models,
    result_folders,
    result_keys,
    size_notices,
    sizes,
    targets,
)
from pipeline.sizing import memory_bound, resolve
from tests.engines.tiny import tiny_model

MACHINE = Machine(4, 64 << 30)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Model, Model]:
    first, second = tiny_model(tmp_path / "first"), tiny_model(tmp_path / "second", classes=("a", "b", "tumour"))
    return load_model(first), load_model(second)


def of(*models: Model | Path, **sets: str) -> Config:
    names = ", ".join(f'"{getattr(model, "directory", model)}"' for model in models)
    return load_config(None, [f"model=[{names}]", *(f"{key}={value}" for key, value in sets.items())])


def test_models_are_loaded_in_the_order_that_they_are_named(two) -> None:
    """That of the columns."""
    assert [model.name for model in load_models(of(*reversed(two)))] == ["second", "first"]


def test_a_pytorch_network_alone_is_for_engines_that_are_made_of_it(two) -> None:
    """Told before anything is begun."""
    directory = two[0].directory
    (directory / "model.onnx").rename(directory / "torchscript_model.pt")
    for engine in ("onnx", "tensorrt"):
        with pytest.raises(ModelError, match=r"model\.onnx: no such file, torchscript_model\.pt alone"):
            load_models(of(two[0], **{"inference.engine": engine}))
    (model,) = load_models(of(two[0], **{"inference.engine": "aoti"}))
    assert sizes([model])["model_bytes"] == model.network_path.stat().st_size > 0


def test_a_model_goes_with_itself_alone(two) -> None:
    """The same directory twice has one name twice."""
    assert discord(two) == "" and discord(two[:1]) == ""
    assert "one name" in discord([two[0], two[0]])


def test_one_model_may_have_any_name(tmp_path: Path) -> None:
    """Its results lie in the output folder itself."""
    model = load_model(tiny_model(tmp_path / "slides"))
    assert discord([model]) == "" and result_folders(Path("out"), [model]) == [Path("out")]


def test_the_command_line_takes_several() -> None:
    """One --model each; a single one is a text, as in a file."""
    parser = _parser(["check"])
    assert _config(parser.parse_args(["check", "--model", "a", "--model", "b"])).model == ("a", "b")
    assert _config(parser.parse_args(["check", "--model", "a"])).model == "a"
    assert _config(parser.parse_args(["check"])).model is None


def test_what_is_done_with_one_model_refuses_several(two) -> None:
    """Building an engine, for instance; both are named."""
    assert model_directories(of(*two)) == tuple(model.directory for model in two)
    with pytest.raises(ConfigError, match=r"first, .*second: this is done with one model at a time; name one"):
        model_directory(of(*two))
    assert model_directory(of(two[0])) == two[0].directory


@pytest.mark.parametrize("text", ["model=[]", "model=[1]", "model={a: b}"])
def test_a_bad_list_is_refused(text: str) -> None:
    """Naming the key and what it takes."""
    with pytest.raises(ConfigError, match="model is .* but takes text or a list of texts or null"):
        load_config(None, [text])


def test_keys_of_one_model_are_its_own_and_those_of_several_are_joined(two) -> None:
    """In order: columns in another order are another journal."""
    (one,) = result_keys(two[:1], ["c1"])
    assert joint_key([one]) == one == {"model": two[0].sha256, "configuration": "c1"}
    each = result_keys(two, ["c1", "c2"])
    assert joint_key(each) == {"model": f"{two[0].sha256}+{two[1].sha256}", "configuration": "c1+c2"}
    assert joint_key(each) != joint_key(each[::-1])


def test_each_model_shows_the_class_asked_for_if_it_has_it(two) -> None:
    """Else the one that it would show by itself."""
    found = targets(two, Path("out"), result_keys(two, ["c", "c"]), "b")
    assert [target["heatmap_class"] for target in found] == [None, "b"]
    assert [target["out"] for target in found] == ["out/first", "out/second"]


def test_the_memory_bound_counts_all_models(two) -> None:
    """Their files, their columns, and what each engine computes with."""
    one, both = sizes(two[:1]), sizes(two)
    assert (both["patch_px"], both["classes"], both["models"]) == (64, 5, 2)
    assert both["model_bytes"] == sum(model.onnx_path.stat().st_size for model in two)
    config = resolve(of(*two), MACHINE, **both)
    bounds = [dict(memory_bound(config, **facts)) for facts in (one, both)]
    activations = 4 * 64 * 64 * 160 * config.inference.workers
    inference = f"inference, {config.inference.workers}"
    assert bounds[1][inference] - bounds[0][inference] >= activations
    assert bounds[1]["aggregator"] > bounds[0]["aggregator"]


def test_check_tells_of_every_model(two) -> None:
    """One line each; what does not go together is a FAIL in the words of a run."""
    facts, findings = check_model(of(*two))
    assert [finding.text.split(":")[0] for finding in findings] == ["first", "second"]
    assert (facts.classes, facts.models) == (5, 2)
    _, (finding,) = check_model(of(two[0], two[0]))
    assert finding.level == "FAIL" and "one name" in finding.text


def test_all_models_of_a_run_see_the_size_that_is_asked_for(tmp_path: Path) -> None:
    """So two that were made for different ones can run together; each that is not at its own is told of, once."""
    names = [tiny_model(tmp_path / str(px), patch_px=px, free=True) for px in (64, 96)]
    with pytest.raises(ConfigError, match="96 px at 0.5 .*make two runs .*or set inference.patch_px"):
        load_models(of(*names))
    models = load_models(of(*names, **{"inference.patch_px": "96"}))
    assert [model.patch_px for model in models] == [96, 96] and sizes(models)["patch_px"] == 96
    (notice,) = size_notices(models)
    assert notice.startswith("64 was made for patches of 64 px and sees 96 px (inference.patch_px)")
    assert size_notices(load_models(of(names[0]))) == []


def test_check_tries_a_model_at_another_size(tmp_path: Path) -> None:
    """It warns of one that takes the size, and fails one that does not."""
    free, one = tiny_model(tmp_path / "free", free=True), tiny_model(tmp_path / "one")
    facts, findings = check_model(of(free, **{"inference.patch_px": "96"}))
    assert facts.patch_px == 96 and [finding.level for finding in findings] == ["ok", "warn"]
    _, findings = check_model(of(one, **{"inference.patch_px": "96"}))
    assert "takes patches of one size, not 96 px" in next(f.text for f in findings if f.level == "FAIL")
