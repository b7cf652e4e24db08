"""`slidestream tune`: measure this machine with a model and slides, and propose a configuration."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.overrides import ConfigError

if TYPE_CHECKING:
    from engines.model import Model
    from pipeline.config import Config
    from pipeline.service.config import Route
    from pipeline.tune import Measured, Setting
    from pipeline.tune_measure import Job
    from slides.discover import Found

LEAST_MINUTES, MOST_MINUTES = 0.25, 60.0
SLIDES_MOST = 16
BUSY = 0.5  # load of each core before the start that is worth a warning
_SYNTHETIC = (8000, 6000)

_TUNE = """\
Measure this machine, its storage and its GPUs with a model, and propose the numbers of the configuration: how many slide
readers, inference processes, threads or contexts, which batch, how many slots. Only what is clearly faster than what
`auto` gives is proposed, and nothing that results depend on. Nothing is written but with --write.

examples:
  slidestream tune /mnt/scanner/slides --model models/tumour
  slidestream tune /mnt/scanner/a.svs --config service.yaml --write tuned.yaml
  slidestream tune --minutes 1                          a synthetic slide on the local disk

It takes three minutes, or as long as --minutes says, and needs the machine for itself: drain the service first. Give it
slides where the scanner puts them, a few as they mostly are: they are read from there, not from memory.
"""


def add_parser(commands: Any) -> None:
    """Adds the command; `commands` is what argparse's add_subparsers gave."""
    tune = commands.add_parser(
        "tune",
        help="measure this machine and propose a configuration",
        description=_TUNE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tune.add_argument("slides", nargs="*", type=Path, metavar="SLIDE", help="slides, or folders that hold some")
    tune.add_argument("--config", type=Path, metavar="FILE", help="configuration to start from, also one of a service")
    tune.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value")
    tune.add_argument("--model", action="append", metavar="DIR", help="model directory; several times: in one pass")
    tune.add_argument("--route", metavar="NAME", help="whose model is measured, where the service has several routes")
    tune.add_argument(
        "--results", type=Path, metavar="DIR", help="folder on the disk where results will lie, to measure it too"
    )
    tune.add_argument(
        "--minutes", type=float, default=3.0, metavar="M", help="how long it may measure (default %(default)s)"
    )
    tune.add_argument("--write", type=Path, metavar="FILE", help="write the configuration, with the figures behind it")
    tune.add_argument("--json", action="store_true", help="print all figures as JSON")
    tune.add_argument("--no-progress", action="store_true", help="do not tell what is being measured")
    tune.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, write where asked; the exit code. ConfigError, ModelError, SlideError."""
    from pipeline.config import load_config
    from pipeline.tune import propose
    from pipeline.tune_file import write
    from pipeline.tune_measure import measure

    if not LEAST_MINUTES <= args.minutes <= MOST_MINUTES:
        raise ConfigError(f"--minutes {args.minutes:g}: takes {LEAST_MINUTES:g} to {MOST_MINUTES:g}")
    if args.write is not None and args.write.exists():
        raise ConfigError(f"{args.write}: is there already; name a new file, or move that one away")
    if args.write is not None and not os.access(args.write.absolute().parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--write {args.write}: cannot be made there; name a file in a folder that this user may write to"
        )
    if args.results is not None and not args.results.is_dir():
        raise ConfigError(f"--results {args.results}: is no folder")
    given = load_config(args.config, args.set)
    route, config = _model(args, given)
    began = time.monotonic()

    def say(words: str) -> None:
        if not args.no_progress:
            print(f"[{time.monotonic() - began:5.0f} s] {words}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="slidestream-tune-", dir=args.results) as name:
        job = _job(args, config, len(given.service.routes), Path(name), say)
        for warning in warnings(args, os.getloadavg()[0], job):
            print(f"slidestream: {warning}", file=sys.stderr, flush=True)
        measured = measure(job)
    settings = propose(measured, job.auto)
    head = _head(args, job, measured, route, time.monotonic() - began)
    if args.json:
        print(json.dumps(_record(head, measured, settings), indent=2))
    else:
        print("\n".join(table(head, settings)))
    if args.write is not None:
        write(args.write, _file(args, head, settings))
        print(f"written: {args.write}", file=sys.stderr)
    return 0


def _model(args: argparse.Namespace, config: Config) -> tuple[Route | None, Config]:
    """The route that is measured, if there is one, and the configuration with its model."""
    routes = {route.name: route for route in config.service.routes}
    if args.route is not None and args.route not in routes:
        there = f"there are {', '.join(routes)}" if routes else "the configuration has none"
        raise ConfigError(f"--route {args.route}: no such route; {there}")
    if args.model is not None:
        if args.route is not None:
            raise ConfigError("--model and --route: each names a model; give one of them")
        return None, config.model_copy(update={"model": _one_or_all(args.model)})
    if not routes:
        return None, config
    models = {(route.models, route.patch_px) for route in routes.values()}
    if args.route is None and len(models) > 1:
        raise ConfigError(f"the routes {', '.join(routes)} have different models or patch sizes; name one with --route")
    route = routes[args.route] if args.route is not None else next(iter(routes.values()))
    return route, route.over(config)


def _one_or_all(models: Sequence[str]) -> str | tuple[str, ...]:
    return models[0] if len(models) == 1 else tuple(models)


def _job(args: argparse.Namespace, config: Config, lanes: int, folder: Path, say: Any) -> Job:
    from engines.probe import probe
    from pipeline.config import resolve
    from pipeline.gpus import build_engine, spread
    from pipeline.machine import detect
    from pipeline.models import load_models, sizes
    from pipeline.placement import place_all
    from pipeline.tune_measure import Job
    from slides.discover import discover

    if config.inference.engine == "null":
        raise ConfigError("inference.engine: null computes nothing, so there is nothing to tune")
    models = load_models(config)
    if args.slides:
        found, _ = discover(args.slides)
        if not found:
            raise ConfigError(
                f"{', '.join(map(str, args.slides))}: no slides found; name a slide or a folder with some"
            )
        found = _readable(spread(found, SLIDES_MOST), config, models[0], say)
    else:
        found = [_synthetic(folder, say)]
    placement = place_all(config, models, probe, lambda wanted, model: build_engine(wanted, model, found))
    machine = detect()
    machine = replace(machine, cores=max(1, machine.cores // max(1, lanes)))
    auto = resolve(placement.config, machine, **sizes(models), gpus=len(placement.devices), gpu_batch=placement.batch)
    slides = [slide.path for slide in found]
    return Job(auto, placement, models, machine, slides, folder, 60.0 * args.minutes, say, args.results)


def _readable(found: Sequence[Found], config: Config, model: Model, say: Any) -> list[Found]:
    """Those that can be opened, and have the resolution that the model wants; the others are told. SlideError: none is."""
    from slides.errors import SlideError
    from slides.geometry import geometry
    from slides.source import open_source

    able: list[Found] = []
    problem: SlideError | None = None
    for slide in found:
        try:
            source = open_source(slide.path, config.slides.mpp, config.slides.source)
            try:
                geometry(source.info, model.patch_px, model.spacing)
            finally:
                source.close()
        except SlideError as error:
            problem = error
            say(f"left out: {error}")
        else:
            able.append(slide)
    if not able:
        raise problem
    return able


def _synthetic(folder: Path, say: Any) -> Found:
    from slides.discover import Found
    from slides.synthetic import SyntheticSlide, make_slide

    say("no slide is given: making a synthetic one")
    path = folder / "synthetic.tif"
    make_slide(path, SyntheticSlide(*_SYNTHETIC, tissue=0.7, tile=256, seed=1))
    return Found("synthetic", path)


def warnings(args: argparse.Namespace, load: float, job: Job) -> list[str]:
    """What makes the figures less than they could be."""
    from pipeline.control import ask_at
    from pipeline.service.state import RUN, find

    found = []
    cores = os.cpu_count() or 1
    if load > BUSY * cores:
        found.append(f"the load of this machine is {load:.1f}: what is measured is what others leave")
    try:
        state = find(None, args.config)
        ask_at(state / RUN, "", "service", {"do": "status"}, 2.0)
    except ConfigError:
        pass  # there is none, or it is another user's
    else:
        found.append("a service is at work here; for figures of the whole machine drain it first (slidestream drain)")
    if not args.slides:
        found.append(
            "with a synthetic slide on the local disk, the scanner's storage is not measured: name slides there"
        )
    found += job.placement.notices
    return found


def _head(args: argparse.Namespace, job: Job, measured: Measured, route: Route | None, seconds: float) -> list[str]:
    from pipeline.tune import outcome

    gpus = [str(device.gpu) for device in job.placement.devices]
    what = ", ".join(model.name for model in job.models)
    slides = f"{len(job.slides)} slide{'s' if len(job.slides) > 1 else ''} in {job.slides[0].parent}"
    words = [
        f"slidestream tune, {datetime.now(UTC):%Y-%m-%d} on {platform.node()}: {measured.cores} cores, "
        + (", ".join(gpus) if gpus else "no GPU used"),
        f"model {what}; {slides if args.slides else 'a synthetic slide on the local disk'}; {seconds:.0f} s",
        outcome(measured),
    ]
    if route is not None:
        words.append(f"measured for the route {route.name}; the numbers are those of each route's lane")
    return words


def table(head: Sequence[str], settings: Sequence[Setting]) -> list[str]:
    """For people: each setting, and why."""
    lines = [*head, ""]
    for setting in settings:
        mark = f"{setting.now} -> {setting.value}" if setting.value != setting.now else f"{setting.value} (stays)"
        lines += [f"{setting.key}: {mark}", f"    {setting.why}"]
    return lines


def _record(head: Sequence[str], measured: Measured, settings: Sequence[Setting]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "about": list(head),
        "cores": measured.cores,
        "storage": asdict(measured.storage),
        "journal_ms": measured.journal_ms,
        "engines": [{**asdict(shape), "patches_per_s": speed} for shape, speed in measured.engines.items()],
        "readers": {str(count): speed for count, speed in measured.readers.items()},
        "whole": [
            {"by": t.by, **asdict(t.shape), **{f"{k}_workers": v for k, v in asdict(t.sizes).items()},
             "patches_per_s": t.per_s, "bottleneck": t.words}
            for t in measured.tried
        ],
        "settings": [asdict(setting) for setting in settings],
    }  # fmt: skip


def _file(args: argparse.Namespace, head: Sequence[str], settings: Sequence[Setting]) -> str:
    from pipeline.keys import keys
    from pipeline.overrides import Layer, merge, parse_set, read_file
    from pipeline.tune_file import text

    layer = Layer({}, {}) if args.config is None else read_file(args.config)
    lists = frozenset(key.name for key in keys().values() if key.is_list)
    for words in args.set:
        layer = merge(layer, parse_set(words, lists))
    own = dict(layer.data)
    if args.model is not None:
        model = _one_or_all([os.path.abspath(path) for path in args.model])
        own["model"] = model if isinstance(model, str) else list(model)
    return text(
        [*head, "Numbers are for this machine; measure again after a change of machine, model or storage."],
        own,
        settings,
    )
