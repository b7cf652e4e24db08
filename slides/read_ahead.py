"""Bytes of tiles before they are wanted: read together where they lie together, and several reads at a time.

A disk or a network share has latency, which one read after the other pays in full each time. Here a few threads are
at `os.pread`, which lets go of the interpreter, while tiles that are here already are being decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

# Tiles that lie together are read together, over gaps of at most so many bytes, and in pieces of about so many.
GAP_BYTES = 4096
_PIECE_BYTES = 1 << 20
# So many bytes are held of a file. Where that is not enough for all that is asked for, the rest waits for the next time.
LIMIT_BYTES = 8 << 20
# What nobody has come for after this time was asked for in vain, and makes room.
_STALE_S = 10.0

_POOLS: dict[int, ThreadPoolExecutor] = {}


@dataclass(frozen=True, slots=True)
class Span:
    """A tile that is wanted: its name, and where its bytes are."""

    key: Hashable
    offset: int
    count: int


@dataclass(slots=True)
class _Coming:
    """A tile that is being read, with others, from `begin` on."""

    data: Future[bytes]
    begin: int
    span: Span
    since: float


def groups(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in the order of the file, those together that are best read in one go."""
    together: list[list[Span]] = []
    end = 0
    for span in sorted(spans, key=lambda span: span.offset):
        near = bool(together) and span.offset - end <= GAP_BYTES
        if near and span.offset + span.count - together[-1][0].offset <= _PIECE_BYTES:
            together[-1].append(span)
        else:
            together.append([span])
            end = 0
        end = max(end, span.offset + span.count)
    return together


class ReadAhead:
    """Reads of one file that are under way. For one thread; `read(offset, count)` is called by several others."""

    def __init__(self, read: Callable[[int, int], bytes], threads: int) -> None:
        self._read = read
        if threads not in _POOLS:
            _POOLS[threads] = ThreadPoolExecutor(threads, "pread")
        self._pool = _POOLS[threads]
        self._coming: dict[Hashable, _Coming] = {}
        self._bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._coming

    @property
    def bytes(self) -> int:
        """Held or on the way."""
        return self._bytes

    def want(self, spans: Iterable[Span]) -> None:
        """Start to read what is not on the way already, as far as there is room."""
        now = time.monotonic()
        fresh: list[Span] = []
        for span in spans:
            if span.key in self._coming or not span.count:
                continue
            if self._bytes + span.count > LIMIT_BYTES:
                self._forget_stale(now)
                if self._bytes + span.count > LIMIT_BYTES:
                    break
            self._bytes += span.count
            fresh.append(span)
        for group in groups(fresh):
            begin = group[0].offset
            end = max(span.offset + span.count for span in group)
            data = self._pool.submit(self._read, begin, end - begin)
            for span in group:
                self._coming[span.key] = _Coming(data, begin, span, now)

    def take(self, key: Hashable) -> bytes | None:
        """The bytes of a tile, when they have come; None where they were not asked for, or did not come in full."""
        coming = self._coming.pop(key, None)
        if coming is None:
            return None
        self._bytes -= coming.span.count
        try:
            data = coming.data.result()
        except OSError:
            return None  # it is tried again by itself, and that error is told
        start = coming.span.offset - coming.begin
        part = data[start : start + coming.span.count]
        return part if len(part) == coming.span.count else None

    def close(self) -> None:
        """Forget everything. Reads that have begun are waited for, as the file is about to be closed."""
        coming, self._coming, self._bytes = self._coming, {}, 0
        for one in coming.values():
            one.data.cancel()
        for one in coming.values():
            if not one.data.cancelled():
                one.data.exception()

    def _forget_stale(self, now: float) -> None:
        for key, coming in list(self._coming.items()):
            if now - coming.since > _STALE_S:
                del self._coming[key]
                self._bytes -= coming.span.count
