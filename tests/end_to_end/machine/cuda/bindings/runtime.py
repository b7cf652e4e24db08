"""In cuda-python's place: GPUs whose memory is this process's, and whose streams do at once what they are told.

FAKE_GPUS is JSON, a list of {"name", "capability", "uuid"} with any of

    free_mib        that much memory is left on it
    broken          no context can be made on it
    fatal_at        in generation 1, a network's run of that number loses the context: from then on every call fails
    hangs_at        in generation 1, a network's run of that number never ends, nor does anything after it

CUDA_VISIBLE_DEVICES is respected as CUDA does: numbers or UUIDs, up to the first that there is not.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorDevicesUnavailable = 46
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


cudaHostRegisterPortable = cudaHostAllocPortable = cudaStreamNonBlocking = 1

_GOOD = cudaError_t.cudaSuccess
_TOTAL = 8 << 30
_blocks: dict[int, Any] = {}
_state = SimpleNamespace(device=0, runs=0, lost=False, hangs=False, handles=100)


def _gpus() -> list[dict[str, Any]]:
    all_of_them = json.loads(os.environ["FAKE_GPUS"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return all_of_them
    seen = []
    for word in visible.split(","):
        fits = [gpu for i, gpu in enumerate(all_of_them) if word == str(i) or (word and gpu["uuid"].startswith(word))]
        if len(fits) != 1:
            break
        seen += fits
    return seen


def _mine() -> dict[str, Any]:
    return _gpus()[_state.device]


def ran() -> None:
    """The fake network calls it with every run."""
    _state.runs += 1
    first = "--generation" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("--generation") + 1] == "1"
    if first and _state.runs == _mine().get("fatal_at"):
        _state.lost = True
    if first and _state.runs == _mine().get("hangs_at"):
        _state.hangs = True


def lost() -> bool:
    return _state.lost


def _said(*values: Any) -> tuple[Any, ...]:
    if _state.lost:
        return (cudaError_t.cudaErrorIllegalAddress, *(None for _ in values))
    return (_GOOD, *values)


def cudaGetDeviceCount() -> tuple[Any, ...]:
    count = len(_gpus())
    return (_GOOD, count) if count else (cudaError_t.cudaErrorNoDevice, None)


def cudaGetDeviceProperties(device: int) -> tuple[Any, ...]:
    gpu = _gpus()[device]
    major, minor = map(int, gpu["capability"].split("."))
    uuid = SimpleNamespace(bytes=bytes.fromhex(gpu["uuid"].removeprefix("GPU-").replace("-", "")))
    return _GOOD, SimpleNamespace(name=gpu["name"].encode(), major=major, minor=minor, totalGlobalMem=_TOTAL, uuid=uuid)


def cudaDriverGetVersion() -> tuple[Any, ...]:
    return _GOOD, 13000


def cudaDeviceGetPCIBusId(length: int, device: int) -> tuple[Any, ...]:
    return _GOOD, b"0000:FF:00.0" + b"\0" * (length - 12)


def cudaGetErrorName(error: cudaError_t) -> tuple[Any, ...]:
    return _GOOD, error.name.encode()


def cudaGetErrorString(error: cudaError_t) -> tuple[Any, ...]:
    return _GOOD, b"as it was asked to"


def cudaGetLastError() -> tuple[Any, ...]:
    return (_GOOD,)


def cudaSetDevice(device: int) -> tuple[Any, ...]:
    _state.device = device
    return (cudaError_t.cudaErrorDevicesUnavailable,) if _mine().get("broken") else _said()


def cudaMemGetInfo() -> tuple[Any, ...]:
    return _said((_mine().get("free_mib", 6000) << 20) - sum(len(block) for block in _blocks.values()), _TOTAL)


def _block(size: int) -> tuple[Any, ...]:
    block = ctypes.create_string_buffer(size)
    _blocks[ctypes.addressof(block)] = block
    return _said(ctypes.addressof(block))


def cudaMalloc(size: int) -> tuple[Any, ...]:
    return _block(size)


def cudaMemset(address: int, value: int, size: int) -> tuple[Any, ...]:
    ctypes.memset(address, value, size)
    return _said()


def cudaFree(address: int) -> tuple[Any, ...]:
    _blocks.pop(address, None)
    return _said()


def cudaHostAlloc(size: int, flags: int) -> tuple[Any, ...]:
    return _block(size)


cudaFreeHost = cudaFree


def cudaHostRegister(address: int, size: int, flags: int) -> tuple[Any, ...]:
    return _said()


def cudaHostUnregister(address: int) -> tuple[Any, ...]:
    return _said()


def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, ...]:
    _state.handles += 1
    return _said(_state.handles)


def cudaStreamDestroy(stream: int) -> tuple[Any, ...]:
    return _said()


def cudaStreamSynchronize(stream: int) -> tuple[Any, ...]:
    while _state.hangs:
        time.sleep(1.0)
    return _said()


def cudaEventCreate() -> tuple[Any, ...]:
    return _said(SimpleNamespace(at=0.0))


def cudaEventDestroy(event: Any) -> tuple[Any, ...]:
    return _said()


def cudaEventQuery(event: Any) -> tuple[Any, ...]:
    return (cudaError_t.cudaErrorNotReady,) if _state.hangs else _said()


def cudaEventRecord(event: Any, stream: int) -> tuple[Any, ...]:
    event.at = time.monotonic()
    return _said()


def cudaEventElapsedTime(first: Any, last: Any) -> tuple[Any, ...]:
    return _said((last.at - first.at) * 1e3)


def cudaMemcpyAsync(to: int, source: int, size: int, kind: cudaMemcpyKind, stream: int) -> tuple[Any, ...]:
    ctypes.memmove(to, source, size)
    return _said()
