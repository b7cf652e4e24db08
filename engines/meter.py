"""Memory and load of the GPU as NVIDIA's management library (NVML) sees them; nothing where nvidia-ml-py is not installed."""

from __future__ import annotations

import contextlib
import os
from types import ModuleType
from typing import Any

MIB = 1 << 20


class Meter:
    """Reads one GPU, by its UUID. A reading takes well below a millisecond."""

    def __init__(self, uuid: str) -> None:
        self._nvml: ModuleType | None = None
        self._handle: Any = None
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:
            return
        self._nvml = pynvml

    def read(self) -> dict[str, float]:
        """`gpu_mib`: of this process, or of all where the system does not tell them apart (containers). `gpu_load`: share
        of the time in which any kernel ran, from 0 to 1. `gpu_watts`."""
        nvml = self._nvml
        if nvml is None:
            return {}
        values: dict[str, float] = {}
        with contextlib.suppress(nvml.NVMLError):
            mine = [p for p in nvml.nvmlDeviceGetComputeRunningProcesses(self._handle) if p.pid == os.getpid()]
            own = mine[0].usedGpuMemory if mine else None
            values["gpu_mib"] = (own or nvml.nvmlDeviceGetMemoryInfo(self._handle).used) // MIB
        with contextlib.suppress(nvml.NVMLError):
            values["gpu_load"] = nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        with contextlib.suppress(nvml.NVMLError):
            values["gpu_watts"] = round(nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000, 1)
        return values
