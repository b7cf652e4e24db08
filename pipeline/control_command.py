"""`slidestream scale` and `slidestream status`: the operator's hands on a run that is under way."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.control import ask
from pipeline.roster import SCALABLE

_SCALE = """\
More or fewer processes of a stage in a run that is under way.

examples:
  slidestream scale results reader=12
  slidestream scale results inference=2 writer=1

Memory for patches is laid out when a run starts: with many more readers than then, they wait for room
(see `waiting for room` in slidestream status).
"""


def add_parser(commands: Any) -> None:
    """Adds `scale` and `status`; `commands` is what argparse's add_subparsers gave."""
    raw = argparse.RawDescriptionHelpFormatter
    scale = commands.add_parser(
        "scale", help="add or take away workers of a run", description=_SCALE, formatter_class=raw
    )
    scale.add_argument("out", type=Path, metavar="OUT", help="the results folder of the run")
    scale.add_argument(
        "stages", nargs="+", metavar="STAGE=N", type=_stage, help=f"how many workers: {', '.join(SCALABLE)}"
    )
    scale.set_defaults(command=_scale)
    status = commands.add_parser(
        "status", help="what a run is doing", description="What a run that is under way is doing.", formatter_class=raw
    )
    status.add_argument("out", type=Path, metavar="OUT", help="the results folder of the run")
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    status.set_defaults(command=_status)


def _stage(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if name not in SCALABLE or not count.isdecimal() or not int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is not STAGE=N; stages are {', '.join(SCALABLE)}")
    return name, int(count)


def _scale(args: argparse.Namespace) -> int:
    for stage, workers in args.stages:
        print(ask(args.out, {"do": "scale", "stage": stage, "workers": workers})["said"])
    return 0


def _status(args: argparse.Namespace) -> int:
    answer = ask(args.out, {"do": "status"})
    if args.json:
        print(json.dumps(answer["run"], indent=2, ensure_ascii=False))
        return 0
    print("\n".join(answer["lines"]))
    return 0
