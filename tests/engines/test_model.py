"""engines.model: what is accepted from a config.json, and what is said about the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.errors import ModelError
from engines.model import MAX_CONFIG_BYTES, load_model, parse_config
from tests.engines.tiny import tiny_config, tiny_model

WSINFER = """
{"spec_version":"1.0","architecture":"resnet34","num_classes":2,"patch_size_pixels":350,
 "spacing_um_px":0.25,"class_names":["Other","Tumor"],
 "transform":[{"name":"Resize","arguments":{"size":224}},{"name":"ToTensor"},
              {"name":"Normalize","arguments":{"mean":[0.7238,0.5716,0.6779],"std":[0.112,0.1459,0.1089]}}]}
"""


def test_a_wsinfer_configuration_is_taken_unchanged(tmp_path: Path) -> None:
    """A config.json of WSInfer's zoo says patch, spacing, classes and transform."""
    parsed = parse_config(json.loads(WSINFER), tmp_path)
    assert parsed["architecture"] == "resnet34"
    assert (parsed["patch_px"], parsed["spacing"], parsed["classes"]) == (350, 0.25, ("Other", "Tumor"))
    transform = parsed["transform"]
    assert transform.resize == (224, 224)
    assert transform.mean == (0.7238, 0.5716, 0.6779)
    assert transform.std == (0.112, 0.1459, 0.1089)


def test_a_model_directory_is_loaded(tmp_path: Path) -> None:
    """load_model gives the directory's name, a hash, and the size the network sees."""
    model = load_model(tiny_model(tmp_path / "lymph", resize=32))
    assert (model.name, model.patch_px, model.input_hw, model.classes) == ("lymph", 64, (32, 32), ("normal", "tumour"))
    assert len(model.sha256) == 64
    assert model.describe()["classes"] == ["normal", "tumour"]


def test_extra_keys_are_left_alone(tmp_path: Path) -> None:
    """Keys that the schema does not know belong to other tools."""
    assert parse_config(tiny_config() | {"license": "MIT", "x": [1]}, tmp_path)["patch_px"] == 64


@pytest.mark.parametrize("size, wanted", [(224, (224, 224)), ([224], (224, 224)), ([96, 128], (96, 128))])
def test_resize_takes_one_side_or_height_and_width(tmp_path: Path, size: Any, wanted: tuple[int, int]) -> None:
    """One number is both sides, two are height and width, as in torchvision."""
    config = tiny_config(resize=1)
    config["transform"][0]["arguments"]["size"] = size
    assert parse_config(config, tmp_path)["transform"].resize == wanted


def test_normalize_may_be_absent(tmp_path: Path) -> None:
    """Without Normalize the network sees 0 to 1."""
    transform = parse_config(tiny_config() | {"transform": [{"name": "ToTensor"}]}, tmp_path)["transform"]
    assert (transform.mean, transform.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _set(**changes: Any) -> Callable[[dict], None]:
    return lambda config: config.update(changes)


def _step(index: int, **changes: Any) -> Callable[[dict], None]:
    return lambda config: config["transform"][index].update(changes)


TO_TENSOR = {"name": "ToTensor"}
BAD = [
    (lambda config: config.pop("spacing_um_px"), "key spacing_um_px is missing"),
    (lambda config: config.pop("transform"), "key transform is missing"),
    (_set(spec_version="2.0"), "spec_version is '2.0'"),
    (_set(architecture=None), "architecture must be a text, not null"),
    (_set(num_classes=3), "num_classes is 3, but class_names has 2"),
    (_set(num_classes=True), "num_classes must be a whole number"),
    (_set(patch_size_pixels=0), "patch_size_pixels must be a whole number"),
    (_set(patch_size_pixels=224.0), "patch_size_pixels must be a whole number"),
    (_set(spacing_um_px=0), "spacing_um_px must be 0.01 to 1000"),
    (_set(spacing_um_px=1e-9), "spacing_um_px must be 0.01 to 1000"),
    (_set(spacing_um_px=10**400), "spacing_um_px must be a number"),
    (_set(spacing_um_px=float("nan")), "spacing_um_px must be a number"),
    (_set(spacing_um_px="0.5"), "spacing_um_px must be a number"),
    (_set(class_names="normal"), "class_names must be a list"),
    (_set(class_names=["normal", 1]), "class_names must be a list of texts"),
    (_set(class_names=["a/b", "c"]), "class_names: 'a/b' holds '/'"),
    (_set(class_names=["a,b", "c"]), "class_names: 'a,b' holds ','"),
    (_set(class_names=["a\nb", "c"]), "class_names"),
    (_set(class_names=["", "c"]), "class_names: ''"),
    (_set(class_names=[" a", "c"]), "class_names: ' a'"),
    (_set(class_names=["x" * 65, "c"]), "class_names"),
    (_set(class_names=["a", "a"]), "are one name"),
    (_set(class_names=["Tumor", "tumor"]), "'Tumor' and 'tumor' are one name"),
    (_set(transform={}), "transform must be a list"),
    (_set(transform=[]), "transform is empty"),
    (_set(transform=["ToTensor"]), "transform[0] must be an object"),
    (_set(transform=[TO_TENSOR, TO_TENSOR]), "transform is ToTensor, ToTensor"),
    (_set(transform=[TO_TENSOR, {"name": "Resize", "arguments": {"size": 9}}]), "transform is ToTensor, Resize"),
    (_set(transform=[TO_TENSOR, {"name": "CenterCrop"}]), "transform[1]: unknown transform 'CenterCrop'"),
    (_step(0, arguments={}), "transform[0] (Resize): argument 'size' is missing"),
    (_step(0, arguments={"size": 9, "interpolation": "nearest"}), "argument 'interpolation' is unknown"),
    (_step(0, arguments={"size": [1, 2, 3]}), "size must be a number or [height, width]"),
    (_step(0, arguments={"size": -1}), "(Resize): size must be a whole number"),
    (_step(0, arguments=[9]), "arguments must be an object"),
    (_step(2, arguments={"mean": [0.5], "std": [1, 1, 1]}), "mean must be three numbers"),
    (_step(2, arguments={"mean": [0, 0, 0], "std": [1, 0, 1]}), "std must be 1e-06 or more"),
    (_step(2, arguments={"mean": [0, 0, 1e300], "std": [1, 1, 1]}), "mean and std must be 1e+06 or less"),
    (_step(2, arguments={"mean": [0, 0, "x"], "std": [1, 1, 1]}), "mean must be a number"),
]


@pytest.mark.parametrize("change, said", BAD, ids=[said for _, said in BAD])
def test_a_bad_configuration_is_refused_naming_file_and_key(tmp_path: Path, change: Callable, said: str) -> None:
    """Every wrong value gives one line with the file, the key and what is wrong."""
    directory = tiny_model(tmp_path / "model")
    config = tiny_config(resize=64)
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_model(directory)
    line = str(caught.value)
    assert line.startswith(f"{directory / 'config.json'}: ")
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "content, said",
    [
        (b"{", "is not valid JSON: line 1"),
        (b"", "is not valid JSON"),
        (b'{"architecture": "\xe9"}', "is not text in UTF-8"),
        (b"[1]", "must be a JSON object, not a list"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_config_that_is_not_json_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """Whatever lies in config.json, the answer is one ModelError."""
    directory = tiny_model(tmp_path / "model")
    (directory / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load_model(directory)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """A missing directory, config.json or model.onnx is told apart, and a TorchScript model gets its own advice."""
    with pytest.raises(ModelError, match="nowhere: no such model directory"):
        load_model(tmp_path / "nowhere")
    directory = tiny_model(tmp_path / "model")
    with pytest.raises(ModelError, match="model.onnx: is not a directory"):
        load_model(directory / "model.onnx")
    (directory / "model.onnx").unlink()
    with pytest.raises(ModelError, match="model.onnx: no such file"):
        load_model(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ModelError, match="config.json: no such file"):
        load_model(directory)


def test_the_hash_follows_every_file_that_matters(tmp_path: Path) -> None:
    """config.json, model.onnx and external data change the hash; a README, the place and the time do not."""
    first = tiny_model(tmp_path / "a" / "model")
    second = tiny_model(tmp_path / "b" / "model")
    (second / "README.md").write_text("a card")
    before = load_model(first).sha256
    assert load_model(second).sha256 == before

    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"spacing_um_px": 0.51}))
    assert load_model(second).sha256 != before

    with (first / "model.onnx").open("ab") as file:
        file.write(b"weights.bin")
    (first / "weights.bin").write_bytes(b"1")
    with_data = load_model(first).sha256
    (first / "weights.bin").write_bytes(b"2")
    assert len({before, with_data, load_model(first).sha256}) == 3


def test_at_another_size_it_keeps_its_spacing_and_says_so(tmp_path: Path) -> None:
    """Hash, classes and spacing are the model's; its record names the size that it was made for, and only then."""
    model = load_model(tiny_model(tmp_path))
    other = model.at(96)
    assert (other.patch_px, other.input_hw, other.spacing, other.sha256) == (96, (96, 96), model.spacing, model.sha256)
    assert other.at_other_size and other.describe() == {**model.describe(), "patch_px": 96, "own_patch_px": 64}
    assert not model.at_other_size and other.at(64) == model.at(64) == model


@pytest.mark.parametrize("px, side", [(400, 256), (175, 112)])
def test_resize_goes_along_with_the_patch(tmp_path: Path, px: int, side: int) -> None:
    """In proportion: the network sees the magnification that it was made for."""
    model = load_model(tiny_model(tmp_path, patch_px=350, resize=224))
    assert model.at(px).input_hw == (side, side) and model.at(px).at(350) == model


def test_a_resize_that_would_end_between_pixels_is_refused(tmp_path: Path) -> None:
    """350 to 224 px is 16 of 25: 360 px would be 230.4; the sizes that can be are told."""
    model = load_model(tiny_model(tmp_path, patch_px=350, resize=224))
    with pytest.raises(
        ModelError, match="350 px to 224 x 224, and 360 px to no whole number; take a multiple of 25 px"
    ):
        model.at(360)


@pytest.mark.parametrize(("made", "words"), [(os.mkfifo, "is not a file"), (os.mkdir, "is not a file")])
def test_a_configuration_that_is_no_file(tmp_path: Path, made, words: str) -> None:
    """A pipe would be waited for, without end."""
    made(tmp_path / "config.json")
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"[" + b" " * MAX_CONFIG_BYTES + b"]", "larger than 16 MiB"), (b"9" * 5000, "is not usable JSON: ")],
)
def test_a_configuration_that_is_far_too_large(tmp_path: Path, text: bytes, words: str) -> None:
    """Read as far as the largest that there could be, and numbers as far as Python does."""
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path)


def test_a_pytorch_network_alone(tmp_path: Path) -> None:
    """It is a model, for the backend aoti; who needs ONNX says so. model.onnx counts where it is there too."""
    directory = tiny_model(tmp_path / "model")
    both = load_model(directory)
    (directory / "torchscript_model.pt").write_bytes(b"one")
    assert load_model(directory) == both
    load_model(directory).require_onnx()
    (directory / "model.onnx").unlink()
    alone = load_model(directory)
    assert alone.network_path == directory / "torchscript_model.pt" and alone.sha256 != both.sha256
    with pytest.raises(ModelError, match=r"model.onnx: no such file, torchscript_model.pt alone; .*model import.*aoti"):
        alone.require_onnx()
    (directory / "torchscript_model.pt").write_bytes(b"two")
    assert load_model(directory).sha256 != alone.sha256
