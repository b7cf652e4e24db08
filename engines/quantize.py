"""INT8 by explicit quantisation: QuantizeLinear and DequantizeLinear around the inputs of convolutions and products.

What is quantised and how is what TensorRT fuses into int8 kernels: activations one symmetric scale for a tensor, weights one
for each output channel and stored as int8, biases not at all. Scales and the quantised products stay float32, everything else
becomes float16 (engines.precision): a product of int8 adds up whole numbers far beyond float16, and with float16 scales
tensorrt_rtx 1.4 scales the sum after converting it, which gives infinities (measured on ViT-B/16: NaN for every patch).

A range is the largest magnitude that a share of the calibration patches reaches (`coverage`), not the largest of all: one
odd patch should not coarsen the scale for all others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from engines.errors import EngineError, one_line
from engines.files import write_whole
from engines.fold import INPUT, PREFIX, save_folded
from engines.onnx_engine import open_session

# Part of an engine's identity: raise it when the same graph and patches would be quantised otherwise.
QUANTISER = "int8-1"
PRODUCTS = ("MatMul", "Gemm")
QUANTISABLE = ("Conv", *PRODUCTS)
# A convolution of one pixel is a product over its channels. tensorrt_rtx 1.4 refuses every int8 convolution, whatever its
# scales, channels, kernel and GPU, but takes int8 products: about half of a ResNet's work, and of a DenseNet's, is of this kind.
POINTWISE = "Conv1x1"
WITHOUT_CONVOLUTIONS = (POINTWISE, *PRODUCTS)
COVERAGE = 0.999
MIN_OPSET = 13  # from here on weights may have one scale for each channel
LEVELS = 127
# Narrower products gain nothing from int8 and lose most: the first layer (3 channels), depthwise convolutions, the head.
MIN_WIDTH = 16
_BATCH = 8
_SMALLEST_SCALE = 1e-12  # of a channel without weights


@dataclass(frozen=True, slots=True)
class Point:
    """A node to quantise: its activation tensor, its weight, and the weight's axis of output channels."""

    node: str
    activation: str
    weight: str
    axis: int


Ranges = dict[str, float]
"""Largest magnitude that is represented, by tensor."""


def quantiser(operators: Sequence[str]) -> str:
    """The name of a recipe, for an engine's identity."""
    return QUANTISER if set(operators) == set(QUANTISABLE) else f"{QUANTISER}({','.join(sorted(operators))})"


def points(proto: onnx.ModelProto, operators: Sequence[str] = QUANTISABLE) -> list[Point]:
    """The nodes of a folded float32 graph that are quantised: wide ones whose weight is a constant."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    found = []
    for node in proto.graph.node:
        if node.op_type not in operators:
            continue
        if node.name.startswith(PREFIX) or len(node.input) < 2 or node.input[1] not in weights:
            continue
        if node.input[0] in weights:
            continue
        shape = tuple(weights[node.input[1]].dims)
        axis = _output_axis(node, len(shape))
        if axis is not None and shape[axis] >= MIN_WIDTH and shape[_inner_axis(node, axis)] >= MIN_WIDTH:
            found.append(Point(node.output[0], node.input[0], node.input[1], axis))
    return found


def _output_axis(node: onnx.NodeProto, rank: int) -> int | None:
    if node.op_type == "Conv" and rank >= 3:
        return 0
    if node.op_type == "MatMul" and rank == 2:
        return 1
    if node.op_type == "Gemm" and rank == 2:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if "transA" in attributes and attributes["transA"].i:
            return None
        return 0 if "transB" in attributes and attributes["transB"].i else 1
    return None


def _inner_axis(node: onnx.NodeProto, axis: int) -> int:
    return 1 if node.op_type == "Conv" else 1 - axis


def calibrate(
    proto: onnx.ModelProto,
    patches: np.ndarray,
    folder: Path,
    *,
    threads: int,
    coverage: float = COVERAGE,
    progress: Callable[[int, int], None] | None = None,
) -> Ranges:
    """Runs a folded float32 graph over uint8 (n, P, P, 3) patches on the CPU and measures its activations.

    `folder` takes the graph for as long as that lasts. Raises EngineError: nothing to quantise, or values that are not
    finite.
    """
    names = sorted({point.activation for point in points(proto)})
    if not names:
        raise EngineError("int8: the network has no wide convolution or product of constant weights to quantise")
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    for name in names:
        magnitude, largest = f"{PREFIX}{name}.magnitude", f"{PREFIX}{name}.largest"
        # Flattened first, because how ReduceMax is told its axes changed with opset 18.
        watched.graph.node.extend(
            (
                helper.make_node("Abs", [name], [magnitude], name=magnitude),
                helper.make_node("Flatten", [magnitude], [magnitude + ".flat"], name=magnitude + ".flat", axis=1),
                helper.make_node(
                    "TopK", [magnitude + ".flat", PREFIX + "one"], [largest, largest + ".at"], name=largest
                ),
            )
        )
        watched.graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, ["batch", 1]))
    watched.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), PREFIX + "one"))
    path = folder / "watched.onnx"
    save_folded(watched, path)
    session = open_session(path, threads)
    outputs = [f"{PREFIX}{name}.largest" for name in names]
    found: list[np.ndarray] = []
    for start in range(0, len(patches), _BATCH):
        batch = session.run(outputs, {INPUT: patches[start : start + _BATCH]})
        found.append(np.concatenate(batch, axis=1))
        if progress is not None:
            progress(min(start + _BATCH, len(patches)), len(patches))
    largest = np.concatenate(found)
    if not np.isfinite(largest).all():
        raise EngineError("int8: an activation is NaN or infinite on the calibration patches")
    return {name: float(value) for name, value in zip(names, np.quantile(largest, coverage, axis=0), strict=True)}


def quantise(
    proto: onnx.ModelProto, ranges: Mapping[str, float], operators: Sequence[str] = QUANTISABLE
) -> onnx.ModelProto:
    """A new graph with Q and DQ at `points`, still float32 otherwise: engines.precision.to_half comes next.

    Raises EngineError: nothing to quantise, a range is missing, or ONNX cannot lift the graph to opset 13.
    """
    proto = _lifted(proto)
    if POINTWISE in operators:
        ranges = {**ranges, **_as_products(proto, ranges)}
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    wanted = {point.node: point for point in points(proto, operators)}
    if not wanted:
        raise EngineError(f"int8: the network has no wide {' or '.join(operators)} of constant weights to quantise")
    nodes: list[onnx.NodeProto] = []
    activations: dict[str, str] = {}
    constants: dict[tuple[str, int], str] = {}
    for node in graph.node:
        point = wanted.get(node.output[0]) if node.output else None
        if point is not None:
            if point.activation not in activations:
                if point.activation not in ranges:
                    raise EngineError(f"int8: the calibration knows no range of {point.activation}: calibrate again")
                made, added = _activation(graph, point.activation, ranges[point.activation])
                activations[point.activation] = made
                nodes.extend(added)
            key = (point.weight, point.axis)
            if key not in constants:
                made, added = _weight(graph, weights[point.weight], point.axis)
                constants[key] = made
                nodes.extend(added)
            node.input[0], node.input[1] = activations[point.activation], constants[key]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return proto


def _as_products(proto: onnx.ModelProto, ranges: Mapping[str, float]) -> Ranges:
    """Makes the convolutions of one pixel that would be quantised products over channels that come last, in place.

    Gives the ranges of the tensors that are new. An input that several of them read is transposed once.
    """
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    wanted = {point.node for point in points(proto, ("Conv",))}
    found: Ranges = {}
    turned: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if not (node.output and node.output[0] in wanted and _is_pointwise(node, weights[node.input[1]])):
            nodes.append(node)
            continue
        source, weight, target = node.input[0], node.input[1], node.output[0]
        last, matrix = f"{source}.channels_last", f"{weight}.matrix"
        if last not in turned:
            turned.add(last)
            nodes.append(helper.make_node("Transpose", [source], [last], name=last, perm=[0, 2, 3, 1]))
            if source in ranges:
                found[last] = ranges[source]
        if matrix not in weights:
            values = numpy_helper.to_array(weights[weight])
            weights[matrix] = numpy_helper.from_array(np.ascontiguousarray(values.reshape(values.shape[:2]).T), matrix)
            graph.initializer.append(weights[matrix])
        product = f"{target}.product"
        nodes.append(helper.make_node("MatMul", [last, matrix], [product], name=product))
        if len(node.input) > 2 and node.input[2]:
            nodes.append(
                helper.make_node("Add", [product, node.input[2]], [product + ".biased"], name=product + ".biased")
            )
            product += ".biased"
        nodes.append(helper.make_node("Transpose", [product], [target], name=target, perm=[0, 3, 1, 2]))
    del graph.node[:]
    graph.node.extend(nodes)
    return found


def _is_pointwise(node: onnx.NodeProto, weight: onnx.TensorProto) -> bool:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    numbers = [value for name in ("strides", "dilations") if name in attributes for value in attributes[name].ints]
    pads = attributes["pads"].ints if "pads" in attributes else []
    groups = attributes["group"].i if "group" in attributes else 1
    return tuple(weight.dims[2:]) == (1, 1) and set(numbers) <= {1} and not any(pads) and groups == 1


def scale_for(largest: np.ndarray | float) -> np.ndarray:
    """float32 scale at which magnitudes up to `largest` fill the levels; never 0."""
    return np.maximum(np.asarray(largest, np.float32) / np.float32(LEVELS), np.float32(_SMALLEST_SCALE))


def load_ranges(path: Path) -> Ranges | None:
    """What an earlier calibration measured, or None where there is none that can be read."""
    try:
        raw = json.loads(path.read_bytes())
        return {str(name): float(value) for name, value in raw["ranges"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save_ranges(path: Path, ranges: Ranges) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps({"quantiser": QUANTISER, "ranges": ranges}, indent=1) + "\n").encode())


def _lifted(proto: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset >= MIN_OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        return copy
    try:
        return version_converter.convert_version(proto, MIN_OPSET)
    except Exception as error:  # the converter's exceptions have no base class of their own
        problem = f"int8: ONNX cannot lift the graph from opset {opset} to {MIN_OPSET}: {one_line(error, 160)}"
        raise EngineError(f"{problem}; export it with opset {MIN_OPSET} or later") from error


def _activation(graph: onnx.GraphProto, name: str, largest: float) -> tuple[str, list[onnx.NodeProto]]:
    base = f"{name}.int8"
    graph.initializer.append(numpy_helper.from_array(scale_for(largest).reshape(()), base + ".scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), base + ".zero"))
    parameters = [base + ".scale", base + ".zero"]
    return base + ".back", [
        helper.make_node("QuantizeLinear", [name, *parameters], [base], name=base),
        helper.make_node("DequantizeLinear", [base, *parameters], [base + ".back"], name=base + ".back"),
    ]


def _weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> tuple[str, list[onnx.NodeProto]]:
    values = numpy_helper.to_array(tensor)
    others = tuple(place for place in range(values.ndim) if place != axis)
    scale = scale_for(np.abs(values).max(axis=others))
    shape = [1] * values.ndim
    shape[axis] = -1
    levels = np.rint(values / scale.reshape(shape)).clip(-LEVELS, LEVELS).astype(np.int8)
    base = f"{tensor.name}.int8_{axis}"
    graph.initializer.append(numpy_helper.from_array(levels, base))
    graph.initializer.append(numpy_helper.from_array(scale, base + ".scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), base + ".zero"))
    inputs = [base, base + ".scale", base + ".zero"]
    return base + ".back", [
        helper.make_node("DequantizeLinear", inputs, [base + ".back"], name=base + ".back", axis=axis)
    ]
