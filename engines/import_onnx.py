"""A network that comes as ONNX: how it is run as it is, and how it is written as a model's, with a free batch axis."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from engines.errors import ModelError, one_line
from engines.fold import EXTERNAL_BYTES
from engines.onnx_engine import open_session

OPSET = 17

Run = Callable[[np.ndarray], np.ndarray]
"""Logits, float (n, classes), of prepared images, float32 (n, 3, height, width)."""


def open_onnx(path: Path) -> tuple[onnx.ModelProto, Run, bool]:
    """(the network, how it is run, whether it is in float16). Raises ModelError."""
    try:
        proto = onnx.load(str(path))
    except Exception as error:  # protobuf's and onnx's exceptions have no base class of their own
        raise ModelError(path, f"cannot be read as ONNX: {one_line(error, 160)}", "copy or export it again") from error
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        counts = f"{len(inputs)} inputs and {len(graph.output)} outputs"
        raise ModelError(path, f"must have one input (images) and one output (logits), has {counts}")
    batch = fixed_batch(path)
    session = open_session(path, threads=os.cpu_count() or 1)
    half = inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    name = inputs[0].name

    def run(images: np.ndarray) -> np.ndarray:
        # A source whose batch is fixed is run on batches of that size; what it says of the padding is dropped.
        size = batch or len(images)
        answers = []
        for start in range(0, len(images), size):
            rows = images[start : start + size]
            padded = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
            answer = session.run(None, {name: padded.astype(np.float16) if half else padded})[0]
            answers.append(answer[: len(rows)])
        return np.concatenate(answers).astype(np.float32)

    return proto, run, half


def save_onnx(proto: onnx.ModelProto, path: Path, target: Path) -> None:
    """Writes `target` with a free batch axis and opset 17 or later; `path`, for messages, is where `proto` is from."""
    if opset_of(proto) < OPSET:
        proto = _converted(proto, path)
    _free_batch(proto)
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > EXTERNAL_BYTES:
        onnx.save_model(proto, str(target), save_as_external_data=True, location=f"{target.name}.data")
    else:
        target.write_bytes(proto.SerializeToString())


def _converted(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    from onnx import version_converter

    try:
        return version_converter.convert_version(proto, OPSET)
    except Exception as error:  # the converter is C++
        problem = f"has opset {opset_of(proto)}, and cannot be converted to {OPSET}: {one_line(error, 120)}"
        raise ModelError(path, problem, f"export it again with opset {OPSET}") from error


def _free_batch(proto: onnx.ModelProto) -> None:
    """Names the batch axis of input and output, and forgets shapes in between. Where a node has the batch fixed inside,
    `engines.check` and the comparison find it.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in (*(v for v in proto.graph.input if v.name not in weights), *proto.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and tensor.shape.dim:
            tensor.shape.dim[0].Clear()
            tensor.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:]


def fixed_batch(path: Path) -> int:
    """The fixed size of the first input's batch axis, 0 where it is free."""
    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    dims = next(value for value in graph.input if value.name not in weights).type.tensor_type.shape.dim
    return dims[0].dim_value if dims and dims[0].HasField("dim_value") else 0


def opset_of(proto: onnx.ModelProto) -> int:
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
