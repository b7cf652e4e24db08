"""Imported by Python at the start of every process that has this folder on PYTHONPATH: makes stage processes fail on purpose.

E2E_SABOTAGE is JSON, {kind of stage: {...}}, with any of

    slow_s              sleep so long in every call of the stage's work, for each patch where it is about patches
    block, after        in generations 1..block, the work hangs (for ever) after so many calls; a file
                        E2E_MARKS/<kind>.<generation>.<pid> says that it does
    segv_at             [name of the slide's file, x, y]: reading that patch ends the process by SIGSEGV (reader)
    segv_crc            CRC-32 of a patch's pixels: inferring it does (inference)
    segv_open           name of a slide's file: opening it does (reader)
    never, never_from   name of a worker whose engine never opens, in this generation (1) and later ones (inference)
    fatal_at            in generation 1, this batch fails as if the device were lost (inference on the processor)
    cuda_error_at       in generation 1, a kernel that writes to nowhere is started before this batch (inference on a GPU)
    hang_at             in generation 1, a kernel that takes a minute is started before this batch (inference on a GPU)
    worker              name of the one worker that the last three are for
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path


def _argument(name: str) -> str:
    arguments = sys.orig_argv
    return arguments[arguments.index(name) + 1]


def _segv() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


# nowhere stores to address 16, which belongs to nobody; minute computes for a minute and nothing.
_KERNELS = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry nowhere()
{
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
.visible .entry minute()
{
    .reg .u64 %now;
    .reg .u64 %end;
    .reg .pred %early;
    mov.u64 %now, %globaltimer;
    add.u64 %end, %now, 60000000000;
again:
    mov.u64 %now, %globaltimer;
    setp.lt.u64 %early, %now, %end;
    @%early bra again;
    ret;
}
\0"""


def _launch(kernel: bytes, stream: int) -> None:
    """One of _KERNELS. The error of the first shows in whatever is asked of the GPU once it has run."""
    import numpy as np
    from cuda.bindings import driver

    def checked(result: tuple) -> object:
        if result[0] != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"sabotage does not work here: {result[0]!r}")
        return result[1] if len(result) > 1 else None

    text = np.frombuffer(_KERNELS, np.uint8)
    function = checked(driver.cuModuleGetFunction(checked(driver.cuModuleLoadData(text.ctypes.data)), kernel))
    checked(driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, driver.CUstream(stream), 0, 0))


class _Trap:
    def __init__(self, kind: str, plan: dict):
        self._plan = plan
        self._calls = 0
        self.generation = int(_argument("--generation"))
        self._mark = f"{kind}.{self.generation}.{os.getpid()}"

    def now(self, key: str) -> bool:
        """Whether the plan's number under this key is that of the last call, in generation 1."""
        meant = self._plan.get("worker") in (None, _argument("--name"))
        return meant and self.generation == 1 and self._plan.get(key) == self._calls

    def spring(self, patches: int = 1) -> None:
        plan = self._plan
        self._calls += 1
        if self.generation <= plan.get("block", 0) and self._calls > plan.get("after", 0):
            Path(os.environ["E2E_MARKS"], self._mark).touch()
            while True:
                time.sleep(60)
        time.sleep(plan.get("slow_s", 0) * patches)


def _reader(plan: dict, trap: _Trap) -> None:
    from slides import source

    open_source = source.open_source

    class Saboteur:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def read(self, geometry, xy, out, *rest):
            trap.spring(len(xy))
            name, *place = plan.get("segv_at", ["", 0, 0])
            if self.info.path.endswith(name) and place in xy.tolist():
                _segv()
            return self._inner.read(geometry, xy, out, *rest)

    def new_open(path, *rest, **named):
        if os.fspath(path).endswith(plan.get("segv_open", "\0")):
            _segv()
        return Saboteur(open_source(path, *rest, **named))

    source.open_source = new_open


def _inference(plan: dict, trap: _Trap) -> None:
    from engines import ensemble, gpu_engine, onnx_engine
    from engines.errors import EngineError

    if plan.get("never") == _argument("--name") and trap.generation >= plan.get("never_from", 1):

        def refuse(*arguments, **named):
            time.sleep(1.0)  # so that others of its kind have come up meanwhile
            raise EngineError("this GPU has fallen off the bus")

        ensemble.open_configured = refuse

    engine = onnx_engine.OnnxEngine
    run = engine.run

    def new_run(self, patches):
        trap.spring(len(patches))
        if trap.now("fatal_at"):
            raise EngineError("the device is lost", fatal=True)
        if "segv_crc" in plan and plan["segv_crc"] in [zlib.crc32(patch.tobytes()) for patch in patches]:
            _segv()
        return run(self, patches)

    engine.run = new_run
    submit = gpu_engine.GpuContext.submit

    def new_submit(self, patches):
        trap.spring(len(patches))
        for key, kernel in (("cuda_error_at", b"nowhere"), ("hang_at", b"minute")):
            if trap.now(key):
                _launch(kernel, self._stream)
        submit(self, patches)

    gpu_engine.GpuContext.submit = new_submit


def _wrapped(function, trap: _Trap):
    def wrapper(*arguments, **named):
        trap.spring()
        return function(*arguments, **named)

    return wrapper


def _tissue(plan: dict, trap: _Trap) -> None:
    from slides import tissue

    tissue.tissue_mask = _wrapped(tissue.tissue_mask, trap)


def _aggregator(plan: dict, trap: _Trap) -> None:
    from results.journal import Journal

    Journal.flush = _wrapped(Journal.flush, trap)


def _writer(plan: dict, trap: _Trap) -> None:
    from results import write

    write.write_summary = _wrapped(write.write_summary, trap)  # all files are there but the one that counts


def _batcher(plan: dict, trap: _Trap) -> None:
    from pipeline.dispatch.dispatcher import Dispatcher

    Dispatcher.from_worker = _wrapped(Dispatcher.from_worker, trap)


def _main() -> None:
    modules = [word for word in sys.orig_argv if word.startswith("stages.")]
    if not modules:
        return
    kind = modules[0].removeprefix("stages.")
    plan = json.loads(os.environ.get("E2E_SABOTAGE", "{}")).get(kind)
    if plan is not None:
        globals()[f"_{kind}"](plan, _Trap(kind, plan))


_main()
