"""ONNX Runtime on the CPU: the engine that always works.

One session, shared by every context. `submit` computes at once, in the caller's thread, straight from the caller's
pixels; so `consumed` and `done` are true as soon as it returns, and what went wrong is raised by `result`, as it would
be on a GPU.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from engines.errors import EngineError, one_line

INPUT = "patches"
PROVIDER = "CPUExecutionProvider"
SILENT = 4
# Rows of one run. A batch goes through in pieces of this size, so that a network's activations stay in the core's cache
# and memory does not grow with the batch (docs/models.md has the figures).
PIECE = 4


def session_options(threads: int) -> ort.SessionOptions:
    """Options for a process that shares its cores: `threads` for one run, none for running several nodes at once, no
    spinning.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    # A spinning pool burns the cores that the readers decode on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # A pattern is one more block of memory for every batch size that ever came by, and no faster.
    options.enable_mem_pattern = False
    # Errors come as exceptions and are told once; ONNX Runtime would print them to stderr as well.
    options.log_severity_level = SILENT
    return options


def open_session(folded: Path, threads: int) -> ort.InferenceSession:
    """A session on a folded model. Raises EngineError where ONNX Runtime refuses it."""
    try:
        return ort.InferenceSession(str(folded), session_options(threads), providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise EngineError(f"{folded}: ONNX Runtime cannot load it: {one_line(error, 200)}") from error


class OnnxEngine:
    """See engines.engine.Engine."""

    name = "onnx"

    def __init__(self, folded: Path, *, classes: int, patch_px: int, threads: int, max_batch: int) -> None:
        started = time.monotonic()
        session = open_session(folded, threads)
        inputs = [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()]
        outputs = [(o.type, o.shape[1:]) for o in session.get_outputs()]
        if inputs != [(INPUT, "tensor(uint8)", [patch_px, patch_px, 3])]:
            raise EngineError(f"{folded}: not a folded model for patches of {patch_px} px: its inputs are {inputs}")
        if outputs != [("tensor(float)", [classes])]:
            raise EngineError(f"{folded}: not a folded model of {classes} classes: its outputs are {outputs}")
        self._session: ort.InferenceSession | None = session
        self._shape = (patch_px, patch_px, 3)
        self._classes = classes
        self._threads = threads
        self._max_batch = max_batch
        self._load_seconds = time.monotonic() - started

    def describe(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "version": ort.__version__,
            "provider": PROVIDER,
            "precision": "fp32",
            "threads": self._threads,
            "max_batch": self._max_batch,
            "load_seconds": round(self._load_seconds, 3),
        }

    def telemetry(self) -> dict[str, float]:
        return {}

    def attach(self, memory: np.ndarray) -> None:
        """Nothing to do: the CPU reads shared memory as any other."""

    def contexts(self, n: int) -> list[OnnxContext]:
        if self._session is None:
            raise ValueError("the engine is closed")
        try:
            # One run warms them all: they share the session. What it answers to a black patch is of no interest, not
            # even NaN.
            self._session.run(None, {INPUT: np.zeros((1, *self._shape), np.uint8)})
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise EngineError(f"ONNX Runtime failed on a first patch: {one_line(error, 200)}") from error
        return [OnnxContext(self) for _ in range(n)]

    def close(self) -> None:
        self._session = None

    def run(self, patches: np.ndarray) -> np.ndarray:
        """Probabilities float32 (n, classes) of uint8 (n, P, P, 3) patches. Raises ValueError, EngineError."""
        if self._session is None:
            raise ValueError("the engine is closed")
        if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[1:] != self._shape:
            raise ValueError(f"patches must be uint8 (n, {', '.join(map(str, self._shape))}), not {_show(patches)}")
        if not 1 <= len(patches) <= self._max_batch:
            raise ValueError(f"a batch holds 1 to {self._max_batch} patches, not {len(patches)}")
        if not patches.flags.c_contiguous:
            raise ValueError("patches must be C-contiguous")
        probabilities = np.empty((len(patches), self._classes), np.float32)
        for start in range(0, len(patches), PIECE):
            piece = patches[start : start + PIECE]
            try:
                (answer,) = self._session.run(None, {INPUT: piece})
            except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
                what = f"ONNX Runtime failed on rows {start} to {start + len(piece) - 1}"
                raise EngineError(f"{what}: {one_line(error, 200)}") from error
            if answer.shape != (len(piece), self._classes):
                raise EngineError(f"the model gave {answer.shape} for {len(piece)} patches of {self._classes} classes")
            probabilities[start : start + len(piece)] = answer
        return probabilities


class OnnxContext:
    """See engines.engine.Context."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self._answer: np.ndarray | EngineError | None = None

    def submit(self, patches: np.ndarray) -> None:
        if self._answer is not None:
            raise ValueError("submit on a busy context: take its result first")
        try:
            self._answer = self._engine.run(patches)
        except EngineError as error:
            self._answer = error

    def consumed(self) -> bool:
        return self._answer is not None

    def done(self) -> bool:
        return self._answer is not None

    def wait(self, seconds: float) -> bool:
        return self._answer is not None

    def result(self) -> np.ndarray:
        answer, self._answer = self._answer, None
        if answer is None:
            raise ValueError("result of an idle context: submit first")
        if isinstance(answer, EngineError):
            raise answer
        return answer


def _show(patches: np.ndarray) -> str:
    return f"{patches.dtype} {patches.shape}"
