"""`slidestream engine build`: which backend, which precision, from what, and proven on what."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError, ModelError
from pipeline.config import Config, ConfigError, model_directory
from pipeline.engine_options import add_common, add_trial, cache_of, config_of, tell
from pipeline.models import sized

if TYPE_CHECKING:
    from engines.cache import EngineCache, Entry
    from engines.choose import Trial
    from engines.gpu import Gpu
    from engines.model import Model
    from engines.recipe import BuildOptions, Profile
    from pipeline.engine_trial import TrialMaker

EXIT_CANCELED = 75
_BATCH = (64, 64, 64)
# Options that only one backend has, by their names in `args`: given for another one they are a mistake, not a wish.
_OF_TENSORRT = ("flavour", "level", "timing_iterations", "aux_streams", "workspace", "tf32")
_OF_AOTI = ("autotune",)


def add_parser(verbs: Any) -> None:
    """Adds `build` to the verbs of `slidestream engine`."""
    raw = argparse.RawDescriptionHelpFormatter
    build = verbs.add_parser("build", help="build an engine", description="Build an engine.", formatter_class=raw)
    build.add_argument("model", nargs="?", metavar="MODEL", help="model directory (default: the configuration's)")
    build.add_argument(
        "--backend", choices=("tensorrt", "aoti", "auto"), default="tensorrt",
        help="auto builds with all that is installed and takes the fastest that is right (default: %(default)s)",
    )  # fmt: skip
    build.add_argument(
        "--precision",
        choices=("auto", "fp16", "fp32", "int8"),
        default="auto",
        help="auto tries (default: %(default)s)",
    )
    build.add_argument(
        "--patch",
        type=_numbers,
        metavar="PX,...",
        help="patch sizes, each a profile (default: inference.patch_px, or the model's own)",
    )
    build.add_argument(
        "--batch", type=_batch, default=_BATCH, metavar="N or MIN/OPT/MAX",
        help="batches it takes (default: 64, one size, which is fastest: smaller ones are padded); aoti is compiled for "
        "MAX alone",
    )  # fmt: skip
    build.add_argument(
        "--for", dest="targets", type=_names, default=(), metavar="GPUS",
        help="build for other GPUs: compute capabilities such as 8.6,8.9 (tensorrt_rtx), or AMPERE_PLUS or "
        "SAME_COMPUTE_CAPABILITY (tensorrt)",
    )  # fmt: skip
    build.add_argument("--rebuild", action="store_true", help="build also where the engine is there already")
    build.add_argument(
        "--calibrate", nargs="+", type=Path, default=[], metavar="SLIDE", help="slides or folders: tissue for int8"
    )
    add_trial(build)
    add_common(build)
    tensorrt = build.add_argument_group("backend tensorrt (defaults of numbers: inference.build in the configuration)")
    tensorrt.add_argument(
        "--flavour", choices=("tensorrt", "tensorrt_rtx"), help="TensorRT to use (default: what is there)"
    )
    tensorrt.add_argument("--level", type=int, choices=range(6), metavar="0-5", help="how hard it tries")
    tensorrt.add_argument("--timing-iterations", type=int, metavar="N", help="runs averaged")
    tensorrt.add_argument("--aux-streams", type=int, metavar="N", help="streams beside each context's own")
    tensorrt.add_argument("--workspace", type=int, metavar="MIB", help="scratch memory that a kernel may take")
    tensorrt.add_argument("--tf32", action="store_true", default=None, help="let fp32 products run in TF32")
    aoti = build.add_argument_group("backend aoti")
    aoti.add_argument("--autotune", action="store_true", default=None, help="compare kernels, which takes minutes")
    build.set_defaults(command=build_engine)


def build_engine(args: argparse.Namespace) -> int:
    """The exit code. Raises ConfigError, EngineError, ModelError."""
    from engines.build import BuildCanceled

    try:
        check_options(args)
        return _finish(*_build(_Job(args)))
    except (KeyboardInterrupt, BuildCanceled):
        # The builder has stopped by now, and the cache takes whole engines only.
        start = "\n" if sys.stderr.isatty() else ""  # the progress display ends in the middle of a line
        print(f"{start}slidestream: the build was canceled; no engine was kept", file=sys.stderr)
        return EXIT_CANCELED


def check_options(args: argparse.Namespace) -> None:
    """Raises ConfigError where options do not go together, before anything is loaded."""
    if args.backend == "aoti":
        if args.targets:
            raise ConfigError("--for: aoti packages are for the GPU that they are built on; use --backend tensorrt")
        if args.precision == "int8":
            raise ConfigError("--precision int8: backend aoti builds fp16 and fp32; use --backend tensorrt")
    if args.backend == "auto" and args.targets:
        raise ConfigError("--for: --backend auto measures on the GPU at hand; name the backend")
    strangers = {"aoti": _OF_TENSORRT, "tensorrt": _OF_AOTI}.get(args.backend, ())
    for name in strangers:
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: backend {args.backend} has no such option")


class _Job:
    """What is to be built, and what it takes."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raises ConfigError, ModelError."""
        from engines.cuda import find_gpu
        from engines.model import load_model
        from pipeline.machine import detect

        self.args = args
        self.config: Config = config_of(args)
        model = load_model(args.model or model_directory(self.config))
        self.sizes = tuple(args.patch or (sized(model, self.config.inference.patch_px).patch_px,))
        if len(set(self.sizes)) < len(self.sizes) or min(self.sizes) < 1:
            raise ConfigError(f"--patch: {','.join(map(str, self.sizes))}: sizes are numbers from 1, each named once")
        self.model: Model = model if model.patch_px in self.sizes else model.at(self.sizes[0])
        if args.backend != "tensorrt" and len(self.sizes) > 1:
            raise ConfigError("--patch: packages of aoti are for one size; --backend tensorrt takes several")
        self.profiles: tuple[Profile, ...] = _profiles(self.sizes, args.batch)
        self.cache: EngineCache = cache_of(args)
        self.threads = detect().cores
        self.gpu: Gpu | None = find_gpu()
        where: Sequence[Path] = args.verify_on or args.calibrate
        self.where = where
        self.can_verify = self.gpu is not None and not args.targets and bool(where or args.labelled)

    @cached_property
    def trials(self) -> TrialMaker:
        from pipeline.engine_trial import TrialMaker

        return TrialMaker(self.model, self.config, self.args, self.threads, tell)

    @cached_property
    def trial(self) -> Trial:
        return self.trials.trial(self.where, self.sizes)

    def measuring(self, option: str) -> Gpu:
        """The GPU to measure on. Raises ConfigError where `option` has none, or nothing to verify with."""
        if self.gpu is None or not self.can_verify:
            lacks = f" ({_why_none()})" if self.gpu is None else ""
            raise ConfigError(f"{option} measures: it needs this machine's GPU{lacks}, and --verify-on or --calibrate")
        return self.gpu


def _why_none() -> str:
    from engines.cuda import why_none

    return why_none()


Made = tuple["Entry", list[str]]
"""An engine, and why it is this one."""


def _build(job: _Job) -> tuple[Entry, Gpu | None]:
    if job.args.backend == "auto":
        return _auto(job), job.gpu
    entry, _ = _BUILDERS[job.args.backend](job)
    return entry, job.gpu


def _tensorrt(job: _Job) -> Made:
    from engines.choose import choose
    from engines.flavour import load_flavour
    from engines.make import Maker, Order
    from pipeline.engine_trial import opened

    args = job.args
    job.model.require_onnx()
    flavour = load_flavour(args.flavour)
    if job.gpu is None and not flavour.portable:
        raise EngineError(f"{flavour.name} builds on a GPU, and there is none that can be used: {_why_none()}")
    options = _options(args, job.config, flavour)
    gpu = job.measuring("--precision auto") if args.precision == "auto" else job.gpu
    wants_tissue = args.precision in ("auto", "int8") and args.calibrate
    calibration = job.trials.calibration(args.calibrate) if wants_tissue else None
    order = Order(job.model, args.precision, job.profiles, options, flavour, gpu, calibration)
    maker = Maker(job.cache, threads=job.threads, tell=tell, progress=_Bar())
    if args.precision == "auto":
        return choose(maker, order, job.trial, job.measuring("--precision auto"), opened, rebuild=args.rebuild)
    make = maker.make_int8 if args.precision == "int8" else maker.make
    return _verified(job, make(order, rebuild=args.rebuild)), []


def _aoti(job: _Job) -> Made:
    from engines.aoti_build import AotiMaker
    from engines.torch_source import pytorch_source
    from pipeline.engine_trial import opened

    args = job.args
    pytorch_source(job.model)  # raises before PyTorch is loaded
    if job.gpu is None:
        raise EngineError(f"backend aoti builds for the GPU at hand, and there is none that can be used: {_why_none()}")
    maker = AotiMaker(job.cache, autotune=bool(args.autotune), tell=tell)
    largest = args.batch[2]
    if args.precision == "auto":
        gpu = job.measuring("--precision auto")
        return maker.choose(job.model, largest, gpu, job.trial, opened, rebuild=args.rebuild)
    return _verified(job, maker.make(job.model, args.precision, largest, job.gpu, rebuild=args.rebuild)), []


_BUILDERS: dict[str, Callable[[_Job], Made]] = {"tensorrt": _tensorrt, "aoti": _aoti}


def _auto(job: _Job) -> Entry:
    """The fastest that is right, of all backends that are installed. Raises ConfigError, EngineError."""
    from engines.backend import fastest, installed

    gpu = job.measuring("--backend auto")
    entries: list[Entry] = []
    reasons: list[str] = []
    for name, lacking in installed().items():
        problem = lacking
        if name == "aoti" and job.args.precision == "int8":
            problem = "builds no int8"
        if not problem:
            try:
                entry, why = _BUILDERS[name](job)
            except (EngineError, ModelError) as error:
                if getattr(error, "fatal", False):
                    raise
                problem = str(error)
            else:
                entries.append(entry)
                reasons += [f"{name}: {line}" for line in why]
        if problem:
            reasons.append(f"{name}: {problem}")
            tell(reasons[-1])
    if not entries:
        raise EngineError(f"no engine could be built: {'; '.join(reasons)}")
    best, why = fastest(entries, gpu, before=reasons)
    for line in why[len(reasons) :]:
        tell(line)
    return best


def _verified(job: _Job, entry: Entry) -> Entry:
    """The engine, tried where that is possible here."""
    from engines.choose import check
    from pipeline.engine_trial import opened

    if job.gpu is None or not job.can_verify:
        return entry
    return check(entry, job.trial, job.gpu, opened).entry


def _finish(entry: Entry, gpu: Gpu | None) -> int:
    """Says what was made; 1 where it is not right."""
    found = entry.verification(gpu) if gpu else None
    if found is None:
        tell("not verified yet: run slidestream engine verify on the machine that will use it")
    else:
        from engines.verify import Verification

        tell(f"{'verified' if found['passed'] else 'NOT RIGHT'}: {Verification.from_dict(found).show()}")
        tell(f"GPU memory: {_plan_mib(entry)} MiB for the engine, and for each context")
        for size in found.get("sizes", []):
            tell(f"    {size['patch_px']} px, batches of up to {size['batch']}: {size['context_mib']} MiB")
        if not found["passed"]:
            return 1
    print(entry.plan)
    return 0


def _plan_mib(entry: Entry) -> int:
    """What the engine's weights and code take, in MiB: about the size of its file."""
    return int(entry.record["plan"]["size"]) >> 20


def _options(args: argparse.Namespace, config: Config, flavour: Any) -> BuildOptions:
    """What the command line says, else the configuration."""
    from engines.recipe import BuildOptions

    capabilities, hardware = _targets(args.targets, flavour)
    build = config.inference.build

    def given(said: int | None, otherwise: int | None) -> int | None:
        return otherwise if said is None else said

    return BuildOptions(
        optimization_level=build.level if args.level is None else args.level,
        timing_iterations=args.timing_iterations or build.timing_iterations,
        aux_streams=given(args.aux_streams, build.aux_streams),
        workspace_mib=given(args.workspace, build.workspace_mib),
        tf32=bool(args.tf32),
        compute_capabilities=capabilities,
        hardware=hardware,
    )


def _targets(names: tuple[str, ...], flavour: Any) -> tuple[tuple[str, ...], str]:
    """(compute capabilities, hardware compatibility)."""
    if names and not flavour.portable:
        if len(names) > 1:
            raise ConfigError(f"--for: {flavour.name} takes one of {', '.join(flavour.hardware_compatibility)}")
        return (), names[0]
    return names, ""


def _profiles(sizes: Sequence[int], batch: tuple[int, int, int]) -> tuple[Profile, ...]:
    from engines.make import profiles_for

    try:
        return profiles_for(sizes, *batch)
    except ValueError as error:
        raise ConfigError(f"--batch: {error}") from error


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _batch(text: str) -> tuple[int, int, int]:
    try:
        numbers = [int(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"not {text!r}, but one number, or three: MIN/OPT/MAX")
    return numbers[0], numbers[1], numbers[2]


class _Bar:
    """Shows the builder's phases on a terminal."""

    def __init__(self) -> None:
        self._shown = ""
        self._on = sys.stderr.isatty()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if not self._on:
            return
        line = f"\r{phase}: {done}/{total}"
        print(line.ljust(len(self._shown)), end="\n" if done >= total else "", file=sys.stderr, flush=True)
        self._shown = "" if done >= total else line
