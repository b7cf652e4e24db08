"""Builds a TensorRT plan from a folded graph whose precision is already in it.

    built = build(proto, "fp16", [Profile(224, 1, 64, 128)], BuildOptions(), load_flavour())

The builder runs in a thread of its own, so that Ctrl-C, which Python only sees between its own instructions, reaches the
caller; the builder is then told to stop through its progress monitor.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from engines.census import Census, check_census, graph_census, network_census
from engines.errors import EngineError, one_line
from engines.files import locked, write_whole
from engines.flavour import Flavour, Told, messages, new
from engines.fold import EXTERNAL_BYTES, INPUT, OUTPUT, save_folded
from engines.recipe import PRECISIONS, BuildOptions, Profile

MIB = 1 << 20
_JOIN_S = 0.1

Progress = Callable[[str, int, int], None]
"""Takes (phase, steps done, steps in all), from the builder's thread; phases nest, and only the outermost are told."""


class BuildCanceled(Exception):
    """The build was stopped because the caller asked for it."""


@dataclass(frozen=True, slots=True)
class Built:
    """A serialised engine and what is known of it."""

    plan: bytes
    census: Census
    warnings: tuple[str, ...]
    seconds: float


def build(
    proto: onnx.ModelProto,
    precision: str,
    profiles: Sequence[Profile],
    options: BuildOptions,
    flavour: Flavour,
    *,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Built:
    """Parses, counts and builds. `proto` is a folded graph (engines.fold) in its final precision.

    `timing_cache` is a file of this flavour, version and GPU, read and written under a lock. Setting `cancel` stops the
    build. Raises EngineError (the parser or the builder refused, or the precision fell back), BuildCanceled; a
    KeyboardInterrupt stops the builder before it goes on its way.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    cancel = cancel or threading.Event()
    with ThreadPoolExecutor(1, "tensorrt-build") as pool:
        future = pool.submit(_build, proto, precision, profiles, options, flavour, timing_cache, progress, cancel)
        try:
            while not future.done():
                wait([future], _JOIN_S)
        except KeyboardInterrupt:
            cancel.set()
            raise  # once the builder has stopped: the pool waits for it
        return future.result()


def _build(
    proto: onnx.ModelProto,
    precision: str,
    profiles: Sequence[Profile],
    options: BuildOptions,
    flavour: Flavour,
    timing_cache: Path | None,
    progress: Progress | None,
    cancel: threading.Event,
) -> Built:
    started = time.monotonic()
    trt = flavour.trt
    told = Told()
    with messages(told):
        builder = new(trt.Builder, told, flavour.logger())
        network = builder.create_network(flavour.strong_typing_flag)
        parser = trt.OnnxParser(network, flavour.logger())
        _parse(parser, proto)
        census = network_census(network)
        check_census(census, graph_census(proto), precision)
        config = _config(builder, options, flavour)
        for profile in profiles:
            _add_profile(builder, network, config, profile, only=len(profiles) == 1)
        monitor = _monitor(trt, progress, cancel)
        config.progress_monitor = monitor
        with _timing_cache(config, timing_cache if flavour.timing_cache else None):
            host = builder.build_serialized_network(network, config)
            if cancel.is_set():
                raise BuildCanceled("the build was canceled")
            if host is None:
                raise EngineError(f"TensorRT could not build {precision}: {told.problem('it gave no reason')}")
        plan = bytes(memoryview(host))
    return Built(plan, census, tuple(told.warnings), time.monotonic() - started)


def _parse(parser: Any, proto: onnx.ModelProto) -> None:
    if proto.ByteSize() < EXTERNAL_BYTES:
        good = parser.parse(proto.SerializeToString())
    else:
        with tempfile.TemporaryDirectory(prefix="slidestream-") as folder:
            path = Path(folder) / "folded.onnx"
            save_folded(proto, path)
            good = parser.parse_from_file(str(path))
    if good:
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    for error in errors:
        where = f"{error.node_operator()} {error.node_name()}".strip()
        raise EngineError(f"TensorRT cannot take the network: {where}: {one_line(error.desc(), 200)}")
    raise EngineError("TensorRT cannot take the network: its parser gave no reason")


def _config(builder: Any, options: BuildOptions, flavour: Flavour) -> Any:
    trt = flavour.trt
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    config.avg_timing_iterations = options.timing_iterations
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    check_targets(options, flavour)
    if options.compute_capabilities:
        known = trt.ComputeCapability.__members__
        wanted = [known["SM" + name.replace(".", "")] for name in options.compute_capabilities]
        config.num_compute_capabilities = len(wanted)
        for index, capability in enumerate(wanted):
            if not config.set_compute_capability(capability, index):
                raise EngineError(f"{flavour.name} refuses to build for {options.compute_capabilities[index]}")
    if options.hardware:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.__members__[options.hardware]
    return config


def check_targets(options: BuildOptions, flavour: Flavour) -> None:
    """EngineError where the flavour does not build for the GPUs that `options` name."""
    if options.compute_capabilities and not flavour.portable:
        raise EngineError(f"{flavour.name} builds for the GPU at hand; use its hardware compatibility instead")
    for name in options.compute_capabilities:
        if name not in flavour.compute_capabilities:
            known = ", ".join(flavour.compute_capabilities)
            raise EngineError(
                f"{flavour.name} {flavour.version} cannot build for compute capability {name}; it can: {known}"
            )
    if options.hardware and options.hardware not in flavour.hardware_compatibility:
        known = ", ".join(flavour.hardware_compatibility) or "none"
        raise EngineError(f"{flavour.name}: unknown hardware compatibility {options.hardware!r}; known: {known}")


def _add_profile(builder: Any, network: Any, config: Any, profile: Profile, *, only: bool) -> None:
    # TensorRT takes a profile with a wrong name or size without a word, and fails later with another reason.
    inputs = {network.get_input(i).name: tuple(network.get_input(i).shape) for i in range(network.num_inputs)}
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    if list(inputs) != [INPUT] or outputs != [OUTPUT]:
        raise EngineError(f"not a folded model: its inputs are {list(inputs)}, its outputs {outputs}")
    fixed = [(found, want) for found, want in zip(inputs[INPUT], profile.shape(1), strict=True) if found != -1]
    if any(found != want for found, want in fixed):
        raise EngineError(f"the graph takes {inputs[INPUT]}, not patches of {profile.patch_px} px")
    if only and profile.minimum == profile.maximum:
        # One shape and no range of one: nothing is left to be specialised where it runs.
        network.get_input(0).shape = profile.shape(profile.maximum)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(INPUT, *(profile.shape(n) for n in (profile.minimum, profile.optimum, profile.maximum)))
    if not shapes or config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"TensorRT refuses the profile {profile.to_dict()}")


def _monitor(trt: Any, progress: Progress | None, cancel: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # super() does not reach the constructor of the binding
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not cancel.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self.steps.get(phase_name, 0))
            self.steps.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            if progress is not None and phase in self.steps:
                progress(phase, done, self.steps[phase])

    return Monitor()


@contextmanager
def _timing_cache(config: Any, path: Path | None) -> Iterator[None]:
    """Gives the builder what earlier builds measured, and keeps what this one measures."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        try:
            before = path.read_bytes()
        except FileNotFoundError:
            before = b""
    # TensorRT checks the header itself, and starts afresh where the GPU or the version is another one.
    cache = config.create_timing_cache(before)
    if cache is None or not config.set_timing_cache(cache, False):  # None: it is damaged
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    measured = config.get_timing_cache()
    with locked(path):
        if path.exists() and before != (latest := path.read_bytes()):
            others = config.create_timing_cache(latest)  # another build wrote in the meantime
            if others is not None:
                measured.combine(others, True)
        write_whole(path, bytes(memoryview(measured.serialize())))
