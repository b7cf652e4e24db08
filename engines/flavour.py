"""TensorRT, whichever of its flavours is installed, as one module `trt` and a list of what it can do.

`tensorrt` (10 and 11) and `tensorrt_rtx` share nearly all of their Python interface. What differs is found by looking for
the attribute, never by comparing version numbers, so a release that gains or loses a feature needs no change here.

TensorRT keeps the first logger of a process and ignores every other one, so there is one, and who wants to read along
puts a sink in front of it: `messages()`.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from engines.errors import EngineError, one_line

# (module, flavour), in the order in which they are looked for. The wheels of tensorrt_rtx alone give only its bindings.
MODULES = (
    ("tensorrt", "tensorrt"),
    ("tensorrt_rtx", "tensorrt_rtx"),
    ("tensorrt_rtx_bindings", "tensorrt_rtx"),
)
FLAVOURS = tuple(dict.fromkeys(flavour for _, flavour in MODULES))
INSTALL = "install slidestream[tensorrt]"
_KEPT = 200  # texts of a kind: a library that says something else with every batch must not fill the memory

Sink = Callable[[str, str], None]
"""Takes (severity, text); severity is one of "error", "warning", "info", "verbose". Called from any thread."""

_lock = threading.Lock()
_sinks: list[Sink] = []


@dataclass(frozen=True, slots=True)
class Flavour:
    """A TensorRT that can be imported. `trt` is its module, the rest says what it can do."""

    name: str
    version: str
    trt: ModuleType

    @property
    def portable(self) -> bool:
        """Builds for compute capabilities that are named, also without a GPU; kernels are compiled where it runs."""
        return hasattr(self.trt, "ComputeCapability")

    @property
    def strong_typing_flag(self) -> int:
        """Flags for create_network that make it strongly typed; 0 where every network is."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    @property
    def timing_cache(self) -> bool:
        """Measured tactics can be kept. Where kernels are compiled later the interface exists, but holds nothing."""
        return hasattr(self.trt.IBuilderConfig, "create_timing_cache") and not self.portable

    @property
    def hardware_compatibility(self) -> tuple[str, ...]:
        """Names of the levels at which one plan serves several GPUs."""
        levels = getattr(self.trt, "HardwareCompatibilityLevel", None)
        return () if levels is None or self.portable else tuple(name for name in levels.__members__ if name != "NONE")

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """What `portable` can build for, as "8.6"."""
        if not self.portable:
            return ()
        names = self.trt.ComputeCapability.__members__
        return tuple(f"{name[2:-1]}.{name[-1]}" for name in names if name.startswith("SM"))

    @property
    def runtime_cache(self) -> bool:
        """Kernels compiled where the engine runs can be kept for the next start."""
        return hasattr(self.trt, "IRuntimeCache")

    @property
    def engine_validity(self) -> bool:
        """A plan can be asked, without loading it, whether it runs here."""
        return hasattr(self.trt.Runtime, "get_engine_validity")

    def describe(self) -> dict[str, Any]:
        return {"flavour": self.name, "flavour_version": self.version}

    def logger(self) -> Any:
        """The one logger of this process."""
        return _logger(self.trt)


def load_flavour(name: str | None = None) -> Flavour:
    """The first flavour that can be imported, or the one called `name`. Raises EngineError: none, or not that one."""
    if name is not None and name not in FLAVOURS:
        raise EngineError(f"unknown TensorRT flavour {name!r}; known: {', '.join(FLAVOURS)}")
    reasons = []
    for module, flavour in MODULES:
        if name not in (None, flavour):
            continue
        found = _module(module)
        if isinstance(found, str):
            reasons.append(f"{module}: {found}")
        else:
            return Flavour(flavour, str(found.__version__), found)
    raise EngineError(f"TensorRT cannot be loaded ({'; '.join(reasons)}); {INSTALL}")


@contextmanager
def messages(sink: Sink) -> Iterator[None]:
    """Lets `sink` read what TensorRT says while the block runs, instead of the sinks around it."""
    with _lock:
        _sinks.append(sink)
    try:
        yield
    finally:
        with _lock:
            _sinks.remove(sink)


class Told:
    """A sink that remembers errors and warnings, each text once and the first of each: `with messages(told): ...`."""

    def __init__(self, warned: Callable[[str], None] = lambda line: None) -> None:
        """`warned` is called with each warning that is kept."""
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._warned = warned

    def __call__(self, severity: str, text: str) -> None:
        kept = {"error": self.errors, "warning": self.warnings}.get(severity)
        line = one_line(text)
        if kept is None or line in kept or len(kept) >= _KEPT:
            return
        kept.append(line)
        if severity == "warning":
            self._warned(line)

    def forget_errors(self) -> None:
        """Before something new is tried: `problem` is then about that."""
        self.errors.clear()

    def problem(self, otherwise: str) -> str:
        """The first error, which is usually the cause of the others; `otherwise` where there was none."""
        return self.errors[0] if self.errors else otherwise


def new(kind: Any, told: Told, *arguments: Any) -> Any:
    """An object of TensorRT's. Raises EngineError where it cannot be made: bindings raise TypeError without a driver."""
    try:
        return kind(*arguments)
    except (TypeError, RuntimeError) as error:
        problem = told.problem(one_line(error, 120))
        raise EngineError(
            f"TensorRT does not start: {problem}; is NVIDIA's driver installed, and new enough?"
        ) from error


@cache
def _module(name: str) -> ModuleType | str:
    """The module, or why it cannot be imported."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == name else one_line(error, 120)
    except (ImportError, OSError, RuntimeError) as error:  # its libraries are missing, or do not fit
        return one_line(error, 120)
    # An empty folder of that name imports as well.
    return module if hasattr(module, "Builder") or hasattr(module, "Runtime") else "is not TensorRT"


def _tell(severity: str, text: str) -> None:
    with _lock:
        sink = _sinks[-1] if _sinks else None
    if sink is not None:
        sink(severity, text)


@cache
def _logger(trt: ModuleType) -> Any:
    severities = {
        trt.ILogger.Severity.INTERNAL_ERROR: "error",
        trt.ILogger.Severity.ERROR: "error",
        trt.ILogger.Severity.WARNING: "warning",
        trt.ILogger.Severity.INFO: "info",
        trt.ILogger.Severity.VERBOSE: "verbose",
    }

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # super() does not reach the constructor of the binding

        def log(self, severity: Any, msg: str) -> None:
            name = severities.get(severity, "error")
            if name in ("error", "warning", "info"):
                _tell(name, msg)

    return Logger()
