"""`slidestream scale`, `status` and `top`: the operator's hands on a run or a service that is under way."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.control import ask
from pipeline.overrides import ConfigError
from pipeline.roster import SCALABLE
from pipeline.rundir import PRIVATE
from pipeline.service.command import add_service_options
from pipeline.service.state import ask_service, find

LEAST_EVERY_S, MOST_EVERY_S = 0.2, 3600.0

_SCALE = """\
More or fewer processes of a stage in a run, or in the service, that is under way.

examples:
  slidestream scale results reader=12              the run that writes to results/
  slidestream scale reader=12 inference=2          the service
  slidestream scale reader=12 --route tumour       the service, where it has several routes

Memory for patches is laid out when a run starts: with many more readers than then, they wait for room
(see `waiting for room` in slidestream status).
"""

_STATUS = """\
What a run, or the service, is doing; or what became of a slide.

examples:
  slidestream status results      the run that writes to results/
  slidestream status              the service
  slidestream status S26-1234     all that the service knows of this slide (by its name or number)
"""


def add_parser(commands: Any) -> None:
    """Adds the commands; `commands` is what argparse's add_subparsers gave."""
    raw = argparse.RawDescriptionHelpFormatter
    scale = commands.add_parser("scale", help="add or take away workers", description=_SCALE, formatter_class=raw)
    scale.add_argument(
        "words",
        nargs="+",
        metavar="[OUT] STAGE=N",
        help=f"results folder of a run; how many workers: {', '.join(SCALABLE)}",
    )
    add_service_options(scale)
    scale.set_defaults(command=_scale, parser=scale)
    status = commands.add_parser(
        "status", help="what a run or the service is doing", description=_STATUS, formatter_class=raw
    )
    status.add_argument("what", nargs="?", metavar="OUT|SLIDE", help="the results folder of a run, or a slide")
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    add_service_options(status)
    status.set_defaults(command=_status)
    top = commands.add_parser(
        "top",
        help="watch the service, or a run",
        description="Watch the service (or a run): slides, stages, GPUs, speed, and what holds it up. Ctrl-C ends the watching.",
        formatter_class=raw,
    )
    top.add_argument("out", nargs="?", type=Path, metavar="OUT", help="the results folder of a run")
    top.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between two looks (default: 1)")
    top.add_argument("--once", action="store_true", help="one look, as plain lines")
    add_service_options(top, routes=False)
    top.set_defaults(command=_top)


def _stage(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if name not in SCALABLE or not count.isdecimal() or not int(count):
        raise ValueError(f"{text!r} is not STAGE=N; stages are {', '.join(SCALABLE)}")
    return name, int(count)


def _scale(args: argparse.Namespace) -> int:
    out = None if "=" in args.words[0] else Path(args.words[0])
    try:
        stages = [_stage(word) for word in args.words[out is not None :]]
    except ValueError as error:
        args.parser.error(f"argument STAGE=N: {error}")
    if not stages:
        args.parser.error("the following arguments are required: STAGE=N")
    for stage, workers in stages:
        question = {"do": "scale", "stage": stage, "workers": workers}
        if out is not None:
            print(ask(out, question)["said"])
        else:
            print(ask_service(find(args.service, args.config), {**question, "route": args.route})["said"])
    return 0


def _status(args: argparse.Namespace) -> int:
    named_service = args.service is not None or args.config is not None
    if args.what is not None and not named_service and _is_results(Path(args.what)):
        answer = ask(Path(args.what), {"do": "status"})
    elif args.what is not None:
        from pipeline.service.slide_report import report

        state = find(args.service, args.config)
        values, lines = report(state, args.what, args.route)
        print(json.dumps(values, indent=2, ensure_ascii=False) if args.json else "\n".join(lines))
        return 0
    else:
        answer = ask_service(find(args.service, args.config), {"do": "status"})
    if args.json:
        print(json.dumps(answer["run"], indent=2, ensure_ascii=False))
        return 0
    print("\n".join(answer["lines"]))
    return 0


def _is_results(path: Path) -> bool:
    return (path / PRIVATE).exists() or path.is_dir()


def _top(args: argparse.Namespace) -> int:
    from pipeline.service.top import watch

    if not LEAST_EVERY_S <= args.every <= MOST_EVERY_S:
        raise ConfigError(f"--every {args.every:g}: takes {LEAST_EVERY_S:g} to {MOST_EVERY_S:g} seconds")
    state = None if args.out is not None else find(args.service, args.config)

    def look() -> dict[str, Any]:
        question = {"do": "status"}
        return ask(args.out, question) if state is None else ask_service(state, question)

    try:
        return watch(_patient(look), args.every, args.once)
    except KeyboardInterrupt:
        return 0


def _patient(look: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The first look has to succeed; later ones may find the service between two starts."""
    seen = False

    def once_seen() -> dict[str, Any]:
        nonlocal seen
        try:
            answer = look()
        except ConfigError as error:
            if not seen:
                raise
            return {"lines": [str(error)], "run": {}}
        seen = True
        return answer

    return once_seen
