"""The child that looks at one slide, because what looks at slides can crash or hang: `python -m pipeline.service.trial`.

Prints one JSON object a line: first {"bytes", "files", "fingerprint"}, then {"kind", "reason"}, both null where
the slide is whole and opens. What it printed before a crash counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from typing import Any

from pipeline.service import fingerprints
from pipeline.service.complete import lack
from pipeline.service.parts import parts
from pipeline.service.reasons import Kind, kind_of_errno, kind_of_text
from slides.errors import SlideError, one_line

# Beyond what any slide needs to be opened: a hostile file fails by itself instead of driving the machine out of memory.
_MEMORY = 16 << 30


def examine(path: bytes, mpp: float | None) -> tuple[Kind | None, str]:
    """What is wrong with a slide, and the kind of that. (None, "") where it is whole and opens."""
    from slides.openslide_source import OpenSlideSource

    reason = lack(parts(path))
    if reason:
        return Kind.INCOMPLETE, one_line(reason)
    try:
        OpenSlideSource(os.fsdecode(path), mpp).close()
    except SlideError as error:
        return kind_of_text(error.reason), error.reason
    return None, ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--cpu-s", type=int, required=True)
    parser.add_argument("path")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # First SIGXCPU, which says why; with both limits the same the kernel sends SIGKILL, which says nothing.
    resource.setrlimit(resource.RLIMIT_CPU, (options.cpu_s, options.cpu_s + 5))
    signal.alarm(2 * options.cpu_s)  # also where nobody is left to end us
    path = os.fsencode(options.path)
    try:
        before = _state(path)
        _say(
            bytes=sum(size for size, _ in before.values()),
            files=len(before),
            fingerprint=fingerprints.content(list(before)),
        )
        kind, reason = examine(path, options.mpp)
        if _state(path) != before:
            kind, reason = Kind.CHANGED, "it changed while it was looked at"
    except OSError as error:
        kind, reason = kind_of_errno(error.errno), f"cannot be read: {error.strerror or error}"
    except MemoryError:
        kind, reason = Kind.BAD_SLIDE, f"needs more than {_MEMORY >> 30} GiB to be opened"
    _say(kind=kind, reason=reason)
    return 0


def _state(path: bytes) -> dict[bytes, tuple[int, int]]:
    """Size in bytes and modification time in ns of each file of a slide."""
    states = {}
    for file in parts(path).files:
        status = os.stat(file)
        states[file] = (status.st_size, status.st_mtime_ns)
    return states


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
