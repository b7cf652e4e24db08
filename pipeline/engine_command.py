"""`slidestream engine build|list|inspect|verify|remove`: engines for GPUs, made ahead and proven right."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError
from pipeline.config import Config, ConfigError, load_config, model_directory

if TYPE_CHECKING:
    from engines.cache import EngineCache, Entry

_EXAMPLES = """\
examples:
  slidestream engine build models/my-model --calibrate /slides/monday --labelled patches/
  slidestream engine build models/my-model --precision fp16 --verify-on /slides/monday
  slidestream engine build models/my-model --precision fp16 --for 8.6,8.9
  slidestream engine list
"""


def add_parser(commands: Any) -> None:
    """Adds `engine` to the command line; `commands` is what argparse's add_subparsers gave."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "engine",
        help="build and verify engines for GPUs",
        description="Build engines for GPUs from a model, prove them right, and see what there is.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    parser.set_defaults(command=lambda args: (parser.print_help(), 2)[1])
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")

    build = verbs.add_parser("build", help="build an engine", description="Build an engine.", formatter_class=raw)
    build.add_argument("model", nargs="?", metavar="MODEL", help="model directory (default: the configuration's)")
    build.add_argument(
        "--precision",
        choices=("auto", "fp16", "fp32", "int8"),
        default="auto",
        help="auto tries (default: %(default)s)",
    )
    build.add_argument("--patch", type=_numbers, metavar="PX,...", help="patch sizes (default: the model's)")
    build.add_argument(
        "--batch", type=_batch, default=(1, 64, 128), metavar="MIN/OPT/MAX", help="batches it takes (default: 1/64/128)"
    )
    build.add_argument(
        "--for", dest="targets", type=_names, default=(), metavar="GPUS",
        help="build for other GPUs: compute capabilities such as 8.6,8.9 (tensorrt_rtx), or AMPERE_PLUS or "
        "SAME_COMPUTE_CAPABILITY (tensorrt)",
    )  # fmt: skip
    build.add_argument(
        "--flavour", choices=("tensorrt", "tensorrt_rtx"), help="TensorRT to use (default: what is there)"
    )
    build.add_argument("--level", type=int, default=3, metavar="0-5", help="how hard the builder tries (default: 3)")
    build.add_argument("--timing-iterations", type=int, default=4, metavar="N", help="runs averaged (default: 4)")
    build.add_argument("--aux-streams", type=int, metavar="N", help="streams beside each context's own")
    build.add_argument("--workspace", type=int, metavar="MIB", help="scratch memory that a kernel may take")
    build.add_argument("--tf32", action="store_true", help="let fp32 products run in TF32")
    build.add_argument("--rebuild", action="store_true", help="build also where the engine is there already")
    build.add_argument(
        "--calibrate", nargs="+", type=Path, default=[], metavar="SLIDE", help="slides or folders: tissue for int8"
    )
    _add_trial(build)
    _add_common(build)
    build.set_defaults(command=_build)

    listing = verbs.add_parser("list", help="engines that there are")
    listing.add_argument("--json", action="store_true", help="as JSON")
    _add_common(listing, configuration=False)
    listing.set_defaults(command=_list)

    inspect = verbs.add_parser("inspect", help="all that is known of an engine")
    inspect.add_argument("engine", metavar="ENGINE", help="its key, name or file")
    _add_common(inspect, configuration=False)
    inspect.set_defaults(command=_inspect)

    verify = verbs.add_parser("verify", help="compare an engine's answers with ONNX Runtime's")
    verify.add_argument("engine", metavar="ENGINE", help="its key, name or file")
    verify.add_argument("--model", metavar="DIR", help="model directory (default: the configuration's)")
    _add_trial(verify)
    _add_common(verify)
    verify.set_defaults(command=_verify)

    remove = verbs.add_parser("remove", help="delete engines")
    remove.add_argument("engines", nargs="*", metavar="ENGINE", help="key, name or file")
    remove.add_argument("--damaged", action="store_true", help="all that cannot be used")
    _add_common(remove, configuration=False)
    remove.set_defaults(command=_remove)


def _add_common(parser: argparse.ArgumentParser, configuration: bool = True) -> None:
    parser.add_argument(
        "--engines", dest="folder", type=Path, metavar="DIR", help="folder of engines (default: the user's cache)"
    )
    if configuration:
        parser.add_argument("--config", type=Path, metavar="FILE", help="configuration")
        parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value")


def _add_trial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify-on", nargs="+", type=Path, default=[], metavar="SLIDE",
        help="slides or folders: tissue to verify with (default: that of --calibrate)",
    )  # fmt: skip
    parser.add_argument("--labelled", type=Path, metavar="DIR", help="a folder of pictures for each label")
    parser.add_argument("--positive", metavar="NAME", help="the label of the last class (default: its name)")
    parser.add_argument("--patches", type=int, default=512, metavar="N", help="patches to verify with (default: 512)")
    parser.add_argument(
        "--bound", type=float, default=0.005, metavar="X", help="largest loss (default: 0.005 = 0.5 %%)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of patches (default: 0)")


def _build(args: argparse.Namespace) -> int:
    from engines.choose import check, choose
    from engines.cuda import find_gpu
    from engines.flavour import load_flavour
    from engines.make import Maker, Order, profiles_for
    from engines.model import load_model
    from engines.recipe import BuildOptions
    from pipeline.engine_trial import TrialMaker, opener
    from pipeline.machine import detect

    config = _config(args)
    model = load_model(args.model or model_directory(config))
    sizes = tuple(args.patch or (model.patch_px,))
    if sizes != (model.patch_px,):
        raise ConfigError(f"--patch: {model.name} takes patches of {model.patch_px} px; name that size alone")
    flavour, gpu = load_flavour(args.flavour), find_gpu()
    threads = detect().cores
    capabilities, hardware = _targets(args.targets, flavour)
    options = BuildOptions(
        optimization_level=args.level,
        timing_iterations=args.timing_iterations,
        aux_streams=args.aux_streams,
        workspace_mib=args.workspace,
        tf32=args.tf32,
        compute_capabilities=capabilities,
        hardware=hardware,
    )
    trials = TrialMaker(model, config, args, threads, _tell)
    needs_tissue = args.precision in ("auto", "int8")
    calibration = trials.calibration(args.calibrate) if needs_tissue and args.calibrate else None
    try:
        profiles = profiles_for(sizes, *args.batch)
    except ValueError as error:
        raise ConfigError(f"--batch: {error}") from error
    order = Order(model, args.precision, profiles, options, flavour, gpu, calibration)
    maker = Maker(_cache(args), threads=threads, tell=_tell, progress=_Bar())
    where = args.verify_on or args.calibrate
    usable = gpu is not None and not args.targets
    if args.precision == "auto":
        if not usable or not (where or args.labelled):
            raise ConfigError("--precision auto measures: it needs this machine's GPU, and --verify-on or --calibrate")
        entry, _ = choose(maker, order, trials.trial(where), gpu, opener(args.batch[2]))
    else:
        entry = (maker.make_int8 if args.precision == "int8" else maker.make)(order, rebuild=args.rebuild)
        if usable and (where or args.labelled):
            tried = check(entry, trials.trial(where), gpu, opener(args.batch[2]))
            _tell(f"{'verified' if tried.verification.passed else 'NOT RIGHT'}: {tried.verification.show()}")
            if not tried.verification.passed:
                return 1
        else:
            _tell("not verified yet: run slidestream engine verify on the machine that will use it")
    print(entry.plan)
    return 0


def _list(args: argparse.Namespace) -> int:
    cache = _cache(args)
    entries = cache.entries()
    if args.json:
        print(json.dumps([{"plan": str(e.plan), "problem": e.problem, **e.record} for e in entries], indent=1))
        return 0
    for entry in entries:
        identity = entry.identity
        if identity is None or entry.problem:
            print(f"{entry.plan.name}\n    cannot be used: {entry.problem}")
            continue
        profile = ", ".join(f"{p['patch_px']} px x {p['minimum']}-{p['maximum']}" for p in identity.profiles)
        print(f"{entry.plan.name}\n    {identity.flavour} {identity.flavour_version} for {identity.target}; {profile}")
        for gpu, found in entry.record["verifications"].items():
            speed = f", {found['patches_per_s']:,.0f} patches/s" if found.get("patches_per_s") else ""
            loss = "" if found["loss"] is None else f", loss {found['loss']:.3%}"
            print(f"    {'right' if found['passed'] else 'NOT RIGHT'} on {gpu}{loss}{speed}")
        if not entry.record["verifications"]:
            print("    not verified")
    if not entries:
        print(f"no engines in {cache.folder}; make one with slidestream engine build", file=sys.stderr)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    entry = _named(_cache(args), args.engine)
    print(json.dumps({"plan": str(entry.plan), "problem": entry.problem, **entry.record}, indent=1))
    if not entry.problem:
        entry.read_plan()  # raises where it is damaged
    return 1 if entry.problem else 0


def _verify(args: argparse.Namespace) -> int:
    from engines.choose import check
    from engines.cuda import Cuda
    from engines.model import load_model
    from pipeline.engine_trial import TrialMaker, opener
    from pipeline.machine import detect

    config = _config(args)
    entry = _named(_cache(args), args.engine)
    model = load_model(args.model or model_directory(config))
    if entry.identity is None or entry.problem:
        raise EngineError(f"{entry.plan}: {entry.problem}; build it again")
    if entry.identity.model != model.sha256:
        has, want = entry.identity.model[:12], model.sha256[:12]
        raise EngineError(
            f"{entry.plan}: is of the model {has}, {model.directory} is {want}; name its model with --model"
        )
    if not (args.verify_on or args.labelled):
        raise ConfigError("engine verify needs patches: give --verify-on SLIDE_OR_FOLDER... or --labelled DIR")
    device = Cuda()
    gpu = device.gpu
    device.close()
    trial = TrialMaker(model, config, args, detect().cores, _tell).trial(args.verify_on)
    batch = max(profile["maximum"] for profile in entry.identity.profiles)
    found = check(entry, trial, gpu, opener(batch)).verification
    print(f"{'right' if found.passed else 'NOT RIGHT'}: {found.show()}")
    return 0 if found.passed else 1


def _remove(args: argparse.Namespace) -> int:
    cache = _cache(args)
    chosen = [_named(cache, name) for name in args.engines]
    if args.damaged:
        chosen += [entry for entry in cache.entries() if entry.problem]
    if not chosen:
        raise ConfigError("engine remove: name an engine, or --damaged")
    for entry in chosen:
        print(f"{entry.plan.name}: {cache.remove(entry) >> 20} MiB freed")
    return 0


def _named(cache: EngineCache, name: str) -> Entry:
    """The engine of that key (or its beginning), name or file."""
    from engines.cache import read_entry

    if Path(name).suffix and Path(name).exists():
        return read_entry(Path(name))
    found = [e for e in cache.entries() if e.plan.name == name or str(e.record.get("key", "")).startswith(name)]
    if len(found) != 1:
        problem = "no engine" if not found else f"{len(found)} engines"
        raise ConfigError(f"{problem} in {cache.folder} called {name!r}; slidestream engine list shows them")
    return found[0]


def _cache(args: argparse.Namespace) -> EngineCache:
    from engines.cache import EngineCache

    return EngineCache(args.folder)


def _config(args: argparse.Namespace) -> Config:
    return load_config(args.config, args.set)


def _targets(names: tuple[str, ...], flavour: Any) -> tuple[tuple[str, ...], str]:
    """(compute capabilities, hardware compatibility)."""
    if names and not flavour.portable:
        if len(names) > 1:
            raise ConfigError(f"--for: {flavour.name} takes one of {', '.join(flavour.hardware_compatibility)}")
        return (), names[0]
    return names, ""


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _batch(text: str) -> tuple[int, int, int]:
    numbers = [int(part) for part in text.split("/")]
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError("three numbers: MIN/OPT/MAX")
    return numbers[0], numbers[1], numbers[2]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
