from __future__ import annotations

import time
import zlib
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slides.geometry import Geometry, SlideInfo, geometry
from slides.plan import BLOCK, Plan, plan, read_order, tissue_fractions


def slide(width: int, height: int, mpp: float = 1.0, mpp_y: float | None = None) -> SlideInfo:
    return SlideInfo("a.svs", "aperio", width, height, ((width, height),), (1.0,), mpp, mpp_y or mpp, "slide")


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, SlideInfo, Geometry]:
    """A slide of up to 200 pixels a side, so that fractions can be counted pixel by pixel, and a random mask."""
    info = slide(draw(st.integers(1, 200)), draw(st.integers(1, 200)), mpp_y=draw(st.sampled_from([0.5, 1.0, 1.7])))
    grid = geometry(info, draw(st.integers(1, 70)), 1.0, draw(st.sampled_from([0.0, 0.3, 0.5, 0.9])))
    shape = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    mask = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < draw(st.sampled_from([0.02, 0.5, 1.1]))
    return mask, info, grid


def coverage(size: int, cells: int, begin: int, length: int) -> np.ndarray:
    """How much of each mask cell's extent on the slide lies within [begin, begin + length)."""
    edges = np.arange(cells + 1) * size / cells
    return np.clip(np.minimum(edges[1:], begin + length) - np.maximum(edges[:-1], begin), 0, None)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_fractions_are_exact(case: tuple[np.ndarray, SlideInfo, Geometry]) -> None:
    """Each is the mask's area under the patch over the patch's area, cut mask pixels by their part."""
    mask, info, grid = case
    fractions = tissue_fractions(mask, info, grid)
    assert fractions.shape == (grid.rows, grid.columns)
    for row in {0, grid.rows // 2, grid.rows - 1}:
        for column in {0, grid.columns // 2, grid.columns - 1}:
            x = coverage(info.width, mask.shape[1], column * grid.step_x, grid.patch_width)
            y = coverage(info.height, mask.shape[0], row * grid.step_y, grid.patch_height)
            area = y @ mask @ x / (grid.patch_width * grid.patch_height)
            assert fractions[row, column] == pytest.approx(area, abs=1.1e-6)


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(0, 1))
def test_planned_are_those_with_enough_tissue(case: tuple[np.ndarray, SlideInfo, Geometry], minimum: float) -> None:
    """Each patch of the grid once or not at all, with its fraction, by the threshold."""
    mask, info, grid = case
    fractions = tissue_fractions(mask, info, grid)
    done = plan(mask, info, grid, minimum)
    assert (done.columns.dtype, done.rows.dtype, done.fraction.dtype) == (np.int32, np.int32, np.float32)
    places = list(zip(done.rows.tolist(), done.columns.tolist(), strict=True))
    assert len(set(places)) == len(places)
    assert set(places) == set(zip(*(a.tolist() for a in np.nonzero(fractions >= minimum)), strict=True))
    assert np.array_equal(done.fraction, fractions[done.rows, done.columns].astype(np.float32))


def test_all_tissue_is_one_inside_and_less_where_a_patch_overhangs() -> None:
    """The part outside of the slide is no tissue."""
    fractions = tissue_fractions(np.ones((7, 9), bool), slide(250, 100), geometry(slide(250, 100), 100, 1.0))
    assert fractions.tolist() == [[1.0, 1.0, 0.5]]


def test_no_tissue_no_patches() -> None:
    """An empty mask gives an empty plan, unless everything is wanted."""
    info = slide(1000, 1000)
    grid = geometry(info, 100, 1.0)
    assert len(plan(np.zeros((20, 20), bool), info, grid, 0.01)) == 0
    assert len(plan(np.zeros((20, 20), bool), info, grid, 0)) == 100


def test_a_mask_must_be_a_picture() -> None:
    """A mask of no pixels is a mistake."""
    info = slide(10, 10)
    with pytest.raises(ValueError):
        plan(np.zeros((0, 5), bool), info, geometry(info, 4, 1.0), 0.1)


@given(st.integers(1, 40), st.integers(1, 40))
def test_read_order_is_a_serpentine_of_blocks(columns: int, rows: int) -> None:
    """A block is finished before the next begins, and the next is its neighbour."""
    y, x = (a.ravel() for a in np.mgrid[:rows, :columns])
    order = read_order(x, y, columns)
    assert sorted(order.tolist()) == list(range(rows * columns))
    x, y = x[order], y[order]
    blocks = list(dict.fromkeys(zip((x // BLOCK).tolist(), (y // BLOCK).tolist(), strict=True)))
    assert len(blocks) == -(-columns // BLOCK) * -(-rows // BLOCK)
    changes = np.count_nonzero((np.diff(x // BLOCK) != 0) | (np.diff(y // BLOCK) != 0))
    assert changes == len(blocks) - 1
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in pairwise(blocks))
    same = (np.diff(x // BLOCK) == 0) & (np.diff(y // BLOCK) == 0)
    assert (np.diff(y * BLOCK + x % BLOCK)[same] > 0).all()


def test_a_million_patches_are_planned_at_once() -> None:
    """Well under a second, on a mask of the usual size."""
    info = slide(224_000, 224_000)
    grid = geometry(info, 224, 1.0)
    mask = cv2.blur(np.random.default_rng(0).random((2048, 2048)), (99, 99)) > 0.5
    start = time.perf_counter()
    done = plan(mask, info, grid, 0.1)
    assert 300_000 < len(done) < 900_000
    assert time.perf_counter() - start < 2


@settings(max_examples=30, deadline=None)
@given(cases())
def test_bytes_round_trip(case: tuple[np.ndarray, SlideInfo, Geometry]) -> None:
    """from_bytes gives the same plan, also an empty one."""
    for minimum in (0.2, 2.0):
        done = plan(*case, minimum)
        back = Plan.from_bytes(done.to_bytes())
        for name in ("columns", "rows", "fraction"):
            assert np.array_equal(getattr(back, name), getattr(done, name))
            assert getattr(back, name).dtype == getattr(done, name).dtype


def test_damaged_bytes_are_refused() -> None:
    """Any flipped bit and any cut is noticed."""
    data = Plan(np.arange(9, dtype=np.int32), np.zeros(9, np.int32), np.ones(9, np.float32)).to_bytes()
    for i in range(len(data)):
        with pytest.raises(ValueError):
            Plan.from_bytes(data[:i])
        with pytest.raises(ValueError):
            Plan.from_bytes(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :])
    with pytest.raises(ValueError):
        Plan.from_bytes(data + b"x")


def test_a_bomb_is_refused() -> None:
    """Bytes that inflate to more than they announce are not inflated."""
    packed = zlib.compress(bytes(10_000_000))
    header = b"SPL1" + (1).to_bytes(4, "little") + zlib.crc32(packed).to_bytes(4, "little")
    with pytest.raises(ValueError, match="must hold 12 bytes"):
        Plan.from_bytes(header + packed)


def test_lengths_must_agree() -> None:
    """A plan with a missing row number cannot be made."""
    with pytest.raises(ValueError):
        Plan(np.zeros(2, np.int32), np.zeros(1, np.int32), np.zeros(2, np.float32))
