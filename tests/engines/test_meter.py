"""engines.meter on an NVML of a few functions; with nvidia-ml-py, against its real interface."""

from __future__ import annotations

import ast
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from engines.meter import MIB, Meter


class Nvml(ModuleType):
    """`mine`: this process's memory in MiB; None where the system tells no process from another."""

    def __init__(self, mine: int | None = 900) -> None:
        super().__init__("pynvml")
        self.NVMLError = type("NVMLError", (Exception,), {})
        self.mine, self.gate, self.asked = mine, threading.Event(), ""
        self.gate.set()
        self.refuses = ""

    def nvmlInit(self) -> None:
        self.gate.wait(10)
        if self.refuses:
            raise self.NVMLError(self.refuses)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked = uuid
        return "handle"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        own = [] if self.mine is None else [SimpleNamespace(pid=os.getpid(), usedGpuMemory=self.mine * MIB)]
        return [SimpleNamespace(pid=1, usedGpuMemory=None), *own]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=5000 * MIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        raise self.NVMLError("not supported")  # as by a part of a GPU

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 123_456


def begun(meter: Meter) -> Meter:
    meter._thread.join(10)
    return meter


@pytest.mark.parametrize(("mine", "mib"), [(900, 900), (None, 5000)])
def test_memory_is_that_of_the_process_where_it_can_be_told(monkeypatch, mine: int | None, mib: int) -> None:
    """Else of the whole GPU; what this GPU does not tell is left out."""
    nvml = Nvml(mine)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert begun(Meter("GPU-1")).read() == {"gpu_mib": mib, "gpu_watts": 123.5}
    assert nvml.asked == "GPU-1"


def test_nobody_waits_for_it(monkeypatch) -> None:
    """NVML that takes its time to begin holds up neither the first batch nor a reading."""
    nvml = Nvml()
    nvml.gate.clear()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    began = time.monotonic()
    meter = Meter("GPU-1")
    assert meter.read() == {} and time.monotonic() - began < 5
    nvml.gate.set()
    assert begun(meter).read()["gpu_mib"] == 900


@pytest.mark.parametrize("there", [True, False])
def test_without_it_there_is_nothing_to_tell(monkeypatch, there: bool) -> None:
    """No package, or no driver."""
    nvml = Nvml()
    nvml.refuses = "driver not loaded"
    monkeypatch.setitem(sys.modules, "pynvml", nvml if there else None)
    assert begun(Meter("GPU-1")).read() == {}


def test_the_real_package_has_every_name(root: Path) -> None:
    """Whichever release is installed."""
    pynvml = pytest.importorskip("pynvml")
    tree = ast.parse((root / "engines" / "meter.py").read_text())
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("nvml", "pynvml")
    }
    assert len(names) > 5 and [name for name in sorted(names) if not hasattr(pynvml, name)] == []
