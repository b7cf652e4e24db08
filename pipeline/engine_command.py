"""`slidestream engine build|list|inspect|verify|remove`: engines for GPUs, made ahead and proven right."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError
from pipeline import engine_build
from pipeline.config import ConfigError, model_directory
from pipeline.engine_options import add_common, add_trial, cache_of, config_of, tell

if TYPE_CHECKING:
    from engines.cache import EngineCache, Entry

_EXAMPLES = """\
examples:
  slidestream engine build models/my-model --calibrate /slides/monday --labelled patches/
  slidestream engine build models/my-model --precision fp16 --verify-on /slides/monday
  slidestream engine build models/my-model --precision fp16 --for 8.6,8.9
  slidestream engine build models/my-model --backend auto --verify-on /slides/monday
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

    engine_build.add_parser(verbs)

    listing = verbs.add_parser("list", help="engines that there are")
    listing.add_argument("--json", action="store_true", help="as JSON")
    add_common(listing, configuration=False)
    listing.set_defaults(command=_list)

    inspect = verbs.add_parser("inspect", help="all that is known of an engine")
    inspect.add_argument("engine", metavar="ENGINE", help="its key, name or file")
    add_common(inspect, configuration=False)
    inspect.set_defaults(command=_inspect)

    verify = verbs.add_parser("verify", help="compare an engine's answers with ONNX Runtime's")
    verify.add_argument("engine", metavar="ENGINE", help="its key, name or file")
    verify.add_argument("--model", metavar="DIR", help="model directory (default: the configuration's)")
    add_trial(verify)
    add_common(verify)
    verify.set_defaults(command=_verify)

    remove = verbs.add_parser("remove", help="delete engines")
    remove.add_argument("engines", nargs="*", metavar="ENGINE", help="key, name or file")
    remove.add_argument("--damaged", action="store_true", help="all that cannot be used")
    add_common(remove, configuration=False)
    remove.set_defaults(command=_remove)


def _facts(entry: Entry) -> dict[str, Any]:
    """The sidecar, with the path of the plan and how large it is in place of what the cache checks it by."""
    plan = entry.record.get("plan") or {}
    return {**entry.record, "plan": str(entry.plan), "bytes": plan.get("size"), "problem": entry.problem}


def _list(args: argparse.Namespace) -> int:
    cache = cache_of(args)
    entries = cache.entries()
    if args.json:
        print(json.dumps([_facts(entry) for entry in entries], indent=1))
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
    entry = _named(cache_of(args), args.engine)
    print(json.dumps(_facts(entry), indent=1))
    if not entry.problem:
        entry.read_plan()  # raises where it is damaged
    return 1 if entry.problem else 0


def _verify(args: argparse.Namespace) -> int:
    from engines.choose import check
    from engines.cuda import Cuda
    from engines.model import load_model
    from pipeline.engine_trial import TrialMaker, opened
    from pipeline.machine import detect

    config = config_of(args)
    entry = _named(cache_of(args), args.engine)
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
    sizes = [profile["patch_px"] for profile in entry.identity.profiles]
    trial = TrialMaker(model, config, args, detect().cores, tell).trial(args.verify_on, sizes)
    found = check(entry, trial, gpu, opened).verification
    print(f"{'right' if found.passed else 'NOT RIGHT'}: {found.show()}")
    return 0 if found.passed else 1


def _remove(args: argparse.Namespace) -> int:
    cache = cache_of(args)
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
