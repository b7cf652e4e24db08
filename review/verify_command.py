"""`slidestream review verify-log`: whether the log of reviews is whole."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.overrides import ConfigError

DESCRIPTION = """\
Read the whole log of reviews and prove that no act was changed, dropped, added or moved.

A log whose end was cut off, or that was written anew from the start, can only be told by a head that was kept elsewhere: every
signed report and export shows one (N:HASH). Give those you have with --head, or a file of them with --heads.

exit codes:
  0   whole
  1   not whole; the line says where
  2   there is no log, or it cannot be read
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--results", required=True, type=Path, metavar="DIR", help="the results folder")
    parser.add_argument(
        "--head", action="append", default=[], metavar="N:HASH", help="a head kept elsewhere; repeatable"
    )
    parser.add_argument("--heads", type=Path, metavar="FILE", help="a file with one head a line")
    parser.add_argument("--write-head", type=Path, metavar="FILE", help="add the head to this file if the log is whole")


def verify(args: argparse.Namespace) -> int:
    """The exit code."""
    from review.audit import AuditFile, parse_head
    from review.errors import AuditError
    from review.log import NAME

    try:
        lines = [*args.head]
        if args.heads is not None:
            lines += [line for line in args.heads.read_text().splitlines() if line.strip()]
        heads = [parse_head(line) for line in lines]
        file = AuditFile(args.results / NAME, read_only=True)
    except (AuditError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(error)) from error
    found = file.verify(heads)
    file.close()
    if found.problem is not None:
        print(f"{args.results / NAME}: NOT WHOLE: {found.problem}")
        print(f"whole up to: {found.head}")
        return 1
    print(f"{args.results / NAME}: whole, {found.head.n} acts{f', {len(heads)} heads agree' if heads else ''}")
    print(f"head: {found.head}")
    if args.write_head is not None:
        with open(args.write_head, "a", encoding="ascii") as kept:
            kept.write(f"{found.head}\n")
    return 0
