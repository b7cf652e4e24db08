"""A TensorRT plan on a GPU: what engines.gpu_engine needs of it (engines.device.Network), and how it is opened.

Every (context, shape) is run before it is used: TensorRT for RTX compiles its kernels on the first run of a shape. What was
compiled is kept beside the plan, so that a process that replaces a dead one starts in a fraction of the time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.cache import Entry, check_loadable, read_entry
from engines.cuda import Cuda
from engines.device import Device, Execution
from engines.errors import EngineError
from engines.files import locked, write_whole
from engines.flavour import Flavour, Told, load_flavour, messages, new
from engines.gpu_engine import GpuEngine
from engines.identity import Identity
from engines.notices import say

INPUT, OUTPUT = "patches", "probabilities"
REBUILD = "build it again"
# By what TensorRT for RTX says of a plan that it does not load; another build would not help with these.
_REMEDIES = {
    "UNSUPPORTED_CC": "take a release of TensorRT that serves this GPU (docs/engines.md)",
    "OLD_CUDA_DRIVER": "update NVIDIA's driver",
    "OLD_CUDA_RUNTIME": "update CUDA",
    "INSUFFICIENT_GPU_MEMORY": "free memory on the GPU",
}


def open_tensorrt(
    plan: Path,
    *,
    classes: int,
    patch_px: int,
    max_batch: int,
    shapes: Sequence[int] = (),
    cuda_graphs: bool = False,
    device: int = 0,
    unverified: bool = False,
) -> GpuEngine:
    """Opens a plan of engines.cache on GPU `device` (counted among the visible ones).

    Batches smaller than its profile's minimum are padded to that.
    `unverified` is for verification itself: else an engine that was not found right on this kind of GPU is refused.
    Raises EngineError, before anything is loaded where that is possible: no TensorRT or GPU, an engine of something
    else (naming both values), a damaged file, one that was not verified.
    """
    started = time.monotonic()
    entry = read_entry(plan)
    if entry.identity is None:
        raise EngineError(f"{entry.plan}: {entry.problem}; build it again")
    flavour = load_flavour(entry.identity.flavour)
    cuda = Cuda(device)
    check_loadable(entry, entry.identity, flavour, cuda.gpu, unverified)
    profile = _profile(entry, entry.identity, classes, patch_px, max_batch)
    network = TensorRTNetwork(entry, entry.identity, flavour, cuda, profile, cuda_graphs)
    minimum = entry.identity.profiles[profile]["minimum"]
    return GpuEngine(
        "tensorrt",
        cuda,
        network,
        classes=classes,
        patch_px=patch_px,
        max_batch=max(max_batch, minimum),
        shapes=[rows for rows in shapes if rows >= minimum],
        load_seconds=time.monotonic() - started,
    )


def _profile(entry: Entry, identity: Identity, classes: int, patch_px: int, max_batch: int) -> int:
    """Index of the profile that takes these patches."""
    if identity.classes != classes:
        raise EngineError(f"{entry.plan}: gives {identity.classes} classes, the model has {classes}; build it again")
    for index, profile in enumerate(identity.profiles):
        if profile["patch_px"] == patch_px:
            if profile["maximum"] < max_batch:
                raise EngineError(
                    f"{entry.plan}: takes batches of up to {profile['maximum']}, batcher.batch is {max_batch}; lower it, or "
                    "build another"
                )
            return index
    sizes = ", ".join(str(profile["patch_px"]) for profile in identity.profiles)
    raise EngineError(f"{entry.plan}: takes patches of {sizes} px, the model has {patch_px}; build it again")


class TensorRTNetwork:
    """See engines.device.Network."""

    def __init__(
        self,
        entry: Entry,
        identity: Identity,
        flavour: Flavour,
        device: Device,
        profile: int,
        cuda_graphs: bool,
    ) -> None:
        self._entry, self._identity, self._flavour, self._profile = entry, identity, flavour, profile
        self._kernels_file = entry.kernels(device.gpu)
        self._told = Told(warned=lambda text: say("warning", "TensorRT warns", text))
        data = entry.read_plan()
        with messages(self._told):
            self._runtime = new(flavour.trt.Runtime, self._told, flavour.logger())
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"{entry.plan}: cannot be loaded: {self._why_not(data, device.free_bytes())}")
        self._engine: Any = engine
        self._kernels: Any = None
        self._known_kernels = b""
        self._cuda_graphs = False
        self._config = self._runtime_config(self._read_kernels(), cuda_graphs)
        if cuda_graphs and not self._cuda_graphs:
            say("warning", "batches run without CUDA graphs", f"{flavour.name} {flavour.version} makes none by itself")

    def describe(self) -> dict[str, Any]:
        return {
            "engine": self._flavour.name,
            "version": self._flavour.version,
            "precision": self._identity.precision,
            "plan": self._entry.plan.name,
            "cuda_graphs": self._cuda_graphs,
        }

    def context_bytes(self) -> int:
        # A context takes as much as the largest of the engine's profiles needs, whichever it is set to.
        return int(self._engine.device_memory_size_v2)

    def execution(self, source: int, target: int, stream: int) -> Execution:
        with self.capture():
            context = (
                self._engine.create_execution_context()
                if self._config is None
                else self._engine.create_execution_context(self._config)
            )
            if context is None:
                raise EngineError(f"no execution context: {self._told.problem('TensorRT gave no reason')}")
            if self._profile and not context.set_optimization_profile_async(self._profile, stream):
                raise EngineError(f"profile {self._profile} refused: {self._told.problem('TensorRT gave no reason')}")
        side = self._identity.profiles[self._profile]["patch_px"]
        return _Execution(context, source, target, (side, side, 3), self)

    def warmed(self) -> None:
        """Keeps the kernels that were compiled, where there are new ones."""
        host = self._kernels.serialize() if self._kernels is not None else None
        data = bytes(memoryview(host)) if host is not None else b""
        if not data or data == self._known_kernels:
            return
        try:
            with locked(self._kernels_file):
                write_whole(self._kernels_file, data)
            self._known_kernels = data
        except OSError as error:
            # A folder that can only be read is no reason not to run.
            self._told("warning", f"{self._kernels_file}: {error.strerror}")

    def problem(self) -> str:
        return self._told.problem("TensorRT gave no reason")

    def capture(self) -> Any:
        """A block in which TensorRT's messages are kept; `problem` is about the last one."""
        self._told.forget_errors()
        return messages(self._told)

    def close(self) -> None:
        self._engine = self._config = self._kernels = self._runtime = None

    def _runtime_config(self, kernels: bytes, cuda_graphs: bool) -> Any:
        """How contexts are made, with a cache that holds `kernels`; None where TensorRT has no such configuration."""
        if not hasattr(self._engine, "create_runtime_config"):
            return None
        trt, config = self._flavour.trt, self._engine.create_runtime_config()
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # The default compiles in the background while a slower kernel runs: batches would change their speed, and
            # their last bits, in the middle of a run. Compiled at once, the first context of a process gave other last
            # bits than the later ones, and no more patches/s than with the kernels that fit every shape (1.4, H100).
            none = trt.DynamicShapesKernelSpecializationStrategy.NONE
            config.dynamic_shapes_kernel_specialization_strategy = none
        if cuda_graphs and hasattr(config, "cuda_graph_strategy"):
            self._cuda_graphs = True
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._flavour.runtime_cache:
            self._kernels = config.create_runtime_cache()
            with messages(self._told):
                if kernels and not self._kernels.deserialize(kernels):
                    self._known_kernels = b""
            config.set_runtime_cache(self._kernels)
        return config

    def _read_kernels(self) -> bytes:
        """The file, or nothing: there is none yet, or it is not ours to lock, and they are compiled again."""
        if self._flavour.runtime_cache:
            with contextlib.suppress(OSError), locked(self._kernels_file):
                self._known_kernels = self._kernels_file.read_bytes()
        return self._known_kernels

    def _why_not(self, data: bytes, free: int) -> str:
        """Why a plan was not loaded, and what to do."""
        problem = self._told.problem("TensorRT gave no reason")
        if len(data) > free:
            mib = len(data) >> 20
            return f"its weights need some {mib} MiB of GPU memory, {free >> 20} MiB are free ({problem}); free some"
        if not self._flavour.engine_validity:
            return f"{problem}; {REBUILD}"
        validity, mask = self._runtime.get_engine_validity(data)
        bits = self._flavour.trt.EngineInvalidityDiagnostics.__members__
        names = [name for name, value in bits.items() if mask & int(value)]
        remedy = next((words for name, words in _REMEDIES.items() if name in names), REBUILD)
        return f"{problem} ({validity.name.lower()}: {', '.join(names) or 'no driver'}); {remedy}"


class _Execution:
    """See engines.device.Execution."""

    def __init__(self, context: Any, source: int, target: int, row: tuple[int, ...], network: TensorRTNetwork) -> None:
        self._context, self._row, self._network = context, row, network
        self._rows = 0
        with network.capture():
            if not context.set_tensor_address(INPUT, source) or not context.set_tensor_address(OUTPUT, target):
                raise EngineError(f"buffers refused: {network.problem()}")

    def enqueue(self, rows: int, stream: int) -> None:
        with self._network.capture():
            if rows != self._rows:
                if not self._context.set_input_shape(INPUT, (rows, *self._row)):
                    raise EngineError(f"a batch of {rows} was refused: {self._network.problem()}")
                self._rows = rows
            if not self._context.execute_async_v3(stream):
                raise EngineError(f"the network did not start: {self._network.problem()}")
