"""The journal of a slide: what is known of each of its patches, on disk before anyone is told so.

    <folder>/journal       "SSJ1\\n", then frames: u32 length, u32 CRC-32 of the body (little-endian), body in msgpack
        first frame        the header: {"id", "path", "key", "classes", "info", "geometry", "tissue", "plan"}
        every other        [patches int32, probabilities float32, [[patch, reason], ...]] or ["retry"]
    <folder>/overview.npy, <folder>/mask.png: see results.pictures

It is only ever appended to. A torn end (a kill or a power cut in mid-write) is cut off when it is opened again; what
had been acknowledged lies before it. The first outcome of a patch stands, so a repeated record does no harm.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from results.atomic import sync_folder

MAGIC = b"SSJ1\n"
PENDING, INFERRED, FAILED = 0, 1, 2
_HEAD = struct.Struct("<II")
_RETRY = "retry"


class JournalError(Exception):
    """The file is no journal, or not one that fits."""


class Patches:
    """The state of `n` patches: `states` uint8 (n,), `probabilities` float32 (n, classes), `reasons` by patch."""

    def __init__(self, n: int, classes: int):
        self.states = np.zeros(n, np.uint8)
        self.probabilities = np.full((n, classes), np.nan, np.float32)
        self.reasons: dict[int, str] = {}

    def apply(self, patches: np.ndarray, probabilities: np.ndarray, failures: list) -> bool:
        """Take in one record; whether it said anything new. JournalError where it names patches that are not planned."""
        n = len(self.states)
        named = [int(patch) for patch, _ in failures]
        if len(patches) and not (0 <= patches.min() and patches.max() < n) or any(not 0 <= p < n for p in named):
            raise JournalError(f"a record names patches beyond the {n} that are planned")
        new = self.states[patches] == PENDING
        self.states[patches[new]] = INFERRED
        self.probabilities[patches[new]] = probabilities[new]
        fresh = False
        for patch, (_, reason) in zip(named, failures, strict=True):
            if self.states[patch] == PENDING:
                self.states[patch] = FAILED
                self.reasons[patch] = reason
                fresh = True
        return bool(new.any()) or fresh

    @property
    def failed(self) -> np.ndarray:
        """bool (n,): patches that failed, or to which one of several models gave no numbers (results.columns)."""
        silent = (self.states == INFERRED) & ~np.isfinite(self.probabilities).all(axis=1)
        return (self.states == FAILED) | silent

    def retry(self) -> None:
        """Failures are void: their patches are pending again."""
        self.states[self.failed] = PENDING
        self.reasons.clear()


def _frame(body: Any) -> bytes:
    data = msgpack.packb(body, use_bin_type=True, unicode_errors="surrogateescape")
    return _HEAD.pack(len(data), zlib.crc32(data)) + data


def _frames(data: bytes) -> Iterator[tuple[Any, int]]:
    """Whole frames and the offset behind each; stops at the first that is torn or damaged."""
    at = len(MAGIC)
    if data[:at] != MAGIC:
        return
    while at + _HEAD.size <= len(data):
        size, check = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + size]
        if len(body) < size or zlib.crc32(body) != check:
            return
        at += _HEAD.size + size
        yield msgpack.unpackb(body, raw=False, strict_map_key=False, unicode_errors="surrogateescape"), at


def read(folder: Path) -> tuple[dict, Patches, int] | None:
    """Header, patches and length of the sound part of the journal in `folder`; None where there is no sound header."""
    try:
        data = (folder / "journal").read_bytes()
    except FileNotFoundError:
        return None
    frames = _frames(data)
    try:
        header, end = next(frames)
    except StopIteration:
        return None
    patches = Patches(planned(header), header["classes"])
    for record, after in frames:
        if record[0] == _RETRY:
            patches.retry()
        else:
            patches.apply(*_arrays(*record, header["classes"]))
        end = after
    return header, patches, end


class Follower:
    """The journal in a folder as another process appends to it: `header`, `patches`, and in which order they changed.

    `changed` int32: indices of patches, one for each change of a state, from the beginning of the file on; the same file
    gives the same list to whoever reads it.
    """

    def __init__(self, folder: Path) -> None:
        """FileNotFoundError where there is no sound header; JournalError where a record does not fit; OSError."""
        self._path = folder / "journal"
        self._start = b""
        self._end = 0
        self._changes: list[np.ndarray] = []
        self.patches = Patches(0, 0)
        self.header: dict = {}
        if not self.advance() or not self.header:
            raise FileNotFoundError(2, "has no sound header", str(self._path))

    @property
    def changed(self) -> np.ndarray:
        if len(self._changes) != 1:
            self._changes = [np.concatenate(self._changes) if self._changes else np.zeros(0, np.int32)]
        return self._changes[0]

    def advance(self) -> bool:
        """Take in what has come since; False where it is another journal than the one that was followed."""
        with open(self._path, "rb") as file:
            start = file.read(len(MAGIC) + _HEAD.size)  # has the check of the header in it
            if self.header:
                if start != self._start or os.fstat(file.fileno()).st_size < self._end:
                    return False
                file.seek(self._end)
            else:
                self._start = start
                file.seek(len(MAGIC))
            data = file.read()
        if not self.header:
            self._end = len(MAGIC)
        begin = self._end - len(MAGIC)
        for record, after in _frames(start[: len(MAGIC)] + data):
            if self.header:
                self._take(record)
            else:
                self.header, self.patches = record, Patches(planned(record), record["classes"])
            self._end = begin + after
        return True

    def _take(self, record: list) -> None:
        states = self.patches.states
        if record[0] == _RETRY:
            named = np.flatnonzero(self.patches.failed)
            before = states[named]
            self.patches.retry()
        else:
            arrays = _arrays(*record, self.header["classes"])
            failures = np.array([patch for patch, _ in arrays[2]], np.int64)
            named = np.unique(np.concatenate([arrays[0].astype(np.int64), failures]))
            inside = named[(named >= 0) & (named < len(states))]
            before = states[inside]
            self.patches.apply(*arrays)
        self._changes.append(named[states[named] != before].astype(np.int32))


def inferred_before(folder: Path, key: dict) -> int:
    """How many patches the journal in `folder` has inferred (by all models), if there is one of this key."""
    found = read(folder)
    if found is None or found[0]["key"] != key:
        return 0
    return int(np.count_nonzero((found[1].states == INFERRED) & ~found[1].failed))


def _arrays(patches: bytes, probabilities: bytes, failures: list, classes: int) -> tuple[np.ndarray, np.ndarray, list]:
    indices = np.frombuffer(patches, "<i4")
    values = np.frombuffer(probabilities, "<f4")
    if len(values) != len(indices) * classes:
        raise JournalError(f"a record has {len(values)} probabilities for {len(indices)} patches of {classes} classes")
    return indices, values.reshape(len(indices), classes), failures


def planned(header: dict) -> int:
    """How many patches the header's plan has."""
    from slides.plan import Plan

    return len(Plan.from_bytes(header["plan"]).columns)


class Journal:
    """The journal of one slide, open for appending. One process at a time may have it open."""

    def __init__(self, folder: Path, header: dict, patches: Patches, end: int | None):
        """Use `open_or_none` or `create`. `end`: where to go on; None for a new file."""
        self.folder = folder
        self.header = header
        self.patches = patches
        self._fd = os.open(folder / "journal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._buffer = bytearray()
        self._end = end or 0
        os.ftruncate(self._fd, self._end)
        os.lseek(self._fd, self._end, os.SEEK_SET)
        if end is None:
            self._buffer += MAGIC + _frame(header)

    @classmethod
    def open_or_none(cls, folder: Path, key: dict) -> Journal | None:
        """The journal in `folder` if it is of this key (slide content, model, configuration)."""
        found = read(folder)
        if found is None or found[0]["key"] != key:
            return None
        return cls(folder, *found)

    @classmethod
    def create(cls, folder: Path, header: dict) -> Journal:
        """Start anew; an older journal there is lost. Not on disk before `flush`."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, header, Patches(planned(header), header["classes"]), None)

    def append(self, patches: bytes, probabilities: bytes, failures: list) -> None:
        """Take in a record and queue it for the disk. JournalError where it does not fit the plan."""
        if self.patches.apply(*_arrays(patches, probabilities, failures, self.header["classes"])):
            self._buffer += _frame([patches, probabilities, failures])

    def retry(self) -> None:
        """Void all failures, so that their patches are tried again."""
        if self.patches.failed.any():
            self.patches.retry()
            self._buffer += _frame([_RETRY])

    def flush(self) -> None:
        """Write what is queued and wait until it is on disk. After an OSError the file is as before."""
        if not self._buffer:
            return
        first = self._end == 0
        try:
            view = memoryview(bytes(self._buffer))
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            os.lseek(self._fd, self._end, os.SEEK_SET)
            raise OSError(error.errno, error.strerror, str(self.folder / "journal")) from error
        self._end += len(self._buffer)
        self._buffer.clear()
        if first:
            sync_folder(self.folder)

    def close(self) -> None:
        os.close(self._fd)
