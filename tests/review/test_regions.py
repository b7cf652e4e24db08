"""Regions: which patches are joined, what they measure, and that outlines are polygons that others accept."""

from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import Polygon, box
from shapely.ops import unary_union

from review.heat import Table
from review.regions import area_of, find

GRID = {
    "columns": 12, "rows": 10, "step_x": 100, "step_y": 80, "patch_width": 100, "patch_height": 80,
    "origin_x": 0, "origin_y": 0,
}  # fmt: skip
SIZE, MPP = (1150, 790), (0.5, 0.25)


def table(cells: dict[tuple[int, int], float], failed: tuple[tuple[int, int], ...] = (), **grid: int) -> Table:
    """A slide whose other patches have the probability 0.1; `cells` by (column, row)."""
    reading = GRID | grid
    rows, columns = np.divmod(np.arange(reading["columns"] * reading["rows"], dtype=np.int32), reading["columns"])
    places = list(zip(columns.tolist(), rows.tolist(), strict=True))
    tumour = np.array([cells.get(place, 0.1) for place in places], np.float32)
    states = np.array([2 if place in failed else 1 for place in places], np.uint8)
    probabilities = np.stack([1 - tumour, tumour], axis=1)
    return Table(columns, rows, states, probabilities, {}, ("normal", "tumour"), reading, "1")


def regions(given: Table, threshold: float = 0.5, min_um2: float = 0.0):
    return find(given, "tumour", threshold, min_um2, SIZE, MPP)


def test_neighbours_are_joined_over_edges_and_corners():
    """Two strands that touch at a corner are one region; a patch apart is another."""
    found = regions(table({(1, 1): 0.9, (2, 1): 0.8, (3, 2): 0.7, (8, 8): 0.6}))
    assert [(region.rank, region.patches, region.box) for region in found] == [
        (1, 3, (100, 80, 300, 160)), (2, 1, (800, 640, 100, 80))
    ]  # fmt: skip
    assert found[0].highest == pytest.approx(0.9) and found[0].mean == pytest.approx(0.8)
    assert found[0].area_um2 == pytest.approx(3 * 50 * 20)


def test_the_threshold_is_met_by_its_own_value():
    """As the same float32."""
    assert len(regions(table({(1, 1): 0.7}), 0.7)) == 1


def test_failed_and_pending_patches_are_in_no_region():
    """Whatever their probabilities hold."""
    assert regions(table({(1, 1): 0.9}, failed=((1, 1),))) == []


def test_small_regions_are_left_out_by_area_on_the_slide():
    """A patch at the edge counts for what lies on the slide: half of 1,000 µm² here."""
    given = table({(11, 0): 0.9, (3, 3): 0.9})
    assert [region.area_um2 for region in regions(given)] == [1000.0, 500.0]
    assert len(regions(given, min_um2=501)) == 1
    assert regions(given)[1].box == (1100, 0, 50, 80)


def test_the_most_suspicious_comes_first_and_the_larger_among_equals():
    """Probabilities within 0.05 count as equal."""
    found = regions(table({(0, 0): 0.999, (4, 4): 0.96, (5, 4): 0.97, (9, 9): 0.9}))
    assert [region.patches for region in found] == [2, 1, 1]
    assert found[1].highest == pytest.approx(0.999)


def test_an_id_stays_while_the_patches_stay():
    """Whatever the order of the patches, the other regions and the threshold; another class or patch is another region."""
    one, two = (
        regions(table({(1, 1): 0.9, (2, 1): 0.8}))[0],
        regions(table({(1, 1): 0.9, (2, 1): 0.8, (7, 7): 1}), 0.6)[1],
    )
    assert one.id == two.id and len(one.id) == 16
    assert regions(table({(1, 1): 0.9}))[0].id != one.id
    given = table({(1, 1): 0.9, (2, 1): 0.8})
    assert find(given, "normal", 0.5, 0, SIZE, MPP)[0].id != find(given, "tumour", 0.05, 0, SIZE, MPP)[0].id


def test_a_hole_is_a_ring_of_its_own():
    """The area leaves it out."""
    around = {(c, r): 0.9 for c in range(2, 5) for r in range(2, 5) if (c, r) != (3, 3)}
    (region,) = regions(table(around))
    assert len(region.outline) == 4 and len(region.holes) == 1
    assert area_of(region.outline) == 9 * 8000 and area_of(region.holes[0]) == -8000
    assert region.area_um2 == pytest.approx(8 * 1000)


@pytest.mark.parametrize("seed", range(30))
def test_outlines_are_valid_polygons_of_the_patches(seed):
    """Random patches, with corners, holes, and holes in corners: valid to shapely, and the union of the patches but for the
    pixels at corners."""
    rng = np.random.default_rng(seed)
    chosen = rng.random((10, 12)) < rng.uniform(0.2, 0.8)
    cells = {(int(c), int(r)): 0.9 for r, c in np.argwhere(chosen)}
    found = regions(table(cells))
    shapes = [Polygon(region.outline, region.holes) for region in found]
    assert all(shape.is_valid for shape in shapes), [region.outline for region in found]
    slide = box(0, 0, *SIZE)
    patches = unary_union([box(c * 100, r * 80, c * 100 + 100, r * 80 + 80) for c, r in cells]).intersection(slide)
    assert patches.symmetric_difference(unary_union(shapes)).area < 400 * len(cells)
    assert sum(region.area_um2 for region in found) == pytest.approx(patches.area * MPP[0] * MPP[1])


def test_overlapping_patches_are_not_counted_twice():
    """A patch stands for one step of the grid, at the slide's edge for more; every one for something."""
    given = table({(c, r): 0.9 for c in range(12) for r in range(10)}, patch_width=200, patch_height=160)
    (region,) = regions(given)
    assert region.area_um2 == pytest.approx(SIZE[0] * SIZE[1] * MPP[0] * MPP[1])
    corner = table({(11, 9): 0.9}, patch_width=400, patch_height=400)
    assert regions(corner)[0].area_um2 > 0 and len(regions(corner)[0].outline) == 4


def test_nothing_over_the_threshold():
    """No regions."""
    assert regions(table({})) == []
