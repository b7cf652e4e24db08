"""When has a scanner finished a slide? Decided from what is seen of it, look after look. Pure: no clock, no files.

    settle = Settle()
    for change in settle.look(now, [Seen(b"a.svs", ...), ...]):
        ...
    settle.refused(b"a.svs", retry_at)      # the format says that something is missing: look again later

A slide is at rest when it has been seen at least three times, unchanged over its settle time. `now` is a monotonic time of
ours: the clock of the share, which stamps the files, is never compared with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

# First seen, and twice more the same: one look that was delayed (a share that hung) proves nothing.
LOOKS = 3


@dataclass(frozen=True, slots=True)
class Seen:
    """A slide as one look found it. `stamp` changes when any of its files does; `size` is of all of them, in bytes.

    `identity` tells its main file through renames (device and inode), or is None where the file system has nothing of
    the kind. `settle_s` is how long it must be at rest.
    """

    path: bytes
    stamp: str
    size: int
    identity: tuple[int, int] | None
    settle_s: float


class What(StrEnum):
    """NEW and GROWING: not finished yet. READY: at rest, to be taken. RENAMED: the same slide, `old` was its name.
    GONE: not there any more."""

    NEW = "new"
    GROWING = "growing"
    READY = "ready"
    RENAMED = "renamed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Change:
    """What a look found out about one slide. `rested` is since when it has not changed."""

    what: What
    path: bytes
    seen: Seen
    rested: float
    old: bytes = b""


@dataclass(slots=True)
class _Entry:
    seen: Seen
    rested: float
    looks: int = 1
    taken: bool = False
    not_before: float = field(default=float("-inf"))


class Settle:
    """The slides of one folder and how they stand. `known` are stamps by path of what was taken before the start."""

    def __init__(self, known: dict[bytes, str] | None = None) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._known = dict(known or {})

    def look(self, now: float, found: Iterable[Seen], unsure: Collection[bytes] = ()) -> list[Change]:
        """One look at everything in the folder; what has changed since the last. Renames come first, then by path.

        `unsure` are folders (paths ending in /) that could not be searched: what lies in them is neither gone nor at rest.
        READY is said once for a slide as it is; after a change, or when `refused` says so, again.
        """
        there = {seen.path: seen for seen in found}
        lost = [path for path in self._entries if path not in there and not _within(path, unsure)]
        changes = self._renames(now, there, lost)
        for path in lost:
            if path in self._entries:
                entry = self._entries.pop(path)
                changes.append(Change(What.GONE, path, entry.seen, entry.rested))
        changes += self._missed(now, there, unsure)
        for path in sorted(there):
            change = self._one(now, there[path])
            if change is not None:
                changes.append(change)
        return changes

    def _renames(self, now: float, there: dict[bytes, Seen], lost: list[bytes]) -> list[Change]:
        new: dict[tuple[int, int], list[Seen]] = {}
        for path, seen in there.items():
            if seen.identity is not None and path not in self._entries:
                new.setdefault(seen.identity, []).append(seen)
        old: dict[tuple[int, int], list[bytes]] = {}
        for path in lost:
            identity = self._entries[path].seen.identity
            if identity is not None:
                old.setdefault(identity, []).append(path)
        changes = []
        for identity, paths in sorted(old.items()):
            candidates = new.get(identity, [])
            if len(paths) != 1 or len(candidates) != 1:
                continue  # hard links, or a file system that gives an inode twice
            entry = self._entries[paths[0]]
            seen = candidates[0]
            if (seen.stamp, seen.size) != (entry.seen.stamp, entry.seen.size):
                continue  # the inode may have been given to another file
            self._entries[seen.path] = self._entries.pop(paths[0])
            entry.seen = seen
            changes.append(Change(What.RENAMED, seen.path, seen, entry.rested, paths[0]))
        return changes

    def _missed(self, now: float, there: dict[bytes, Seen], unsure: Collection[bytes]) -> list[Change]:
        """What was taken before the start and is gone since."""
        missed = [path for path in self._known if path not in there and not _within(path, unsure)]
        return [
            Change(What.GONE, path, Seen(path, self._known.pop(path), 0, None, 0.0), now) for path in sorted(missed)
        ]

    def _one(self, now: float, seen: Seen) -> Change | None:
        entry = self._entries.get(seen.path)
        if entry is None:
            taken = self._known.pop(seen.path, None) == seen.stamp
            self._entries[seen.path] = _Entry(seen, now, taken=taken)
            return None if taken else Change(What.NEW, seen.path, seen, now)
        if seen.stamp != entry.seen.stamp:
            self._entries[seen.path] = _Entry(seen, now)
            return Change(What.GROWING, seen.path, seen, now)
        entry.seen = seen
        entry.looks += 1
        at_rest = entry.looks >= LOOKS and now - entry.rested >= seen.settle_s
        if entry.taken or not at_rest or now < entry.not_before or seen.size == 0:
            return None
        entry.taken = True
        return Change(What.READY, seen.path, seen, entry.rested)

    def refused(self, path: bytes, stamp: str, retry_at: float) -> None:
        """A slide that was READY with this stamp is not whole: it is READY again at `retry_at`, or after a change."""
        entry = self._entries.get(path)
        if entry is not None and entry.seen.stamp == stamp:
            entry.taken = False
            entry.not_before = retry_at

    def interrupted(self, now: float) -> None:
        """The folder was gone: what was at rest before proves nothing now."""
        for entry in self._entries.values():
            if not entry.taken:
                entry.rested, entry.looks = now, 1

    @property
    def unsettled(self) -> int:
        """Slides that are not taken: while there are any, the folder is worth looking at often."""
        return sum(1 for entry in self._entries.values() if not entry.taken)

    def seen(self, path: bytes) -> Seen | None:
        """A slide as it was seen last, or None."""
        entry = self._entries.get(path)
        return None if entry is None else entry.seen

    def stamp(self, path: bytes) -> str | None:
        """Its stamp, or None where it is not there."""
        entry = self._entries.get(path)
        return None if entry is None else entry.seen.stamp


def _within(path: bytes, folders: Collection[bytes]) -> bool:
    return any(path.startswith(folder) for folder in folders)
