from __future__ import annotations

import numpy as np

from results.raster import failed_cells, halve, probability_raster

NAN = np.nan


def row_of(make_record, values, patch, step, columns, failed=()):
    """A slide one patch high, patches side by side from column 0 on."""
    n = len(values)
    probabilities = np.array(values, np.float32)[:, None]
    return make_record(
        cells=n,
        classes=("tumour",),
        geometry={"columns": columns, "rows": 1, "patch_width": patch, "step_x": step},
        columns=np.arange(n, dtype=np.int32),
        rows=np.zeros(n, np.int32),
        probabilities=probabilities,
        state=np.array([2 if i in failed else 1 for i in range(n)], np.uint8),
    )


def test_without_overlap_a_pixel_is_its_patch(make_record):
    """Each inferred patch is one pixel of exactly its value; everything else is NaN."""
    record = make_record(failed=(4,))
    raster = probability_raster(record, [0, 1])
    assert raster.shape == (2, 7, 9) and raster.dtype == np.float32
    index = np.flatnonzero(record.state == 1)
    np.testing.assert_array_equal(raster[:, record.rows[index], record.columns[index]], record.probabilities[index].T)
    assert np.isnan(raster).sum() == 2 * (63 - 19)
    assert np.isnan(raster[:, record.rows[4], record.columns[4]]).all()


def test_with_half_overlap_a_pixel_is_the_mean_of_its_patches(make_record):
    """Two patches over one pixel give their mean; the last patch alone gives its own value."""
    record = row_of(make_record, [0.0, 1.0, 0.5], patch=400, step=200, columns=4)
    np.testing.assert_allclose(probability_raster(record, [0])[0, 0], [0, 0.5, 0.75, 0.5])


def test_cover_is_weighted_by_area(make_record):
    """At a step of 3/4 patch a neighbour reaches a third of a pixel and weighs a third."""
    record = row_of(make_record, [0.0, 1.0], patch=400, step=300, columns=3)
    np.testing.assert_allclose(probability_raster(record, [0])[0, 0], [0, 0.75, NAN])


def test_a_failed_patch_adds_nothing(make_record):
    """What a failed row holds does not leak into its neighbours' mean."""
    record = row_of(make_record, [1.0, 0.25, 0.0], patch=400, step=200, columns=4, failed=(0,))
    np.testing.assert_allclose(probability_raster(record, [0])[0, 0], [NAN, 0.25, 0.125, 0.0])


def test_patches_over_the_edge_are_cut_off(make_record):
    """The raster never grows beyond the grid."""
    record = row_of(make_record, [0.5, 0.5], patch=400, step=100, columns=2)
    np.testing.assert_allclose(probability_raster(record, [0])[0, 0], [0.5, 0.5])


def test_halving_ignores_what_is_not_there():
    """A lone patch stays visible, and odd sides round up."""
    raster = np.array([[[1, NAN, 0.5], [NAN, NAN, 0.25], [NAN, NAN, NAN]]], np.float32)
    np.testing.assert_array_equal(halve(raster), np.array([[[1, 0.375], [NAN, NAN]]], np.float32))


def test_failed_cells(make_record):
    """Places of the failed patches, for the picture's hatching."""
    record = make_record(failed=(3, 5))
    rows, columns = failed_cells(record)
    assert list(rows) == list(record.rows[[3, 5]]) and list(columns) == list(record.columns[[3, 5]])
