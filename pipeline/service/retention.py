"""Removing results: by age, or while room is short; and journals that nobody will go on with. Off but for the latter."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.rundir import PRIVATE, work_folder
from results import atomic
from results.layout import FORMATS, output_path


def remove_results(folders: Sequence[Path], name: str) -> None:
    """Remove the files of a slide's results from the results folder of each model, the summary first: what is left by a
    crash is no result. Folders that are empty then go too. OSError."""
    for folder in folders:
        for kind in ("summary", *FORMATS):
            path = folder / output_path(name, kind)
            atomic.remove(path)
            with contextlib.suppress(OSError):  # of a slide in a folder: not empty yet, or gone
                for parent in [path.parents[i] for i in range(name.count("/"))]:
                    parent.rmdir()


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder. OSError."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def remove_journals(out: Path, keep: Collection[str], older_than_s: float) -> int:
    """Remove the journals of slides other than `keep` (names) that nothing was written to for so long; how many."""
    private = out / PRIVATE
    kept = {work_folder(private, name).name for name in keep}
    removed = 0
    before = time.time() - older_than_s
    with contextlib.suppress(FileNotFoundError), os.scandir(private / "work") as entries:
        for entry in entries:
            if entry.name not in kept and _newest(Path(entry.path)) < before:
                shutil.rmtree(entry.path, ignore_errors=True)
                removed += 1
    return removed


def _newest(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return max([folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.iterdir())])
    return float("inf")
