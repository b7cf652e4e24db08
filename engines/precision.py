"""Turns a float32 graph into float16, except where float16 would overflow or lose what matters.

TensorRT's networks are strongly typed: what the graph says is what runs. So the precision is decided here, node by node,
and every engine sees the same decision. float32 keep: sums and powers over many values (normalisations, Softmax,
reductions), because float16 ends at 65504; the preprocessing that engines.fold wrote, which is exact in float32 only;
nodes whose weights float16 cannot hold, with the element-wise ones that take their results, which are as large; and what
lies between two such nodes. Everything else becomes float16, with Casts where the two meet.

The operators that stay are those of NVIDIA's advice for strongly typed networks (normalisation, Softmax, reductions, Pow,
Exp in float32). A change here is a new engines.recipe.HALF_RECIPE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.errors import EngineError, one_line
from engines.fold import PREFIX

HALF_MAX = 65504.0
FULL, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

_REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"),
    *("ReduceProd", "GlobalAveragePool", "GlobalLpPool", "CumSum", "CumProd"),
)
_NORMALISATIONS = (
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
    *("LpNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization", "LRN"),
)
_POWERS = ("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Softplus")
KEPT = frozenset((*_REDUCTIONS, *_NORMALISATIONS, *_POWERS))

# Between two float32 nodes these stay float32: a Cast there and back would cost more than it saves.
_BETWEEN = frozenset(
    ("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Clip", "Identity", "Cast")
    + ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand")
)
# Inputs that the operator's definition wants in float32.
_FULL_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
_QUANTISATION = ("QuantizeLinear", "DequantizeLinear")


def to_half(proto: onnx.ModelProto, *, kept_ops: Iterable[str] = KEPT) -> onnx.ModelProto:
    """`proto` with float16 inside; inputs and outputs keep their types. Works on `proto` itself and returns it.

    Raises EngineError: control flow, types that cannot be derived.
    """
    graph = proto.graph
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise EngineError(f"float16: the network branches ({node.op_type} {node.name}): build it as fp32")
    _lift_constants(graph)
    _fold_batch_norms(graph)
    types = tensor_types(proto)
    work = _Conversion(graph, types, frozenset(kept_ops))
    work.decide()
    work.rewrite()
    del graph.value_info[:]
    tensor_types(proto)  # proves that the types fit together
    return proto


def tensor_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Name -> element type of every tensor of the graph, by ONNX's own inference. Raises EngineError."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto) if proto.ByteSize() < 64 << 20 else _copy_without_weights(proto, skeleton)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError) as error:
        raise EngineError(f"the types of the graph cannot be derived: {one_line(error, 200)}") from error
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    types.update((value.name, value.type.tensor_type.elem_type) for value in inferred.input)
    types.update((tensor.name, tensor.data_type) for tensor in inferred.initializer)
    return types


def _copy_without_weights(proto: onnx.ModelProto, skeleton: onnx.ModelProto) -> None:
    """Inference wants the shapes and types of weights, not their values, and protobuf cannot pass 2 GiB to it."""
    for name in ("ir_version", "opset_import", "functions"):
        value = getattr(proto, name)
        if name == "ir_version":
            skeleton.ir_version = value
        else:
            getattr(skeleton, name).extend(value)
    graph = skeleton.graph
    graph.name = proto.graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(proto.graph, name))
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) < 4096 and not tensor.external_data:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Makes the float Constants of the graph initializers, which is where this module looks for values."""
    others = []
    for node in graph.node:
        value = _constant_value(node)
        if value is None:
            others.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    del graph.node[:]
    graph.node.extend(others)


def _constant_value(node: onnx.NodeProto) -> np.ndarray | None:
    if node.op_type != "Constant":
        return None
    attribute = node.attribute[0]
    if attribute.name == "value" and attribute.t.data_type == FULL:
        return numpy_helper.to_array(attribute.t)
    if attribute.name in ("value_float", "value_floats"):
        return np.array(attribute.f if attribute.name == "value_float" else list(attribute.floats), np.float32)
    return None


def _fold_batch_norms(graph: onnx.GraphProto) -> None:
    """BatchNormalization(scale, shift, mean, variance) -> the same with mean 0, variance 1, epsilon 0.

    A variance may be larger than float16 holds, or be rounded by as much as epsilon; the quotient has neither trouble.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for index, node in enumerate(graph.node):
        if node.op_type != "BatchNormalization" or not all(name in weights for name in node.input[1:5]):
            continue
        if any(weights[name].data_type != FULL for name in node.input[1:5]):
            continue
        scale, shift, mean, variance = (numpy_helper.to_array(weights[n]).astype(np.float64) for n in node.input[1:5])
        epsilon = next((attribute for attribute in node.attribute if attribute.name == "epsilon"), None)
        if epsilon is None:
            epsilon = node.attribute.add(name="epsilon", type=onnx.AttributeProto.FLOAT, f=1e-5)
        factor = scale / np.sqrt(variance + epsilon.f)
        epsilon.f = 0.0
        values = (factor, shift - mean * factor, np.zeros_like(mean), np.ones_like(variance))
        for place, (what, value) in enumerate(zip(("factor", "shift", "mean", "variance"), values, strict=True), 1):
            name = f"{PREFIX}batch_norm_{index}.{what}"
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
            node.input[place] = name
    _drop_unused(graph)


@dataclass(slots=True)
class _Conversion:
    """One graph on its way to float16."""

    graph: onnx.GraphProto
    types: dict[str, int]
    kept_ops: frozenset[str]
    full: list[bool] = field(default_factory=list)
    """Per node: float32 stays. Says nothing of nodes without float32 tensors."""
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)
    dequantised: set[str] = field(default_factory=set)

    def decide(self) -> None:
        self.dequantised = {n for node in self.graph.node if node.op_type == "DequantizeLinear" for n in node.output}
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        large = [self._is_large(node) for node in self.graph.node]
        self.full = [is_large or self._stays(node) for is_large, node in zip(large, self.graph.node, strict=True)]
        producer = {name: i for i, node in enumerate(self.graph.node) for name in node.output if name}
        users: dict[str, list[int]] = {}
        for i, node in enumerate(self.graph.node):
            for name in node.input:
                users.setdefault(name, []).append(i)
        outputs = {value.name for value in self.graph.output}

        def between(node: onnx.NodeProto) -> bool:
            sources = [name for name in self._floats(node.input) if name not in self.weights]
            return bool(sources) and (
                all(name not in producer or self.full[producer[name]] for name in sources)
                and all(
                    name in outputs or all(self.full[user] for user in users.get(name, ()))
                    for name in self._floats(node.output)
                )
            )

        for i, node in enumerate(self.graph.node):  # in the order in which they compute
            if not large[i] and node.op_type in _BETWEEN and any(large[producer.get(name, i)] for name in node.input):
                self.full[i] = large[i] = True
        changed = True
        while changed:
            changed = False
            for i, node in enumerate(self.graph.node):
                if not self.full[i] and node.op_type in _BETWEEN and between(node):
                    self.full[i] = changed = True

    def _floats(self, names: Iterable[str]) -> Iterator[str]:
        return (name for name in names if name and self.types.get(name) == FULL)

    def _stays(self, node: onnx.NodeProto) -> bool:
        if node.op_type in self.kept_ops or node.name.startswith(PREFIX) or node.domain not in ("", "ai.onnx"):
            return True
        # What is quantised computes in int8 and scales in float32: see engines.quantize.
        if node.op_type in _QUANTISATION or any(name in self.dequantised for name in node.input):
            return True
        # Made from whole numbers (positions, sizes), which float16 holds exactly only up to 2048.
        return not any(self._floats(node.input))

    def _is_large(self, node: onnx.NodeProto) -> bool:
        """Whether float16 cannot hold its weights. Of the preprocessing none of that goes on: it ends with normalised pixels."""
        if node.name.startswith(PREFIX):
            return False
        skip = _FULL_INPUTS.get(node.op_type, ())
        return any(
            name in self.weights and not _fits(self.weights[name])
            for place, name in enumerate(node.input)
            if place not in skip and self.types.get(name) == FULL
        )

    def rewrite(self) -> None:
        """Gives every node its inputs in its own type: converted weights, Casts for the rest."""
        now: dict[str, int] = {value.name: FULL for value in self.graph.input}
        nodes: list[onnx.NodeProto] = []
        made: dict[tuple[str, int], str] = {}

        def available(name: str, wanted: int) -> str:
            if now.get(name, FULL) == wanted:
                return name
            other = made.get((name, wanted))
            if other is None:
                other = made[name, wanted] = name + (".half" if wanted == HALF else ".full")
                if name in self.weights:
                    self.graph.initializer.append(_converted(self.weights[name], other))
                else:
                    nodes.append(helper.make_node("Cast", [name], [other], name=other + ".cast", to=wanted))
            return other

        for node, full in zip(self.graph.node, self.full, strict=True):
            own = FULL if full else HALF
            if not self._takes_any(node):
                skip = _FULL_INPUTS.get(node.op_type, ())
                for place, name in enumerate(node.input):
                    if name and self.types.get(name) == FULL:
                        node.input[place] = available(name, FULL if place in skip else own)
            for name in self._floats(node.output):
                now[name] = own
            if node.op_type == "Cast" and own == HALF:
                _set_cast(node)
            nodes.append(node)
        self._restore_outputs(now, nodes)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        _drop_unused(self.graph)

    def _takes_any(self, node: onnx.NodeProto) -> bool:
        return node.op_type in ("Shape", "Size", "Cast")

    def _restore_outputs(self, now: dict[str, int], nodes: list[onnx.NodeProto]) -> None:
        for value in self.graph.output:
            if now.get(value.name) != HALF:
                continue
            inner = value.name + ".half"
            for node in nodes:
                for names in (node.input, node.output):
                    for place, name in enumerate(names):
                        if name == value.name:
                            names[place] = inner
            nodes.append(helper.make_node("Cast", [inner], [value.name], name=inner + ".cast", to=FULL))


def _set_cast(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == FULL:
            attribute.i = HALF


def _fits(tensor: onnx.TensorProto) -> bool:
    """Whether float16 holds these values: infinities do not change, large numbers would become infinite."""
    values = numpy_helper.to_array(tensor)
    finite = np.abs(values, where=np.isfinite(values), out=np.zeros(values.shape, values.dtype))
    return not (finite > HALF_MAX).any()


def _converted(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def graph_sha256(proto: onnx.ModelProto) -> str:
    """Of a graph as it is written, weights included."""
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
