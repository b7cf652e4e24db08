"""Slides copied from a slow share to a local disk before they are read, while earlier ones run.

    STAGE_DIR/slidestream-stage-XXXX/lock       held (flock) by the run that the folder belongs to
    STAGE_DIR/slidestream-stage-XXXX/<number>/  the files of one slide, under their own names

One slide is copied at a time, by a child process: what a dead share holds up is that child, not the run. A copy that fails,
or makes no headway, costs a warning, and the slide is read from where it lies. What a killed run left is found by the lock
that nobody holds any more, and removed by the next run that uses STAGE_DIR.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slides.discover import files

PREFIX = "slidestream-stage-"
_CHUNK = 8 << 20


class StagingError(Exception):
    """The folder for copies cannot be used; one line, why."""


@dataclass(slots=True)
class Copy:
    """One slide's copy: `ready` is where to read it, as soon as that is known."""

    number: int
    source: Path
    names: list[str]
    bytes: int
    ready: Path | None = None
    child: subprocess.Popen[bytes] | None = None
    seen: int = -1
    seen_at: float = 0.0


class Staging:
    """The copies of a run. `place` is asked again and again for each slide in turn; nothing here waits."""

    def __init__(self, folder: Path, limit_bytes: int, patience_s: float, warn: Callable[[str, str], None]):
        """`limit_bytes`: of all copies at a time. `patience_s`: without a byte more, a copy is given up.

        `warn(slide, reason)` is called for a slide that is read from where it lies. StagingError where `folder` cannot be
        written to.
        """
        self._limit = limit_bytes
        self._patience_s = patience_s
        self._warn = warn
        self._copies: dict[int, Copy] = {}
        self._killed: list[subprocess.Popen[bytes]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StagingError(
                f"{folder}: {error.strerror}; name a folder on a local disk that this user may write to"
            ) from error

    def want(self, number: int, path: Path) -> None:
        """This slide is to be read before long; in the order of the calls."""
        if number in self._copies:
            return
        try:
            names = files(path)
            size = sum(os.stat(name).st_size for name in names)
        except (OSError, ValueError):
            names, size = [], 0
        copy = self._copies[number] = Copy(number, path, names, size)
        if not names:
            copy.ready = path  # it will fail as a slide
        elif size > self._limit:
            self._read_in_place(copy, f"its {size / 1e9:.1f} GB are more than slides.stage_gb")

    def place(self, number: int) -> Path | None:
        """Where to read a slide that was wanted: its copy, or itself where that failed. None: not yet."""
        self._advance()
        return self._copies[number].ready

    def release(self, number: int) -> None:
        """The slide is done: its copy is removed."""
        copy = self._copies.pop(number, None)
        if copy is not None:
            self._stop(copy)
            _empty(self._folder / str(number))

    def close(self) -> None:
        """All copies are removed."""
        for number in list(self._copies):
            self.release(number)
        for child in self._killed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)

    def _advance(self) -> None:
        """See to the copy that is being made, or begin the next one if there is room."""
        self._killed = [child for child in self._killed if child.poll() is None]
        held = 0
        for copy in list(self._copies.values()):
            if copy.child is not None:
                self._look(copy)
            if copy.ready is None and copy.child is None:
                if held + copy.bytes <= self._limit:
                    self._begin(copy)
                return
            if copy.ready is None:
                return
            held += copy.bytes if copy.ready != copy.source else 0

    def _begin(self, copy: Copy) -> None:
        target = self._folder / str(copy.number)
        command = [sys.executable, "-m", "pipeline.staging", str(os.getpid()), str(target), *copy.names]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            target.mkdir()
            copy.child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        except OSError as error:
            self._read_in_place(copy, f"it cannot be copied to slides.stage_dir: {error.strerror}")
            return
        copy.seen, copy.seen_at = -1, time.monotonic()

    def _look(self, copy: Copy) -> None:
        target = self._folder / str(copy.number)
        child = copy.child
        if child is None:
            return
        code = child.poll()
        if code == 0:
            self._stop(copy)
            copy.ready = target / copy.source.name
            return
        if code is not None:
            words = child.stderr.read().decode("utf-8", "replace").strip() if child.stderr else ""
            reason = words.splitlines()[-1] if words else f"its copier ended with code {code}"
            self._stop(copy)
            self._read_in_place(copy, f"it cannot be copied to slides.stage_dir: {reason}")
            return
        size, now = _size(target), time.monotonic()
        if size != copy.seen:
            copy.seen, copy.seen_at = size, now
        elif now - copy.seen_at > self._patience_s:
            self._stop(copy)
            self._read_in_place(copy, f"its copy made no headway for {self._patience_s:g} s")

    def _read_in_place(self, copy: Copy, reason: str) -> None:
        copy.ready = copy.source
        _empty(self._folder / str(copy.number))
        self._warn(str(copy.source), f"read from where it lies, as {reason}")

    def _stop(self, copy: Copy) -> None:
        """The child is gone, or will be: one that a dead share holds is not waited for."""
        if copy.child is not None:
            copy.child.kill()
            if copy.child.stderr is not None:
                copy.child.stderr.close()
            if copy.child.poll() is None:
                self._killed.append(copy.child)
            copy.child = None


def sweep(folder: Path) -> None:
    """Remove what runs left that were killed: their folders' locks are free."""
    for left in folder.glob(f"{PREFIX}*"):
        try:
            lock = os.open(left / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # being made, or not ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass  # its run lives
        finally:
            os.close(lock)


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _empty(folder: Path) -> None:
    """Remove a copy. Readers may hold its files open for a while yet: only emptied files give their room back at once."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                os.truncate(os.path.join(parent, name), 0)
    shutil.rmtree(folder, ignore_errors=True)


def copy_files(target: Path, names: list[str]) -> None:
    """Copy the files of a slide, the first of which lies in their common folder. OSError where one cannot be copied."""
    base = os.path.dirname(names[0])
    for name in names:
        to = target / os.path.relpath(name, base)
        to.parent.mkdir(parents=True, exist_ok=True)
        with open(name, "rb") as source, open(to, "wb") as copy:
            size = os.fstat(source.fileno()).st_size
            shutil.copyfileobj(source, copy, _CHUNK)
            if copy.tell() != size:
                raise OSError(None, f"{name} changed while it was copied")


def main(arguments: list[str]) -> int:
    """The child: PARENT TARGET FILE..."""
    from pipeline.worker import die_with_parent

    die_with_parent(int(arguments[0]))
    try:
        copy_files(Path(arguments[1]), arguments[2:])
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
