"""Builds AOTInductor engines: from the PyTorch network in a model directory to a .pt2 package in the engine cache.

    entry = AotiMaker(cache).make(model, "fp16", 128, gpu)

The package is compiled code, for one batch size and one kind of GPU. In the cache it lies beside TensorRT's plans, with the
same sidecar; its flavour is "aoti", its version PyTorch's.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.aoti_flavour import load_aoti
from engines.build import Built
from engines.cache import EngineCache, Entry, record_choice
from engines.census import check_census
from engines.choose import Opener, Trial, check
from engines.cxx import found_by, shared_libstdcxx
from engines.errors import EngineError, ModelError
from engines.gpu import Gpu
from engines.identity import Identity
from engines.model import Model
from engines.recipe import AOTI_RECIPE, Profile
from engines.torch_source import pytorch_source, quiet, reason

PRECISIONS = ("fp16", "fp32")
# For a GPU PyTorch would first try out the processor's vector instructions, each with a compilation and a PyTorch of its own,
# and compile headers ahead that the one file of C++ then reads once. That file only launches kernels, so it is not optimised.
_FOR_GPUS = {
    "cpp.vec_isa_ok": False,
    "cpp_cache_precompile_headers": False,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}
_LIBRARIES = "aot_inductor.custom_op_libs"  # linked before the compiler's own
_EVERY_S = 10.0  # a word while it compiles
HOST = Gpu(name="CPU", compute_capability=platform.machine())
"""What a package for the CPU is for. They are built in tests alone; runs on a CPU use ONNX Runtime."""

Tell = Callable[[str], None]


class AotiMaker:
    """Makes engines in a cache. `tell` takes lines for a person."""

    def __init__(self, cache: EngineCache, *, autotune: bool = False, tell: Tell = lambda line: None) -> None:
        """`autotune`: compare kernels for convolutions and products while building, which takes minutes."""
        self.cache, self.autotune, self.tell = cache, autotune, tell
        self.flavour = load_aoti()

    def identity(self, model: Model, source: Path, precision: str, batch: int, gpu: Gpu) -> Identity:
        """`source`: the PyTorch network's file."""
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Identity(
            model=model.sha256,
            graph=sha256,
            precision=precision,
            recipe=AOTI_RECIPE,
            calibration="",
            classes=len(model.classes),
            profiles=[Profile(model.patch_px, 1, batch, batch).to_dict()],
            options={"autotune": self.autotune},
            flavour=self.flavour.name,
            flavour_version=self.flavour.version,
            target=str(gpu),
        )

    def make(self, model: Model, precision: str, batch: int, gpu: Gpu, *, rebuild: bool = False) -> Entry:
        """The engine for batches of up to `batch`, built where it is not there. Raises ModelError, EngineError."""
        if precision not in PRECISIONS:
            raise EngineError(f"backend aoti builds {' and '.join(PRECISIONS)}, not {precision}")
        kind, source = pytorch_source(model)
        wanted = self.identity(model, source, precision, batch, gpu)
        entry = None if rebuild else self.cache.find(wanted)
        if entry is not None and not entry.problem:
            self.tell(f"{entry.plan.name}: is there already")
            return entry
        if entry is not None:
            self.tell(f"{entry.plan.name}: {entry.problem}; building it again")
        built = self._compile(kind, source, model, precision, batch, "cpu" if gpu == HOST else "cuda")
        self.tell(f"built in {built.seconds:.1f} s: {len(built.plan) >> 20} MiB; {built.census.show()}")
        return self.cache.put(model.name, wanted, built, gpu)

    def choose(
        self, model: Model, batch: int, gpu: Gpu, trial: Trial, opened: Opener, *, rebuild: bool = False
    ) -> tuple[Entry, list[str]]:
        """FP16 where it is right, else FP32, verified and timed; and the reasons. Raises EngineError: neither is right."""
        reasons: list[str] = []
        for precision in PRECISIONS:
            try:
                tried = check(self.make(model, precision, batch, gpu, rebuild=rebuild), trial, gpu, opened)
            except (EngineError, ModelError) as error:
                if getattr(error, "fatal", False):
                    raise
                reasons.append(f"{precision}: {error}")
                self.tell(reasons[-1])
                continue
            speed = f", {tried.speed:,.0f} patches/s" if tried.speed else ""
            reasons.append(f"{precision}: {tried.verification.show()}{speed}")
            self.tell(reasons[-1])
            if tried.verification.passed:
                reasons.append(f"chosen: {precision}")
                return record_choice(tried.entry, {"precision": precision, "reasons": reasons}), reasons
        raise EngineError(f"no engine is right: {'; '.join(reasons)}")

    def _compile(self, kind: str, source: Path, model: Model, precision: str, batch: int, device: str) -> Built:
        from engines.aoti_graph import folded_program, program_census

        torch = self.flavour.trt
        started = time.monotonic()
        with _patience(self.tell, "exporting the network"):
            program = folded_program(kind, source, model, precision, batch, device)
        census, resizing = program_census(program)
        check_census(census, resizing, precision)
        configuration = self.configuration(device)
        with tempfile.TemporaryDirectory(prefix="slidestream-") as folder:
            path = Path(folder) / "network.pt2"
            try:
                with _patience(self.tell, "compiling"), quiet(), torch.no_grad():
                    torch._inductor.aoti_compile_and_package(
                        program, package_path=str(path), inductor_configs=configuration
                    )
            except Exception as error:  # PyTorch raises whatever its parts raise
                raise EngineError(f"AOTInductor could not build {precision} of {source}: {reason(error)}") from error
            package = path.read_bytes()
        if device == "cuda":
            del program
            torch.cuda.empty_cache()  # the engine is tried in this process next, and its memory is told
        return Built(package, census, (), time.monotonic() - started)

    def configuration(self, device: str) -> dict[str, Any]:
        """Inductor's, as far as this PyTorch has it."""
        inductor = self.flavour.trt._inductor
        chosen: dict[str, Any] = {"max_autotune": True} if self.autotune else {}
        if device == "cuda":
            chosen |= {name: value for name, value in _FOR_GPUS.items() if _has(inductor.config, name)}
        if _has(inductor.config, _LIBRARIES):
            libraries = shared_libstdcxx(found_by(compiler()))
            chosen |= {_LIBRARIES: libraries} if libraries else {}
        return chosen


def compiler() -> str:
    """The C++ compiler that PyTorch will take. Raises EngineError where there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return get_cpp_compiler()
    except Exception as error:  # PyTorch raises whatever its parts raise
        raise EngineError(f"AOTInductor needs a C++ compiler: {reason(error)}; install g++, or set CXX to one") from error


def _has(config: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(config, part):
            return False
        config = getattr(config, part)
    return True


@contextmanager
def _patience(tell: Tell, doing: str) -> Iterator[None]:
    """Says that it is still at it, and for how long, every few seconds while the block runs."""
    done, started = threading.Event(), time.monotonic()

    def say() -> None:
        tell(f"{doing} ...")
        while not done.wait(_EVERY_S):
            tell(f"{doing}: {time.monotonic() - started:.0f} s so far")

    speaker = threading.Thread(target=say, name="aoti-patience", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()
