from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from slides.direct_source import DirectSource
from slides.errors import SlideError
from slides.geometry import Geometry, SlideInfo, geometry, resample
from slides.openslide_source import OpenSlideSource
from slides.source import UNREADABLE, open_source
from slides.tile_file import Unsuitable
from tests.slides.jpeg_tiffs import (
    APERIO,
    FLAVOURS,
    LONG8,
    Flavour,
    encode,
    tissue,
    write_jpeg_tiff,
    write_philips,
)
from tests.slides.mutations import at_most, mutate
from tests.slides.tiffs import halved, picture, write_tiff

WIDTH, HEIGHT = 700, 600


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return tissue(WIDTH, HEIGHT)


@pytest.fixture
def slide(tmp_path: Path, image: np.ndarray) -> Path:
    """Two levels of 3 x 3 and 2 x 2 tiles."""
    return write_jpeg_tiff(tmp_path / "slide.tif", [image, halved(image)])


def direct(path: Path, cache_bytes: int = 64 << 20, exact: bool = True) -> DirectSource:
    source = open_source(path, None, "direct", cache_bytes, exact)
    assert isinstance(source, DirectSource)
    return source


def everywhere(grid: Geometry) -> np.ndarray:
    rows, columns = np.divmod(np.arange(grid.columns * grid.rows), grid.columns)
    return grid.xy(columns, rows)


def read(source, grid: Geometry, xy: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    out = np.full((len(xy), grid.patch_px, grid.patch_px, 3), 7, np.uint8)
    return out, source.read(grid, xy, out)


def difference(
    path: Path,
    patch_px: int,
    spacing: float,
    overlap: float = 0.0,
    extra: np.ndarray | None = None,
    exact: bool = True,
) -> np.ndarray:
    """Absolute differences between the two sources, int16 (n, P, P, 3), over the grid and other places."""
    ours, theirs = direct(path, exact=exact), OpenSlideSource(path)
    grid = geometry(ours.info, patch_px, spacing, overlap)
    assert ours.info == theirs.info
    xy = everywhere(grid) if extra is None else np.concatenate([everywhere(grid), extra])
    a, failed = read(ours, grid, xy)
    b, failed_too = read(theirs, grid, xy)
    assert failed == failed_too == {}
    return np.abs(a.astype(np.int16) - b)


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS.keys())
@pytest.mark.parametrize("description", ["", APERIO], ids=["generic", "aperio"])
def test_the_pixels_are_those_of_openslide(
    tmp_path: Path, image: np.ndarray, flavour: Flavour, description: str
) -> None:
    """Every way of storing a tile, aligned and unaligned patches, edges and overlaps: no difference at all."""
    path = write_jpeg_tiff(tmp_path / "a.tif", [image, halved(image)], flavour, description)
    odd = np.array([[1, 1], [333, 257], [WIDTH - 10, HEIGHT - 1], [0, 300], [500, 3]])
    assert difference(path, 96, 0.5, 0.3, odd).max() == 0
    assert difference(path, 64, 1.0, 0.0, 2 * odd // 2 * 2).max() == 0


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "sparse"])
@pytest.mark.parametrize("tile", [(128, 128), (512, 512), (64, 96)])
def test_philips(tmp_path: Path, missing: bool, tile: tuple[int, int]) -> None:
    """Lower levels are stored with a padding, which is not of the slide; tiles outside of the scanned regions are not
    stored. No difference."""

    def without(number: int, tiles: list[bytes]) -> list[bytes]:
        return [b"" if missing and i % 5 == 1 else stream for i, stream in enumerate(tiles)]

    image = tissue(1200, 901)
    levels = [image, halved(image), halved(halved(image))]
    path = write_philips(tmp_path / "a.tiff", levels, Flavour(tile=tile), change=without)
    source = direct(path)
    assert source.info.format == "philips" and source.info.level_sizes == ((1200, 901), (600, 450), (300, 225))
    odd = np.array([[1, 1], [1190, 900], [333, 257]])
    assert difference(path, 96, 0.5, 0.3, odd).max() == 0
    for spacing in (1.0, 2.0, 0.9):
        assert difference(path, 50, spacing, 0.0, odd // 4 * 4).max() == 0
    assert np.array_equal(source.overview(300), OpenSlideSource(path).overview(300))


@pytest.mark.parametrize("size", [256, 128, 512])
def test_patches_of_a_tile_or_of_several(slide: Path, size: int) -> None:
    """A patch that is exactly a tile is decoded in place, and is the same."""
    assert difference(slide, size, 0.5).max() == 0


def test_real_slide(data_dir: Path) -> None:
    """An Aperio slide with abbreviated streams of RGB: no difference."""
    path = data_dir / "slides" / "CMU-1-Small-Region.svs"
    assert difference(path, 224, 0.499).max() == 0
    assert difference(path, 240, 0.499).max() == 0


@pytest.mark.parametrize("spacing", [1.0, 0.998])
def test_real_slide_shrunk(data_dir: Path, spacing: float) -> None:
    """Patches shrunk by two: no difference, or, in the fast way, less than half a grey level on average."""
    path = data_dir / "slides" / "CMU-1-Small-Region.svs"
    assert difference(path, 224, spacing).max() == 0
    apart = difference(path, 224, spacing, exact=False)
    assert apart.mean((1, 2, 3)).max() < 0.5 and 0 < apart.max() <= 24


@pytest.mark.parametrize("chroma", ["444", "422", "420", "440", "gray"])
@pytest.mark.parametrize("factor", [2, 4, 8, 3])
def test_shrunk_by_a_whole_factor(tmp_path: Path, chroma: str, factor: int) -> None:
    """No difference, at edges too; in the fast way less than 1.3 grey levels on average."""
    path = write_jpeg_tiff(tmp_path / "a.tif", [tissue(1100, 900)], Flavour(chroma, tile=(240, 240)))
    assert difference(path, 60, 0.5 * factor).max() == 0
    apart = difference(path, 60, 0.5 * factor, exact=False)
    assert apart.mean((1, 2, 3)).max() < 1.3 and apart.max() < 30


def test_the_decoder_shrinks_only_where_that_is_close(tmp_path: Path) -> None:
    """A slide whose colours change from pixel to pixel is averaged instead, at the decoder's cost: tried on the slide."""
    loud = write_jpeg_tiff(tmp_path / "loud.tif", [tissue(900, 700, chroma=60)])
    assert difference(loud, 64, 1.0, exact=False).max() == 0
    calm = write_jpeg_tiff(tmp_path / "calm.tif", [tissue(900, 700)])
    assert 0 < difference(calm, 64, 1.0, exact=False).mean() < 1


@pytest.mark.parametrize("factor", [1.05, 1.3, 1.5, 1.77, 2.0045, 2.3, 2.75, 3.3])
def test_shrunk_by_another_factor(tmp_path: Path, factor: float) -> None:
    """No difference; in the fast way less than a grey level on average."""
    path = write_jpeg_tiff(tmp_path / "a.tif", [tissue(1100, 900)])
    assert difference(path, 224, 0.5 * factor).max() == 0
    apart = difference(path, 224, 0.5 * factor, exact=False)
    assert apart.mean((1, 2, 3)).max() < 1 and apart.max() < 24


def test_enlarged(slide: Path) -> None:
    """By the common function: the same."""
    assert difference(slide, 128, 0.3).max() == 0


def test_a_level_of_odd_size(tmp_path: Path) -> None:
    """Where the downsample is no whole number OpenSlide interpolates; the stored pixels come here, within the tolerance."""
    image, small = tissue(2001, 1601, 5), tissue(500, 400, 6)
    path = write_jpeg_tiff(tmp_path / "a.tif", [image, small], Flavour(quality=95))
    apart = difference(path, 100, 2.0)
    assert 0 < apart.mean((1, 2, 3)).max() < 2 and apart.mean() < 1
    source = direct(path)
    grid = geometry(source.info, 100, 2.0)
    assert grid.level == 1 and grid.resampling == "none"
    whole = np.empty((1, 256, 256, 3), np.uint8)
    source.read(
        Geometry(256, 2.0, 1, grid.level_downsample, (256, 256), "none", 1, 1, 1, 1, 1, 1), grid.xy([0], [0]), whole
    )
    out, _ = read(source, grid, grid.xy([1], [1]))
    assert np.array_equal(out[0], whole[0, 100:200, 100:200])


@pytest.mark.parametrize("description", ["", APERIO], ids=["generic", "aperio"])
@pytest.mark.parametrize("level", [0, 1])
def test_missing_tiles(tmp_path: Path, image: np.ndarray, description: str, level: int) -> None:
    """A tile of no bytes shows what OpenSlide shows: background, or (Aperio) the level above."""

    def without(number: int, tiles: list[bytes]) -> list[bytes]:
        return [b"" if number == level and i == 1 else tile for i, tile in enumerate(tiles)]

    path = write_jpeg_tiff(tmp_path / "a.tif", [image, halved(image)], description=description, change=without)
    for spacing in (0.5, 1.0):
        assert difference(path, 96, spacing).max() == 0
    assert bool(direct(path).notice) == bool(description)
    assert np.array_equal(direct(path).overview(300), OpenSlideSource(path).overview(300))
    assert np.array_equal(direct(path).overview(700), OpenSlideSource(path).overview(700))


def damage(tile: int, change: Callable[[bytes], bytes]) -> Callable[[int, list[bytes]], list[bytes]]:
    def apply(number: int, tiles: list[bytes]) -> list[bytes]:
        return [change(stream) if number == 0 and i == tile else stream for i, stream in enumerate(tiles)]

    return apply


DAMAGE = {
    "zeros": lambda stream: bytes(len(stream)),
    "half": lambda stream: stream[: len(stream) // 2],
    "no end": lambda stream: stream[:-2],
    "flipped bits": lambda stream: stream[:3000] + bytes(b ^ 0x55 for b in stream[3000:3400]) + stream[3400:],
    "another size": lambda stream: encode(np.zeros((128, 256, 3), np.uint8), Flavour()),
    "the other way round": lambda stream: encode(np.zeros((128, 512, 3), np.uint8), Flavour()),
    "gray": lambda stream: encode(np.zeros((256, 256, 3), np.uint8), Flavour("gray")),
    "one byte": lambda stream: b"\xff",
    "only a head": lambda stream: stream[:300],
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("spacing", [0.5, 1.0, 0.7])
def test_a_damaged_tile_costs_only_its_patches(
    tmp_path: Path, image: np.ndarray, change: Callable[[bytes], bytes], spacing: float
) -> None:
    """Those that touch it fail, become background and name it; the others are right, time after time."""
    clean = write_jpeg_tiff(tmp_path / "clean.tif", [image])
    path = write_jpeg_tiff(tmp_path / "a.tif", [image], change=damage(4, change))
    source = direct(path)
    grid = geometry(source.info, 64, spacing)
    xy = everywhere(grid)
    far = np.round(xy + 64 * spacing / 0.5 - 1).astype(int)
    touching = ((xy < 512) & (far >= 256)).all(1)
    good, _ = read(direct(clean), grid, xy)
    for _ in range(2):
        out, reasons = read(source, grid, xy)
        assert sorted(reasons) == np.flatnonzero(touching).tolist()
        assert all(reason.startswith("tile (1, 1) of level 0 ") and "\n" not in reason for reason in reasons.values())
        assert (out[touching] == 255).all() and np.array_equal(out[~touching], good[~touching])


def test_a_damaged_tile_in_the_overview(tmp_path: Path, image: np.ndarray) -> None:
    """It is painted in the colour that counts as tissue, the rest as it is."""
    clean = direct(write_jpeg_tiff(tmp_path / "clean.tif", [image])).overview(WIDTH)
    source = direct(write_jpeg_tiff(tmp_path / "a.tif", [image], change=damage(4, DAMAGE["half"])))
    overview = source.overview(WIDTH)
    assert (overview[256:512, 256:512] == UNREADABLE).all()
    overview[256:512, 256:512] = clean[256:512, 256:512]
    assert np.array_equal(overview, clean)


@pytest.mark.parametrize("max_px", [37, 128, 256, 350, 700, 5000])
@pytest.mark.parametrize("block", [2048, 100])
def test_the_overview_is_that_of_openslide(
    slide: Path, max_px: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixel for pixel, in one block or several."""
    monkeypatch.setattr("slides.openslide_source._BLOCK", block)
    beats: list[int] = []
    assert np.array_equal(
        direct(slide).overview(max_px, lambda: beats.append(1)), OpenSlideSource(slide).overview(max_px)
    )
    assert len(beats) >= 4


def test_real_overview(data_dir: Path) -> None:
    """Pixel for pixel."""
    path = data_dir / "slides" / "CMU-1-Small-Region.svs"
    assert np.array_equal(direct(path).overview(2048), OpenSlideSource(path).overview(2048))


def test_every_tile_damaged(tmp_path: Path, image: np.ndarray) -> None:
    """Nothing to compare with OpenSlide: it is left to it, which says what is wrong."""
    path = write_jpeg_tiff(tmp_path / "a.tif", [image], change=lambda _, tiles: [bytes(len(t)) for t in tiles])
    source = open_source(path, None)
    assert isinstance(source, OpenSlideSource) and "cannot be compared" in source.notice


@pytest.mark.parametrize("exact", [True, False])
def test_patches_depend_on_nothing_but_their_place(slide: Path, exact: bool) -> None:
    """Order, company, cache: the same pixels."""
    for spacing in (0.5, 0.73, 1.0):
        source = direct(slide, exact=exact)
        grid = geometry(source.info, 50, spacing, 0.4)
        xy = everywhere(grid)
        out, _ = read(source, grid, xy)
        order = np.random.default_rng(1).permutation(len(xy))
        shuffled, _ = read(direct(slide, cache_bytes=0, exact=exact), grid, xy[order])
        assert np.array_equal(shuffled, out[order])
        one, _ = read(source, grid, xy[7:8])
        assert np.array_equal(one[0], out[7])


@pytest.mark.parametrize("lease", [8, 32, 64])
@pytest.mark.parametrize("tile", [240, 256])
def test_each_tile_is_decoded_about_once(tmp_path: Path, lease: int, tile: int) -> None:
    """A whole slide in plan order, in leases, with a cache of a few tiles more than a row of blocks' border."""
    from slides.plan import plan

    image = np.zeros((3000, 4000, 3), np.uint8)
    path = write_jpeg_tiff(tmp_path / "a.tif", [image], Flavour(tile=(tile, tile)))
    source = direct(path, cache_bytes=64 * tile * tile * 3)
    grid = geometry(source.info, 224, 0.5)
    whole = plan(np.ones((10, 10), bool), source.info, grid, 0.0)
    xy = grid.xy(whole.columns, whole.rows)
    for start in range(0, len(xy), lease):
        _, failed = read(source, grid, xy[start : start + lease])
        assert failed == {}
    tiles = -(-4000 // tile) * -(-3000 // tile)
    assert tiles <= source.decodes <= 1.02 * tiles
    assert source.reads < tiles


def test_memory_is_bounded(tmp_path: Path, image: np.ndarray) -> None:
    """The cache holds no more than it may, whatever is read."""
    path = write_jpeg_tiff(tmp_path / "a.tif", [image], Flavour(tile=(64, 64)))
    limit = 20 * 64 * 64 * 3
    source = direct(path, cache_bytes=limit)
    for spacing in (0.5, 1.0, 0.9):
        grid = geometry(source.info, 100, spacing, 0.5)
        read(source, grid, everywhere(grid))
        assert source._cache.bytes <= limit


def test_open_slides_share_their_cache(tmp_path: Path, image: np.ndarray) -> None:
    """Slides that are open together hold no more than one, do not mix, and leave nothing behind."""
    limit = 12 * 64 * 64 * 3
    paths = [
        write_jpeg_tiff(tmp_path / f"{i}.tif", [tissue(WIDTH, HEIGHT, i)], Flavour(tile=(64, 64))) for i in range(3)
    ]
    sources = [direct(path, cache_bytes=limit) for path in paths]
    grid = geometry(sources[0].info, 100, 0.5)
    xy = everywhere(grid)
    for i in range(0, len(xy), 4):
        for source, path in zip(sources, paths, strict=True):
            out, _ = read(source, grid, xy[i : i + 4])
            alone, _ = read(OpenSlideSource(path), grid, xy[i : i + 4])
            assert np.array_equal(out, alone)
    assert len({id(source._cache) for source in sources}) == 1
    assert 0 < sources[0]._cache.bytes <= limit
    for source in sources:
        source.close()
    assert len(sources[0]._cache) == 0


def test_beats_and_background(slide: Path) -> None:
    """A beat after every patch; what overhangs is background."""
    source = direct(slide)
    grid = geometry(source.info, 400, 0.5)
    beats: list[int] = []
    out = np.empty((2, 400, 400, 3), np.uint8)
    assert source.read(grid, np.array([[600, 500], [900, 100]]), out, lambda: beats.append(1)) == {}
    assert len(beats) == 2 and (out[0, 100:] == 255).all() and (out[0, :, 100:] == 255).all()
    assert out[0, :100, :100].std() > 10 and (out[1] == 255).all()


def test_auto_takes_what_it_can(slide: Path, tmp_path: Path, image: np.ndarray) -> None:
    """Direct for JPEG tiles, OpenSlide with a reason for others, OpenSlide without one where it is asked for."""
    source = open_source(slide, None)
    assert isinstance(source, DirectSource) and source.notice == ""
    source = open_source(slide, None, "openslide")
    assert isinstance(source, OpenSlideSource) and source.notice == ""
    deflated = write_tiff(tmp_path / "deflated.tif", [image])
    source = open_source(deflated, None)
    assert isinstance(source, OpenSlideSource) and "method 8, not JPEG" in source.notice
    assert source.read(geometry(source.info, 64, 0.5), np.array([[0, 0]]), np.empty((1, 64, 64, 3), np.uint8)) == {}
    with pytest.raises(SlideError, match=r"deflated\.tif: cannot be read tile by tile: .*set slides\.source to auto"):
        open_source(deflated, None, "direct")


def test_an_unreadable_slide_is_that_of_openslide(data_dir: Path) -> None:
    """Every patch fails, with OpenSlide's reason."""
    source = open_source(data_dir / "bad" / "unreadable.svs", None)
    grid = geometry(source.info, 8, 0.499)
    _, reasons = read(source, grid, everywhere(grid))
    assert sorted(reasons) == [0, 1, 2, 3] and set(reasons.values()) == {"Bogus marker length"}


def test_wrong_pixels_turn_it_off(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason, pixels that differ from OpenSlide's are not used."""
    decode = DirectSource._decode

    def off_by_one(self, view, index, out):
        decode(self, view, index, out)
        out[10:] += 1

    monkeypatch.setattr(DirectSource, "_decode", off_by_one)
    source = open_source(slide, None)
    assert isinstance(source, OpenSlideSource) and "differs from OpenSlide's by up to" in source.notice
    grid = geometry(source.info, 64, 0.5)
    assert read(source, grid, everywhere(grid))[1] == {}


def test_levels_in_any_order(tmp_path: Path, image: np.ndarray) -> None:
    """A directory belongs to the level of its size, wherever it stands in the file."""
    path = write_jpeg_tiff(tmp_path / "a.tif", [image, tissue(175, 150, 3), halved(image)])
    source = direct(path)
    assert source.info.level_sizes == ((700, 600), (350, 300), (175, 150))
    for spacing in (0.5, 1.0, 2.0):
        assert difference(path, 64, spacing).max() == 0


def test_a_file_cut_short_while_it_is_open(slide: Path) -> None:
    """The tiles that are gone fail, the others are read."""
    source = direct(slide)
    grid = geometry(source.info, 64, 0.5)
    with open(slide, "r+b") as file:
        file.truncate(60_000)
    _, reasons = read(source, grid, everywhere(grid))
    assert 0 < len(reasons) < grid.columns * grid.rows
    assert all("is cut short" in reason for reason in reasons.values())


def test_an_index_that_lies_of_a_tile(tmp_path: Path, image: np.ndarray) -> None:
    """Offsets past the end and absurd sizes cost the tile, before anything is allocated; a span of another tile's bytes
    shows another tile, which nobody can tell."""
    lies = {1: (1 << 40, 5000), 2: (200, 1 << 40), 3: (1 << 63, 1 << 62), 5: (0, 30_000_000)}

    def lie(number: int, entries: dict) -> None:
        if number == 0:
            for i, (offset, count) in lies.items():
                entries[324][1][i], entries[325][1][i] = offset, count
            entries[325] = LONG8, entries[325][1]

    source = direct(write_jpeg_tiff(tmp_path / "a.tif", [image], Flavour(big=True), lie=lie))
    grid = geometry(source.info, 250, 0.5)
    xy = np.array([(column * 256 + 2, row * 256 + 2) for row in range(2) for column in range(3)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, reasons = read(source, grid, xy)
    assert sorted(reasons) == [1, 2, 3, 5]
    assert "lies past the end of the file, at bytes 1099511627776 to 1099511632776" in reasons[1]
    assert all("the index says that it has" in reasons[i] for i in (2, 3, 5))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


def test_reads_that_come_in_pieces(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network file systems give them: the rest is asked for."""
    source = direct(slide)
    grid = geometry(source.info, 64, 0.5)
    whole, _ = read(direct(slide), grid, everywhere(grid))
    pread = os.pread
    monkeypatch.setattr("slides.tile_file.os.pread", lambda fd, count, offset: pread(fd, min(count, 1000), offset))
    out, reasons = read(source, grid, everywhere(grid))
    assert reasons == {} and np.array_equal(out, whole)


def test_a_disk_that_fails(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error is that of a tile while the file is there, and of the slide when it has gone."""
    source = direct(slide)
    grid = geometry(source.info, 64, 0.5)

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("slides.tile_file.os.pread", fail)
        _, reasons = read(source, grid, grid.xy([0], [0]))
        assert reasons == {0: "tile (0, 0) of level 0 cannot be read: Input/output error"}
        slide.rename(slide.with_name("moved.tif"))
        with pytest.raises(SlideError, match="has gone"):
            read(source, grid, grid.xy([0], [0]))
        write_tiff(slide, [picture(64, 64)])
        with pytest.raises(SlideError, match="was replaced"):
            read(source, grid, grid.xy([0], [0]))
    assert read(source, grid, grid.xy([0], [0]))[1] == {}


def test_two_levels_of_one_size(tmp_path: Path, image: np.ndarray) -> None:
    """Which directory holds which level cannot be told by size; the self-check sees the mistake."""
    path = write_jpeg_tiff(tmp_path / "a.tif", [tissue(WIDTH, HEIGHT, 9), image], Flavour(), APERIO)
    source = open_source(path, None)
    assert isinstance(source, OpenSlideSource) and "level 1 differs from OpenSlide's" in source.notice


def test_out_must_be_writable_in_place(slide: Path) -> None:
    """As for the reference."""
    source = direct(slide)
    grid = geometry(source.info, 8, 0.5)
    for out in (np.empty((1, 8, 8, 4), np.uint8)[..., :3], np.empty((2, 8, 8, 3), np.uint8), np.empty((1, 8, 8, 3))):
        with pytest.raises(ValueError):
            source.read(grid, grid.xy([0], [0]), out)  # type: ignore[arg-type]


def test_closed_is_closed(slide: Path) -> None:
    """Closing twice is fine, reading afterwards is a mistake."""
    source = direct(slide)
    grid = geometry(source.info, 8, 0.5)
    source.close()
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.overview(10)
    with pytest.raises(ValueError, match="closed"):
        read(source, grid, grid.xy([0], [0]))


def test_resampling_is_that_of_the_reference_beside_the_grid(slide: Path) -> None:
    """A patch at an odd place cannot use tiles shrunk by two: its region is averaged by the common function."""
    source, plain = direct(slide, exact=False), OpenSlideSource(slide)
    grid = Geometry(64, 1.0, 0, 1.0, (128, 128), "area", 128, 128, 128, 128, 5, 4)
    xy = np.array([[33, 21], [32, 21]])
    out, _ = read(source, grid, xy)
    native = Geometry(128, 0.5, 0, 1.0, (128, 128), "none", 128, 128, 128, 128, 5, 4)
    regions, _ = read(plain, native, xy)
    expected = np.empty((64, 64, 3), np.uint8)
    for patch, region, most in zip(out, regions, (0, 20), strict=True):
        resample(region, 64, expected)
        assert np.abs(patch.astype(int) - expected).max() <= most
    assert np.array_equal(expected, cv2.resize(regions[1], (64, 64), interpolation=cv2.INTER_AREA))


def read_whole(info: SlideInfo, exact: bool) -> Counter[str]:
    """Read every patch, without OpenSlide; gives what came of it."""
    try:
        source = DirectSource(info, exact=exact)
    except Unsuitable as error:
        assert "\n" not in str(error)
        return Counter(refused=1)
    outcome: Counter[str] = Counter()
    grids = [geometry(info, 32, spacing) for spacing in (0.5, 1.0, 0.77)]
    for grid in (*grids, replace(grids[0], region_px=(64, 64), resampling="area", step_x=64, step_y=64)):
        _, reasons = read(source, grid, everywhere(grid))
        outcome["failed patches" if reasons else "whole"] += 1
        assert all("\n" not in reason and len(reason) < 300 for reason in reasons.values())
    try:
        source.overview(100)
    except SlideError:
        outcome["no overview"] += 1
    source.close()
    return outcome


def fuzz_slides(tmp_path: Path, count: int, seed: int) -> Counter[str]:
    """Mutate small slides anywhere and read them whole, without OpenSlide; gives what came of it."""
    rng = np.random.default_rng(seed)
    image = tissue(150, 130)
    path = tmp_path / "fuzzed.tif"
    seeds = []
    for flavour in (Flavour(tile=(64, 64), tables=True), Flavour(tile=(64, 64), big=True, order=">")):
        write_jpeg_tiff(path, [image, halved(image)], flavour)
        seeds.append((path.read_bytes(), OpenSlideSource(path).info))
    write_philips(path, [image, halved(image)], Flavour(tile=(32, 48)))
    seeds.append((path.read_bytes(), OpenSlideSource(path).info))
    outcome: Counter[str] = Counter()
    for number in range(count):
        good, info = seeds[number % len(seeds)]
        data = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            mutate(rng, data)
        path.write_bytes(data)
        with at_most(60):
            outcome += read_whole(info, exact=number % 2 > 0)
    return outcome


def test_mutated_slides(tmp_path: Path) -> None:
    """Refused, or read with a reason for each patch that is lost: no other exception."""
    outcome = fuzz_slides(tmp_path, 200, 0)
    assert min(outcome[key] for key in ("refused", "failed patches", "whole")) > 20, outcome


@pytest.mark.long
def test_many_mutated_slides(tmp_path: Path) -> None:
    """The same, 20,000 times, within bounded time and memory."""
    fuzz_slides(tmp_path, 300, 1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    fuzz_slides(tmp_path, 20_000, 2)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 300 << 10
    assert after.ru_utime - before.ru_utime < 1200


def test_what_was_compared_elsewhere_is_not_compared_again(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader compares a slide with OpenSlide; the others that read it trust that."""
    compared: list[int] = []
    check = DirectSource.check
    monkeypatch.setattr(DirectSource, "check", lambda self, reference: [compared.append(1), check(self, reference)])
    first, second = open_source(slide, None), open_source(slide, None, checked=True)
    assert (first.kind, second.kind) == ("direct", "direct") and compared == [1]
    assert open_source(slide, None, "openslide").kind == "openslide"
