"""Counts what computes in which precision: in a graph, and in the network that TensorRT made of it.

A builder that does not know a precision flag any more, or a parser that cannot follow a Cast, gives a network that is right
and slow, and says nothing. So the two counts are compared, and a network that computes more in float32 than its graph
asks for is refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from engines.errors import EngineError
from engines.precision import tensor_types

# The operators that take the time, as ONNX and as TensorRT's LayerType call them.
_OPERATORS = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"))
_LAYERS = frozenset(("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM"))
_GRAPH_TYPES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
}
_NETWORK_TYPES = {"FLOAT": "fp32", "HALF": "fp16"}


@dataclass(frozen=True, slots=True)
class Census:
    """Numbers of layers by the type of what they give: "fp32", "fp16", "bf16", "int8", "int64", "bool", ..."""

    layers: dict[str, int]
    compute: dict[str, int]
    """Only convolutions and matrix products; "int8" are those whose inputs come from DequantizeLinear."""

    def to_dict(self) -> dict[str, Any]:
        return {"layers": self.layers, "compute": self.compute}

    def show(self) -> str:
        parts = [f"{count} {name}" for name, count in sorted(self.compute.items())]
        return f"convolutions and matrix products: {', '.join(parts) or 'none'}"


def graph_census(proto: onnx.ModelProto) -> Census:
    """What a graph asks for."""
    types = tensor_types(proto)
    layers: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    dequantised = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in proto.graph.node:
        if not node.output:
            continue
        name = _graph_type(types.get(node.output[0], 0))
        layers[name] += 1
        if node.op_type in _OPERATORS:
            quantised = all(source in dequantised for source in node.input[:2])
            compute["int8" if quantised else name] += 1
    return Census(dict(sorted(layers.items())), dict(sorted(compute.items())))


def network_census(network: Any) -> Census:
    """What a parsed `INetworkDefinition` holds, constants left out."""
    layers: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    dequantised: set[str] = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "CONSTANT" or layer.num_outputs == 0:
            continue
        output = layer.get_output(0)
        name = _NETWORK_TYPES.get(output.dtype.name, output.dtype.name.lower())
        layers[name] += 1
        # The parser puts a shuffle between a weight and its product where their ranks differ.
        passed_on = layer.type.name == "SHUFFLE" and layer.get_input(0).name in dequantised
        if layer.type.name == "DEQUANTIZE" or passed_on:
            dequantised.add(output.name)
        if layer.type.name in _LAYERS:
            sources = [layer.get_input(place) for place in range(min(2, layer.num_inputs))]
            quantised = all(source is None or source.name in dequantised for source in sources)
            compute["int8" if quantised else name] += 1
    return Census(dict(sorted(layers.items())), dict(sorted(compute.items())))


def check_census(found: Census, asked: Census, precision: str) -> None:
    """Raises EngineError where a network does not compute in the precision that its graph asks for."""
    if precision == "fp32":
        other = {name: count for name, count in found.compute.items() if name != "fp32"}
        if other:
            raise EngineError(f"precision fp32 was asked for, but {found.show()}")
        return
    slow = found.compute.get("fp32", 0) > asked.compute.get("fp32", 0)
    lacking = any(found.compute.get(name, 0) < asked.compute.get(name, 0) for name in ("fp16", "int8"))
    if slow or lacking:
        raise EngineError(
            f"precision {precision} fell back: the graph asks for {asked.show()}; the network has {found.show()}"
        )
    if not found.compute.get(precision):
        raise EngineError(f"precision {precision} was asked for, but nothing computes in {precision}: {found.show()}")


def _graph_type(elem_type: int) -> str:
    known = _GRAPH_TYPES.get(elem_type)
    return known or (TensorProto.DataType.Name(elem_type).lower() if elem_type else "unknown")
