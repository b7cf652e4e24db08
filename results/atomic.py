"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".slidestream-part"

_serial = itertools.count()


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write ``path`` so that a reader sees the old file or the new one, never a part, also after a power cut.

    ``write`` fills a binary file (seekable, readable) under a temporary name in the same folder; then it is synced,
    renamed over ``path``, and the folder is synced. Missing folders are made. On any error the temporary file is
    removed and an older ``path`` stays as it was; an OSError (disk full, no permission) is raised again with ``path``
    as its file name.
    """
    path = Path(path)
    # The name is a digest: a slide's own name may already be as long as the file system allows.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.parent / f".{digest}-{os.getpid()}-{next(_serial)}{TEMPORARY_SUFFIX}"
    made = False
    try:
        new_folders = make_folders(path.parent)
        with open(temporary, "x+b", buffering=1 << 20) as file:
            made = True
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        made = False
        sync_folder(path.parent)
        for folder in new_folders:
            sync_folder(folder.parent)
    except OSError as error:
        raise named(error, path) from error
    finally:
        if made:
            temporary.unlink(missing_ok=True)


def remove(path: Path) -> bool:
    """Remove ``path`` for good (folder synced); False where it was not there. OSError names ``path``."""
    try:
        Path(path).unlink()
        sync_folder(Path(path).parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise named(error, path) from error
    return True


def sweep(folder: Path) -> int:
    """Remove the temporary files that killed writers left below ``folder``; how many. Call it while nobody writes."""
    removed = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX):
                Path(parent, name).unlink(missing_ok=True)
                removed += 1
    return removed


def named(error: OSError, path: Path) -> OSError:
    """The same error with ``path`` as its file: libraries that write through a file object lose the name."""
    if error.errno is None:
        return OSError(f"{path}: {error}")
    return OSError(error.errno, error.strerror or os.strerror(error.errno), str(path))


def make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` and its parents; the ones that were missing, so that their entries can be synced too."""
    missing = []
    for candidate in (folder, *folder.parents):
        if candidate.exists():
            break
        missing.append(candidate)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable; a no-op on file systems that cannot sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
