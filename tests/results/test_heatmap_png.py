from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from results import heatmap_png
from results.heatmap_png import BRIGHT, DARK, draw, write_heatmap_png
from results.legend import layout
from results.record import OWN_PATCH_PX


def one_row(make_record, values, failed=(), **changes):
    """Patches side by side in grid row 3, over the middle of the slide."""
    n = len(values)
    return make_record(
        cells=n,
        classes=("tumour",),
        columns=np.arange(2, 2 + n, dtype=np.int32),
        rows=np.full(n, 3, np.int32),
        probabilities=np.array(values, np.float32)[:, None],
        state=np.array([2 if i in failed else 1 for i in range(n)], np.uint8),
        reasons={i: "lost" for i in failed},
        **changes,
    )


def patch_pixels(image, record, index, inset=8):
    """The pixels of a patch in the picture, without its rim."""
    scale = 1000 / record.info["width"]
    x, y = layout(1000, 750).picture
    x0, y0 = record.columns[index] * 448 * scale, record.rows[index] * 448 * scale
    box = np.array([y + y0, y + y0 + 448 * scale, x + x0, x + x0 + 448 * scale]).round().astype(int)
    return np.asarray(image)[box[0] + inset : box[1] - inset, box[2] + inset : box[3] - inset].astype(int)


def lightness(rgb) -> float:
    return float(np.mean(rgb.reshape(-1, 3) @ [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("look", [BRIGHT, DARK])
def test_colours_grow_lighter_all_the_way(look):
    """Order can be read without seeing hue: what colour-blind eyes and grey printers need."""
    light = look.colours().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) >= -0.5).all()
    assert light[-1] - light[0] > 100


def test_a_higher_probability_is_a_lighter_warmer_patch(make_record):
    """Each patch lies in its place in the colour of its probability."""
    record = one_row(make_record, [0.02, 0.5, 0.98])
    image = draw(record, 0)
    low, middle, high = (patch_pixels(image, record, i) for i in range(3))
    assert lightness(low) + 25 < lightness(middle) < lightness(high) - 25
    assert high[..., 0].mean() > high[..., 2].mean() + 80
    assert low[..., 2].mean() > low[..., 1].mean()


def test_a_failed_patch_is_hatched_black_and_white(make_record):
    """It is never blank and never a colour of the scale."""
    record = one_row(make_record, [0.1, 0.9, 0.1], failed=(1,))
    pixels = patch_pixels(draw(record, 0), record, 1)
    assert set(np.unique(pixels)) == {0, 255}
    assert 0.3 < (pixels == 0).mean() < 0.7
    assert (pixels[..., 0] == pixels[..., 1]).all()


def test_a_tiny_failed_patch_still_shows(make_record):
    """A patch of a third of a pixel is drawn big enough to be seen."""
    wide = {"width": 400_000, "height": 300_000}
    grid = {"columns": 893, "rows": 670}
    plain = one_row(make_record, [0.1, 0.9], info=wide, geometry=grid)
    failed = one_row(make_record, [0.1, 0.9], failed=(1,), info=wide, geometry=grid)
    x, y = layout(1000, 750).picture
    part = [np.asarray(draw(record, 0))[y : y + 750, x : x + 1000] for record in (plain, failed)]
    assert (part[0] != part[1]).any(axis=-1).sum() >= 20


def test_unread_tissue_differs_from_a_low_probability(make_record):
    """Tissue outside of the plan keeps its grey and its outline, far from the darkest colour of the scale."""
    record = one_row(make_record, [0.0])
    image = draw(record, 0)
    read = patch_pixels(image, record, 0)
    unread = np.asarray(image)[layout(1000, 750).picture[1] + 200, layout(1000, 750).picture[0] + 400].astype(int)
    assert lightness(unread) > lightness(read) + 50
    outlined = np.asarray(image)[layout(1000, 750).picture[1] + 400, layout(1000, 750).picture[0] + 190 :][:20]
    assert (outlined.max(axis=-1) < 130).any()


def test_the_colour_bar_shows_the_colours_of_the_picture(make_record):
    """What the eye compares is the same colour: the bar is blended as the patches are."""
    record = one_row(make_record, [1.0, 1.0])
    image = np.asarray(draw(record, 0)).astype(int)
    places = layout(1000, 750)
    top = places.legend[1] + round(3.3 * places.unit) + 3
    bar = image[top, places.legend[0] + places.unit // 2]
    patch = patch_pixels(image, record, 0).reshape(-1, 3)
    assert np.abs(bar - np.median(patch, axis=0)).max() <= 6


@pytest.mark.parametrize(("side", "expected"), [(256, 1000), (2048, 2048), (6000, 4096)])
def test_small_overviews_grow_and_huge_ones_shrink(make_record, side, expected):
    """The slide's picture is between 1000 and 4096 px, whatever the overview is."""
    overview = np.full((side // 8, side, 3), 230, np.uint8)
    record = make_record(overview=overview, mask=np.ones((side // 8, side), bool), info={"height": 500})
    image = draw(record, 1)
    assert image.shape[1::-1] == layout(expected, expected // 8).size


def test_many_patches_in_one_pixel_are_averaged(make_record):
    """Where a pixel holds many patches none is dropped: half at 0, half at 1 looks like 0.5."""
    columns, rows = np.meshgrid(np.arange(1024, dtype=np.int32), np.arange(16, dtype=np.int32))
    columns, rows = columns.ravel(), rows.ravel()
    values = ((columns + rows) % 2).astype(np.float32)[:, None]
    info = {"width": 1024 * 8, "height": 16 * 8}
    grid = {"columns": 1024, "rows": 16, "patch_width": 8, "patch_height": 8, "step_x": 8, "step_y": 8}
    record = make_record(cells=len(columns), classes=("tumour",), columns=columns, rows=rows, probabilities=values,
                         info=info, geometry=grid, overview=np.full((4, 256, 3), 255, np.uint8), mask=None)  # fmt: skip
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    known, colours = heatmap_png._on_canvas(values.reshape(1, 16, 1024), greys, record, 4, 256)
    assert known.all() and (colours == 128).all()


def test_no_tissue_and_no_overview_still_give_a_picture(make_record, tmp_path):
    """A slide without patches has its picture; without an overview the ground is plain."""
    nothing = np.zeros((300, 400), bool)
    write_heatmap_png(make_record(cells=0, mask=nothing), tmp_path / "a.png")
    write_heatmap_png(make_record(overview=None, mask=None), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == layout(1000, 750).size


def test_a_dark_slide_keeps_its_patches_visible(make_record):
    """On fluorescence a probability of 0 is still told from the black around it."""
    record = one_row(make_record, [0.0], overview=np.full((300, 400, 3), 3, np.uint8), mask=None)
    image = draw(record, 0)
    around = np.asarray(image)[layout(1000, 750).picture[1] + 30, layout(1000, 750).picture[0] + 30]
    assert lightness(patch_pixels(image, record, 0)) > lightness(around) + 12


def test_the_file_carries_the_slides_name(make_record, tmp_path):
    """Any Unicode name: as text in the PNG, and drawn without failing."""
    name = "ward/Präparat\n日本 " + "x" * 300
    write_heatmap_png(make_record(slide=name), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Title"] == name


def test_an_unknown_class_is_refused(make_record, tmp_path):
    """The picture never shows another class than the one that was asked for."""
    with pytest.raises(ValueError, match="no class 'x'"):
        write_heatmap_png(make_record(), tmp_path / "a.png", "x")


def test_a_model_at_another_patch_size_is_told_in_the_picture(make_record):
    """In the title, which is all that differs."""
    record = make_record()
    marked = replace(record, model=record.model | {OWN_PATCH_PX: 512})
    plain, told = (draw(one, 1) for one in (record, marked))
    differs = np.flatnonzero((plain != told).any(axis=(1, 2)))
    assert 0 < len(differs) and differs.max() < layout(1000, 750).picture[1]
