"""An engine on a GPU: several execution contexts, each with its own stream and buffers, fed straight from the slots.

`submit` enqueues one chain and returns:

    host to device copy from the slot -> [copied] -> network -> device to host copy of the answer -> [finished]

`consumed` asks whether [copied] has fired, `done` whether [finished] has; neither blocks. While one context computes, the
next copies. A batch is padded to the nearest warmed number of rows, by computing on what earlier batches left in the buffer:
rows do not see each other, and a shape that was never run before would cost a second of compilation. With the one shape
that is the default, the largest batch, a patch gets the same bits whatever row, batch and context it comes in.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from engines.device import Device, Execution, Network
from engines.errors import EngineError
from engines.meter import Meter
from engines.notices import say

POLL_S = 0.00005
WARM_RUNS = 2  # the first compiles or allocates, the second must not any more
REMEMBERED = 1024  # batches whose times are kept for quantiles


class GpuEngine:
    """See engines.engine.Engine."""

    def __init__(
        self,
        name: str,
        device: Device,
        network: Network,
        *,
        classes: int,
        patch_px: int,
        max_batch: int,
        shapes: Sequence[int] = (),
        load_seconds: float = 0.0,
    ) -> None:
        """`shapes`: numbers of rows that batches are padded to; the largest batch is always one of them."""
        self.name = name
        self.device = device
        self.network = network
        self.classes = classes
        self.shape = (patch_px, patch_px, 3)
        self.row_bytes = patch_px * patch_px * 3
        self.max_batch = max_batch
        self.shapes = tuple(sorted({*(rows for rows in shapes if 1 <= rows <= max_batch), max_batch}))
        self._load_seconds = load_seconds
        self._attach_seconds = self._warm_seconds = 0.0
        self._memory: np.ndarray | None = None
        self._contexts: list[GpuContext] = []
        self._closed = False
        self.milliseconds: deque[float] = deque(maxlen=REMEMBERED)
        self.batches = self.rows = 0
        self.first_ms = 0.0
        self._meter: Meter | None = None
        self._ready_at = time.monotonic()
        self._in_flight = 0
        self._busy_seconds = self._busy_since = 0.0

    def describe(self) -> dict[str, Any]:
        return {
            **self.network.describe(),
            "provider": self.device.gpu.name,
            "driver": self.device.gpu.driver,
            "threads": 1,
            "max_batch": self.max_batch,
            "contexts": len(self._contexts),
            "context_mib": self._context_bytes() >> 20,
            "load_seconds": round(self._load_seconds, 3),
            "attach_seconds": round(self._attach_seconds, 3),
            "warm_seconds": round(self._warm_seconds, 3),
        }

    def telemetry(self) -> dict[str, float]:
        """Since it was ready: seconds, and those in which a batch was under way; batches, rows, and how full batches were;
        milliseconds from the start of a batch's copy to the end of its answer's, of the first batch and as quantiles of
        the latest ones; what NVML says (engines.meter); MiB free, and where NVML tells none, MiB in use, of all processes.
        """
        times = np.array(self.milliseconds or [0.0])
        under_way = time.monotonic() - self._busy_since if self._in_flight else 0.0
        free = self.device.free_bytes()
        return {
            "seconds": round(time.monotonic() - self._ready_at, 3),
            "batches": self.batches,
            "rows": self.rows,
            "busy_seconds": round(self._busy_seconds + under_way, 3),
            "fill": round(self.rows / (self.batches * self.max_batch), 4) if self.batches else 0.0,
            "first_batch_ms": round(self.first_ms, 3),
            "batch_ms_p50": round(float(np.quantile(times, 0.5)), 3),
            "batch_ms_p99": round(float(np.quantile(times, 0.99)), 3),
            "gpu_free_mib": free >> 20,
            "gpu_mib": (self.device.gpu.memory_bytes - free) >> 20,
            **(self._meter.read() if self._meter else {}),
        }

    def attach(self, memory: np.ndarray) -> None:
        if self._memory is not None:
            raise ValueError("attach was called twice")
        started = time.monotonic()
        try:
            self.device.register(memory)
        except EngineError as error:
            if error.fatal:
                raise
            # Slower, but right: patches go through a buffer of our own.
            say("warning", "shared memory is copied twice", str(error))
        else:
            self._memory = memory
        self._attach_seconds = time.monotonic() - started

    def in_registered(self, patches: np.ndarray) -> bool:
        memory = self._memory
        if memory is None:
            return False
        start = patches.ctypes.data - memory.ctypes.data
        return 0 <= start and start + patches.nbytes <= memory.nbytes

    def contexts(self, n: int) -> list[GpuContext]:
        if self._closed:
            raise ValueError("the engine is closed")
        started = time.monotonic()
        self._check_memory(n)
        if self._meter is None:
            self._meter = Meter(self.device.gpu.uuid)
        made: list[GpuContext] = []
        try:
            while len(made) < n:
                context = GpuContext(self)
                self._contexts.append(context)
                context.warm()
                made.append(context)
        except EngineError as error:
            if error.fatal:
                raise
            problem = f"context {len(made) + 1} of {n} does not start: {error}"
            raise EngineError(f"{problem}; {self._lighter(len(made))}") from error
        self.network.warmed()
        self._ready_at = time.monotonic()
        self._warm_seconds = self._ready_at - started
        return made

    def _check_memory(self, n: int) -> None:
        each, free = self._context_bytes(), self.device.free_bytes()
        if n * each > free:
            problem = (
                f"inference.contexts={n} of batcher.batch={self.max_batch} need {n * each >> 20} MiB of GPU memory"
            )
            fits = free // each
            remedy = f"contexts={fits} would fit" if fits else "a smaller batch (and profile) might fit"
            raise EngineError(f"{problem}, {free >> 20} MiB are free; {remedy}")

    def _context_bytes(self) -> int:
        return self.network.context_bytes() + self.max_batch * (self.row_bytes + 4 * self.classes)

    def _lighter(self, fits: int) -> str:
        """What is free, and what to do where only so many contexts start."""
        free = self.device.free_bytes() >> 20
        return f"{free} MiB of GPU memory are free; " + (f"try contexts={fits}" if fits else "try a smaller batch")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            for context in self._contexts:
                context.close()
            if self._memory is not None:
                self.device.unregister(self._memory)
            self.network.close()
            self.device.close()
        except EngineError as error:
            # The context is lost; the end of the process gives everything back.
            say("debug", "engine not closed", str(error))
        self._contexts, self._memory = [], None

    def begun(self) -> None:
        if not self._in_flight:
            self._busy_since = time.monotonic()
        self._in_flight += 1

    def ended(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._busy_seconds += time.monotonic() - self._busy_since

    def answered(self, rows: int, milliseconds: float) -> None:
        self.first_ms = self.first_ms or milliseconds
        self.batches += 1
        self.rows += rows
        self.milliseconds.append(milliseconds)


class GpuContext:
    """See engines.engine.Context."""

    def __init__(self, engine: GpuEngine) -> None:
        device = engine.device
        self._engine, self._device = engine, device
        self._rows = 0
        self._failure: EngineError | None = None
        self._staged = False
        self._staging: np.ndarray | None = None
        self._execution: Execution | None = None
        # Whatever is had is given back, also where the next thing cannot be had.
        self._held = ExitStack()
        with ExitStack() as held:
            self._stream = device.stream()
            held.callback(device.release_stream, self._stream)
            self._started, self._copied, self._finished = (self._event(held) for _ in range(3))
            self._input = self._allocate(held, engine.max_batch * engine.row_bytes)
            self._output = self._allocate(held, engine.max_batch * engine.classes * 4)
            self._answer = self._host_array(held, (engine.max_batch, engine.classes), np.float32)
            self._execution = engine.network.execution(self._input, self._output, self._stream)
            self._held = held.pop_all()

    def warm(self) -> None:
        """Runs every shape until nothing is left to be compiled. Raises EngineError."""
        for rows in self._engine.shapes:
            for _ in range(WARM_RUNS):
                self._require().enqueue(rows, self._stream)
                self._device.wait(self._stream)

    def submit(self, patches: np.ndarray) -> None:
        engine, device, stream = self._engine, self._device, self._stream
        if self._rows:
            raise ValueError("submit on a busy context: take its result first")
        if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[1:] != engine.shape:
            wanted = ", ".join(map(str, engine.shape))
            raise ValueError(f"patches must be uint8 (n, {wanted}), not {patches.dtype} {patches.shape}")
        if not 1 <= len(patches) <= engine.max_batch:
            raise ValueError(f"a batch holds 1 to {engine.max_batch} patches, not {len(patches)}")
        if not patches.flags.c_contiguous:
            raise ValueError("patches must be C-contiguous")
        execution = self._require()
        self._rows = rows = len(patches)
        self._failure = None
        engine.begun()
        self._staged = not engine.in_registered(patches)
        try:
            source = self._stage(patches) if self._staged else patches.ctypes.data
            device.record(self._started, stream)
            device.upload(self._input, source, patches.nbytes, stream)
            device.record(self._copied, stream)
            execution.enqueue(next(shape for shape in engine.shapes if shape >= rows), stream)
            device.download(self._answer.ctypes.data, self._output, rows * engine.classes * 4, stream)
            device.record(self._finished, stream)
        except EngineError as error:
            self._fail(error)

    def consumed(self) -> bool:
        return bool(self._rows) and (self._staged or self._fired(self._copied))

    def done(self) -> bool:
        return bool(self._rows) and self._fired(self._finished)

    def wait(self, seconds: float) -> bool:
        limit = time.monotonic() + seconds
        pause = POLL_S
        while not self.done():
            if not self._rows or time.monotonic() >= limit:
                return False
            time.sleep(pause)
            # A batch takes milliseconds and the next ones are queued behind it: looking less often costs no throughput,
            # and where cores are few each look takes time from the readers. A batch alone is seen 8 POLL_S late at most.
            pause = min(2 * pause, 8 * POLL_S)
        return True

    def result(self) -> np.ndarray:
        if not self._rows:
            raise ValueError("result of an idle context: submit first")
        while not self.wait(1.0):
            pass
        rows, self._rows = self._rows, 0
        self._engine.ended()
        if self._failure is not None:
            raise self._failure
        self._engine.answered(rows, self._device.milliseconds(self._started, self._finished))
        return self._answer[:rows].copy()

    def close(self) -> None:
        """Gives back what it holds. Raises EngineError where the device is lost."""
        if self._execution is None:
            return
        self._device.wait(self._stream)
        self._execution = None
        self._held.close()

    def _event(self, held: ExitStack) -> Any:
        event = self._device.event()
        held.callback(self._device.release_event, event)
        return event

    def _allocate(self, held: ExitStack, size: int) -> int:
        address = self._device.allocate(size)
        held.callback(self._device.release, address)
        return address

    def _host_array(self, held: ExitStack, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        array = self._device.host_array(shape, dtype)
        held.callback(self._device.release_host, array)
        return array

    def _require(self) -> Execution:
        if self._execution is None:
            raise ValueError("the engine is closed")
        return self._execution

    def _stage(self, patches: np.ndarray) -> int:
        if self._staging is None:
            self._staging = self._host_array(self._held, (self._engine.max_batch, *self._engine.shape), np.uint8)
        self._staging[: len(patches)] = patches
        return self._staging.ctypes.data

    def _fired(self, event: Any) -> bool:
        if self._failure is not None:
            return True
        try:
            return self._device.fired(event)
        except EngineError as error:
            self._failure = error
            return True

    def _fail(self, error: EngineError) -> None:
        """The chain broke while it was being enqueued: what is under way must end before the slot is given back."""
        self._failure = error
        if not error.fatal:
            try:
                self._device.wait(self._stream)
            except EngineError as worse:
                self._failure = worse
