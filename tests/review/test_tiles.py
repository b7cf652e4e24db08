"""Tiles for the viewer: stored ones are passed through, others made; both show what OpenSlide shows."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image, ImageCms

from review import slide_pool
from review.errors import Refused
from review.slide_pool import SlidePool
from review.tiles import Level, OpenedSlide, plan_levels
from slides.geometry import SlideInfo
from slides.synthetic import SyntheticSlide, make_slide
from tests.slides.damage import corrupt_tiles
from tests.slides.jpeg_tiffs import FLAVOURS, UNDEFINED, Flavour, tissue, write_jpeg_tiff
from tests.slides.tiffs import halved, write_tiff


def pixels(jpeg: bytes) -> np.ndarray:
    """As a browser shows it."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def reference(path: Path, level: Level, column: int, row: int) -> np.ndarray:
    """OpenSlide's pixels of a stored level's tile."""
    with openslide.OpenSlide(path) as slide:
        x, y = (round(place * level.tile * level.downsample) for place in (column, row))
        region = slide.read_region(
            (x, y), slide.get_best_level_for_downsample(level.downsample), level.box(column, row)
        )
        return np.asarray(region.convert("RGB"))


def assert_alike(found: np.ndarray, expected: np.ndarray, grey_levels: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(np.int16) - expected).mean() <= grey_levels


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Levels of 5000 x 3000, 1250 x 750 pixels."""
    path = tmp_path_factory.mktemp("slides") / "synthetic.tif"
    make_slide(path, SyntheticSlide(5000, 3000, tissue=0.6, seed=5))
    return path


@pytest.mark.parametrize("name", ["tables", "RGB, no marker", "gray", "progressive", "tiles of 240", "BigTIFF"])
def test_stored_tiles_are_passed_through(tmp_path, name):
    """With tables spliced in and the colours said: a decoder shows exactly OpenSlide's pixels."""
    path = tmp_path / "slide.tif"
    write_jpeg_tiff(path, [tissue(700, 500)], FLAVOURS[name])
    slide = OpenedSlide(path)
    assert slide.passthrough and slide.is_stored(0, 1, 0, False)
    found = pixels(slide.tile(0, 1, 0).jpeg)
    assert_alike(found, reference(path, slide.levels[0], 1, 0), 0.6)
    slide.close()


def test_a_passed_tile_has_its_stored_data(synthetic):
    """The bytes after the head are those of the file: nothing was encoded again."""
    slide = OpenedSlide(synthetic)
    level = slide._direct.levels[0]
    row, column = divmod(int(np.argmax(level.directory.counts)), level.directory.columns)
    stream = slide._direct.stored(level, row * level.directory.columns + column)
    assert len(stream) > 4000 and slide.tile(0, column, row).jpeg.endswith(stream[-3000:])
    slide.close()


def test_edge_tiles_are_cut_to_the_slide(synthetic):
    """Of stored levels and of made ones."""
    slide = OpenedSlide(synthetic)
    for number, level in enumerate(slide.levels):
        found = pixels(slide.tile(number, level.columns - 1, level.rows - 1).jpeg)
        assert found.shape[1::-1] == level.box(level.columns - 1, level.rows - 1), level
    level = slide.levels[0]
    last = level.columns - 1, level.rows - 1
    assert_alike(pixels(slide.tile(0, *last).jpeg), reference(synthetic, level, *last), 2.0)
    slide.close()


def test_levels_that_the_file_lacks_are_made(synthetic):
    """Down to one that is small; the stored ones are passed through."""
    slide = OpenedSlide(synthetic)
    assert [(round(level.downsample), level.stored) for level in slide.levels] == [(1, 0), (4, 1), (16, 2)]
    slide.close()


def test_a_slide_of_one_level_gets_others(tmp_path):
    """Made by averaging, every pixel in its place."""
    image = tissue(1500, 1100)
    path = write_jpeg_tiff(tmp_path / "slide.tif", [image], FLAVOURS["444"])
    slide = OpenedSlide(path)
    assert [(level.downsample, level.stored) for level in slide.levels] == [(1, 0), (2, None), (4, None)]
    expected = np.asarray(Image.fromarray(image).reduce(4))
    assert_alike(
        pixels(slide.tile(2, 1, 0).jpeg)[:250], expected[:250, 256:512][:, : slide.levels[2].box(1, 0)[0]], 4.5
    )
    slide.close()


def test_a_gap_between_levels_is_filled():
    """A level sixteen times coarser than the one before has one between them; what cannot be passed is halved."""
    info = SlideInfo("a", "aperio", 64000, 32000, ((64000, 32000), (4000, 2000)), (1.0, 16.0), 0.5, 0.5, "slide")
    assert [level.downsample for level in plan_levels(info, {0: 240, 1: 240})] == [1, 4, 16, 32, 64, 128]
    assert [level.downsample for level in plan_levels(info, {1: 240})] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert plan_levels(info, {0: 240})[0].tile == 240


def test_slides_that_are_not_jpeg_tiles_are_made(tmp_path):
    """By OpenSlide, in levels that halve; every pixel in its place."""
    image = tissue(1300, 900)
    path = write_tiff(tmp_path / "slide.tif", [image, halved(image)])
    slide = OpenedSlide(path)
    assert not slide.passthrough and [level.downsample for level in slide.levels] == [1, 2, 4]
    for number, (column, row) in ((0, (4, 2)), (1, (2, 1)), (0, (5, 3))):
        level = slide.levels[number]
        assert_alike(pixels(slide.tile(number, column, row).jpeg), reference(path, level, column, row), 8.0)
    slide.close()


def test_a_tile_that_cannot_be_read_is_hatched(tmp_path):
    """And says why; its neighbours are as they were. Damage within a tile's data is left to the browser, so the head is hit."""
    path = tmp_path / "slide.tif"
    write_jpeg_tiff(path, [tissue(1100, 600)], Flavour(tables=True))
    before = OpenedSlide(path)
    level = before._direct.levels[0]
    offset, good = int(level.directory.offsets[1]), before.tile(0, 2, 0)
    before.close()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"no JPEG")
    slide = OpenedSlide(path)
    bad = slide.tile(0, 1, 0)
    assert "JPEG" in bad.problem
    shown = pixels(bad.jpeg)
    assert shown.shape == (256, 256, 3) and 0.4 < (shown > 200).mean() < 0.6 and 0.4 < (shown < 90).mean()
    assert slide.tile(0, 2, 0) == good
    slide.close()


def test_what_openslide_cannot_read_is_hatched(tmp_path):
    """In made levels and thumbnails, too."""
    path = tmp_path / "slide.tif"
    write_jpeg_tiff(path, [tissue(1100, 600)], Flavour(compression=7, tile=(128, 304)))
    corrupt_tiles(path, [(0, 1)])
    slide = OpenedSlide(path)
    assert not slide.passthrough
    assert slide.tile(0, 0, 0).problem and not slide.tile(0, 3, 0).problem
    assert slide.region(100, 0, 300, 200, 64).problem
    slide.close()


@pytest.mark.parametrize("px", [700, 350, 130])
def test_around_a_damaged_tile_real_pixels_are_shown(tmp_path, px):
    """Exactly the one tile that cannot be read is hatched in a region over many, also when that is shrunk."""
    path = tmp_path / "slide.tif"
    write_jpeg_tiff(path, [tissue(1100, 1000)], Flavour(tables=True))
    whole = OpenedSlide(path)
    before = pixels(whole.region(100, 80, 700, 700, px).jpeg).astype(int)
    whole.close()
    corrupt_tiles(path, [(0, 6)])  # at (256, 256)
    slide = OpenedSlide(path)
    found = slide.region(100, 80, 700, 700, px)
    assert found.problem.startswith("parts of it cannot be read")
    shown, scale = pixels(found.jpeg).astype(int), px / 700
    damaged = np.zeros((px, px), bool)
    left, right, top, bottom = (place * scale for place in (156, 412, 176, 432))
    damaged[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    grown = np.zeros_like(damaged)  # the JPEG of the answer smears by a block
    grown[max(0, int(top) - 8) : int(bottom) + 10, max(0, int(left) - 8) : int(right) + 10] = True
    assert np.abs(shown - before)[~grown].mean() < 1.5
    inside = shown[int(top) + 2 : int(bottom) - 2, int(left) + 2 : int(right) - 2]
    assert ((inside > 190).all(axis=-1) | (inside < 105).all(axis=-1)).mean() > 0.9
    made = slide.tile(1, 0, 0)  # of a level that halves
    assert made.problem and not slide.tile(1, 1, 1).problem
    slide.close()


def test_no_such_tile(synthetic):
    """Refused, on every side."""
    slide = OpenedSlide(synthetic)
    for place in ((9, 0, 0), (-1, 0, 0), (0, 20, 0), (0, -1, 0), (0, 0, 12)):
        with pytest.raises(Refused) as refusal:
            slide.tile(*place)
        assert refusal.value.status == 404
    slide.close()


def test_regions_show_what_they_name(synthetic):
    """A wide one, `px` along its longer side; one over the slide's edge shows background there; none is enlarged."""
    slide = OpenedSlide(synthetic)
    wide = pixels(slide.region(1000, 800, 1600, 800, 400).jpeg)
    with openslide.OpenSlide(synthetic) as other:
        expected = np.asarray(other.read_region((1000, 800), 1, (400, 200)).convert("RGB"))
    assert_alike(wide, expected, 4.5)
    over = pixels(slide.region(4900, 2900, 200, 200, 200).jpeg)
    assert over.shape == (200, 200, 3) and (over[150:, 150:] > 245).all()
    assert pixels(slide.region(0, 0, 30, 20, 500).jpeg).shape == (20, 30, 3)
    slide.close()


def test_a_single_level_is_shown_from_an_overview_where_much_would_be_read(tmp_path, monkeypatch):
    """The same picture, in its place."""
    path = tmp_path / "slide.tif"
    write_jpeg_tiff(path, [tissue(4000, 3000)], FLAVOURS["420"])
    slide = OpenedSlide(path)
    near = slide.region(800, 400, 2000, 1200, 250)
    monkeypatch.setattr("review.tiles._MAX_READ", 500)
    far = slide.region(800, 400, 2000, 1200, 250)
    assert far.jpeg != near.jpeg
    coarse = [np.asarray(Image.open(io.BytesIO(one.jpeg)).reduce(10)) for one in (far, near)]
    assert_alike(*coarse, 4.0)
    shifted = np.roll(coarse[1], 1, axis=1)
    assert np.abs(shifted.astype(int) - coarse[0]).mean() > 10
    slide.close()


def test_handles_are_kept_in_bounds(synthetic, monkeypatch):
    """Of many readers at a time a few handles stay, and none that has a large buffer."""
    slide = OpenedSlide(synthetic)
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        assert not slide.region(100, 100, 600, 600, 200).problem

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(slide._idle) <= 4
    monkeypatch.setattr("review.tiles._SMALL_READ", 100)
    before = len(slide._idle)
    assert not slide.region(100, 100, 600, 600, 600).problem
    assert len(slide._idle) == before - 1
    slide.close()


def test_a_profile_of_colours_is_honoured_on_demand(tmp_path):
    """Tiles, passed and made, change as ImageCms says; without asking they stay as stored."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    assert profile is not None
    rgb = wide_profile()
    path = tmp_path / "slide.tif"
    write_jpeg_tiff(path, [tissue(700, 500)], Flavour(extra={34675: (UNDEFINED, rgb)}))
    slide = OpenedSlide(path)
    assert slide.icc and slide.passthrough
    stored, shown = pixels(slide.tile(0, 0, 0).jpeg), pixels(slide.tile(0, 0, 0, icc=True).jpeg)
    source = ImageCms.ImageCmsProfile(io.BytesIO(rgb))
    expected = ImageCms.profileToProfile(Image.fromarray(stored), source, ImageCms.createProfile("sRGB"))
    assert np.abs(shown.astype(int) - stored).mean() > 3
    assert_alike(shown, np.asarray(expected), 3.0)
    assert slide.region(0, 0, 256, 256, 128, icc=True).jpeg != slide.region(0, 0, 256, 256, 128).jpeg
    slide.close()


def wide_profile() -> bytes:
    """sRGB's profile with red and blue exchanged: no eye could miss it."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132])
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data)


def test_a_damaged_profile_is_none(tmp_path):
    """The slide is shown as it is stored."""
    path = tmp_path / "slide.tif"
    write_jpeg_tiff(path, [tissue(300, 300)], Flavour(extra={34675: (UNDEFINED, b"no profile at all" * 20)}))
    slide = OpenedSlide(path)
    assert not slide.icc
    assert slide.tile(0, 0, 0, icc=True) == slide.tile(0, 0, 0)
    slide.close()


@pytest.mark.parametrize(
    ("name", "kept"), [("CMU-1-Small-Region.svs", True), ("fluorescence-387.ndpi", False), ("no-mpp.tif", False)]
)
def test_real_slides(data_dir, name, kept):
    """Aperio's tiles with tables are passed through, others made; every level down to a small one, never a label or macro."""
    path = data_dir / "slides" / name
    slide = OpenedSlide(path)
    assert slide.passthrough is kept
    assert max(slide.levels[-1].width, slide.levels[-1].height) <= 512
    for number, level in enumerate(slide.levels):
        for column, row in {(0, 0), (level.columns - 1, level.rows - 1), (level.columns // 2, level.rows // 2)}:
            found = slide.tile(number, column, row)
            assert not found.problem and pixels(found.jpeg).shape[1::-1] == level.box(column, row)
    middle = slide.levels[0].columns // 2, slide.levels[0].rows // 2
    assert_alike(pixels(slide.tile(0, *middle).jpeg), reference(path, slide.levels[0], *middle), 4.5)
    whole = pixels(slide.overview().jpeg)
    assert whole.shape[1] / whole.shape[0] == pytest.approx(slide.info.width / slide.info.height, rel=0.02)
    slide.close()


# ------------------------------------------------------------ the pool


def test_no_more_slides_are_held_open_than_allowed(tmp_path):
    """The least recently used is closed; one that is being read is not closed under its reader."""
    paths = [tmp_path / f"{number}.tif" for number in range(4)]
    for path in paths:
        write_jpeg_tiff(path, [tissue(300, 300)], FLAVOURS["420"])
    pool = SlidePool(most=2)
    with pool.slide(paths[0]) as first:
        for path in paths[1:]:
            with pool.slide(path) as other:
                pass
        assert len(pool) == 2
        assert not first.tile(0, 0, 0).problem
    with pytest.raises(ValueError, match="closed"):
        first._direct.overview(10)
    assert not other.tile(0, 0, 0).problem
    pool.close()
    assert len(pool) == 0


def test_a_slide_is_opened_once_for_all_who_ask(synthetic, monkeypatch):
    """Threads that come while it is opened wait for it."""
    opened = []

    class Counted(OpenedSlide):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(slide_pool, "OpenedSlide", Counted)
    pool, found = SlidePool(), []

    def ask() -> None:
        with pool.slide(synthetic) as slide:
            found.append(slide.tile(0, 1, 1).jpeg)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1 and len(set(found)) == 1 and len(found) == 6
    pool.close()


def test_pictures_are_kept_within_their_bound(synthetic):
    """Made once while they are kept; the oldest go; a replaced file has none."""
    made = []

    def make(number: int):
        def of(slide: OpenedSlide):
            made.append(number)
            return slide.tile(0, number, 0)

        return of

    with SlidePool().slide(synthetic) as slide:
        largest = max(len(slide.tile(0, number, 0).jpeg) for number in range(8))
    pool = SlidePool(pictures_bytes=2 * largest)
    for number in (1, 1, 2, 3, 4, 5, 6, 7, 7):
        pool.picture(synthetic, (number,), make(number))
    assert made == [1, 2, 3, 4, 5, 6, 7]
    assert 0 < pool._bytes <= 2 * largest and len(pool._pictures) < 7
    pool.close()


def test_what_is_no_slide_is_refused(tmp_path, data_dir):
    """With the reason and without its path; a file that has gone, as gone."""
    text = tmp_path / "secret.txt"
    text.write_text("root:x:0:0")
    pool = SlidePool()
    for path, status in ((text, 422), (tmp_path / "gone.svs", 404), (data_dir / "bad" / "unopenable.tiff", 422)):
        with pytest.raises(Refused) as refusal, pool.slide(path):
            pass
        assert refusal.value.status == status and str(path.parent) not in refusal.value.message
    assert len(pool) == 0
