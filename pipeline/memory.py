"""The shared memory of a run: one sealed memfd with places for overviews and for batches of patches.

It has no name, so nothing can leak or collide: it is handed down to the workers as a file descriptor, and is gone with
the last process. Every page is allocated before use, so that a lack of memory is an error at the start and not a SIGBUS
in the middle.

    ┌ overview 0 ┬ overview 1 ┬ ... ┬ slot 0 ┬ slot 1 ┬ ... ┐      each begins on a page
    slot: uint8 [batch][patch_px][patch_px][3]     overview: uint8 [height][width][3], at most overview_px squared
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from pipeline.machine import available_memory, detect

PAGE_BYTES = 4096
MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap module does not name it


class MemoryLack(Exception):
    """The machine does not have the shared memory that the configuration asks for."""


def _pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """How the shared memory is divided: rows per slot, patch and overview sides in pixels."""

    slots: int
    batch: int
    patch_px: int
    overview_slots: int
    overview_px: int

    @property
    def overview_bytes(self) -> int:
        return _pages(self.overview_px * self.overview_px * 3)

    @property
    def slot_bytes(self) -> int:
        return _pages(self.batch * self.patch_px * self.patch_px * 3)

    @property
    def total_bytes(self) -> int:
        return self.overview_slots * self.overview_bytes + self.slots * self.slot_bytes

    def slot_offset(self, slot: int) -> int:
        return self.overview_slots * self.overview_bytes + slot * self.slot_bytes

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def create(layout: Layout) -> int:
    """Allocate and seal; the file descriptor. MemoryLack where there is not enough."""
    _check(layout)
    fd = os.memfd_create("slidestream", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, layout.total_bytes)
    except OSError as error:
        os.close(fd)
        raise _lack(layout, os.strerror(error.errno)) from error
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _check(layout: Layout) -> None:
    """MemoryLack where it cannot be had: the kernel would rather kill a process, perhaps this one, than refuse it."""
    free = available_memory() or detect().memory_bytes
    if layout.total_bytes > free:
        raise _lack(layout, f"{free >> 20} MiB are free")


def _lack(layout: Layout, why: str) -> MemoryLack:
    return MemoryLack(
        f"batcher.slots={layout.slots} of batcher.batch={layout.batch} need {layout.total_bytes >> 20} MiB of shared "
        f"memory ({why}); lower one of them"
    )


class SharedSlots:
    """One process's mapping of the shared memory. Views into it are only valid while this object lives."""

    def __init__(self, fd: int, layout: Layout):
        """Map all of it; ValueError where `fd` is not of that size."""
        size = os.fstat(fd).st_size
        if size != layout.total_bytes:
            raise ValueError(f"the shared memory has {size} bytes, the layout {layout.total_bytes}")
        self.layout = layout
        self._map = mmap.mmap(fd, size)
        self.bytes = np.frombuffer(self._map, np.uint8)
        self._at_hand: set[int] = set()

    def bring(self, slot: int) -> None:
        """Have the pages of a slot in this process's tables before it is filled, all in one go, the first time only.

        One by one, as they are first written to, they cost five times as much: with each of 16 readers and 80 slots, a
        tenth of the processor time of 100,000 patches.
        """
        if slot not in self._at_hand:
            self._at_hand.add(slot)
            try:
                self._map.madvise(MADV_POPULATE_READ, self.layout.slot_offset(slot), self.layout.slot_bytes)
            except OSError:
                pass  # an older kernel: page by page, then

    def patches(self, slot: int, count: int) -> npt.NDArray[np.uint8]:
        """Rows 0..count-1 of a slot: a view, uint8 (count, P, P, 3)."""
        layout = self.layout
        if not (0 <= slot < layout.slots and 0 <= count <= layout.batch):
            raise ValueError(f"slot {slot} with {count} rows is outside of {layout.slots} slots of {layout.batch} rows")
        start = layout.slot_offset(slot)
        shape = (count, layout.patch_px, layout.patch_px, 3)
        return self.bytes[start : start + int(np.prod(shape))].reshape(shape)

    def overview(self, slot: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """An overview: a view, uint8 (height, width, 3)."""
        layout = self.layout
        size = width * height * 3
        if not (0 <= slot < layout.overview_slots and 0 < size <= layout.overview_bytes):
            raise ValueError(f"an overview of {width} x {height} does not fit overview place {slot}")
        start = slot * layout.overview_bytes
        return self.bytes[start : start + size].reshape(height, width, 3)
