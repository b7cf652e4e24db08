"""What an engine has to say while it works. Where that goes is for the process to decide: a stage has a log, a command has
standard error, which is the default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

Hear = Callable[[str, str, str], None]
"""Takes (level as structlog names it, event, reason)."""


def _to_stderr(level: str, event: str, reason: str) -> None:
    if level != "debug":
        print(f"{level}: {event}: {reason}", file=sys.stderr, flush=True)


_hear: Hear = _to_stderr


def listen(hear: Hear | None) -> None:
    """From now on `hear` gets what engines of this process say; None: standard error again."""
    global _hear
    _hear = hear or _to_stderr


def say(level: str, event: str, reason: str) -> None:
    _hear(level, event, reason)
