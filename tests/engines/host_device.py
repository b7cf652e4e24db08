"""The processor as a device (engines.device.Device): memory is memory, streams do at once what they are told."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

from engines.aoti_build import HOST


class HostDevice:
    def __init__(self) -> None:
        self.gpu = HOST
        self.blocks: dict[int, np.ndarray] = {}
        self.closed = False

    def free_bytes(self) -> int:
        return 1 << 33

    def register(self, memory: np.ndarray) -> None:
        pass

    def unregister(self, memory: np.ndarray) -> None:
        pass

    def allocate(self, size: int) -> int:
        block = np.zeros(size, np.uint8)
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def release(self, address: int) -> None:
        del self.blocks[address]

    def host_array(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        array = np.zeros(shape, dtype)
        self.blocks[array.ctypes.data] = array
        return array

    def release_host(self, array: np.ndarray) -> None:
        del self.blocks[array.ctypes.data]

    def stream(self) -> int:
        return 1

    def release_stream(self, stream: int) -> None:
        pass

    def event(self) -> list[float]:
        return [0.0]

    def release_event(self, event: Any) -> None:
        pass

    def record(self, event: list[float], stream: int) -> None:
        event[0] = time.monotonic()

    def fired(self, event: Any) -> bool:
        return True

    def milliseconds(self, first: list[float], last: list[float]) -> float:
        return (last[0] - first[0]) * 1e3

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(to, source, size)

    download = upload

    def wait(self, stream: int) -> None:
        pass

    def close(self) -> None:
        self.closed = True
