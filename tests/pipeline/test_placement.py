"""pipeline.placement: several models on the same GPUs; the engines are real sidecar files of engines.cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.model import Model, load_model
from engines.probe import Probe
from pipeline.config import ConfigError, load_config, resolve, result_hash
from pipeline.crew import member
from pipeline.gpus import Placement, place
from pipeline.machine import Machine
from pipeline.placement import place_all, result_hashes
from pipeline.worker import PLAN, Post
from tests.engines.tiny import tiny_model
from tests.pipeline.test_gpus import AOTI, ONE, SMALL, TRT, Shelf, found, wanting


@pytest.fixture
def models(tmp_path: Path) -> tuple[Model, Model]:
    names = (("first", ("normal", "tumour")), ("second", ("tumour", "other")))
    first, second = (load_model(tiny_model(tmp_path / name, classes=classes)) for name, classes in names)
    return first, second


@pytest.fixture
def shelves(tmp_path: Path, models: tuple[Model, Model]) -> tuple[Shelf, Shelf]:
    """One folder of engines, seen from each model."""
    first, second = (Shelf(tmp_path / "engines", model) for model in models)
    return first, second


def put(shelves, models, *sets: str, on: Probe | None = None, build=None) -> Placement:
    return place_all(wanting(shelves[0], *sets), models, lambda backends: on or found(), build)


def test_each_gpu_has_an_engine_of_each_model(shelves, models) -> None:
    """In the order of the models; the batch suits all of them."""
    first = [shelves[0].add(gpu=gpu, batch=(1, 64, 128)) for gpu in (ONE, SMALL)]
    second = [shelves[1].add(gpu=gpu, batch=(1, 32, 64)) for gpu in (ONE, SMALL)]
    placement = put(shelves, models, on=found(ONE, SMALL))
    assert [device.gpu for device in placement.devices] == [ONE, SMALL]
    assert [device.plans for device in placement.devices] == [
        (first[number].plan.absolute(), second[number].plan.absolute()) for number in (0, 1)
    ]
    assert placement.batch == 32
    assert placement.devices[0].to_dict()["engines"] == [first[0].plan.name, second[0].plan.name]


def test_one_model_is_placed_as_ever(shelves, models) -> None:
    """The same placement as by pipeline.gpus, and the same hash."""
    shelves[0].add()
    config = wanting(shelves[0])
    alone = place(config, models[0], lambda backends: found())
    assert put(shelves, models[:1]) == alone
    assert result_hashes(alone.config, alone, models[:1]) == [result_hash(alone.config)]


def test_each_model_has_its_own_precision_and_the_hash_of_a_run_alone(shelves, models) -> None:
    """Where the second has no engine in the precision of the first, it is no reason to refuse."""
    shelves[0].add("fp16")
    shelves[1].add("fp32")
    placement = put(shelves, models)
    assert (placement.config.inference.engine, placement.config.inference.precision) == ("tensorrt", "auto")
    expected = [result_hash(place(wanting(shelves[0]), model, lambda backends: found()).config) for model in models]
    assert result_hashes(placement.config, placement, models) == expected and expected[0] != expected[1]


def test_backends_may_differ(shelves, models) -> None:
    """One by TensorRT, one by AOTInductor: what the configuration then names is "gpu"."""
    shelves[0].add()
    shelves[1].add(flavour=AOTI)
    placement = put(shelves, models, "inference.engine=gpu", on=found(flavours=(TRT, AOTI)))
    assert (placement.config.inference.engine, placement.config.inference.precision) == ("gpu", "fp16")


def test_the_model_without_an_engine_is_named(shelves, models) -> None:
    """And what to type."""
    shelves[0].add()
    with pytest.raises(ConfigError, match="no engine of second can be used: .*engine build .*second"):
        put(shelves, models)


def test_only_the_missing_engine_is_built(shelves, models) -> None:
    """For its own model."""
    shelves[0].add()
    built = []

    def build(config, model) -> None:
        built.append(model.name)
        shelves[1].add()

    assert len(put(shelves, models, "inference.missing=build", build=build).devices[0].plans) == 2
    assert built == ["second"]


def test_all_fall_back_to_the_cpu_together(shelves, models) -> None:
    """Where one model finds no engine: half a run on a CPU would hold up the other half."""
    shelves[0].add()
    placement = put(shelves, models, "inference.fallback=cpu")
    assert placement.devices == () and placement.config.inference.engine == "onnx"
    assert len(placement.notices) == 1 and "no engine of second" in placement.notices[0]
    assert result_hashes(placement.config, placement, models) == [result_hash(placement.config)] * 2


def test_a_model_without_onnx_cannot_follow_to_the_cpu(shelves, models) -> None:
    """It has an engine itself, and the other one has none."""
    from dataclasses import replace

    alone = [replace(models[0], network="exported_model.pt2"), models[1]]
    shelves[0].add(flavour=AOTI)
    sets = ("inference.fallback=cpu", "inference.engine=gpu")
    with pytest.raises(ConfigError, match="inference.fallback: .*first has no model.onnx for the CPU"):
        put(shelves, alone, *sets, on=found(flavours=(TRT, AOTI)))


def test_the_machine_is_looked_at_once(shelves, models) -> None:
    """A probe is a process."""
    looked = []

    def probe(backends: tuple[str, ...]) -> Probe:
        looked.append(backends)
        return found()

    for shelf in shelves:
        shelf.add()
    place_all(wanting(shelves[0]), models, probe)
    assert len(looked) == 1
    assert place_all(load_config(None, []), models, probe) == Placement(load_config(None, []))
    assert len(looked) == 1


def test_a_worker_finds_the_engines_that_it_was_given(shelves, models, monkeypatch, tmp_path: Path) -> None:
    """In the environment of its process, one variable each; paths may hold any sign."""
    for shelf in shelves:
        shelf.add()
    device = put(shelves, models).devices[0]
    odd = replace(device, others=(tmp_path / "a:b\nc.engine", tmp_path / "d"))
    worker = member("inference", 0, [odd])
    monkeypatch.delenv(PLAN, raising=False)
    post = Post("inference", "inference-0", 1, None, 0, {})
    assert post.plans == []
    for name, value in worker.environment.items():
        monkeypatch.setenv(name, value)
    assert tuple(post.plans) == odd.plans and len(odd.plans) == 3


def test_another_patch_size_is_another_result_and_the_own_one_is_not(models) -> None:
    """Whether the model's own size is named or left to the model."""

    def digest(wanted: str, model: Model) -> str:
        config = load_config(None, [f"inference.patch_px={wanted}"])
        config = resolve(config, Machine(2, 8 << 30), patch_px=model.patch_px)
        assert config.inference.patch_px == model.patch_px
        return result_hashes(config, Placement(config), [model])[0]

    own = digest("auto", models[0])
    assert digest("64", models[0]) == own
    assert len({own, digest("96", models[0].at(96)), digest("128", models[0].at(128))}) == 3
