"""A watched folder: looked into by a thread of its own, so that a share that hangs stops nobody else.

inotify (https://man7.org/linux/man-pages/man7/inotify.7.html) says when to look at once, where the file system knows of all
changes: on local disks, also where Samba or an NFS server of this machine writes to them. On network shares it knows only of
our own, so there the pause between looks decides. What a look finds is the same either way.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from inotify_simple import INotify, flags

from pipeline.service.config import WatchFolder
from pipeline.service.scan import FolderGone, Look, Scanner

# Where inotify tells of nothing that other machines do, or of nothing at all.
_REMOTE = frozenset(
    (
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
        "ocfs2", "virtiofs", "vboxsf", "vmhgfs", "davfs", "beegfs", "orangefs", "pvfs2",
    )
)  # fmt: skip

_MASK = (
    flags.CREATE | flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE | flags.DELETE_SELF
    | flags.MOVE_SELF | flags.ONLYDIR
)  # fmt: skip

# With inotify, a look all the same after so many pauses: for what it may have missed.
QUIET_POLLS = 12
# Events come in bursts; between two looks there is at least this pause.
COALESCE_S = 0.2
# One kernel watch a folder; beyond this only polls.
WATCHES_MAX = 8192


@dataclass(frozen=True, slots=True)
class Report:
    """One look: `look`, or why the folder is gone. `at` is the monotonic time when it began."""

    at: float
    look: Look | None
    gone: str = ""


class Watched:
    """One folder under watch. All methods are for the thread of the service; none of them waits."""

    def __init__(self, config: WatchFolder, held_before: bool = False) -> None:
        """See `Scanner` for `held_before`."""
        self.config = config
        self.scanner = Scanner(config, held_before)
        self.restless = True
        """Set by the service while slides of the folder are not settled: it is then looked at after every pause."""
        self._report: Report | None = None
        self._busy_since: float | None = None
        self._lock = threading.Lock()
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._notify = _open_notify(config)
        # A thread that hangs in the kernel must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"watch {config.path}", daemon=True)
        self._thread.start()

    @property
    def notified(self) -> bool:
        """Whether inotify is used."""
        return self._notify is not None

    def take(self) -> Report | None:
        """The latest look, once; None where there has been none since."""
        with self._lock:
            report, self._report = self._report, None
            return report

    def silent_s(self, now: float) -> float:
        """For how long the look under way has taken, in seconds; 0 where none is. Far too long: the share hangs."""
        since = self._busy_since
        return 0.0 if since is None else max(0.0, now - since)

    def close(self) -> None:
        """End the thread, if it can be."""
        with contextlib.suppress(OSError):
            os.write(self._stop_write, b"x")
        self._thread.join(1.0)
        if not self._thread.is_alive():  # else it still uses them
            for descriptor in (self._stop_read, self._stop_write):
                os.close(descriptor)
            if self._notify is not None:
                self._notify.close()

    def _work(self) -> None:
        watches: set[bytes] = set()
        while True:
            began = self._busy_since = time.monotonic()
            try:
                report = Report(began, self.scanner.look())
            except FolderGone as error:
                report = Report(began, None, str(error))
                watches.clear()  # a new mount has none of them
            if report.look is not None and self._notify is not None and self._add_watches(report.look, watches):
                continue  # what came into a new folder before it was watched
            self._busy_since = None
            with self._lock:
                self._report = report
            if self._wait(began, time.monotonic() - began):
                return

    def _add_watches(self, look: Look, watches: set[bytes]) -> bool:
        """Watch the folders that were searched; whether there were new ones."""
        before = set(watches)
        watches.clear()
        for folder in look.folders[:WATCHES_MAX]:
            with contextlib.suppress(OSError):  # gone meanwhile, or the kernel's limit: polls find it
                # Also where there is one: a folder that was removed and made again has lost it. Costs a system call.
                self._notify.add_watch(folder, _MASK)
                watches.add(folder)
        return bool(watches - before)

    def _wait(self, began: float, took_s: float) -> bool:
        """Wait until it is time for the next look, after one that took `took_s`; True to end."""
        poller = select.poll()
        poller.register(self._stop_read, select.POLLIN)
        if self._notify is not None:
            poller.register(self._notify.fileno(), select.POLLIN)
        pause = self.config.poll_s
        while True:
            # `restless` may change while we wait: it is asked for again after each short pause.
            quiet = self._notify is not None and not self.restless
            until = began + pause * (QUIET_POLLS if quiet else 1)
            left = until - time.monotonic()
            if left <= 0:
                return False
            ready = {descriptor for descriptor, _ in poller.poll(1000 * min(left, max(pause, 0.05)))}
            if self._stop_read in ready:
                return True
            if self._notify is not None and self._notify.fileno() in ready:
                time.sleep(min(pause, max(COALESCE_S, 5 * took_s)))
                list(self._notify.read(timeout=0))
                return False


def _open_notify(config: WatchFolder) -> INotify | None:
    if config.notify == "never" or file_system(config.path) in _REMOTE or file_system(config.path).startswith("fuse"):
        return None
    try:
        return INotify(nonblocking=True)
    except OSError:  # the kernel's limit of instances a user
        return None


def file_system(path: str) -> str:
    """The type of the file system that a path lies on, such as ext4 or nfs4; "unknown" where that cannot be told.

    From /proc/self/mountinfo (https://man7.org/linux/man-pages/man5/proc.5.html): asking the path itself may hang.
    """
    best, kind = "", "unknown"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return kind
    for line in lines:
        fields, _, after = line.partition(" - ")
        words = fields.split(" ")
        if len(words) < 5 or not after:
            continue
        point = words[4].encode("utf-8", "surrogateescape").decode("unicode_escape", "replace")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind
