"""What a process has on its GPU."""

from __future__ import annotations

import os
from typing import Any


class Memory:
    """GPU memory of this process by NVML, or, where that does not tell by process, of the whole GPU."""

    def __init__(self, uuid: str) -> None:
        """`uuid`: of the GPU; without it, the first that CUDA_VISIBLE_DEVICES names by UUID, or the first there is."""
        self._nvml: Any = None
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        name = uuid or (visible if visible.startswith("GPU-") else "")
        try:
            import pynvml

            pynvml.nvmlInit()
            self._device = pynvml.nvmlDeviceGetHandleByUUID(name) if name else pynvml.nvmlDeviceGetHandleByIndex(0)
            self._nvml = pynvml
        except Exception:  # noqa: BLE001 (NVML's errors are classes made at run time)
            return

    def mib(self) -> int | None:
        """MiB now; None where nothing tells."""
        if self._nvml is None:
            return None
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._device):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return process.usedGpuMemory >> 20
        return self.total_mib()

    def total_mib(self) -> int | None:
        """MiB in use on the GPU, whoever has them."""
        return None if self._nvml is None else self._nvml.nvmlDeviceGetMemoryInfo(self._device).used >> 20
