"""Folds what every patch needs into the network's own graph, so that every engine sees raw pixels and gives
probabilities.

    patches uint8 (N, P, P, 3) -> Cast -> Transpose -> [Resize] -> Mul, Add -> the network -> Softmax | Sigmoid
    -> probabilities float32 (N, C)

Cast comes before Transpose because TensorRT's parser refuses a Transpose of uint8. The nodes added mean the same in
every opset from 7 on, so the network keeps its own opset and nothing is converted or merged.

Resize is what torchvision's `Resize` does to a PIL image, that is Pillow's `Image.resize(BILINEAR)`, bit for bit. Sizes
are fixed, so each axis is a product with a constant matrix: MatMul, which every engine has (TensorRT has no antialiased
Resize). Pillow computes in whole numbers, with weights of 22 bits, and rounds to whole grey levels after each axis.
float32 holds 24 bits, so the weights go in as two halves of 11 bits: every product and sum is then a whole number that
float32 holds exactly (TF32 too), and the answer does not hang on an engine's order of summation.

The only module that imports `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from engines.errors import ModelError, one_line
from engines.model import Model

INPUT = "patches"
OUTPUT = "probabilities"
PREFIX = "slidestream."
MIN_OPSET = 7
MIN_IR = 8
# Pillow's weights have 22 bits (PRECISION_BITS in Resample.c); they are split in the middle.
LOW = 2048
# Protobuf stops at 2 GiB; beyond this the weights go into a file beside the graph.
EXTERNAL_BYTES = 1_900_000_000
DATA_SUFFIX = ".data"
_EXPORT = 'export it with dynamic_axes={"input": {0: "batch"}}: see docs/models.md'


def fold(model: Model, *, any_size: bool = False) -> onnx.ModelProto:
    """The folded graph of `model`: "patches" uint8 (N, P, P, 3) -> "probabilities" float32 (N, C).

    `any_size`: for square patches of any P, where the network takes them; else for the model's `patch_px` alone. Raises
    ModelError: model.onnx cannot be parsed, its input or output is not what config.json says, or it takes one size only.
    """
    model.require_onnx()
    path = model.onnx_path
    proto = _load(path)
    graph = proto.graph
    _check_opset(proto, path)
    weights = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    _check_input(inputs, model)
    if any_size:
        _check_any_size(inputs[0], model)
    _check_output(list(graph.output), model)

    # The outer names are ours; a network that uses them inside gives way.
    for name in _names(graph) & {INPUT, OUTPUT}:
        _rename(graph, name, PREFIX + name)
    source, sink = inputs[0], graph.output[0]
    half_in = source.type.tensor_type.elem_type == TensorProto.FLOAT16
    half_out = sink.type.tensor_type.elem_type == TensorProto.FLOAT16

    before, constants = _prelude(model, source.name, half_in)
    after = _finale(sink.name, len(model.classes), half_out)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    height, width = ("height", "width") if any_size else (model.patch_px, model.patch_px)
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", height, width, 3]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(model.classes)]))
    # Before IR 4 every weight had to be listed as an input, where engines must treat it as changeable.
    proto.ir_version = max(proto.ir_version, MIN_IR)
    return proto


def save_folded(proto: onnx.ModelProto, path: Path) -> None:
    """Writes a folded graph to `path`, with the weights in `<path>.data` where protobuf could not hold them.

    Raises OSError.
    """
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if size > EXTERNAL_BYTES:
        path.with_name(path.name + DATA_SUFFIX).unlink(missing_ok=True)  # onnx would append to it
        onnx.save_model(proto, str(path), save_as_external_data=True, location=path.name + DATA_SUFFIX)
        return
    path.write_bytes(proto.SerializeToString())


def resize_matrix(source: int, target: int) -> np.ndarray:
    """Pillow's bilinear resampling of `source` pixels to `target` pixels along one axis: float64 (target, source).

    As `precompute_coeffs` in Pillow's Resample.c: output pixel i is centred at (i + 0.5) * scale, the triangle's
    half-width is max(scale, 1), weights are normalised to sum to 1.
    """
    scale = source / target
    support = max(scale, 1.0)
    matrix = np.zeros((target, source))
    for index in range(target):
        centre = (index + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), source)
        weights = np.maximum(1.0 - np.abs((np.arange(low, high) - centre + 0.5) / support), 0.0)
        matrix[index, low:high] = weights / weights.sum()
    return matrix


def split_weights(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights rounded to 22 bits as Pillow rounds them, as (high, low) where matrix = high + low / 2**11.

    Both are whole multiples of 2**-11 with at most 11 significant bits.
    """
    whole = np.floor(matrix * LOW * LOW + 0.5)
    high = np.floor(whole / LOW)
    return high / LOW, (whole - high * LOW) / LOW


def _prelude(model: Model, target: str, half: bool) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants from INPUT to the tensor `target`, the network's own input (float16 where `half`)."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), PREFIX + name))
        return PREFIX + name

    def node(kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [PREFIX + name], name=PREFIX + name, **attributes))
        return PREFIX + name

    pixels = node("Cast", [INPUT], "cast", to=TensorProto.FLOAT)
    pixels = node("Transpose", [pixels], "nchw", perm=[0, 3, 1, 2])

    def resample(matrix: np.ndarray, axis: str) -> str:
        # floor((2048 A + B) / 2**22 + 1/2) = floor(A / 2**11 + floor(B / 2**11) / 2**11 + 1/2), all exact in float32.
        parts = []
        for part, half_of in zip(("high", "low"), split_weights(matrix), strict=True):
            weights = constant(f"{axis}_{part}_weights", half_of.T if axis == "width" else half_of)
            operands = [pixels, weights] if axis == "width" else [weights, pixels]
            parts.append(node("MatMul", operands, f"{axis}_{part}"))
        carry = node("Floor", [parts[1]], f"{axis}_carry")
        carry = node("Mul", [carry, constant(f"{axis}_unit", np.array(1.0 / LOW))], f"{axis}_carry_scaled")
        total = node("Add", [parts[0], carry], f"{axis}_sum")
        total = node("Add", [total, constant(f"{axis}_half", np.array(0.5))], f"{axis}_plus_half")
        return node("Floor", [total], f"{axis}_rounded")

    height, width = model.input_hw
    if width != model.patch_px:
        pixels = resample(resize_matrix(model.patch_px, width), "width")
    if height != model.patch_px:
        pixels = resample(resize_matrix(model.patch_px, height), "height")
    mean, std = np.array(model.transform.mean), np.array(model.transform.std)
    pixels = node("Mul", [pixels, constant("scale", (1.0 / (255.0 * std)).reshape(1, 3, 1, 1))], "scaled")
    pixels = node("Add", [pixels, constant("shift", (-mean / std).reshape(1, 3, 1, 1))], "normalised")
    if half:
        node("Cast", [pixels], "half_precision", to=TensorProto.FLOAT16)
    nodes[-1].output[0] = target
    return nodes, constants


def _finale(logits: str, classes: int, half: bool) -> list[onnx.NodeProto]:
    nodes = []
    if half:
        name = PREFIX + "logits"
        nodes.append(helper.make_node("Cast", [logits], [name], name=name, to=TensorProto.FLOAT))
        logits = name
    if classes == 1:
        nodes.append(helper.make_node("Sigmoid", [logits], [OUTPUT], name=PREFIX + "sigmoid"))
    else:
        nodes.append(helper.make_node("Softmax", [logits], [OUTPUT], name=PREFIX + "softmax", axis=1))
    return nodes


def _load(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load(str(path))
    except DecodeError as error:
        raise ModelError(path, "is not a readable ONNX file (damaged or cut off)", "copy or export it again") from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        # External data that is missing, too short, or outside the model directory.
        raise ModelError(path, f"cannot be read: {one_line(error, 160)}", "copy its data files beside it") from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(path, "is not an ONNX network: it has no nodes or no output", "copy or export it again")
    return proto


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise ModelError(path, f"opset {opset} is too old (at least {MIN_OPSET})", "export it again with opset 17")


def _check_input(inputs: list[onnx.ValueInfoProto], model: Model) -> None:
    path = model.onnx_path
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(path, f"must have exactly one input (images), has {len(inputs)}: {one_line(names, 120)}")
    name, tensor = inputs[0].name, inputs[0].type.tensor_type
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        raise ModelError(path, f"input {name} must be float images, not {_type_name(tensor.elem_type)}")
    shape = _shape(tensor)
    if shape is None:
        return
    if len(shape) != 4:
        raise ModelError(path, f"input {name} must be (N, 3, height, width), not {_show(shape)}")
    if shape[3] == 3 and shape[1] != 3:
        raise ModelError(path, f"input {name} is {_show(shape)}: channels come last", "export it channels first (NCHW)")
    if isinstance(shape[0], int):
        raise ModelError(path, f"input {name}: the batch axis is fixed at {shape[0]}", _EXPORT)
    for found, wanted in zip(shape[1:], (3, *model.input_hw), strict=True):
        if isinstance(found, int) and found != wanted:
            if model.at_other_size:
                problem = f"input {name} is {_show(shape)}: the network takes patches of one size, not {model.patch_px} px too"
                raise ModelError(path, problem, other_size_remedy(model))
            expected = ("N", 3, *model.input_hw)
            raise ModelError(
                path,
                f"input {name} is {_show(shape)}, but {model.config_path.name} makes it {_show(expected)}",
                "set patch_size_pixels and transform Resize to what the network was trained on",
            )


def other_size_remedy(model: Model) -> str:
    """What to do where a network does not take patches of the size that was asked for."""
    own = f"use its own {model.own_px} px (inference.patch_px=auto)"
    return f"{own}, or export it with free height and width: see docs/models.md"


def _check_any_size(value: onnx.ValueInfoProto, model: Model) -> None:
    remedy = f"build for its own {model.own_px} px alone"
    if model.transform.resize is not None:
        raise ModelError(model.config_path, "transform Resize brings patches of one size to another", remedy)
    shape = _shape(value.type.tensor_type)
    if shape is not None and any(isinstance(length, int) for length in shape[2:]):
        problem = f"input {value.name} is {_show(shape)}: it takes patches of one size"
        raise ModelError(model.onnx_path, problem, f"export it with free height and width, or {remedy}")


def _check_output(outputs: list[onnx.ValueInfoProto], model: Model) -> None:
    path = model.onnx_path
    if len(outputs) != 1:
        names = ", ".join(value.name for value in outputs)
        raise ModelError(path, f"must have exactly one output (logits), has {len(outputs)}: {one_line(names, 120)}")
    name, tensor = outputs[0].name, outputs[0].type.tensor_type
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        raise ModelError(path, f"output {name} must be float logits, not {_type_name(tensor.elem_type)}")
    shape = _shape(tensor)
    if shape is None:
        return
    if len(shape) != 2:
        raise ModelError(path, f"output {name} must be logits (N, classes), not {_show(shape)}")
    if isinstance(shape[0], int):
        raise ModelError(path, f"output {name}: the batch axis is fixed at {shape[0]}", _EXPORT)
    if isinstance(shape[1], int) and shape[1] != len(model.classes):
        raise class_count_error(model, shape[1])


def class_count_error(model: Model, found: int) -> ModelError:
    """The error for a network that gives `found` classes where config.json says otherwise."""
    said = len(model.classes)
    return ModelError(
        model.config_path,
        f"num_classes says {said} class{'' if said == 1 else 'es'}, but {model.network} gives {found}",
        "correct num_classes and class_names",
    )


def _type_name(elem_type: int) -> str:
    try:
        return TensorProto.DataType.Name(elem_type).lower()
    except ValueError:
        return f"type {elem_type}"


def _shape(tensor: onnx.TypeProto.Tensor) -> tuple[int | str, ...] | None:
    """Per axis its length, or a name where it is free; None where the graph does not say."""
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?") for dim in tensor.shape.dim)


def _show(shape: tuple[int | str, ...]) -> str:
    return one_line(f"({', '.join(map(str, shape))})", 80)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _names(graph: onnx.GraphProto) -> set[str]:
    names: set[str] = set()
    for part in _graphs(graph):
        names.update(value.name for value in (*part.input, *part.output, *part.initializer))
        for node in part.node:
            names.update(node.output)
    return names


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for part in _graphs(graph):
        for value in (*part.input, *part.output, *part.initializer, *part.value_info):
            if value.name == old:
                value.name = new
        for node in part.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == old:
                        names[index] = new
