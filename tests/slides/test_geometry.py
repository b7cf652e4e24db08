from __future__ import annotations

import json
import math

import msgpack
import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from slides.errors import SlideError
from slides.geometry import LEVEL_TOLERANCE, Geometry, SlideInfo, check_mpp, geometry, resample


def info(
    width: int = 10_000, height: int = 8_000, mpp: float = 0.25, mpp_y: float | None = None, downsamples=(1, 2, 4, 8)
) -> SlideInfo:
    return SlideInfo(
        path="slide.svs",
        format="aperio",
        width=width,
        height=height,
        level_sizes=tuple((max(1, int(width / d)), max(1, int(height / d))) for d in downsamples),
        level_downsamples=tuple(float(d) for d in downsamples),
        mpp_x=mpp,
        mpp_y=mpp if mpp_y is None else mpp_y,
        mpp_source="slide",
    )


infos = st.builds(
    info,
    width=st.integers(1, 30_000),
    height=st.integers(1, 30_000),
    mpp=st.floats(0.1, 4),
    mpp_y=st.one_of(st.none(), st.floats(0.1, 4)),
    downsamples=st.sampled_from([(1,), (1, 2, 4, 8), (1, 4.0003, 16.01), (1, 1.9, 3.7, 7.1, 15)]),
)


def made(i: SlideInfo, patch_px: int, spacing: float, overlap: float) -> tuple[SlideInfo, Geometry]:
    try:
        return i, geometry(i, patch_px, spacing, overlap)
    except SlideError:  # patches of a few pixels
        reject()


grids = st.builds(
    made,
    infos,
    st.integers(1, 256),
    st.floats(0.1, 1.5),
    st.floats(0, 0.95),
)


@given(grids)
def test_every_pixel_of_the_slide_is_in_a_patch(grid: tuple[SlideInfo, Geometry]) -> None:
    """Patches follow each other without gaps from the first to the last level-0 pixel."""
    slide, g = grid
    assert (g.origin_x, g.origin_y) == (0, 0)
    assert 1 <= g.step_x <= g.patch_width and 1 <= g.step_y <= g.patch_height
    assert (g.columns - 1) * g.step_x + g.patch_width >= slide.width
    assert (g.rows - 1) * g.step_y + g.patch_height >= slide.height


@given(grids)
def test_no_patch_lies_outside_the_slide(grid: tuple[SlideInfo, Geometry]) -> None:
    """The last column and row still touch the slide, and none but they overhang it."""
    slide, g = grid
    assert g.columns >= 1 and g.rows >= 1
    assert (g.columns - 1) * g.step_x < slide.width and (g.rows - 1) * g.step_y < slide.height
    assert g.columns == 1 or (g.columns - 2) * g.step_x + g.patch_width < slide.width
    assert g.rows == 1 or (g.rows - 2) * g.step_y + g.patch_height < slide.height


@given(grids, st.floats(0, 0.95))
def test_sizes_are_those_wanted_within_rounding(grid: tuple[SlideInfo, Geometry], overlap: float) -> None:
    """Patch, region and step are the wanted lengths to half a pixel, and never zero."""
    slide, g = grid
    assert abs(g.patch_width - g.patch_px * g.spacing / slide.mpp_x) <= 0.5 or g.patch_width == 1
    assert abs(g.patch_height - g.patch_px * g.spacing / slide.mpp_y) <= 0.5 or g.patch_height == 1
    for size, region in zip((g.patch_width, g.patch_height), g.region_px, strict=True):
        assert region >= 1
        assert abs(region - size / g.level_downsample) <= 0.5 or region == 1
    _, other = made(slide, g.patch_px, g.spacing, overlap)
    assert abs(other.step_x - other.patch_width * (1 - overlap)) <= 0.5 or other.step_x == 1


@given(grids)
def test_the_level_is_the_coarsest_that_is_fine_enough(grid: tuple[SlideInfo, Geometry]) -> None:
    """Nothing coarser than wanted is read, nor anything finer than needed; only level 0 is ever enlarged."""
    slide, g = grid
    mpp = max(slide.mpp_x, slide.mpp_y)
    limit = g.spacing * (1 + LEVEL_TOLERANCE)
    assert g.level == 0 or mpp * g.level_downsample <= limit * (1 + 1e-12)
    for downsample in slide.level_downsamples:
        assert downsample <= g.level_downsample or mpp * downsample > limit * (1 - 1e-12)


@given(grids)
def test_geometry_survives_messages_and_json(grid: tuple[SlideInfo, Geometry]) -> None:
    """to_dict and from_dict are inverse, through msgpack as through JSON."""
    slide, g = grid
    for there, back in ((msgpack.packb, msgpack.unpackb), (json.dumps, json.loads)):
        assert Geometry.from_dict(back(there(g.to_dict()))) == g
        assert SlideInfo.from_dict(back(there(slide.to_dict()))) == slide


def test_all_of_slide_info_survives_messages() -> None:
    """The optional values too."""
    full = SlideInfo(
        "a.mrxs", "mirax", 9, 8, ((9, 8), (4, 4)), (1.0, 2.1), 0.2, 0.3, "sidecar", (1, 2, 3), (1, 2, 3, 4), 20.0
    )
    assert SlideInfo.from_dict(msgpack.unpackb(msgpack.packb(full.to_dict()))) == full


def test_unknown_keys_are_refused() -> None:
    """A dictionary of another version is an error, not a guess."""
    with pytest.raises(TypeError):
        Geometry.from_dict(geometry(info(), 224, 0.5).to_dict() | {"colour": 1})


@pytest.mark.parametrize(
    ("mpp", "spacing", "level", "region", "resampling"),
    [
        (0.25, 0.25, 0, (224, 224), "none"),
        (0.25, 0.5, 1, (224, 224), "none"),
        (0.499, 0.5, 0, (224, 224), "none"),
        (0.5005, 0.5, 0, (224, 224), "none"),
        (0.2502, 0.5, 1, (224, 224), "none"),
        (0.26, 0.5, 0, (431, 431), "area"),
        (0.252, 0.5, 1, (222, 222), "bilinear"),
        (0.23, 0.5, 1, (244, 244), "area"),
        (0.25, 8.0, 3, (896, 896), "area"),
        (1.0, 0.5, 0, (112, 112), "bilinear"),
    ],
)
def test_level_region_and_resampling(mpp, spacing, level, region, resampling) -> None:
    """The nearest level not coarser than wanted is read; 2 % off counts as equal."""
    g = geometry(info(mpp=mpp), 224, spacing)
    assert (g.level, g.region_px, g.resampling) == (level, region, resampling)


def test_patch_size_on_the_slide_is_that_of_wsinfer() -> None:
    """round(patch_px * spacing / mpp), whatever level is read."""
    g = geometry(info(mpp=0.2277), 350, 1.5)
    assert g.patch_width == g.patch_height == round(350 * 1.5 / 0.2277)


def test_pixels_need_not_be_square() -> None:
    """Each axis has its own size and step; the level is fine enough in both."""
    g = geometry(info(mpp=0.25, mpp_y=0.5), 100, 0.5, overlap=0.5)
    assert (g.patch_width, g.patch_height, g.step_x, g.step_y) == (200, 100, 100, 50)
    assert (g.level, g.region_px, g.resampling) == (0, (200, 100), "area")


def test_xy_counts_steps() -> None:
    """Columns and rows become level-0 places, int64 (n, 2)."""
    g = geometry(info(), 224, 0.5, overlap=0.25)
    xy = g.xy(np.array([0, 2, 1], np.int32), np.array([0, 0, 3], np.int32))
    assert xy.dtype == np.int64
    assert xy.tolist() == [[0, 0], [2 * 336, 0], [336, 3 * 336]]
    assert g.xy([], []).shape == (0, 2)


@given(grids, st.integers(0, 1_000_000), st.integers(0, 1_000_000))
def test_level_xy_is_the_nearest_level_pixel(grid: tuple[SlideInfo, Geometry], x: int, y: int) -> None:
    """Reading starts within half a level pixel of the patch's place."""
    g = grid[1]
    level = g.level_xy(np.array([[x, y]]))
    assert level.dtype == np.int64
    assert np.abs(level - np.array([[x, y]]) / g.level_downsample).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("value", [0, -0.25, 0.049, 20.1, 352.8, math.nan, math.inf, "much", None])
def test_absurd_mpp_is_refused_with_the_remedy(value) -> None:
    """The error names the setting that gives the true value."""
    with pytest.raises(SlideError, match=r"a\.svs: .*slides\.mpp="):
        check_mpp(value, "a.svs")


@pytest.mark.parametrize("value", [0.05, 0.25, "0.5", 20])
def test_sane_mpp_passes(value) -> None:
    """From 100x oil to a macro scanner."""
    assert check_mpp(value) == float(value)


@pytest.mark.parametrize(
    "arguments", [(0, 0.5, 0), (224, 0, 0), (224, math.nan, 0), (224, math.inf, 0), (224, 0.5, 1), (224, 0.5, -0.1)]
)
def test_arguments_out_of_range_are_refused(arguments) -> None:
    """They are mistakes of the caller."""
    with pytest.raises(ValueError):
        geometry(info(), *arguments)


def test_a_slide_without_the_levels_for_a_coarse_model_is_refused() -> None:
    """A region of gigabytes is never asked for."""
    with pytest.raises(SlideError, match="missing levels"):
        geometry(info(downsamples=(1,)), 512, 8)


def test_a_grid_of_far_too_many_patches_is_refused() -> None:
    """A mistaken spacing or overlap would take gigabytes for the plan; what nine tenths of overlap make of a slide is let be."""
    assert geometry(info(100_000, 90_000), 224, 0.25, 0.9).columns == 4537
    with pytest.raises(SlideError, match=r"33334 x 30000 patches.*tissue\.overlap"):
        geometry(info(100_000, 90_000, mpp=20.0), 224, 0.25)


def test_resample_copies_what_fits() -> None:
    """Nothing is interpolated at native size."""
    region = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    out = np.empty((32, 32, 3), np.uint8)
    resample(region, 32, out)
    assert np.array_equal(out, region)


def test_resample_averages_when_shrinking() -> None:
    """Each pixel is the mean of the area that it covers: no aliasing."""
    region = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    out = np.empty((32, 32, 3), np.uint8)
    resample(region, 32, out)
    mean = region.reshape(32, 3, 32, 2, 3).mean((1, 3))
    assert np.abs(out - mean).max() <= 0.51


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 100), (100, 16), (32, 16), (45, 32), (1, 1)])
def test_resample_keeps_an_even_picture(height: int, width: int) -> None:
    """Enlarging, or one axis enlarged and the other shrunk, invents no values."""
    out = np.empty((32, 32, 3), np.uint8)
    resample(np.full((height, width, 3), (10, 200, 70), np.uint8), 32, out)
    assert (out == (10, 200, 70)).all()


def test_resample_shrinks_one_axis_by_averaging_while_the_other_grows() -> None:
    """Stripes along the shrunk axis become grey."""
    region = np.zeros((16, 128, 3), np.uint8)
    region[:, ::2] = 255
    out = np.empty((32, 32, 3), np.uint8)
    resample(region, 32, out)
    assert out.min() >= 126 and out.max() <= 129


def test_resample_refuses_what_it_could_not_write_in_place() -> None:
    """OpenCV would write to a copy and leave the slot as it was."""
    with pytest.raises(ValueError):
        resample(np.zeros((8, 8, 3), np.uint8), 4, np.zeros((4, 4, 4), np.uint8)[..., :3])
