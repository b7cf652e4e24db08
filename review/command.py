"""`slidestream review`: a results folder as a page for pathologists."""

from __future__ import annotations

import argparse
import getpass
import os
import signal
import sys
from pathlib import Path

from pipeline.overrides import ConfigError

DESCRIPTION = """\
Serve a results folder as a page: worklist, slides with their heatmaps, suspicious regions, verdicts and signatures.

It may run while `slidestream run` writes to the folder: heatmaps grow as they are looked at. Without --users only this
machine can reach it, and everybody on it is one reviewer, named after who started it.
"""

EPILOG = """\
examples:
  slidestream review --results results
  slidestream user add alice --role reviewer --users users.json
  slidestream review --results results --users users.json --slides /slides
  slidestream review --results results --users users.json --host 10.0.0.5 --certificate cert.pem --key key.pem
  slidestream review verify-log --results results
"""

DEFAULT_PORT = 8017


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--results", type=Path, metavar="DIR", help="the results folder")
    parser.add_argument(
        "--slides",
        type=Path,
        action="append",
        metavar="ROOT",
        help="open no slide outside of this folder; repeatable (default: those of the results)",
    )
    parser.add_argument("--users", type=Path, metavar="FILE", help="users with passwords and roles (slidestream user)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="(default: %(default)s; 0: any that is free)")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="for TLS: the certificate and its chain, PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="for TLS: the certificate's key, PEM")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a name under which the page is asked; repeatable"
    )
    parser.add_argument(
        "--proxy", action="append", default=[], metavar="ADDRESS", help="a reverse proxy in front of it; repeatable"
    )
    parser.add_argument(
        "--trusted-header", metavar="NAME", help="the proxy's header that names who is signed in (needs --proxy)"
    )
    parser.add_argument(
        "--default-role",
        choices=("viewer", "reviewer", "admin"),
        help="of users that the proxy names and the file does not",
    )
    parser.add_argument(
        "--labels",
        choices=("nobody", "admin", "reviewer", "viewer"),
        default="nobody",
        help="who may see label and macro images, which can name the patient: this role and those above it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="listen on other addresses also without users or TLS: others can read all",
    )


def review(args: argparse.Namespace) -> int:
    """Until SIGTERM or Ctrl-C; the exit code. ConfigError where it cannot be served as asked."""
    from review.errors import ReviewError

    try:
        return _serve(args)
    except ReviewError as error:
        raise ConfigError(str(error)) from error


def _serve(args: argparse.Namespace) -> int:
    import uvicorn

    from review.app import Page, application
    from review.catalogue import Catalogue
    from review.live import Live
    from review.log import NAME, ReviewLog
    from review.operations import operations
    from review.reading import Reading
    from review.serving import Serving, give_way, names
    from review.slide_pool import SlidePool

    if args.results is None:
        raise ConfigError("--results: name the results folder")
    if not args.results.is_dir():
        raise ConfigError(f"--results {args.results}: is no folder; name one that slidestream has written to")
    for root in args.slides or ():
        if not root.is_dir():
            raise ConfigError(f"--slides {root}: is no folder")
    serving = Serving(
        host=args.host,
        port=args.port,
        users=args.users,
        certificate=args.certificate,
        key=args.key,
        names=tuple(args.name),
        proxies=tuple(args.proxy),
        trusted_header=args.trusted_header,
        default_role=args.default_role,
        insecure=args.insecure,
    )
    serving.check()
    # With a session file beside the results, nobody is signed out by a restart.
    guard = serving.guard(args.results / "review-sessions.sqlite", getpass.getuser())
    listening = serving.listen()
    catalogue = Catalogue(args.results, args.slides)
    page = Page(
        Reading(catalogue, SlidePool()),
        guard,
        ReviewLog(args.results / NAME),
        Live(catalogue),
        lambda: operations(catalogue),
        args.labels,
    )
    app = application(page, names(serving.host, serving.names), serving.tls)
    print(f"{args.results} is served at {serving.address(listening)}", file=sys.stderr, flush=True)
    if serving.implicit:
        print(
            f"without --users: everybody on this machine is the reviewer {getpass.getuser()}",
            file=sys.stderr,
            flush=True,
        )
    give_way()  # a run may be at work on this machine
    # A terminal that is closed ends it like Ctrl-C does.
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    uvicorn.Server(serving.config(app, log_level="warning")).run(sockets=[listening])
    return 0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`review`, and `review verify-log`."""
    from review import verify_command

    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "review",
        help="look at results, judge and sign them",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=raw,
    )
    add_arguments(parser)
    parser.set_defaults(command=review)
    within = parser.add_subparsers(metavar="WHAT", title="what else")
    proof = within.add_parser(
        "verify-log",
        help="prove that the log of reviews is whole",
        description=verify_command.DESCRIPTION,
        formatter_class=raw,
    )
    verify_command.add_arguments(proof)
    proof.set_defaults(command=verify_command.verify)
