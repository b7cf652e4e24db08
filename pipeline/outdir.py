"""The output folder as the supervisor holds it: locked for one run, with its private corner swept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import zmq

from pipeline.overrides import ConfigError
from pipeline.rundir import PRIVATE, RunDir
from results.layout import FORMATS, SUMMARY
from results.write import sweep

_PREFIX = "slidestream-"
_RANDOM_BYTES = 8  # with which mkdtemp goes on
_SOCKET_BYTES = zmq.IPC_PATH_MAX_LEN  # of the path of a socket, by the kernel's own limit


class Held(ConfigError):
    """Another run holds the output folder."""


@contextlib.contextmanager
def hold(out: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Make and lock `out`; gives its private folder. ConfigError where it cannot be written or another run holds it.

    `folders`: where results are written, `out` or folders in it; what killed writers left there is swept away.
    """
    private = out / PRIVATE
    try:
        private.mkdir(parents=True, exist_ok=True)
        private.chmod(0o700)
        lock = os.open(private / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror} ({error.filename}); name a folder that this user may write to"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            raise Held(
                f"--out {out}: another run holds it (process {holder}); wait for it, or name another folder"
            ) from None
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            sweep_last_run(private)
            _check(out, folders)
            _sweep(folders)
        except OSError as error:
            raise ConfigError(f"--out {out}: {error.strerror}; free some space, or name another folder") from error
        yield private
        with contextlib.suppress(OSError):
            _sweep(folders)  # what writers left that were killed and replaced
    finally:
        os.close(lock)


@contextlib.contextmanager
def run_directory(private: Path) -> Iterator[RunDir]:
    """The run's own directory, mode 0700, on a short path (a socket's path has at most 107 bytes); removed at the end.

    Also where this process is killed: a shell that does nothing else waits for that, as the workers die with their parent,
    stopped ones too, and can no longer clean up. ConfigError where the temporary folder does not serve.
    """
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_temporary()))
    sweeper = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; exec rm -rf -- "$1"', "sh", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C on the terminal is not for it
    )
    try:
        (private / "run").write_text(f"{path}\n")
        yield RunDir(path)
    finally:
        sweeper.communicate()
        shutil.rmtree(path, ignore_errors=True)
        (private / "run").unlink(missing_ok=True)


def unwritable(path: Path) -> tuple[Path, str]:
    """The folder, or the nearest above it that is there, and why nothing can be made in it; "" where it can. Changes nothing."""
    folder = next((place for place in (path.absolute(), *path.absolute().parents) if place.exists()), Path("/"))
    if not folder.is_dir():
        return folder, "is not a folder"
    return folder, "" if os.access(folder, os.W_OK | os.X_OK) else "cannot be written to by this user"


def _check(out: Path, folders: Sequence[Path]) -> None:
    """ConfigError where something lies in the way of the results: otherwise, each slide would fail when all its work is done."""
    names = {name for name, _ in (SUMMARY, *FORMATS.values())}
    for place in (*folders, *(folder / name for folder in folders for name in sorted(names))):
        if os.path.lexists(place) and not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            why = "cannot be written to" if place.is_dir() else "is no folder"
            raise ConfigError(f"--out {out}: {place} {why}; move it away, or name another folder")


def _temporary() -> str:
    """The system's folder for what is temporary; ConfigError where sockets in it would have too long a path."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigError(f"TMPDIR: {error.strerror}; set it to a folder that this user may write to") from error
    longest = RunDir(Path(folder, _PREFIX + "x" * _RANDOM_BYTES)).control_path
    if (excess := len(os.fsencode(longest)) - _SOCKET_BYTES) > 0:
        most = len(os.fsencode(folder)) - excess
        raise ConfigError(
            f"TMPDIR={folder}: too long for the sockets in it ({most} bytes at most); set a shorter one, such as TMPDIR=/tmp"
        )
    return folder


def _sweep(folders: Sequence[Path]) -> None:
    for folder in folders:
        sweep(folder)


def sweep_last_run(private: Path) -> None:
    """Remove what a run left that was killed together with all its processes. Its lock is ours now, so it is dead."""
    try:
        left = Path((private / "run").read_text().strip())
    except OSError:
        return
    ours = left.name.startswith(_PREFIX) and left.parent == Path(tempfile.gettempdir())
    if ours and left.is_dir() and left.stat().st_uid == os.getuid():
        shutil.rmtree(left, ignore_errors=True)
    (private / "run").unlink(missing_ok=True)
