"""Synthetic slides: OpenSlide opens them, they are as asked, and their truth is true."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import shapely
import tifffile

from slides import synthetic
from slides.errors import SlideError
from slides.layout import make_layout
from slides.synthetic import SyntheticSlide, make_slide, parse_size
from slides.texture import render
from slides.truth import Truth, polygons, read_truth, truth_paths
from tests.slides.damage import corrupt_tiles, tiles_under

SETTINGS = SyntheticSlide(3000, 2200, mpp=0.5, tissue=0.45, tumour=0.3, seed=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    path = tmp_path_factory.mktemp("synthetic") / "slide.tif"
    return path, make_slide(path, SETTINGS)


def test_openslide_opens_it_with_size_levels_and_mpp(made: tuple[Path, Truth]) -> None:
    """The slide is a generic-tiff of the asked size and mpp, with levels of a quarter each."""
    with openslide.OpenSlide(made[0]) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((3000, 2200), (750, 550)) == tuple(SETTINGS.level_sizes())
        for axis in "xy":
            assert float(slide.properties[f"openslide.mpp-{axis}"]) == pytest.approx(0.5, rel=1e-6)


def test_openslide_shows_the_rendered_pixels(made: tuple[Path, Truth]) -> None:
    """Colours survive the file: OpenSlide's level 0 is the rendered tissue but for JPEG's losses."""
    painter = synthetic._Painter(
        SETTINGS, make_layout(3000, 2200, 0.5, SETTINGS.tissue, SETTINGS.tumour, SETTINGS.seed)
    )
    wanted = render(painter.scene, 1100, 900, 512, 512, 0.5).astype(int)
    with openslide.OpenSlide(made[0]) as slide:
        got = np.asarray(slide.read_region((1100, 900), 0, (512, 512)))
    assert (got[..., 3] == 255).all()
    assert wanted.std() > 20
    assert np.abs(got[..., :3] - wanted).mean() < 6
    assert np.abs((got[..., :3] - wanted).mean(axis=(0, 1))).max() < 1


def test_a_lower_level_is_the_area_average_of_level_0(made: tuple[Path, Truth]) -> None:
    """Levels show the same place at the same brightness."""
    with openslide.OpenSlide(made[0]) as slide:
        fine = np.asarray(slide.read_region((0, 0), 0, (3000, 2200)).convert("RGB"))
        coarse = np.asarray(slide.read_region((0, 0), 1, (750, 550)).convert("RGB")).astype(int)
    averaged = cv2.resize(fine, (750, 550), interpolation=cv2.INTER_AREA)

    def error(dx: int, dy: int) -> float:
        return float(np.abs(np.roll(coarse, (dy, dx), (0, 1)) - averaged).mean())

    assert np.abs((coarse - averaged).mean(axis=(0, 1))).max() < 1
    assert error(0, 0) < 4
    assert all(error(0, 0) < 0.6 * error(dx, dy) for dx, dy in ((1, 0), (0, 1), (-1, 0), (0, -1)))


def test_it_has_the_asked_amount_of_tissue_and_tumour(made: tuple[Path, Truth]) -> None:
    """Fractions are those of the settings, and the tissue can be seen where the truth says it is."""
    path, truth = made
    assert truth.tissue_share == pytest.approx(0.45, abs=0.02)
    assert truth.tumour_share == pytest.approx(0.3, abs=0.03)
    assert not (truth.tumour & ~truth.tissue).any()
    with openslide.OpenSlide(path) as slide:
        image = np.asarray(slide.read_region((0, 0), 0, (3000, 2200)).convert("RGB"))
    stained = cv2.blur(image.min(axis=2), (33, 33)) < 215
    rows, columns = (np.arange(n - 1) * truth.cell_px + truth.cell_px // 2 for n in truth.tissue.shape)
    seen, wanted = stained[np.ix_(rows, columns)], truth.tissue[:-1, :-1]
    assert (seen & wanted).sum() / (seen | wanted).sum() > 0.88


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("tissue", "tumour"), [(0.2, 0.5), (0.4, 0.15), (0.7, 0.02)])
def test_layouts_hold_their_fractions_for_every_seed(seed: int, tissue: float, tumour: float) -> None:
    """Tissue within 1 % of the slide, tumour within 3 % of the tissue; the polygons are valid and cover its area."""
    layout = make_layout(12000, 9000, 0.25, tissue, tumour, seed)
    truth = Truth(12000, 9000, 0.25, 16, seed, layout.tissue, layout.tumour)
    assert truth.tissue_share == pytest.approx(tissue, abs=0.01)
    assert truth.tumour_share == pytest.approx(tumour, abs=0.03)
    shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in polygons(truth)]
    assert all(shape.is_valid for shape in shapes)
    area = sum(shape.area for shape in shapes)
    assert area == pytest.approx(truth.tumour_share * truth.tissue_share * 12000 * 9000, rel=0.03)


def test_layouts_at_the_ends_of_the_range() -> None:
    """No tissue, nothing but tissue, no tumour, nothing but tumour."""
    assert not make_layout(1000, 800, 0.5, 0, 0.5, 1).tissue.any()
    everything = make_layout(1000, 800, 0.5, 1, 1, 1)
    assert everything.tissue.all() and everything.tumour.all()
    assert not make_layout(1000, 800, 0.5, 0.5, 0, 1).tumour.any()


def test_the_polygons_agree_with_tumour_fraction(made: tuple[Path, Truth]) -> None:
    """The fraction of a box by the polygons in the GeoJSON file (shapely) is that of Truth.tumour_fraction."""
    path, truth = made
    document = json.loads(truth_paths(path)[0].read_text())
    assert document["type"] == "FeatureCollection" and document["features"]
    for feature in document["features"]:
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] == "Tumor"
        assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])
    union = shapely.union_all([shapely.geometry.shape(f["geometry"]) for f in document["features"]])
    assert union.is_valid
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2800, 300), rng.integers(0, 2000, 300)
    width, height = rng.integers(100, 300, 300), rng.integers(100, 300, 300)
    got = truth.tumour_fraction(x, y, width, height)
    assert got.dtype == np.float32 and got.max() > 0.9 and got.min() == 0
    boxes = shapely.box(x, y, np.minimum(x + width, 3000), np.minimum(y + height, 2200))
    wanted = shapely.area(shapely.intersection(boxes, union)) / (width * height)
    assert np.abs(got - wanted).max() < 0.06
    assert np.abs(got - wanted).mean() < 0.01


def test_tumour_fraction_is_exact_for_boxes_that_cut_cells() -> None:
    """One tumour cell of 16 pixels: boxes that hold it, halve it, miss it, and stick out of the slide."""
    tumour = np.zeros((4, 5), bool)
    tumour[1, 2] = True
    truth = Truth(80, 60, 0.25, 16, 0, np.ones((4, 5), bool), tumour)
    x, y = np.array([32, 40, 48, 0, 36, 40]), np.array([16, 16, 16, 0, 20, 16])
    width, height = np.array([16, 16, 16, 160, 4, 80]), np.array([16, 16, 16, 120, 4, 16])
    wanted = [1, 0.5, 0, 256 / (160 * 120), 1, 8 * 16 / (80 * 16)]
    assert np.allclose(truth.tumour_fraction(x, y, width, height), wanted)
    with pytest.raises(ValueError, match="without area"):
        truth.tumour_fraction(0, 0, 0, 4)


def test_read_truth_gives_back_what_was_made(made: tuple[Path, Truth]) -> None:
    """The truth read from disk, by the slide's name or its own, is the one that make_slide returned."""
    path, truth = made
    for name in (path, truth_paths(path)[0]):
        back = read_truth(name)
        assert (back.width, back.height, back.mpp, back.seed, back.cell_px) == (3000, 2200, 0.5, 4, truth.cell_px)
        assert np.array_equal(back.tumour, truth.tumour) and np.array_equal(back.tissue, truth.tissue)


def test_missing_and_damaged_truths_are_slide_errors(tmp_path: Path) -> None:
    """No truth, rubbish instead of it, and a truth without its mask each raise one clear SlideError."""
    with pytest.raises(SlideError, match="no truth beside this slide"):
        read_truth(tmp_path / "a.tif")
    (tmp_path / "a.truth.geojson").write_text('{"type": "FeatureCollection"}')
    with pytest.raises(SlideError, match="not a slide's truth"):
        read_truth(tmp_path / "a.tif")
    make_slide(tmp_path / "b.tif", SyntheticSlide(256, 256))
    (tmp_path / "b.truth.png").unlink()
    with pytest.raises(SlideError, match="mask is missing"):
        read_truth(tmp_path / "b.tif")


def test_the_same_settings_give_the_same_file(tmp_path: Path) -> None:
    """Byte for byte, whatever the number of threads; another seed gives another slide."""
    settings = SyntheticSlide(1500, 1100, seed=1)

    def digest(name: str, settings: SyntheticSlide, threads: int) -> str:
        make_slide(tmp_path / name, settings, threads=threads)
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    first = digest("a.tif", settings, 1)
    assert digest("b.tif", settings, 3) == first
    assert digest("c.tif", SyntheticSlide(1500, 1100, seed=2), 2) != first
    wanted = {f"{stem}{ending}" for stem in "abc" for ending in (".tif", ".truth.geojson", ".truth.png")}
    assert set(os.listdir(tmp_path)) == wanted


def _sampling(stream: bytes) -> list[tuple[int, int]]:
    """Horizontal and vertical sampling factors of the components, from the frame header of a JPEG stream."""
    at = 2
    while True:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            count = stream[at + 9]
            factors = [stream[at + 11 + 3 * k] for k in range(count)]
            return [(f >> 4, f & 15) for f in factors]
        at += 2 + length


@pytest.mark.parametrize(("subsampling", "luma"), [("444", (1, 1)), ("422", (2, 1)), ("420", (2, 2))])
def test_chroma_is_subsampled_as_asked(tmp_path: Path, subsampling: str, luma: tuple[int, int]) -> None:
    """In the JPEG frame header of every tile, in the TIFF tag, and OpenSlide still shows the colours."""
    path = tmp_path / "s.tif"
    make_slide(path, SyntheticSlide(700, 600, tissue=0.8, subsampling=subsampling, seed=3))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert page.photometric == tifffile.PHOTOMETRIC.YCBCR
        assert tuple(page.tags["YCbCrSubSampling"].value) == luma
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            stream = path.read_bytes()[offset : offset + count]
            assert _sampling(stream) == [luma, (1, 1), (1, 1)]
        decoded = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
        index = len(page.dataoffsets) - 1
    column, row = index % 3, index // 3
    with openslide.OpenSlide(path) as slide:
        shown = np.asarray(slide.read_region((column * 256, row * 256), 0, (700 - column * 256, 600 - row * 256)))
    assert np.abs(shown[..., :3] - decoded[: shown.shape[0], : shown.shape[1]]).max() <= 8


@pytest.mark.parametrize(("tile", "downsample"), [(128, 2), (512, 4), (1024, 2)])
def test_tile_sizes_and_downsamples(tmp_path: Path, tile: int, downsample: int) -> None:
    """Every allowed tile size and downsample gives a slide whose levels OpenSlide shows whole."""
    path, settings = tmp_path / "s.tif", SyntheticSlide(1500, 777, tile=tile, downsample=downsample, seed=2)
    make_slide(path, settings)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == tuple(settings.level_sizes())
        assert slide.properties["openslide.level[0].tile-width"] == str(tile)
        for level, size in enumerate(slide.level_dimensions):
            assert np.asarray(slide.read_region((0, 0), level, size)).std() > 10


def test_background_tiles_are_cheap(made: tuple[Path, Truth]) -> None:
    """Tiles without tissue hold one of a few streams."""
    path, truth = made
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        streams = [content[o : o + n] for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    index = np.arange(len(streams))
    x, y = index % 12 * 256, index // 12 * 256
    blank = truth.tissue_fraction(x - 80, y - 80, np.full(len(x), 416), np.full(len(x), 416)) == 0
    assert blank.sum() >= 8
    assert len({streams[k] for k in index[blank]}) <= 8


def test_corrupted_tiles_fail_and_no_others(tmp_path: Path) -> None:
    """A read that touches a corrupted tile raises; a fresh handle reads every other tile as before."""
    path = tmp_path / "s.tif"
    make_slide(path, SyntheticSlide(1200, 1000, tissue=0.9, seed=5))
    with openslide.OpenSlide(path) as slide:
        before = np.asarray(slide.read_region((0, 0), 0, (1200, 512)))
    bad = tiles_under(path, 0, 300, 600, 100, 100)
    assert bad == [(0, 11)]
    corrupt_tiles(path, bad)
    with openslide.OpenSlide(path) as slide:
        assert np.array_equal(np.asarray(slide.read_region((0, 0), 0, (1200, 512))), before)
        with pytest.raises(openslide.OpenSlideError):
            slide.read_region((300, 600), 0, (100, 100))
    with pytest.raises(IndexError, match="there is no tile 999"):
        corrupt_tiles(path, [(0, 999)])


def test_a_failed_slide_leaves_nothing(tmp_path: Path) -> None:
    """An error half-way (here in the progress callback) leaves no file behind, and threads end."""

    def fail(done: float) -> None:
        if done > 0.3:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        make_slide(tmp_path / "s.tif", SyntheticSlide(2500, 2500), progress=fail)
    assert os.listdir(tmp_path) == []


def test_progress_rises_to_one(tmp_path: Path) -> None:
    """progress gets rising parts, and 1 at the end."""
    seen: list[float] = []
    make_slide(tmp_path / "s.tif", SyntheticSlide(2500, 1500, tissue=0.1), progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10}, "size: "),
        ({"mpp": 9.0}, "mpp: "),
        ({"tissue": 1.5}, "tissue: "),
        ({"tumour": -0.1}, "tumour: "),
        ({"subsampling": "411"}, "subsampling: "),
        ({"quality": 0}, "quality: "),
        ({"tile": 240}, "tile: "),
        ({"downsample": 3}, "downsample: "),
        ({"seed": -1}, "seed: "),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    """Each bad setting is a ValueError that begins with its name."""
    with pytest.raises(ValueError, match=f"^{message}"):
        SyntheticSlide(**{"width": 1000, "height": 1000, **change})


def test_the_command_line_options_give_settings() -> None:
    """add_arguments and from_arguments carry every option; a bad size is refused."""
    parser = argparse.ArgumentParser()
    synthetic.add_arguments(parser)
    line = "--size 20000x15000 --mpp 0.5 --tissue 0.3 --tumour 0.2 --subsampling 444 --quality 90 --seed 7 --tile 512"
    settings = synthetic.from_arguments(parser.parse_args(line.split()))
    assert settings == SyntheticSlide(20000, 15000, 0.5, 0.3, 0.2, "444", 90, 512, 4, 7)
    with pytest.raises(ValueError, match="size: '20000' is not WIDTHxHEIGHT"):
        parse_size("20000")
