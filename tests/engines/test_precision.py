"""engines.precision: what becomes float16 and what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.precision_loss import rounded
from engines.census import graph_census
from engines.errors import EngineError
from engines.fold import PREFIX, fold, save_folded
from engines.model import load_model
from engines.onnx_engine import INPUT, open_session
from engines.precision import FULL, graph_sha256, tensor_types, to_half
from tests.engines.nets import Net, convolutions, folded, mixed, noise
from tests.engines.tiny import tiny_model


def answers(proto: onnx.ModelProto, folder: Path, patches: np.ndarray) -> np.ndarray:
    """With each float16 result rounded: ONNX Runtime by itself would compute such nodes in float32 and nothing overflowed."""
    graph, path = onnx.ModelProto(), folder / "graph.onnx"
    graph.CopyFrom(proto)
    save_folded(rounded(graph), path)
    return open_session(path, 1).run(None, {INPUT: patches})[0]


def types_by_operator(proto: onnx.ModelProto) -> dict[str, set[int]]:
    types = tensor_types(proto)
    out: dict[str, set[int]] = {}
    for node in proto.graph.node:
        out.setdefault(node.op_type, set()).add(types[node.output[0]])
    return out


def test_convolutions_and_products_become_half_and_what_overflows_does_not(tmp_path: Path) -> None:
    """Conv, MatMul, Gemm in float16; ReduceMean, Pow, Sqrt, Softmax, GlobalAveragePool stay float32."""
    found = types_by_operator(to_half(folded(mixed(tmp_path))))
    for operator in ("Conv", "MatMul", "Gemm", "BatchNormalization", "Relu"):
        assert found[operator] == {TensorProto.FLOAT16}, operator
    for operator in ("ReduceMean", "Pow", "Sqrt", "Softmax", "GlobalAveragePool"):
        assert found[operator] == {TensorProto.FLOAT}, operator


def test_what_lies_between_two_float32_nodes_stays_float32(tmp_path: Path) -> None:
    """The epsilon is added to the variance in float32: in float16 1e-6 is nearly nothing."""
    proto = to_half(folded(mixed(tmp_path)))
    types = tensor_types(proto)
    assert types["ln.safe"] == TensorProto.FLOAT
    assert types["ln"] == TensorProto.FLOAT16


def test_the_answers_stay_the_same_but_for_rounding(tmp_path: Path) -> None:
    """float16 has 11 bits; a probability moves in the third decimal at most."""
    patches = noise(16)
    proto = folded(mixed(tmp_path))
    before = answers(proto, tmp_path, patches)
    after = answers(to_half(proto), tmp_path, patches)
    assert before.std(axis=0).min() > 0.01
    np.testing.assert_allclose(after, before, atol=5e-3)
    assert not np.array_equal(after, before)


def test_input_and_output_keep_their_types(tmp_path: Path) -> None:
    """Raw uint8 patches in, float32 probabilities out, whatever is inside."""
    graph = to_half(folded(convolutions(tmp_path))).graph
    assert [value.type.tensor_type.elem_type for value in graph.input] == [TensorProto.UINT8]
    assert [value.type.tensor_type.elem_type for value in graph.output] == [TensorProto.FLOAT]


def test_the_folded_preprocessing_stays_exact(tmp_path: Path) -> None:
    """Resizing is whole-number arithmetic that float16 could not hold."""
    proto = to_half(fold(load_model(tiny_model(tmp_path / "m", patch_px=64, resize=32))))
    types = tensor_types(proto)
    ours = [
        node for node in proto.graph.node if node.name.startswith(PREFIX) and node.op_type in ("MatMul", "Floor", "Mul")
    ]
    assert len(ours) >= 8
    assert {types[node.output[0]] for node in ours} == {TensorProto.FLOAT}


def test_batch_norm_with_a_variance_beyond_half_is_right(tmp_path: Path) -> None:
    """A variance of a million is infinite in float16; the quotient that it stands for is not."""
    net = Net()
    x = net.node("Conv", ["input", net.weight("w", np.full((16, 3, 4, 4), 30.0))], "c", strides=[4, 4])
    for name, value in (("scale", 1.0), ("shift", 0.0), ("mean", 100.0), ("variance", 1e6)):
        net.weight(name, np.full(16, value))
    x = net.node("BatchNormalization", [x, "scale", "shift", "mean", "variance"], "b")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "p")], "f")
    net.node("Gemm", [x, net.random("h", 16, 2)], "logits")
    proto = folded(net.model(tmp_path))
    patches = noise(4)
    before = answers(proto, tmp_path, patches)
    after = answers(to_half(proto), tmp_path, patches)
    assert np.isfinite(after).all()
    np.testing.assert_allclose(after, before, atol=5e-3)


def test_a_weight_that_half_cannot_hold_keeps_its_node_in_float32(tmp_path: Path) -> None:
    """100,000 would become infinite, and so would the result for the node that makes it small again."""
    net = Net()
    x = net.node("Flatten", [net.node("GlobalAveragePool", ["input"], "p")], "f")
    x = net.node("Mul", [x, net.weight("large", np.array(1e5))], "big")
    x = net.node("Mul", [x, net.weight("small", np.array(1e-5))], "normal")
    net.node("MatMul", [x, net.random("h", 3, 2)], "logits")
    proto = folded(net.model(tmp_path))
    patches = noise(4)
    before = answers(proto, tmp_path, patches)
    proto = to_half(proto)
    types = tensor_types(proto)
    assert (types["big"], types["normal"], types["normal.half"]) == (FULL, FULL, TensorProto.FLOAT16)
    np.testing.assert_allclose(answers(proto, tmp_path, patches), before, atol=5e-3)


def test_constants_and_resize_scales(tmp_path: Path) -> None:
    """Constant nodes are converted where float16 reads them; Resize wants its scales in float32 by definition."""
    net = Net()
    net.nodes.append(
        helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.array(0.5, np.float32), "v"))
    )
    x = net.node("Mul", ["input", "half"], "m")
    x = net.node("Resize", [x, "", net.weight("scales", np.array([1, 1, 0.5, 0.5]))], "s", mode="nearest")
    x = net.node("Conv", [x, net.random("w", 16, 3, 4, 4)], "c", strides=[4, 4])
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "p")], "f")
    net.node("Gemm", [x, net.random("h", 16, 2)], "logits")
    proto = folded(net.model(tmp_path))
    patches = noise(4)
    before = answers(proto, tmp_path, patches)
    proto = to_half(proto)
    types = tensor_types(proto)
    assert (types["m"], types["s"], types["scales"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT)
    np.testing.assert_allclose(answers(proto, tmp_path, patches), before, atol=5e-3)


def test_whole_numbers_made_float_stay_float32(tmp_path: Path) -> None:
    """A size or a position may be larger than 2048, up to which float16 counts."""
    net = Net()
    net.node("Shape", ["input"], "size")
    net.node("Cast", ["size"], "size.float", to=TensorProto.FLOAT)
    total = net.node("ReduceProd", ["size.float"], "total", keepdims=0)
    x = net.node("Flatten", [net.node("GlobalAveragePool", ["input"], "p")], "f")
    x = net.node("Div", [x, total], "d")
    net.node("MatMul", [x, net.random("h", 3, 2)], "logits")
    proto = to_half(folded(net.model(tmp_path)))
    assert tensor_types(proto)["size.float"] == TensorProto.FLOAT


def test_a_network_that_branches_is_refused(tmp_path: Path) -> None:
    """Control flow would hide types in subgraphs: told, instead of half done."""
    proto = folded(convolutions(tmp_path))
    inner = helper.make_graph([], "inner", [], [])
    proto.graph.node.append(helper.make_node("If", ["x"], ["y"], name="fork", then_branch=inner, else_branch=inner))
    with pytest.raises(EngineError, match="branches.*fork"):
        to_half(proto)


def test_a_network_that_is_half_already_stays_as_it_is(tmp_path: Path) -> None:
    """Its own Casts are kept, and it is right."""
    net = Net()
    net.node("Cast", ["input"], "i", to=TensorProto.FLOAT16)
    net.weights.append(numpy_helper.from_array(net.rng.normal(0, 0.2, (16, 3, 4, 4)).astype(np.float16), "w"))
    x = net.node("Conv", ["i", "w"], "c", strides=[4, 4])
    x = net.node("Cast", [x], "o", to=TensorProto.FLOAT)
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "p")], "f")
    net.node("Gemm", [x, net.random("h", 16, 2)], "logits")
    proto = folded(net.model(tmp_path))
    patches = noise(4)
    before = answers(proto, tmp_path, patches)
    np.testing.assert_allclose(answers(to_half(proto), tmp_path, patches), before, atol=5e-3)


def test_the_census_counts_what_computes(tmp_path: Path) -> None:
    """Two convolutions, four products and a Gemm, by the type of what they give."""
    proto = folded(mixed(tmp_path))
    assert graph_census(proto).compute == {"fp32": 7}
    assert graph_census(to_half(proto)).compute == {"fp16": 7}


def test_the_hash_is_of_the_whole_graph(tmp_path: Path) -> None:
    """Equal graphs have equal hashes; one changed weight changes it."""
    first, second = folded(convolutions(tmp_path / "a")), folded(convolutions(tmp_path / "b"))
    assert graph_sha256(first) == graph_sha256(second)
    weight = next(tensor for tensor in second.graph.initializer if tensor.name == "w1")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, "w1"))
    assert graph_sha256(first) != graph_sha256(second)
