"""engines.fold: the folded graph gives the same numbers as doing its steps outside, and refuses what it cannot fold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from engines.errors import ModelError
from engines.fold import DATA_SUFFIX, fold, resize_matrix, save_folded
from engines.model import load_model
from tests.engines import tiny
from tests.engines.tiny import tiny_config, tiny_model


def run(proto: onnx.ModelProto, patches: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"patches": patches})[0]


def noise(n: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (n, side, side, 3), np.uint8)


def real_patches(data_dir: Path, side: int, every: int = 3) -> np.ndarray:
    """Real patches as uint8 (n, side, side, 3): cut where they are large enough, else scaled."""
    folder = data_dir / "patches"
    files = sorted(folder.glob("camelyon16/*/*.png"))[::every] + sorted(folder.glob("kather2016/*.png"))[::every]
    if not files:
        pytest.skip(f"no patches in {folder}")
    images = [Image.open(file).convert("RGB") for file in files]
    return np.stack([
        np.asarray(image.crop((0, 0, side, side)) if image.width >= side else image.resize((side, side), Image.BICUBIC))
        for image in images
    ])


def rewrite(directory: Path, change) -> None:
    """Loads model.onnx, lets `change(proto)` alter it, writes it back."""
    proto = onnx.load(str(directory / "model.onnx"))
    change(proto)
    (directory / "model.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("names", [("tumour",), ("normal", "tumour"), ("a", "b", "c", "d", "e")])
def test_the_folded_graph_is_the_network_with_its_preparation(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Raw patches give what scaling, normalising, the network and softmax (sigmoid for one class) give in plain numpy.
    """
    patches = noise(5, 64)
    patches[0] = 255
    probabilities = run(fold(load_model(tiny_model(tmp_path, classes=names))), patches)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, tiny.expected(patches, len(names)), atol=2e-6)


def test_cast_comes_first_then_transpose(tmp_path: Path) -> None:
    """The order that TensorRT's parser wants."""
    graph = fold(load_model(tiny_model(tmp_path, resize=32))).graph
    assert [node.op_type for node in graph.node[:2]] == ["Cast", "Transpose"]
    shape = graph.input[0].type.tensor_type.shape.dim
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert (shape[0].dim_param, [dim.dim_value for dim in shape[1:]]) == ("batch", [64, 64, 3])
    assert graph.node[-1].op_type == "Softmax"
    onnx.checker.check_model(fold(load_model(tmp_path)), full_check=True)


def resized_by_graph(directory: Path, patches: np.ndarray, size: int | list[int]) -> np.ndarray:
    """What the folded graph makes of `patches` before ToTensor: uint8 (n, h, w, 3), read out of the graph itself."""
    config = tiny_config(patch_px=patches.shape[1], resize=64)
    tiny_model(directory, patch_px=patches.shape[1], resize=64)
    height, width = (size, size) if isinstance(size, int) else size
    config["transform"][0]["arguments"]["size"] = size
    (directory / "config.json").write_text(tiny.json.dumps(config))

    def free_sides(proto: onnx.ModelProto) -> None:
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"

    rewrite(directory, free_sides)
    proto = fold(load_model(directory))
    scale = next(node for node in proto.graph.node if node.name == "slidestream.scaled")
    proto.graph.output.append(helper.make_tensor_value_info(scale.input[0], TensorProto.FLOAT, None))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    levels = session.run([scale.input[0]], {"patches": patches})[0].transpose(0, 2, 3, 1)
    assert levels.shape == (len(patches), height, width, 3)
    assert (levels == levels.astype(np.uint8)).all()
    return levels.astype(np.uint8)


@pytest.mark.parametrize(
    "source, target",
    [(256, 224), (224, 96), (350, 224), (512, 224), (100, 224), (224, 256), (224, [224, 112]), (224, [96, 224])],
)
def test_resize_is_pillows_bit_for_bit_on_real_patches(
    tmp_path: Path, data_dir: Path, source: int, target: int | list[int]
) -> None:
    """torchvision's Resize of a PIL image is Pillow's BILINEAR; the folded one differs in no grey level of real tissue.
    """
    patches = real_patches(data_dir, source, every=6)
    height, width = (target, target) if isinstance(target, int) else target
    wanted = np.stack([np.asarray(Image.fromarray(p).resize((width, height), Image.BILINEAR)) for p in patches])
    got = resized_by_graph(tmp_path / "model", patches, target)
    assert (got == wanted).all()


def test_an_oblong_resize_is_pillows_to_one_grey_level(tmp_path: Path, data_dir: Path) -> None:
    """Newer Pillows take the columns first where that is less work; only the rounding between the two differs."""
    patches = real_patches(data_dir, 224, every=6)
    wanted = np.stack([np.asarray(Image.fromarray(p).resize((200, 128), Image.BILINEAR)) for p in patches])
    difference = np.abs(resized_by_graph(tmp_path / "model", patches, [128, 200]).astype(int) - wanted)
    assert difference.max() <= 1
    assert difference.mean() < 0.2


def test_resize_is_pillows_on_noise_too(tmp_path: Path) -> None:
    """Noise has the ties and the extremes that tissue has not."""
    patches = noise(4, 256)
    patches[0] = (patches[0] > 127) * np.uint8(255)
    wanted = np.stack([np.asarray(Image.fromarray(p).resize((224, 224), Image.BILINEAR)) for p in patches])
    assert (resized_by_graph(tmp_path / "model", patches, 224) == wanted).all()


def test_the_whole_graph_with_resize_is_pillow_then_network(tmp_path: Path, data_dir: Path) -> None:
    """Resizing in the graph changes no probability of real patches by more than 1e-5 against resizing with Pillow."""
    patches = real_patches(data_dir, 100)
    small = np.stack([np.asarray(Image.fromarray(p).resize((64, 64), Image.BILINEAR)) for p in patches])
    probabilities = run(fold(load_model(tiny_model(tmp_path, patch_px=100, resize=64))), patches)
    np.testing.assert_allclose(probabilities, tiny.expected(small), atol=1e-5)


def test_resize_weights_sum_to_one() -> None:
    """Every output pixel is a mean of input pixels, at the borders too."""
    for source, target in ((256, 224), (10, 1), (1, 10), (333, 100)):
        matrix = resize_matrix(source, target)
        assert matrix.shape == (target, source)
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0)


def test_a_resize_to_the_same_size_adds_nothing(tmp_path: Path) -> None:
    """As in torchvision, and without a constant that nothing uses."""
    graph = fold(load_model(tiny_model(tmp_path, patch_px=64, resize=64))).graph
    assert "MatMul" not in [node.op_type for node in graph.node]
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used


def test_a_network_of_any_size_is_folded_for_any(tmp_path: Path) -> None:
    """The graph for any size answers at each size as the graph for that size alone."""

    def free(proto: onnx.ModelProto) -> None:
        for place, name in ((2, "height"), (3, "width")):
            proto.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name

    rewrite(tiny_model(tmp_path), free)
    model = load_model(tmp_path)
    graph = fold(model, any_size=True)
    for side in (64, 96):
        patches = noise(4, side)
        alone = run(fold(replace(model, patch_px=side)), patches)
        np.testing.assert_array_equal(run(graph, patches), alone)
        np.testing.assert_allclose(alone, tiny.expected(patches), atol=2e-6)


def test_a_network_of_one_size_is_not_folded_for_any(tmp_path: Path) -> None:
    """Nor is one behind a Resize: both are told with what to do."""
    with pytest.raises(ModelError, match=r"is \(batch, 3, 64, 64\): it takes patches of one size; .*free height"):
        fold(load_model(tiny_model(tmp_path / "one")), any_size=True)
    with pytest.raises(ModelError, match="Resize brings .*build for its own 96 px alone"):
        fold(load_model(tiny_model(tmp_path / "two", patch_px=96, resize=64)), any_size=True)


def test_at_another_size_resize_keeps_the_magnification(tmp_path: Path) -> None:
    """96 to 64 px is two thirds; so are 48 to 32, which Pillow computes alike."""
    model = load_model(tiny_model(tmp_path, patch_px=96, resize=64, free=True)).at(48)
    patches = noise(3, 48)
    shrunk = np.stack([np.asarray(Image.fromarray(patch).resize((32, 32), Image.BILINEAR)) for patch in patches])
    np.testing.assert_allclose(run(fold(model), patches), tiny.expected(shrunk), atol=2e-6)


def test_inner_names_that_collide_give_way(tmp_path: Path) -> None:
    """A network whose own input is called `probabilities` and output `patches` is folded all the same."""
    directory = tiny_model(tmp_path)

    def rename(proto: onnx.ModelProto) -> None:
        graph = proto.graph
        graph.input[0].name = graph.node[0].input[0] = "probabilities"
        graph.output[0].name = graph.node[-1].output[0] = "patches"

    rewrite(directory, rename)
    patches = noise(3, 64)
    np.testing.assert_allclose(run(fold(load_model(directory)), patches), tiny.expected(patches), atol=2e-6)


def test_a_half_precision_network_is_fed_and_read_in_half_precision(tmp_path: Path) -> None:
    """float16 in and out inside, uint8 in and float32 out outside."""
    directory = tiny_model(tmp_path)

    def halve(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16

    rewrite(directory, halve)
    patches = noise(3, 64)
    probabilities = run(fold(load_model(directory)), patches)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, tiny.expected(patches), atol=5e-3)


def test_weights_listed_as_inputs_are_not_taken_for_images(tmp_path: Path) -> None:
    """Old exporters list every weight among the inputs."""
    directory = tiny_model(tmp_path)

    def list_weights(proto: onnx.ModelProto) -> None:
        proto.ir_version = 3
        for tensor in proto.graph.initializer:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            proto.graph.input.append(value)

    rewrite(directory, list_weights)
    proto = fold(load_model(directory))
    assert [value.name for value in proto.graph.input] == ["patches"]
    patches = noise(2, 64)
    np.testing.assert_allclose(run(proto, patches), tiny.expected(patches), atol=2e-6)


def test_external_data_is_read_and_written_where_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in a file beside model.onnx are folded in, and go beside the folded file where protobuf is too small."""
    directory = tiny_model(tmp_path / "model")
    proto = onnx.load(str(directory / "model.onnx"))
    onnx.save_model(
        proto, str(directory / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    monkeypatch.setattr("engines.fold.EXTERNAL_BYTES", 100)
    folded = tmp_path / "folded.onnx"
    for _ in range(2):
        save_folded(fold(load_model(directory)), folded)
    data = folded.with_name(folded.name + DATA_SUFFIX)
    assert data.stat().st_size < 2 * (directory / "model.onnx.data").stat().st_size
    patches = noise(2, 64)
    session = ort.InferenceSession(str(folded), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"patches": patches})[0], tiny.expected(patches), atol=2e-6)

    (directory / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match="model.onnx: cannot be read.*copy its data files beside it"):
        fold(load_model(directory))


def _dims(*, value: str = "input", **changes):
    def change(proto: onnx.ModelProto) -> None:
        tensor = (proto.graph.input if value == "input" else proto.graph.output)[0].type.tensor_type
        if "shape" in changes:
            tensor.CopyFrom(helper.make_tensor_type_proto(tensor.elem_type, changes["shape"]).tensor_type)
        if "elem_type" in changes:
            tensor.elem_type = changes["elem_type"]

    return change


def _two_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ["batch", 1]))


def _two_outputs(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["batch", 4]))


def _old(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 6


REFUSED = [
    (_dims(shape=[1, 3, 64, 64]), "the batch axis is fixed at 1; export it with dynamic_axes"),
    (_dims(shape=["n", 64, 64, 3]), "channels come last"),
    (_dims(shape=["n", 1, 64, 64]), r"is \(n, 1, 64, 64\), but config.json makes it \(N, 3, 64, 64\)"),
    (_dims(shape=["n", 3, 224, 224]), r"is \(n, 3, 224, 224\), but config.json makes it \(N, 3, 64, 64\)"),
    (_dims(shape=["n", 3]), r"must be \(N, 3, height, width\), not \(n, 3\)"),
    (_dims(elem_type=TensorProto.INT64), "must be float images, not int64"),
    (_dims(value="output", shape=[1, 2]), "the batch axis is fixed at 1"),
    (_dims(value="output", shape=["n", 2, 7, 7]), r"must be logits \(N, classes\), not \(n, 2, 7, 7\)"),
    (_dims(value="output", elem_type=TensorProto.INT64), "must be float logits, not int64"),
    (_two_inputs, "exactly one input .*has 2: input, age"),
    (_two_outputs, "exactly one output .*has 2: logits, f"),
    (_old, "opset 6 is too old"),
]


@pytest.mark.parametrize("change, said", REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_folded_is_refused(tmp_path: Path, change, said: str) -> None:
    """A graph whose input or output is not what config.json says is refused in one line that names the file."""
    directory = tiny_model(tmp_path)
    rewrite(directory, change)
    with pytest.raises(ModelError, match=said) as caught:
        fold(load_model(directory))
    assert str(caught.value).startswith(f"{directory / 'model.onnx'}: ")
    assert "\n" not in str(caught.value)


def test_a_wrong_number_of_classes_names_both(tmp_path: Path) -> None:
    """The message says what config.json says and what model.onnx gives."""
    model = load_model(tiny_model(tmp_path, kind="wrong_classes"))
    with pytest.raises(ModelError, match="config.json: num_classes says 2 classes, but model.onnx gives 3"):
        fold(model)


@pytest.mark.parametrize("content", [b"", b"\x00\x01garbage", b"<html>not found</html>", None])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Empty, garbage, a web page, and a file cut off in the middle."""
    directory = tiny_model(tmp_path, kind="broken")
    if content is not None:
        (directory / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="model.onnx: is not "):
        fold(load_model(directory))
