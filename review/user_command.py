"""`slidestream user`: who may use the review page."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError

_DESCRIPTION = """\
The users of the review page, in a file that only its owner may read.

examples:
  slidestream user add wang --role reviewer --users users.json
  slidestream user passwd wang --users users.json < password.txt
  slidestream user list --users users.json

A password is asked for, or read as one line from standard input where that is no terminal. A running review page sees
changes at once: who is removed or gets a new password is signed out.

roles:
  viewer    sees slides, results and reviews
  reviewer  judges, comments, draws, signs
  admin     may do all that a reviewer may; label and macro images can be kept for this role (review --labels admin)
"""


def add_parser(commands: Any) -> None:
    """Adds `user`; `commands` is what argparse's add_subparsers gave."""
    raw = argparse.RawDescriptionHelpFormatter
    user = commands.add_parser(
        "user", help="who may use the review page", description=_DESCRIPTION, formatter_class=raw
    )
    actions = user.add_subparsers(metavar="WHAT", title="what", required=True)
    for name, text in (
        ("add", "add a user"),
        ("passwd", "give a user another password"),
        ("role", "give a user another role"),
        ("remove", "take a user out"),
        ("list", "who is there"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name != "list":
            action.add_argument("name", metavar="NAME")
        if name == "add":
            action.add_argument("--role", default="viewer", help="viewer, reviewer or admin (default: %(default)s)")
            action.add_argument(
                "--no-password", action="store_true", help="signs in only through a proxy with single sign-on"
            )
        if name == "role":
            action.add_argument("role", metavar="ROLE", help="viewer, reviewer or admin")
        action.add_argument("--users", required=True, type=Path, metavar="FILE", help="the users file")
        action.set_defaults(command=_run, action=name)


def _run(args: argparse.Namespace) -> int:
    from review import users  # Argon2 is loaded by nobody else

    try:
        if args.action == "add":
            users.check_role(args.role)
            users.check_name(args.name)
            password = None if args.no_password else _ask()
            user = users.add_user(args.users, args.name, args.role, password)
            print(f"{user.name} is a {user.role} now")
        elif args.action == "passwd":
            users.set_password(args.users, args.name, _ask())
            print(f"{args.name} has another password now")
        elif args.action == "role":
            users.set_role(args.users, args.name, args.role)
            print(f"{args.name} is a {args.role} now")
        elif args.action == "remove":
            users.remove_user(args.users, args.name)
            print(f"{args.name} is removed")
        else:
            for user in users.read_users(args.users).values():
                print(f"{user.name}\t{user.role}\t{'password' if user.password else 'no password'}\t{user.changed}")
    except users.UsersError as error:
        raise ConfigError(str(error)) from error
    return 0


def _ask() -> str:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise ConfigError("password: standard input is empty; give the password as one line")
        return line.rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != password:
        raise ConfigError("password: the two differ; nothing was changed")
    return password
