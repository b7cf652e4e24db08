"""In TensorRT's place, at run time: a plan is the folded ONNX graph itself, and ONNX Runtime computes it on the processor."""

from __future__ import annotations

import ctypes
from enum import Enum
from typing import Any

import numpy as np
from cuda.bindings import runtime

__version__ = "11.4.0"


class ILogger:
    Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


class NetworkDefinitionCreationFlag:
    pass


class IBuilderConfig:
    pass


class Builder:
    pass


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine:
        self._logger.log(ILogger.Severity.WARNING, "a plan of a test is used")
        return Engine(data)


class Engine:
    device_memory_size_v2 = 1 << 20

    def __init__(self, data: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def create_execution_context(self) -> Context:
        return Context(self.session)


class Context:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        runtime.ran()
        if runtime.lost():
            return True  # it shows in what is asked of the GPU next
        size = int(np.prod(self._shape))
        pixels = np.frombuffer((ctypes.c_uint8 * size).from_address(self._addresses["patches"]), np.uint8)
        (answer,) = self._session.run(None, {"patches": pixels.reshape(self._shape)})
        ctypes.memmove(self._addresses["probabilities"], answer.ctypes.data, answer.nbytes)
        return True
