"""CUDA through cuda-python: the device, streams, events, copies, page-locked memory. See engines.device.Device.

The runtime API, so that everything lies in the device's primary context, which TensorRT and PyTorch use as well. Errors
of CUDA that come up while work is in flight poison the context for good, so they are fatal; only where CUDA merely refuses
what was asked of it (memory that is not there) can the process go on.
"""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engines.errors import EngineError, one_line
from engines.gpu import Gpu

NO_GPU = "there is no GPU that this user may use (CUDA_VISIBLE_DEVICES limits them)"
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_registered: Counter[int] = Counter()  # by address: how many engines of this process copy from that memory
_early: dict[int, Future[Any]] = {}  # by address: what CUDA says of memory that is page-locked ahead


def load_runtime() -> ModuleType:
    """cuda.bindings.runtime. Raises EngineError where cuda-python is not installed."""
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"cuda-python cannot be loaded ({one_line(error, 120)}); install slidestream[tensorrt]"
        ) from error
    return runtime


def gpu_count() -> int:
    """GPUs that this process may use (CUDA_VISIBLE_DEVICES counts). Raises EngineError: no cuda-python, no driver."""
    runtime = load_runtime()
    error, count = runtime.cudaGetDeviceCount()
    if error == runtime.cudaError_t.cudaErrorNoDevice:
        return 0
    if error != runtime.cudaError_t.cudaSuccess:
        raise EngineError(f"no GPU can be used: {_text(runtime, error)}; is NVIDIA's driver installed?")
    return int(count)


def find_gpu(device: int = 0) -> Gpu | None:
    """The GPU, or None where there is none that can be used."""
    try:
        return read_gpu(device) if gpu_count() > device else None
    except EngineError:
        return None


def why_none(device: int = 0) -> str:
    """Where `find_gpu` gives None: why, in words."""
    try:
        if gpu_count() > device:
            read_gpu(device)
    except EngineError as error:
        return str(error)
    return NO_GPU


def read_gpu(device: int) -> Gpu:
    """GPU `device`, counted among those that can be used. Raises EngineError."""
    return _gpu(load_runtime(), device)


def register_early(memory: np.ndarray, device: int = 0) -> None:
    """Begins to page-lock memory in a thread, while the caller loads what it needs; `Cuda.register` then waits for the rest.

    Returns at once. The thread makes the context of GPU `device`, or waits for who makes it: all threads of a process share
    it. Nothing is raised: `Cuda.register` tries again what failed here.
    """
    try:
        runtime = load_runtime()  # here, so that no two threads are importing at a time
    except EngineError:
        return  # who opens the engine tells

    def work() -> Any:
        (error,) = runtime.cudaSetDevice(device)
        return _page_lock(runtime, memory) if error == runtime.cudaError_t.cudaSuccess else error

    pool = ThreadPoolExecutor(1, "page-lock")
    _early[memory.ctypes.data] = pool.submit(work)
    pool.shutdown(wait=False)


def _page_lock(runtime: ModuleType, memory: np.ndarray) -> Any:
    """What CUDA says to it."""
    (error,) = runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, runtime.cudaHostRegisterPortable)
    if error != runtime.cudaError_t.cudaSuccess:
        runtime.cudaGetLastError()  # or the next call would report this one
    return error


class Cuda:
    """See engines.device.Device. Belongs to the thread that made it."""

    def __init__(self, device: int = 0) -> None:
        count = gpu_count()
        if device >= count:
            raise EngineError(f"GPU {device} was asked for, but {count} can be used (CUDA_VISIBLE_DEVICES limits them)")
        self._runtime = load_runtime()
        self._good = self._runtime.cudaError_t.cudaSuccess
        self._not_ready = self._runtime.cudaError_t.cudaErrorNotReady
        self._lack = self._runtime.cudaError_t.cudaErrorMemoryAllocation
        self._streams: dict[int, Any] = {}
        self._call("cudaSetDevice", device)
        self._call("cudaFree", 0)  # makes the context now, so that its error is told here
        self.gpu = _gpu(self._runtime, device)

    def free_bytes(self) -> int:
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def register(self, memory: np.ndarray) -> None:
        """Engines of one process share its context, and CUDA takes the same memory once: the last to leave gives it back."""
        address = memory.ctypes.data
        if not _registered[address]:
            self._register(memory)
        _registered[address] += 1

    def _register(self, memory: np.ndarray) -> None:
        early = _early.pop(memory.ctypes.data, None)
        error = None if early is None else early.result()
        if error != self._good:
            error = _page_lock(self._runtime, memory)
        if error != self._good:
            mib = memory.nbytes >> 20
            raise EngineError(f"{mib} MiB of shared memory cannot be page-locked: {_text(self._runtime, error)}")

    def unregister(self, memory: np.ndarray) -> None:
        address = memory.ctypes.data
        _registered[address] -= 1
        if not _registered[address]:
            self._call("cudaHostUnregister", address)

    def allocate(self, size: int) -> int:
        address = int(self._call("cudaMalloc", size, lack=f"{size >> 20} MiB of GPU memory"))
        self._call("cudaMemset", address, 0, size)
        return address

    def release(self, address: int) -> None:
        self._call("cudaFree", address)

    def host_array(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        import ctypes

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        flags = self._runtime.cudaHostAllocPortable
        address = int(self._call("cudaHostAlloc", size, flags, lack=f"{size} bytes of page-locked memory"))
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)

    def release_host(self, array: np.ndarray) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def stream(self) -> int:
        stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        self._streams[int(stream)] = stream
        return int(stream)

    def release_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", self._streams.pop(stream))

    def event(self) -> Any:
        return self._call("cudaEventCreate")

    def release_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: Any, stream: int) -> None:
        self._call("cudaEventRecord", event, self._streams[stream])

    def fired(self, event: Any) -> bool:
        (error,) = self._runtime.cudaEventQuery(event)
        if error == self._not_ready:
            return False
        self._check(error, "cudaEventQuery")
        return True

    def milliseconds(self, first: Any, last: Any) -> float:
        return float(self._call("cudaEventElapsedTime", first, last))

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, source, size, kind, self._streams[stream])

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", to, source, size, kind, self._streams[stream])

    def wait(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", self._streams[stream])

    def close(self) -> None:
        for stream in list(self._streams):
            self.release_stream(stream)

    def _call(self, name: str, *arguments: Any, lack: str = "") -> Any:
        error, *values = getattr(self._runtime, name)(*arguments)
        if error == self._lack and lack:
            self._runtime.cudaGetLastError()
            raise EngineError(f"out of memory: {lack} cannot be had")
        self._check(error, name)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, error: Any, name: str) -> None:
        if error != self._good:
            raise EngineError(f"{name}: {_text(self._runtime, error)}", fatal=True)


def _gpu(runtime: ModuleType, device: int) -> Gpu:
    error, properties = runtime.cudaGetDeviceProperties(device)
    if error != runtime.cudaError_t.cudaSuccess:
        raise EngineError(f"GPU {device} does not answer: {_text(runtime, error)}", fatal=True)
    _, cuda = runtime.cudaDriverGetVersion()
    raw = properties.uuid.bytes.hex() if isinstance(properties.uuid.bytes, bytes) else ""
    uuid = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:])) if len(raw) == 32 else ""
    return Gpu(
        name=properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name),
        compute_capability=f"{properties.major}.{properties.minor}",
        uuid=f"GPU-{uuid}" if uuid else "",
        memory_bytes=int(properties.totalGlobalMem),
        driver=_driver(),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
        pci=_pci(runtime, device),
    )


def _pci(runtime: ModuleType, device: int) -> str:
    error, raw = runtime.cudaDeviceGetPCIBusId(32, device)
    if error != runtime.cudaError_t.cudaSuccess:
        return ""
    text = raw.decode("ascii", "replace") if isinstance(raw, bytes) else str(raw)
    return text.split("\0")[0].lower()


def _driver() -> str:
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _DRIVER_VERSION.read_text().splitlines()[0])
    except (OSError, IndexError):
        return ""
    return found.group(1) if found else ""


def _text(runtime: ModuleType, error: Any) -> str:
    _, name = runtime.cudaGetErrorName(error)
    _, words = runtime.cudaGetErrorString(error)
    name, words = (part.decode() if isinstance(part, bytes) else str(part) for part in (name, words))
    return f"{name} ({words})"
