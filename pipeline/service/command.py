"""`slidestream serve` and the operator's hands on it: submit, retry, cancel, prioritise, drain, reload."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.rundir import RunDir
from pipeline.service.lifecycle import Urgency
from pipeline.service.state import RUN, ask_service, find

SUBMIT_S = 60.0

_SERVE = """\
Take slides as they come off the scanner, and run models over them, for months.

examples:
  slidestream serve --config /etc/slidestream/slidestream.yaml
  slidestream serve --config slidestream.yaml --set service.http.port=0

configs/service.yaml has all keys, docs/operations.md is the handbook. SIGTERM and Ctrl-C bring what is under way to a
checkpoint (exit code 75), a second one stops at once; the next start goes on.
"""


def add_parser(commands: Any) -> None:
    """Adds the commands; `commands` is what argparse's add_subparsers gave."""
    raw = argparse.RawDescriptionHelpFormatter
    serve = commands.add_parser(
        "serve", help="run as a service: slides as they come", description=_SERVE, formatter_class=raw
    )
    serve.add_argument(
        "--config", type=Path, metavar="FILE", required=True, help="configuration with a section service"
    )
    serve.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value")
    serve.set_defaults(command=_serve)

    submit = _client(commands, "submit", "give slides to the service by hand", "Give slides to the service by hand.")
    submit.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="a slide file")
    submit.add_argument("--stat", action="store_true", help="before all routine slides")
    submit.set_defaults(command=_submit)

    retry = _client(commands, "retry", "try slides again", "Try slides again, as if they had never failed.")
    cancel = _client(commands, "cancel", "take slides out", "Take slides out, also while they run.")
    prioritise = _client(commands, "prioritise", "make slides stat", "Make slides stat (or routine again).")
    prioritise.add_argument("--routine", action="store_true", help="make them routine again")
    for parser, act in ((retry, "retry"), (cancel, "cancel"), (prioritise, "prioritise")):
        parser.add_argument("slides", nargs="+", metavar="SLIDE", help="its name, or its number")
        parser.set_defaults(command=_slides, verb=act)

    drain = _client(
        commands, "drain", "bring the service to a checkpoint and end it", "Bring the service to a checkpoint and end it.",
        routes=False,
    )  # fmt: skip
    drain.add_argument(
        "--finish", action="store_true", help="do the slides under way to their end, instead of to a checkpoint"
    )
    drain.set_defaults(command=_drain)
    reload = _client(
        commands, "reload", "have the service read its configuration again",
        "Have the service read its configuration again; what needs a restart is named.", routes=False,
    )  # fmt: skip
    reload.set_defaults(command=_reload)


def add_service_options(parser: argparse.ArgumentParser, routes: bool = True) -> None:
    """How a command finds the service."""
    parser.add_argument("--service", type=Path, metavar="DIR", help="the service's state folder (service.state)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the service's configuration, which names that folder"
    )
    if routes:
        parser.add_argument("--route", metavar="NAME", help="only this route")


def _client(commands: Any, name: str, words: str, description: str, routes: bool = True) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=words, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_service_options(parser, routes)
    return parser


def _serve(args: argparse.Namespace) -> int:
    from pipeline.service.start import serve

    return serve(args.config, args.set)


def _submit(args: argparse.Namespace) -> int:
    state = find(args.service, args.config)
    urgency = Urgency.STAT if args.stat else None
    code = 0
    for slide in args.slides:
        question = {"do": "submit", "path": os.path.abspath(slide), "urgency": urgency, "route": args.route}
        code |= _say(state, question, SUBMIT_S)
    return code


def _slides(args: argparse.Namespace) -> int:
    state = find(args.service, args.config)
    question: dict[str, Any] = {"do": args.verb, "route": args.route}
    if args.verb == "prioritise":
        question["urgency"] = Urgency.ROUTINE if args.routine else Urgency.STAT
    code = 0
    for slide in args.slides:
        code |= _say(state, {**question, "slide": slide})
    return code


def _say(state: Path, question: dict[str, Any], timeout_s: float = 10.0) -> int:
    """One of several questions: the others are asked also where this one is refused."""
    import sys

    try:
        print(ask_service(state, question, timeout_s)["said"])
    except ConfigError as error:
        print(f"slidestream: {error}", file=sys.stderr)
        return 2
    return 0


def _drain(args: argparse.Namespace) -> int:
    state = find(args.service, args.config)
    run = RunDir(Path((state / RUN).read_text().strip())) if (state / RUN).exists() else None
    print(ask_service(state, {"do": "drain", "finish": args.finish})["said"], flush=True)
    while run is not None and run.control_path.exists():
        time.sleep(0.1)
    print("the service has ended")
    return 0


def _reload(args: argparse.Namespace) -> int:
    print(ask_service(find(args.service, args.config), {"do": "reload"})["said"])
    return 0
