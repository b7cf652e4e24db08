"""pipeline.memory: the shared slots as a process sees them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.memory import PAGE_BYTES, Layout, MemoryLack, SharedSlots, create

LAYOUT = Layout(slots=3, batch=64, patch_px=224, overview_slots=1, overview_px=256)


@pytest.fixture
def fd() -> Iterator[int]:
    made = create(LAYOUT)
    yield made
    os.close(made)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_what_one_process_writes_another_mapping_reads(fd: int):
    written, read = SharedSlots(fd, LAYOUT), SharedSlots(fd, LAYOUT)
    written.patches(1, 64)[63] = 7
    written.overview(0, 20, 10)[:] = 9
    assert (read.patches(1, 64)[63] == 7).all() and (read.overview(0, 20, 10) == 9).all()
    assert not read.patches(0, 64).any() and not read.patches(2, 64).any()


def test_a_slot_that_was_brought_is_filled_without_a_fault_for_each_page(fd: int):
    """Slot 1 is brought, slot 2 is not: the pages of both have been written by another mapping, as in a run."""
    other, slots = SharedSlots(fd, LAYOUT), SharedSlots(fd, LAYOUT)
    for slot in (1, 2):
        other.patches(slot, 64)[:] = slot
    slots.bring(1)
    pages = LAYOUT.slot_bytes // PAGE_BYTES
    before = faults()
    slots.patches(1, 64)[:] = 5
    brought = faults() - before
    slots.patches(2, 64)[:] = 6
    untouched = faults() - before - brought
    if untouched < pages // 2:
        pytest.skip("this kernel maps shared memory in large pages")
    assert brought < pages // 10
    assert (other.patches(1, 64) == 5).all()


def test_bringing_changes_no_pixel(fd: int):
    slots = SharedSlots(fd, LAYOUT)
    slots.patches(0, 64)[:] = np.arange(64, dtype=np.uint8)[:, None, None, None]
    slots.bring(0)
    slots.bring(0)
    assert (slots.patches(0, 64)[:, 5, 5, 1] == np.arange(64)).all()


@pytest.mark.parametrize(("slot", "count"), [(3, 1), (-1, 1), (0, 65)])
def test_nothing_outside_of_the_slots(fd: int, slot: int, count: int):
    with pytest.raises(ValueError, match="outside of 3 slots of 64 rows"):
        SharedSlots(fd, LAYOUT).patches(slot, count)


def test_another_size_is_refused(fd: int):
    with pytest.raises(ValueError, match="the shared memory has"):
        SharedSlots(fd, Layout(4, 64, 224, 1, 256))


def test_more_than_the_machine_has_is_refused_before_it_is_taken():
    """The kernel grants it page by page, and then ends a process: this one, or another."""
    with pytest.raises(MemoryLack, match="batcher.slots=1000000 of batcher.batch=64 need .* are free.*lower one of them"):
        create(Layout(1_000_000, 64, 224, 1, 256))
