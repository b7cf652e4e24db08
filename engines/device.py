"""What a GPU engine needs of a GPU and of a network on it: two small protocols.

engines.cuda and engines.tensorrt_engine implement them for real; tests implement them with arrays and a clock of their own,
so the loop over contexts and slots (engines.gpu_engine) is exercised without a GPU. Addresses are whole numbers, sizes are
bytes. Whatever fails is an EngineError; `fatal=True` where the CUDA context is lost.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from engines.gpu import Gpu


class Device(Protocol):
    """One GPU, its primary context current in this thread."""

    gpu: Gpu

    def free_bytes(self) -> int: ...

    def register(self, memory: np.ndarray) -> None:
        """Page-locks memory that exists. Raises EngineError where the system refuses."""
        ...

    def unregister(self, memory: np.ndarray) -> None: ...

    def allocate(self, size: int) -> int:
        """Device memory, zeroed; its address."""
        ...

    def release(self, address: int) -> None: ...

    def host_array(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Page-locked host memory; give it back with `release_host`."""
        ...

    def release_host(self, array: np.ndarray) -> None: ...

    def stream(self) -> int:
        """A stream of its own, never the default one; its handle."""
        ...

    def release_stream(self, stream: int) -> None: ...

    def event(self) -> Any:
        """An event to be passed back to this device only."""
        ...

    def release_event(self, event: Any) -> None: ...

    def record(self, event: Any, stream: int) -> None:
        """The event fires when everything enqueued on `stream` so far is done."""
        ...

    def fired(self, event: Any) -> bool:
        """Never blocks."""
        ...

    def milliseconds(self, first: Any, last: Any) -> float:
        """Between two events that have fired."""
        ...

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        """Host to device, asynchronous where the host memory is page-locked."""
        ...

    def download(self, to: int, source: int, size: int, stream: int) -> None: ...

    def wait(self, stream: int) -> None:
        """Until everything enqueued on `stream` is done."""
        ...

    def close(self) -> None: ...


class Execution(Protocol):
    """One execution context of a network, bound to its own input and output."""

    def enqueue(self, rows: int, stream: int) -> None:
        """Computes the first `rows` rows of the input into those of the output, on `stream`."""
        ...


class Network(Protocol):
    """A model on a GPU: uint8 (rows, P, P, 3) -> float32 (rows, classes)."""

    def describe(self) -> dict[str, Any]:
        """As engines.engine.Engine.describe: at least engine, version, precision."""
        ...

    def context_bytes(self) -> int:
        """Device memory that one execution takes beside its input and output, as far as it is known; else 0."""
        ...

    def execution(self, source: int, target: int, stream: int) -> Execution:
        """An execution that reads device memory at `source` and writes at `target`; `stream` is the one it will run on."""
        ...

    def warmed(self) -> None:
        """Called once all executions have run all shapes: what was compiled for it may be kept."""
        ...

    def close(self) -> None: ...
