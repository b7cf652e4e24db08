"""engines.quantize: what is quantised, with which scales, and how near the answers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from engines.census import graph_census
from engines.errors import EngineError
from engines.precision import tensor_types, to_half
from engines.quantize import (
    LEVELS,
    PRODUCTS,
    WITHOUT_CONVOLUTIONS,
    _as_products,
    calibrate,
    load_ranges,
    points,
    quantise,
    quantiser,
    save_ranges,
    scale_for,
)
from tests.engines.nets import Net, convolutions, dense, folded, mixed, noise, products
from tests.engines.test_precision import answers


def weights(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_only_wide_products_of_constants_are_quantised(tmp_path: Path) -> None:
    """Not the first convolution (3 channels), not attention's own product, not the head of two classes."""
    assert [point.weight for point in points(folded(mixed(tmp_path)))] == ["w1", "wq", "wk"]
    assert [point.weight for point in points(folded(mixed(tmp_path)), PRODUCTS)] == ["wq", "wk"]


def test_a_range_is_what_most_patches_reach(tmp_path: Path) -> None:
    """One patch in a hundred that is far out does not stretch the range at a coverage of 0.9."""
    proto = folded(convolutions(tmp_path))
    patches = np.concatenate([noise(1, seed) // 16 + 120 for seed in range(20)])
    odd = patches.copy()
    odd[0] = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), odd[0].shape)
    narrow = calibrate(proto, patches, tmp_path, threads=1, coverage=0.9)
    assert list(narrow) == [point.activation for point in points(proto)]
    assert calibrate(proto, odd, tmp_path, threads=1, coverage=0.9)["r0"] < 1.2 * narrow["r0"]
    assert calibrate(proto, odd, tmp_path, threads=1, coverage=1.0)["r0"] > 1.2 * narrow["r0"]


def test_a_range_is_the_largest_magnitude(tmp_path: Path) -> None:
    """Measured against the activation itself."""
    proto = folded(convolutions(tmp_path))
    patches = noise(6)
    (name,) = {point.activation for point in points(proto)}
    found = calibrate(proto, patches, tmp_path, threads=1, coverage=1.0)[name]
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    watched.graph.output[0].name = name
    watched.graph.output[0].type.tensor_type.ClearField("shape")
    assert found == pytest.approx(float(np.abs(answers(watched, tmp_path, patches)).max()), rel=1e-5)


def test_the_answers_stay_near(tmp_path: Path) -> None:
    """Eight bits, and the rest in float16: a few percent at most on these networks, and not nothing."""
    patches = noise(16)
    for network in (convolutions, products):
        proto = folded(network(tmp_path / network.__name__))
        before = answers(proto, tmp_path, patches)
        graph = to_half(quantise(proto, calibrate(proto, patches, tmp_path, threads=1)))
        after = answers(graph, tmp_path, patches)
        assert 1e-5 < np.abs(after - before).max() < 0.03


def test_weights_are_int8_for_each_output_channel(tmp_path: Path) -> None:
    """Axis 0 of a convolution, axis 1 of a product; the largest weight of every channel takes the last level."""
    for network, name, axis in ((convolutions, "w1", 0), (products, "w1", 1)):
        proto = folded(network(tmp_path / network.__name__))
        before = weights(proto)[name]
        found = weights(quantise(proto, dict.fromkeys((point.activation for point in points(proto)), 1.0)))
        levels, scale = found[f"{name}.int8_{axis}"], found[f"{name}.int8_{axis}.scale"]
        assert levels.dtype == np.int8 and scale.shape == (before.shape[axis],)
        other = tuple(place for place in range(before.ndim) if place != axis)
        assert (np.abs(levels.astype(int)).max(axis=other) >= LEVELS - 1).all()
        shape = [1] * before.ndim
        shape[axis] = -1
        np.testing.assert_allclose(levels * scale.reshape(shape), before, atol=scale.max() * 0.51)


def test_scales_cut_nothing_off() -> None:
    """The largest magnitude is the last level; a channel of zeros has a scale too, and stays zero."""
    largest = np.array([0.0, 3e-6, 1.0, 60000.0], np.float32)
    scale = scale_for(largest)
    assert scale.dtype == np.float32 and (scale > 0).all()
    np.testing.assert_allclose(scale[1:] * LEVELS, largest[1:], rtol=1e-6)


def test_no_bias_is_quantised_and_the_rest_is_float16(tmp_path: Path) -> None:
    """An INT32 bias is what TensorRT's parser refuses. Scales, and what is scaled, stay float32."""
    proto = folded(mixed(tmp_path))
    graph = to_half(quantise(proto, dict.fromkeys((point.activation for point in points(proto)), 4.0)))
    assert not [tensor.name for tensor in graph.graph.initializer if tensor.data_type == TensorProto.INT32]
    types = tensor_types(graph)
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear":
            assert types[node.input[1]] == types[node.output[0]] == TensorProto.FLOAT
    assert (types["c1"], types["q"], types["qk"]) == (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16)
    assert graph_census(graph).compute == {"fp16": 4, "int8": 3}


def test_an_activation_is_quantised_once(tmp_path: Path) -> None:
    """Query and key read the same tensor: one Q for both."""
    proto = folded(mixed(tmp_path))
    graph = quantise(proto, dict.fromkeys((point.activation for point in points(proto)), 4.0))
    assert len([node for node in graph.graph.node if node.op_type == "QuantizeLinear"]) == 2


def test_convolutions_of_one_pixel_become_products(tmp_path: Path) -> None:
    """The same answers but for the order of summation, and, quantised, nearly those; larger ones stay as they are."""
    proto, patches = folded(dense(tmp_path)), noise(16)
    before = answers(proto, tmp_path, patches)
    ranges = calibrate(proto, patches, tmp_path, threads=1)
    graph = quantise(proto, ranges, WITHOUT_CONVOLUTIONS)
    quantised = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantised) == 3 and len([node for node in graph.graph.node if node.op_type == "Conv"]) == 4
    assert graph_census(to_half(graph)).compute == {"fp16": 5, "int8": 3}
    assert 1e-6 < np.abs(answers(graph, tmp_path, patches) - before).max() < 0.03
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    _as_products(whole, {})
    np.testing.assert_allclose(answers(whole, tmp_path, patches), before, atol=1e-5)


def test_an_input_of_several_products_is_turned_once(tmp_path: Path) -> None:
    """And a convolution that skips pixels, pads them or has groups is no product."""
    net = Net()
    x = net.node("Relu", [net.node("Conv", ["input", net.random("w0", 32, 3, 4, 4)], "c0", strides=[4, 4])], "r0")
    parts = [
        net.node("Conv", [x, net.random(f"w.{name}", 32, 32 // options.get("group", 1), 1, 1)], name, **options)
        for name, options in (("a", {}), ("b", {"strides": [1, 1]}), ("c", {"group": 2}))
    ]
    skips = net.node("Conv", [x, net.random("w.d", 32, 32, 1, 1)], "d", strides=[2, 2])
    padded = net.node("Conv", [x, net.random("w.e", 32, 32, 1, 1)], "e", pads=[1] * 4)
    x = net.node("Add", [net.node("Add", parts[:2], "ab"), parts[2]], "abc")
    pools = [net.node("Flatten", [net.node("GlobalAveragePool", [y], f"p{y}")], f"f{y}") for y in (x, skips, padded)]
    x = net.node("Add", [net.node("Add", pools[:2], "sum1"), pools[2]], "sum2")
    net.node("Gemm", [x, net.random("wh", 32, 2), net.weight("bh", np.zeros(2))], "logits")
    proto = folded(net.model(tmp_path))
    graph = quantise(proto, dict.fromkeys((point.activation for point in points(proto)), 4.0), WITHOUT_CONVOLUTIONS)
    kinds = [node.op_type for node in graph.graph.node]
    assert (kinds.count("MatMul"), kinds.count("QuantizeLinear"), kinds.count("Conv")) == (2, 1, 4)
    assert [node.name for node in graph.graph.node].count("r0.channels_last") == 1


def test_nothing_to_quantise_is_told(tmp_path: Path) -> None:
    """Rather than building fp16 under another name."""
    net = Net()
    x = net.node("Flatten", [net.node("GlobalAveragePool", ["input"], "p")], "f")
    net.node("Gemm", [x, net.random("h", 3, 2)], "logits")
    proto = folded(net.model(tmp_path))
    with pytest.raises(EngineError, match="no wide convolution"):
        calibrate(proto, noise(2), tmp_path, threads=1)
    with pytest.raises(EngineError, match="no wide MatMul or Gemm"):
        quantise(folded(convolutions(tmp_path / "c")), {}, PRODUCTS)


def test_a_range_that_is_missing_is_told(tmp_path: Path) -> None:
    """A calibration of another graph does not fit."""
    with pytest.raises(EngineError, match="knows no range of r0"):
        quantise(folded(convolutions(tmp_path)), {})


def test_ranges_are_kept_and_damage_is_no_ranges(tmp_path: Path) -> None:
    """A second build need not calibrate; a file that is cut off makes it calibrate again."""
    path = tmp_path / "a" / "ranges.json"
    save_ranges(path, {"x": 1.5})
    assert load_ranges(path) == {"x": 1.5}
    path.write_bytes(path.read_bytes()[:-6])
    assert load_ranges(path) is None
    assert load_ranges(tmp_path / "none.json") is None


def test_the_recipe_names_what_it_quantises() -> None:
    """Two engines that quantise different operators are different engines."""
    assert quantiser(("MatMul", "Gemm", "Conv")) == "int8-1"
    assert quantiser(PRODUCTS) == "int8-1(Gemm,MatMul)"
