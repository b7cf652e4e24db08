"""The interface between an inference stage and whatever computes: an engine gives contexts, a context runs one batch at
a time.

The stage's loop is the same for every engine, whether `submit` computes at once (ONNX Runtime on the CPU) or only
enqueues a chain of copies and kernels (a GPU)::

    engine = open_engine("onnx", folded, classes=2, patch_px=224, threads=1, max_batch=32)
    engine.attach(slots)                                     # the whole shared mapping, once
    idle = engine.contexts(n)                                # warmed: the worker says "ready" after this line
    ...
    context.submit(view)                                     # when a lease arrives and a context is idle
    ...
    for context in busy:
        if context.consumed() and not slot_returned: ...     # the slot may be filled again
        if context.done(): probabilities = context.result()  # the context is idle again
    oldest.wait(0.001)                                       # nothing to do: a bounded wait, never a blocking one

A context's life is IDLE --submit--> BUSY --result--> IDLE. While it is BUSY, `consumed` and `done` are polled, and once
true stay true until `result` is called. `done` implies `consumed`, also for a batch that failed.

Errors: `submit` raises ValueError for a batch that breaks the contract (wrong dtype or shape, context not idle): a bug
of the caller. Whatever goes wrong in the computation itself is raised by `result` (or by a later `submit`, `consumed`,
`done` of an engine whose device died), always as EngineError. `fatal=False`: this batch failed, the context is idle and
usable. `fatal=True`: this worker is lost and must exit; its leases run elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engines.errors import EngineError

KINDS = ("onnx", "null")  # those that compute on the CPU


class Context(Protocol):
    """Runs one batch at a time. Belongs to the thread that made it."""

    def submit(self, patches: np.ndarray) -> None:
        """Starts on `patches`: uint8 (n, P, P, 3), 1 <= n <= max_batch, C-contiguous, usually a view into a
        shared-memory slot.

        Nothing is copied before it must be: until `consumed()` is true the caller keeps the pixels as they are. The
        context keeps no reference to `patches` after that. Raises ValueError as the module says.
        """
        ...

    def consumed(self) -> bool:
        """True once the pixels have been read for the last time: the slot may be filled again. Never blocks."""
        ...

    def done(self) -> bool:
        """True once `result` will not wait. Never blocks."""
        ...

    def wait(self, seconds: float) -> bool:
        """Waits until `done()`, at most `seconds`; returns `done()`."""
        ...

    def result(self) -> np.ndarray:
        """The probabilities, float32 (n, classes), in the rows' order; waits where `done()` is false.

        A row that is not finite is the network's failure on that patch alone: the caller lists the patch as failed, and
        never passes the row on as a probability (one check for all engines, and the other rows keep their answers).
        The array is the caller's own. The context is idle afterwards, also when this raises EngineError.
        """
        ...


class Engine(Protocol):
    """A model loaded onto one device. Made by `open_engine`; belongs to one process."""

    name: str

    def describe(self) -> dict[str, Any]:
        """What ran, for results and logs: str, int, float, bool and None only (JSON- and msgpack-safe).

        At least the keys `engine`, `version`, `provider`, `precision`, `threads`, `max_batch`.
        """
        ...

    def telemetry(self) -> dict[str, float]:
        """Figures since it was opened, plain numbers by name; empty where an engine has none. Cheap enough for once a second."""
        ...

    def attach(self, memory: np.ndarray) -> None:
        """Tells the engine, once and before `contexts`, of the shared memory (uint8, one dimension) that patches will
        lie in.

        A GPU engine page-locks it so that copies need no staging; the CPU engine has no use for it. An engine must also
        work, slower, on patches that lie elsewhere. The mapping must outlive `close()`.
        """
        ...

    def contexts(self, n: int) -> list[Context]:
        """`n` contexts, warmed: the first batch is no slower than the next. Raises EngineError (does not fit in memory,
        ...).
        """
        ...

    def close(self) -> None:
        """Gives everything back; contexts are dead afterwards. Calling it again does nothing."""
        ...


def open_engine(kind: str, folded: Path, *, classes: int, patch_px: int, threads: int, max_batch: int) -> Engine:
    """Opens engine `kind` on a folded model (engines.fold: uint8 NHWC patches -> probabilities).

    `classes` and `patch_px` (pixels) must be those of the folded model, `threads` is the number of CPU threads this
    engine may use, `max_batch` the largest batch that will be submitted. Raises EngineError: unknown kind, file that
    cannot be loaded, a graph that disagrees with `classes` or `patch_px`.
    """
    if threads < 1 or max_batch < 1:
        raise EngineError(f"engine {kind}: threads ({threads}) and max_batch ({max_batch}) must be at least 1")
    if kind == "onnx":
        # imported here, because only the process that runs it should pay for it
        from engines.onnx_engine import OnnxEngine

        return OnnxEngine(folded, classes=classes, patch_px=patch_px, threads=threads, max_batch=max_batch)
    if kind == "null":
        from engines.null_engine import NullEngine

        return NullEngine(folded, classes=classes, patch_px=patch_px, threads=threads, max_batch=max_batch)
    raise EngineError(f"inference.engine: unknown engine {kind!r}; known: {', '.join(KINDS)}")
