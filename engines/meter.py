"""Memory and load of the GPU as NVIDIA's management library (NVML) sees them; nothing where nvidia-ml-py is not installed."""

from __future__ import annotations

import contextlib
import os
import threading
from types import ModuleType
from typing import Any

MIB = 1 << 20


class Meter:
    """Reads one GPU, by its UUID. A reading takes well below a millisecond.

    NVML may take a tenth of a second to begin, and more with many GPUs: it does so in a thread, and tells nothing until then.
    """

    def __init__(self, uuid: str) -> None:
        self._ready: tuple[ModuleType, Any] | None = None
        self._thread = threading.Thread(target=self._begin, args=(uuid,), name="nvml", daemon=True)
        self._thread.start()

    def _begin(self, uuid: str) -> None:
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._ready = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:
            return

    def read(self) -> dict[str, float]:
        """`gpu_mib`: of this process, or of all where the system does not tell them apart (containers). `gpu_load`: share
        of the time in which any kernel ran, from 0 to 1. `gpu_watts`."""
        if self._ready is None:
            return {}
        nvml, handle = self._ready
        values: dict[str, float] = {}
        with contextlib.suppress(nvml.NVMLError):
            mine = [p for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == os.getpid()]
            own = mine[0].usedGpuMemory if mine else None
            values["gpu_mib"] = (own or nvml.nvmlDeviceGetMemoryInfo(handle).used) // MIB
        with contextlib.suppress(nvml.NVMLError):
            values["gpu_load"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        with contextlib.suppress(nvml.NVMLError):
            values["gpu_watts"] = round(nvml.nvmlDeviceGetPowerUsage(handle) / 1000, 1)
        return values
