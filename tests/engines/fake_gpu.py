"""A GPU of arrays: streams are queues of jobs that run when a test says so, device memory is a dictionary, a lost context
stays lost. The network on it is a plain function of patches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from engines.errors import EngineError
from engines.gpu import Gpu

GPU = Gpu("Test GPU", "9.0", "GPU-0", 8 << 30, "580.1", "13.0")
OTHER_GPU = Gpu("Other GPU", "8.6", "GPU-1", 8 << 30, "580.1", "13.0")


class FakeEvent:
    def __init__(self) -> None:
        self.pending = False
        self.time = 0.0


class FakeDevice:
    """See engines.device.Device. `step` runs the oldest job of a stream, `settle` all jobs.

    `auto`: jobs run as soon as somebody asks for an event, as a fast GPU would have run them by then.
    """

    def __init__(self, *, auto: bool = True, memory: int = 1 << 30, registers: bool = True) -> None:
        self.gpu = GPU
        self.auto = auto
        self.registers = registers
        self.log: list[tuple[Any, ...]] = []
        self.lost = ""
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.blocks: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.registered: list[int] = []
        self.events = 0
        self._memory = memory
        self._next = 4096
        self._clock = 0.0
        self.closed = False

    # what engines.device.Device asks for
    def free_bytes(self) -> int:
        return self._memory - sum(block.nbytes for block in self.blocks.values())

    def register(self, memory: np.ndarray) -> None:
        if not self.registers:
            raise EngineError("shared memory cannot be page-locked: not supported")
        self.registered.append(memory.ctypes.data)

    def unregister(self, memory: np.ndarray) -> None:
        self.registered.remove(memory.ctypes.data)

    def allocate(self, size: int) -> int:
        if size > self.free_bytes():
            raise EngineError(f"out of memory: {size} bytes cannot be had")
        address, self._next = self._next, self._next + size + 4096
        self.blocks[address] = np.zeros(size, np.uint8)
        return address

    def release(self, address: int) -> None:
        del self.blocks[address]

    def host_array(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        array = np.zeros(shape, dtype)
        self.host[array.ctypes.data] = array
        return array

    def release_host(self, array: np.ndarray) -> None:
        del self.host[array.ctypes.data]

    def stream(self) -> int:
        handle = 100 + len(self.queues)
        self.queues[handle] = []
        return handle

    def release_stream(self, stream: int) -> None:
        if self.queues[stream]:
            raise AssertionError("a stream is released with work on it")
        del self.queues[stream]

    def event(self) -> FakeEvent:
        self.events += 1
        return FakeEvent()

    def release_event(self, event: FakeEvent) -> None:
        self.events -= 1

    def record(self, event: FakeEvent, stream: int) -> None:
        event.pending = True
        self.enqueue(stream, lambda: self._fire(event))

    def fired(self, event: FakeEvent) -> bool:
        if self.auto:
            self.settle()
        self._alive()
        return not event.pending

    def milliseconds(self, first: FakeEvent, last: FakeEvent) -> float:
        if first.pending or last.pending:
            raise AssertionError("time of an event that has not fired")
        return last.time - first.time

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        def copy() -> None:
            self.blocks[to][:size] = self._host(source, size)
            self.log.append(("upload", stream))

        self.enqueue(stream, copy)

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        def copy() -> None:
            self._host(to, size)[:] = self.blocks[source][:size]
            self.log.append(("download", stream))

        self.enqueue(stream, copy)

    def wait(self, stream: int) -> None:
        while self.queues[stream]:
            self.step(stream)
        self._alive()

    def close(self) -> None:
        self.closed = True

    # for tests
    def enqueue(self, stream: int, job: Callable[[], None]) -> None:
        self._alive()
        self.queues[stream].append(job)

    def step(self, stream: int) -> None:
        job = self.queues[stream].pop(0)
        if not self.lost:
            job()

    def settle(self) -> None:
        for stream in self.queues:
            while self.queues[stream]:
                self.step(stream)

    def lose(self, reason: str = "cudaErrorIllegalAddress") -> None:
        self.lost = reason

    def _alive(self) -> None:
        if self.lost:
            raise EngineError(f"cudaEventQuery: {self.lost}", fatal=True)

    def _fire(self, event: FakeEvent) -> None:
        self._clock += 1.0
        event.pending, event.time = False, self._clock

    @staticmethod
    def _host(address: int, size: int) -> np.ndarray:
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


class FakeNetwork:
    """See engines.device.Network: `function` of uint8 (n, P, P, 3) gives float32 (n, classes)."""

    def __init__(
        self,
        device: FakeDevice,
        function: Callable[[np.ndarray], np.ndarray],
        *,
        patch_px: int,
        classes: int = 2,
        context_bytes: int = 1000,
        poison: int | None = None,
    ) -> None:
        """`poison`: a batch with a patch whose first value is this loses the device."""
        self.device, self.function, self.patch_px, self.classes = device, function, patch_px, classes
        self.poison = poison
        self.refuse = self.refuse_execution = ""
        self.ran: list[tuple[int, int]] = []
        self.closed = self.is_warm = False
        self._context_bytes = context_bytes

    def describe(self) -> dict[str, Any]:
        return {"engine": "fake", "version": "1", "precision": "fp32"}

    def context_bytes(self) -> int:
        return self._context_bytes

    def execution(self, source: int, target: int, stream: int) -> FakeExecution:
        if self.refuse_execution:
            raise EngineError(self.refuse_execution)
        return FakeExecution(self, source, target)

    def warmed(self) -> None:
        self.is_warm = True

    def close(self) -> None:
        self.closed = True


class FakeExecution:
    def __init__(self, network: FakeNetwork, source: int, target: int) -> None:
        self.network, self.source, self.target = network, source, target

    def enqueue(self, rows: int, stream: int) -> None:
        network = self.network
        if network.refuse:
            raise EngineError(network.refuse)
        network.ran.append((rows, stream))

        def compute() -> None:
            size = rows * network.patch_px**2 * 3
            patches = network.device.blocks[self.source][:size].reshape(rows, network.patch_px, network.patch_px, 3)
            if network.poison is not None and (patches[:, 0, 0, 0] == network.poison).any():
                network.device.lose()
                return
            answer = network.function(patches).astype(np.float32)
            network.device.blocks[self.target][: answer.nbytes] = answer.reshape(-1).view(np.uint8)
            network.device.log.append(("compute", stream))

        network.device.enqueue(stream, compute)
