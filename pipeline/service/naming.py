"""File names in a watched folder: which are temporary, what a slide's results are called, which class it has. Pure.

Names are bytes, as the file system has them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from fnmatch import fnmatchcase

# Names under which copying and downloading programs write before they rename: rsync (.name.XXXXXX, hidden), WinSCP
# (.filepart), browsers and clients of cloud stores (.part, .partial, .crdownload, .download), scanners and office programs.
_TEMPORARY_ENDINGS = (
    b"~",
    b".tmp",
    b".temp",
    b".part",
    b".partial",
    b".filepart",
    b".crdownload",
    b".download",
    b".incomplete",
    b".uploading",
    b".writing",
    b".lock",
    b".swp",
)
_TEMPORARY_STARTS = (b".", b"~", b"$")

# A file name has at most 255 bytes on common file systems; results add endings of their own.
NAME_BYTES = 200


def is_temporary(name: bytes) -> bool:
    """Whether a name (of a file or folder, without its path) says that it is hidden, or not to stay."""
    lower = name.lower()
    stem = os.path.splitext(lower)[0]
    return (
        lower.startswith(_TEMPORARY_STARTS)
        or lower.endswith(_TEMPORARY_ENDINGS)
        or stem.endswith(_TEMPORARY_ENDINGS[1:])  # a.part.svs
    )


def result_name(relative: bytes) -> str:
    """What a slide's results are called: its path below the watched folder, without extension.

    Bytes that are not UTF-8 are escaped; parts that are too long for a file name with the endings of results are cut, and
    get a piece of their hash. Never empty, absolute or with `..`; ValueError for a path that is.
    """
    parts = os.path.splitext(relative)[0].split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise ValueError(f"{relative!r} is no path below a folder")
    return "/".join(_short(part.decode("utf-8", "backslashreplace")) for part in parts)


def _short(part: str) -> str:
    data = part.encode()
    if len(data) <= NAME_BYTES:
        return part
    mark = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[: NAME_BYTES - 13].decode('utf-8', 'ignore')}~{mark}"


def fits(relative: bytes, patterns: Iterable[str]) -> bool:
    """Whether a path below the folder fits one of the patterns; case makes no difference."""
    text = os.fsdecode(relative).casefold()
    return any(fnmatchcase(text, pattern.casefold()) for pattern in patterns)
