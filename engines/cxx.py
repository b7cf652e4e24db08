"""What is asked of the C++ compiler that builds AOTInductor packages, besides PyTorch's own options."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

SHARED, SONAME = "libstdc++.so", "libstdc++.so.6"
_LIMIT_S = 20.0

Find = Callable[[str], str]


def shared_libstdcxx(find: Find) -> list[str]:
    """Libraries to name before all others, so that a package shares the process's C++ library.

    `find`: where the compiler finds a library; its bare name where it does not. A compiler that comes without the link
    `libstdc++.so` takes the archive instead, and the package gets a C++ library of its own. It then calls into PyTorch's with
    the other's locales, and the process that loads it dies (seen with PyTorch 2.11 in std::regex, where the package parses the
    name of its device). PyTorch itself needs libstdc++.so.6, so that is there to be linked by its full name.
    """
    if Path(find(SHARED)).is_absolute() or not Path(find(SONAME)).is_absolute():
        return []
    return [f":{SONAME}"]


def found_by(compiler: str) -> Find:
    """`find` of this compiler (a command's name or path); one that cannot be asked finds nothing."""

    def find(name: str) -> str:
        try:
            done = subprocess.run(
                [compiler, f"-print-file-name={name}"], capture_output=True, text=True, timeout=_LIMIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return name
        return done.stdout.strip() or name

    return find
