"""engines.cuda on a cuda-python of a few functions, which answer as the real ones do: a tuple, the error first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import cuda
from engines.cuda import Cuda, find_gpu, register_early, why_none
from engines.errors import EngineError


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorNotSupported = 801


GOOD = Error.cudaSuccess
_UUID = bytes(range(16))


class Runtime(SimpleNamespace):
    """`answers` holds, by function, errors that it gives before it does well again; `calls` what was called, by thread."""

    def __init__(self) -> None:
        super().__init__(
            cudaError_t=Error, cudaHostRegisterPortable=1, cudaHostAllocPortable=1, cudaStreamNonBlocking=1,
            count=1, answers={}, calls=[], gate=threading.Event(),
        )  # fmt: skip
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, threading.current_thread().name))
            if name == "cudaHostRegister":
                self.gate.wait(10)
            queued = self.answers.get(name, [])
            error = queued.pop(0) if queued else GOOD
            return (error, *self.values(name, error))

        return call

    def values(self, name: str, error: Error) -> tuple[Any, ...]:
        properties = SimpleNamespace(
            name=b"NVIDIA H100", major=9, minor=0, totalGlobalMem=80 << 30, uuid=SimpleNamespace(bytes=_UUID)
        )
        given: dict[str, tuple[Any, ...]] = {
            "cudaGetDeviceCount": (self.count,), "cudaGetDeviceProperties": (properties,),
            "cudaDriverGetVersion": (13000,), "cudaDeviceGetPCIBusId": (b"0000:1B:00.0\0\0",),
            "cudaMemGetInfo": (3 << 30, 80 << 30), "cudaMalloc": (4096,), "cudaStreamCreateWithFlags": (77,),
            "cudaEventCreate": (object(),), "cudaEventElapsedTime": (1.5,),
        }  # fmt: skip
        if name in ("cudaGetErrorName", "cudaGetErrorString"):
            return (b"cudaErrorOfATest",)
        return given.get(name, ())

    def count_of(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


@pytest.fixture
def runtime(monkeypatch) -> Iterator[Runtime]:
    found = Runtime()
    monkeypatch.setattr(cuda, "load_runtime", lambda: found)
    yield found
    found.gate.set()
    cuda._registered.clear()
    cuda._early.clear()


def memory() -> np.ndarray:
    return np.zeros(4096, np.uint8)


def test_a_gpu_is_read_in_the_forms_that_others_use(runtime: Runtime) -> None:
    """The UUID as nvidia-smi and CUDA_VISIBLE_DEVICES have it, the place on the bus as the kernel does."""
    gpu = find_gpu()
    assert gpu is not None and (gpu.name, gpu.compute_capability, gpu.cuda) == ("NVIDIA H100", "9.0", "13.0")
    assert gpu.uuid == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert gpu.pci == "0000:1b:00.0"


def test_no_gpu_is_none_with_a_reason(runtime: Runtime) -> None:
    """None that may be used, or a driver that fails."""
    runtime.count = 0
    assert find_gpu() is None and "CUDA_VISIBLE_DEVICES" in why_none()
    runtime.answers["cudaGetDeviceCount"] = [Error.cudaErrorNotSupported] * 2
    assert find_gpu() is None and "is NVIDIA's driver installed?" in why_none()


def test_memory_of_several_engines_is_page_locked_once(runtime: Runtime) -> None:
    """And given back by the last of them."""
    first, second, slots = Cuda(), Cuda(), memory()
    first.register(slots)
    second.register(slots)
    first.unregister(slots)
    assert (runtime.count_of("cudaHostRegister"), runtime.count_of("cudaHostUnregister")) == (1, 0)
    second.unregister(slots)
    assert runtime.count_of("cudaHostUnregister") == 1


def test_page_locking_goes_on_while_the_engine_is_loaded(runtime: Runtime) -> None:
    """In a thread of its own; whoever needs the memory waits for it, and it is page-locked once."""
    slots = memory()
    runtime.gate.clear()
    register_early(slots)
    device = Cuda()  # is not held up
    waiting = threading.Thread(target=device.register, args=(slots,))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    runtime.gate.set()
    waiting.join(10)
    (where,) = [thread for name, thread in runtime.calls if name == "cudaHostRegister"]
    assert where.startswith("page-lock")
    device.unregister(slots)
    assert runtime.count_of("cudaHostUnregister") == 1


@pytest.mark.parametrize("fails", ["cudaSetDevice", "cudaHostRegister"])
def test_what_failed_ahead_is_tried_again(runtime: Runtime, fails: str) -> None:
    """Such as a GPU that was in the middle of something."""
    slots = memory()
    runtime.answers[fails] = [Error.cudaErrorMemoryAllocation]
    register_early(slots)
    cuda._early[slots.ctypes.data].result(10)
    Cuda().register(slots)
    assert runtime.calls[-1][0] == "cudaHostRegister"


def test_page_locking_that_is_refused_is_no_end(runtime: Runtime) -> None:
    """The error is taken back from CUDA, or a later call would report it; the engine copies twice, then."""
    slots = memory()
    runtime.answers["cudaHostRegister"] = [Error.cudaErrorNotSupported] * 2
    register_early(slots)
    with pytest.raises(EngineError, match="0 MiB of shared memory cannot be page-locked") as caught:
        Cuda().register(slots)
    assert not caught.value.fatal
    assert runtime.count_of("cudaGetLastError") == 2


def test_without_cuda_python_nothing_is_begun(monkeypatch) -> None:
    """Who opens the engine hears of it."""

    def lacks() -> Any:
        raise EngineError("cuda-python cannot be loaded")

    monkeypatch.setattr(cuda, "load_runtime", lacks)
    register_early(memory())
    assert cuda._early == {}


def test_lack_of_memory_is_told_and_no_end(runtime: Runtime) -> None:
    """It poisons nothing."""
    device = Cuda()
    runtime.answers["cudaMalloc"] = [Error.cudaErrorMemoryAllocation]
    with pytest.raises(EngineError, match="out of memory: 5 MiB of GPU memory cannot be had") as caught:
        device.allocate(5 << 20)
    assert not caught.value.fatal
    assert device.allocate(1 << 20) == 4096


def test_an_error_in_flight_is_the_end(runtime: Runtime) -> None:
    """Not ready is none."""
    device = Cuda()
    event = device.event()
    runtime.answers["cudaEventQuery"] = [Error.cudaErrorNotReady, Error.cudaErrorIllegalAddress]
    assert not device.fired(event)
    with pytest.raises(EngineError, match="cudaEventQuery") as caught:
        device.fired(event)
    assert caught.value.fatal
    assert device.fired(event)
