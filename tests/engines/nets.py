"""Networks that have what changes of precision care about, small enough to build in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import EngineError
from engines.flavour import Flavour, load_flavour
from engines.fold import fold
from engines.model import load_model
from tests.engines.tiny import tiny_config

SIDE = 32
FREE = ("height", "width")
CHANNELS = 32


def flavour() -> Flavour:
    """The installed TensorRT; skips the test where there is none."""
    try:
        return load_flavour()
    except EngineError as error:
        pytest.skip(str(error))


class Net:
    """Collects nodes and weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(7)

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def random(self, name: str, *shape: int) -> str:
        return self.weight(name, self.rng.normal(0.0, 1.0 / np.sqrt(np.prod(shape[1:])), shape))

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node.{output}", **attributes))
        return output

    def model(
        self, folder: Path, classes: int = 2, opset: int = 17, sides: tuple[int | str, ...] = (SIDE, SIDE)
    ) -> Path:
        """A model directory; the network goes from "input" to "logits". `sides` may be names: free height and width."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"class {i}" for i in range(classes)]
        (folder / "config.json").write_text(json.dumps(tiny_config(classes=names, patch_px=SIDE)))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *sides])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
            self.weights,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(proto)
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        return folder


def mixed(folder: Path, opset: int = 17) -> Path:
    """Convolutions, BatchNormalization, an attention-like block with Softmax, a LayerNormalization written out, a mean."""
    net = Net()
    x = net.node(
        "Conv",
        ["input", net.random("w0", CHANNELS, 3, 4, 4), net.weight("b0", np.zeros(CHANNELS))],
        "c0",
        strides=[4, 4],
    )
    for name, value in (("scale", 1.3), ("shift", 0.1), ("mean", 0.2), ("variance", 1.7)):
        net.weight(f"bn.{name}", np.full(CHANNELS, value))
    x = net.node("BatchNormalization", [x, "bn.scale", "bn.shift", "bn.mean", "bn.variance"], "bn")
    x = net.node("Relu", [x], "r0")
    x = net.node("Conv", [x, net.random("w1", CHANNELS, CHANNELS, 3, 3)], "c1", pads=[1, 1, 1, 1])
    x = net.node("Relu", [x], "r1")
    net.weights.append(numpy_helper.from_array(np.array([0, CHANNELS, -1]), "shape"))
    x = net.node("Reshape", [x, "shape"], "flat")
    x = net.node("Transpose", [x], "tokens", perm=[0, 2, 1])
    mean = net.node("ReduceMean", [x], "ln.mean", axes=[-1]) if opset < 18 else None
    if mean is not None:
        centred = net.node("Sub", [x, mean], "ln.centred")
        square = net.node("Pow", [centred, net.weight("two", np.array(2.0))], "ln.square")
        variance = net.node("ReduceMean", [square], "ln.variance", axes=[-1])
        safe = net.node("Add", [variance, net.weight("epsilon", np.array(1e-6))], "ln.safe")
        x = net.node("Div", [centred, net.node("Sqrt", [safe], "ln.deviation")], "ln")
    q = net.node("MatMul", [x, net.random("wq", CHANNELS, CHANNELS)], "q")
    k = net.node(
        "Transpose", [net.node("MatMul", [x, net.random("wk", CHANNELS, CHANNELS)], "k")], "kt", perm=[0, 2, 1]
    )
    weights = net.node("Softmax", [net.node("MatMul", [q, k], "qk")], "attention", axis=-1)
    x = net.node("MatMul", [weights, x], "mixed")
    x = net.node("Transpose", [x], "back", perm=[0, 2, 1])
    net.weights.append(numpy_helper.from_array(np.array([0, 0, 8, 8]), "square"))
    x = net.node("GlobalAveragePool", [net.node("Reshape", [x, "square"], "image")], "pool")
    x = net.node("Flatten", [x], "features")
    net.node(
        "Gemm", [x, net.weight("wh", net.rng.normal(0, 2, (CHANNELS, 2))), net.weight("bh", np.zeros(2))], "logits"
    )
    return net.model(folder, opset=opset)


def convolutions(folder: Path, sides: tuple[int | str, ...] = (SIDE, SIDE)) -> Path:
    """Only two convolutions, a mean and a product; takes patches of any size where `sides` are names."""
    net = Net()
    x = net.node("Relu", [net.node("Conv", ["input", net.random("w0", CHANNELS, 3, 4, 4)], "c0", strides=[4, 4])], "r0")
    x = net.node("Relu", [net.node("Conv", [x, net.random("w1", CHANNELS, CHANNELS, 3, 3)], "c1", pads=[1] * 4)], "r1")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "pool")], "features")
    net.node(
        "Gemm", [x, net.weight("wh", net.rng.normal(0, 2, (CHANNELS, 2))), net.weight("bh", np.zeros(2))], "logits"
    )
    return net.model(folder, sides=sides)


def dense(folder: Path) -> Path:
    """As a DenseNet: normalisation and Relu before each convolution, one pixel and three by turns, results joined."""
    net = Net()
    x = net.node("Conv", ["input", net.random("w0", CHANNELS, 3, 3, 3)], "c0", pads=[1] * 4, strides=[2, 2])
    for i in range(3):
        channels = CHANNELS + 16 * i
        for name, value in (("scale", 1.3), ("shift", 0.1), ("mean", 0.2), ("variance", 1.7)):
            net.weight(f"bn{i}.{name}", np.full(channels, value))
        norm = [x, *(f"bn{i}.{name}" for name in ("scale", "shift", "mean", "variance"))]
        y = net.node("Relu", [net.node("BatchNormalization", norm, f"bn{i}")], f"r{i}")
        bias = [net.weight(f"ba{i}", np.full(64, 0.1))] if i else []
        y = net.node(
            "Relu", [net.node("Conv", [y, net.random(f"wa{i}", 64, channels, 1, 1), *bias], f"a{i}")], f"ra{i}"
        )
        y = net.node("Conv", [y, net.random(f"wb{i}", 16, 64, 3, 3)], f"b{i}", pads=[1] * 4)
        x = net.node("Concat", [x, y], f"joined{i}", axis=1)
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "pool")], "features")
    head = net.weight("wh", net.rng.normal(0, 2, (CHANNELS + 48, 2)))
    net.node("Gemm", [x, head, net.weight("bh", np.zeros(2))], "logits")
    return net.model(folder)


def transformer(folder: Path) -> Path:
    """As a ViT: patches embedded, attention over four heads, LayerNormalization, two layers with Gelu written out."""
    net, width = Net(), 64
    for name, shape in (("tokens", [0, width, -1]), ("heads", [0, 0, 4, width // 4]), ("merged", [0, 0, width])):
        net.weights.append(numpy_helper.from_array(np.array(shape), f"shape.{name}"))

    def linear(source: str, name: str, inputs: int, outputs: int) -> str:
        product = net.node("MatMul", [source, net.random(f"{name}.w", inputs, outputs)], f"{name}.product")
        return net.node("Add", [product, net.weight(f"{name}.b", np.zeros(outputs))], name)

    def norm(source: str, name: str) -> str:
        scale, shift = net.weight(f"{name}.scale", np.ones(width)), net.weight(f"{name}.shift", np.zeros(width))
        return net.node("LayerNormalization", [source, scale, shift], name, axis=-1)

    x = net.node("Conv", ["input", net.random("w0", width, 3, 8, 8)], "c0", strides=[8, 8])
    x = net.node("Transpose", [net.node("Reshape", [x, "shape.tokens"], "flat")], "tokens", perm=[0, 2, 1])
    n = norm(x, "n1")
    q, k, v = (
        net.node("Transpose", [net.node("Reshape", [linear(n, name, width, width), "shape.heads"], f"{name}.split")],
                 f"{name}.heads", perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])
        for name in "qkv"
    )  # fmt: skip
    scaled = net.node("Mul", [net.node("MatMul", [q, k], "qk"), net.weight("quarter", np.array(0.25))], "scaled")
    a = net.node("MatMul", [net.node("Softmax", [scaled], "attention", axis=-1), v], "mixed")
    a = net.node("Reshape", [net.node("Transpose", [a], "back", perm=[0, 2, 1, 3]), "shape.merged"], "merged")
    x = net.node("Add", [x, linear(a, "o", width, width)], "sum1")
    h = linear(norm(x, "n2"), "f1", width, 2 * width)
    e = net.node("Erf", [net.node("Div", [h, net.weight("root2", np.array(2.0**0.5))], "h.scaled")], "h.erf")
    e = net.node("Add", [e, net.weight("one", np.array(1.0))], "h.plus")
    h = net.node("Mul", [net.node("Mul", [h, e], "h.twice"), net.weight("half", np.array(0.5))], "gelu")
    x = net.node("Add", [x, linear(h, "f2", 2 * width, width)], "sum2")
    x = net.node("ReduceMean", [x], "pool", axes=[1], keepdims=0)
    net.node("Gemm", [x, net.weight("wh", net.rng.normal(0, 2, (width, 2))), net.weight("bh", np.zeros(2))], "logits")
    return net.model(folder)


def products(folder: Path) -> Path:
    """A network of matrix products, without convolutions that int8 would take."""
    net = Net()
    x = net.node("Conv", ["input", net.random("w0", CHANNELS, 3, 8, 8)], "c0", strides=[8, 8])
    net.weights.append(numpy_helper.from_array(np.array([0, CHANNELS, -1]), "shape"))
    x = net.node("Transpose", [net.node("Reshape", [x, "shape"], "flat")], "tokens", perm=[0, 2, 1])
    x = net.node("Relu", [net.node("MatMul", [x, net.random("w1", CHANNELS, 64)], "m1")], "r1")
    x = net.node("MatMul", [x, net.random("w2", 64, CHANNELS)], "m2")
    x = net.node("ReduceMean", [x], "pool", axes=[1], keepdims=0)
    net.node(
        "Gemm", [x, net.weight("wh", net.rng.normal(0, 2, (CHANNELS, 2))), net.weight("bh", np.zeros(2))], "logits"
    )
    return net.model(folder)


def deep(folder: Path, layers: int) -> Path:
    """Convolutions in a row, for a build that takes its time: about 2 s for 300 of them on one core."""
    net = Net()
    x = net.node("Conv", ["input", net.random("w0", CHANNELS, 3, 4, 4)], "c0", strides=[4, 4])
    for i in range(1, layers):
        y = net.node("Conv", [x, net.random(f"w{i}", CHANNELS, CHANNELS, 3, 3)], f"c{i}", pads=[1] * 4)
        x = net.node("Add", [x, net.node("Sigmoid", [y], f"s{i}")], f"a{i}")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "pool")], "features")
    net.node(
        "Gemm", [x, net.weight("wh", net.rng.normal(0, 2, (CHANNELS, 2))), net.weight("bh", np.zeros(2))], "logits"
    )
    return net.model(folder)


def folded(directory: Path, *, any_size: bool = False) -> onnx.ModelProto:
    return fold(load_model(directory), any_size=any_size)


def noise(n: int, seed: int = 0) -> np.ndarray:
    """Patches of several tints, uint8 (n, SIDE, SIDE, 3)."""
    rng = np.random.default_rng(seed)
    tint = rng.integers(0, 156, (n, 1, 1, 3))
    return (rng.integers(0, 100, (n, SIDE, SIDE, 3)) + tint).astype(np.uint8)
