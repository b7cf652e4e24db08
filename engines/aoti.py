"""An AOTInductor package on a GPU: what engines.gpu_engine needs of it (engines.device.Network), and how it is opened.

The compiled code is shared by all contexts; each has its own stream, and, where CUDA graphs are on, a graph of its own that
holds every kernel of a batch with the addresses of its buffers, so that a batch costs one call. PyTorch and engines.cuda
share the device's primary context, and buffers and streams are cuda-python's: PyTorch only sees them.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engines.aoti_flavour import load_aoti
from engines.cache import Entry, check_loadable, read_entry
from engines.device import Device, Execution
from engines.errors import EngineError
from engines.flavour import Flavour
from engines.gpu_engine import GpuEngine
from engines.identity import Identity
from engines.notices import say
from engines.torch_source import quiet, reason

OUT_OF_MEMORY = "out of memory"
_MODEL = "data/aotinductor/model"


def open_aoti(
    plan: Path,
    *,
    classes: int,
    patch_px: int,
    max_batch: int,
    cuda_graphs: bool = True,
    device: int = 0,
    unverified: bool = False,
    on: Device | None = None,
) -> GpuEngine:
    """Opens a package of engines.cache on GPU `device` (counted among the visible ones), or on `on`.

    Batches are padded to the one size that it was compiled for, which must be `max_batch` or larger. `unverified` is for
    verification itself: else an engine that was not found right on this kind of GPU is refused. Raises EngineError, before
    anything is loaded where that is possible.
    """
    started = time.monotonic()
    entry = read_entry(plan)
    if entry.identity is None:
        raise EngineError(f"{entry.plan}: {entry.problem}; build it again")
    flavour = load_aoti()
    if on is None:
        from engines.cuda import Cuda

        on = Cuda(device)
    check_loadable(entry, entry.identity, flavour, on.gpu, unverified)
    batch = _batch(entry, entry.identity, classes, patch_px, max_batch)
    try:
        network = AotiNetwork(entry, entry.identity, flavour, batch, device=device, cuda_graphs=cuda_graphs)
    except EngineError as error:
        if error.fatal or OUT_OF_MEMORY not in error.problem:
            raise
        needs, free = entry.record["plan"]["size"] >> 20, on.free_bytes() >> 20
        words = f"{error}: its weights need some {needs} MiB of GPU memory, {free} MiB are free; free some"
        raise EngineError(words) from error
    return GpuEngine(
        "aoti",
        on,
        network,
        classes=classes,
        patch_px=patch_px,
        max_batch=batch,
        load_seconds=time.monotonic() - started,
    )


def _batch(entry: Entry, identity: Identity, classes: int, patch_px: int, max_batch: int) -> int:
    """The batch that the package was compiled for."""
    profile = identity.profiles[0]
    for what, has, wants in (("classes", identity.classes, classes), ("px a patch", profile["patch_px"], patch_px)):
        if has != wants:
            raise EngineError(f"{entry.plan}: is of {has} {what}, the model of {wants}; build it again")
    if profile["maximum"] < max_batch:
        raise EngineError(
            f"{entry.plan}: takes batches of up to {profile['maximum']}, batcher.batch is {max_batch}; lower it, or "
            "build another"
        )
    return profile["maximum"]


class AotiNetwork:
    """See engines.device.Network."""

    def __init__(
        self, entry: Entry, identity: Identity, flavour: Flavour, batch: int, *, device: int, cuda_graphs: bool
    ) -> None:
        self.torch: Any = flavour.trt
        self.plan, self.batch = entry.plan, batch
        self.classes, self.patch_px = identity.classes, identity.profiles[0]["patch_px"]
        self.on_gpu = not identity.target.startswith("CPU")
        self.cuda_graphs = cuda_graphs and self.on_gpu
        self.device = device
        self._identity, self._version = identity, flavour.version
        self._context_bytes = 0
        entry.read_plan()  # raises where it is damaged
        torch = self.torch
        # How cuDNN and cuBLAS compute, for the whole process; the package leaves it to them. Shapes never change.
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        # Once all kernels have run nothing that was unpacked is read any more, so it is gone before work begins.
        self._folder = tempfile.TemporaryDirectory(prefix="slidestream-", ignore_cleanup_errors=True)
        try:
            with quiet():
                code = unpack(entry.plan, Path(self._folder.name))
                self._runner: Any = self._open(code, device)
        except Exception as error:  # PyTorch raises whatever its parts raise
            self._folder.cleanup()
            raise translated(error, f"{entry.plan}: cannot be loaded") from error

    def _open(self, code: Path, device: int) -> Any:
        # The runner itself, not aoti_load_package around it, which imports PyTorch's whole compiler (seconds of each start),
        # tries out what this processor can (a minute, for code that only launches kernels), and unpacks to /tmp, where a
        # process that is killed leaves it. Single-threaded: without its own locks and events, which would be queried while a
        # graph is captured.
        runners = self.torch._C._aoti
        if not self.on_gpu:
            return runners.AOTIModelContainerRunnerCpu(str(code), 1)
        self.torch.cuda.set_device(device)
        return runners.AOTIModelContainerRunnerCuda(str(code), 1, f"cuda:{device}", str(code.parent), True)

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "aoti",
            "version": self._version,
            "precision": self._identity.precision,
            "plan": self.plan.name,
            "cuda_graphs": self.cuda_graphs,
        }

    def context_bytes(self) -> int:
        """What the last execution was seen to take; 0 before there was one."""
        return self._context_bytes

    def reserved(self) -> int:
        """Bytes of GPU memory that PyTorch holds."""
        return self.torch.cuda.memory_reserved(self.device) if self.on_gpu else 0

    def trim(self) -> None:
        """Gives back what PyTorch holds and nobody uses."""
        if self.on_gpu:
            self.torch.cuda.empty_cache()

    def took(self, size: int) -> None:
        self._context_bytes = max(self._context_bytes, size)

    def execution(self, source: int, target: int, stream: int) -> Execution:
        return _Execution(self, source, target, stream)

    def run(self, patches: Any) -> Any:
        """uint8 (batch, px, px, 3) to probabilities float32 (batch, classes), on the current stream."""
        return self._runner.run([patches])[0]

    def warmed(self) -> None:
        """Removes what was unpacked."""
        self._folder.cleanup()

    def close(self) -> None:
        self._runner = None
        self._folder.cleanup()
        self.trim()

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        """Memory that is not PyTorch's, as a tensor."""
        torch = self.torch
        if self.on_gpu:
            typestr = {torch.uint8: "|u1", torch.float32: "<f4"}[dtype]
            return torch.as_tensor(_Memory(address, shape, typestr), device=f"cuda:{self.device}")
        count = dtype.itemsize
        for side in shape:
            count *= side
        return torch.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype=dtype).reshape(shape)


def unpack(package: Path, folder: Path) -> Path:
    """Unpacks the compiled code and the kernels that it launches into `folder`; the code's file. Raises EngineError, OSError,
    zipfile.BadZipFile.

    A package is a PT2 archive of PyTorch's: a ZIP file, with the compiled network below NAME/data/aotinductor/model.
    """
    found: list[Path] = []
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            inside, file = name.partition("/")[2].rpartition("/")[::2]
            if inside != _MODEL:
                continue
            target = folder / file
            with archive.open(name) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            if target.suffix == ".so":
                found.append(target)
    if len(found) != 1:
        raise EngineError(f"{package}: holds {len(found)} compiled networks, not one; build it again")
    return found[0]


class _Memory:
    """Device memory as the CUDA array interface describes it (version 3)."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "data": (address, False), "version": 3}


class _Execution:
    """See engines.device.Execution. The first batch runs as it is (what is compiled, tried out or allocated late comes then),
    the second is captured, and from then on the graph is replayed."""

    def __init__(self, network: AotiNetwork, source: int, target: int, stream: int) -> None:
        self._network = network
        torch = network.torch
        side = network.patch_px
        self._patches = network.view(source, (network.batch, side, side, 3), torch.uint8)
        self._answer = network.view(target, (network.batch, network.classes), torch.float32)
        self._stream = torch.cuda.ExternalStream(stream, device=network.device) if network.on_gpu else None
        self._graph: Any = None
        self._runs = 0

    def enqueue(self, rows: int, stream: int) -> None:
        """Computes all rows of the buffer, whatever `rows` is: the package has one shape."""
        torch = self._network.torch
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode())
                if self._stream is not None:
                    stack.enter_context(torch.cuda.stream(self._stream))
                if self._runs < 2:
                    self._settle_in()
                    self._runs += 1
                elif self._graph is not None:
                    self._graph.replay()
                else:
                    self._run()
        except Exception as error:  # PyTorch raises whatever its parts raise
            raise translated(error, "the network did not start") from error

    def _settle_in(self) -> None:
        """The first two batches. What trying algorithms took is given back before the second, whose memory then counts."""
        network = self._network
        if not self._runs:
            self._run()
            network.trim()
            return
        before = network.reserved()
        if network.cuda_graphs:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._run()
        network.took(network.reserved() - before)

    def _run(self) -> None:
        self._answer.copy_(self._network.run(self._patches))

    def _capture(self) -> None:
        network, torch = self._network, self._network.torch
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._run()
        except Exception as error:  # as above
            problem = translated(error, "no CUDA graph")
            if problem.fatal:
                raise
            # Slower with small batches, but right.
            network.cuda_graphs = False
            say("warning", "batches run without CUDA graphs", str(problem))
            return
        self._graph = graph


def translated(error: Exception, what: str) -> EngineError:
    """PyTorch's exception as ours: out of memory is no reason to end, an error of the device is."""
    if isinstance(error, EngineError):
        return error
    text = str(error)
    if OUT_OF_MEMORY in text.lower():
        return EngineError(f"{what}: {OUT_OF_MEMORY}")
    lost = type(error).__name__ == "AcceleratorError" or any(sign in text for sign in ("CUDA error", "CUDNN_STATUS"))
    return EngineError(f"{what}: {reason(error)}", fatal=lost)
