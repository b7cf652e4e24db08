from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest

from slides.errors import SlideError
from slides.geometry import Geometry, geometry, resample
from slides.openslide_source import OpenSlideSource, _composite
from slides.source import UNREADABLE, open_source
from tests.slides.tiffs import TILE, destroy_tiles, halved, picture, write_tiff


@pytest.fixture
def image() -> np.ndarray:
    return picture(400, 300)


@pytest.fixture
def slide(tmp_path: Path, image: np.ndarray) -> Path:
    return write_tiff(tmp_path / "slide.tif", [image, halved(image)])


def read_all(source: OpenSlideSource, grid: Geometry) -> tuple[np.ndarray, dict[int, str], int]:
    rows, columns = np.divmod(np.arange(grid.columns * grid.rows), grid.columns)
    out = np.full((len(rows), grid.patch_px, grid.patch_px, 3), 7, np.uint8)
    beats: list[int] = []
    reasons = source.read(grid, grid.xy(columns, rows), out, lambda: beats.append(1))
    return out, reasons, len(beats)


def test_info_says_what_the_slide_is(slide: Path) -> None:
    """Sizes, levels and spacing as stored."""
    info = OpenSlideSource(slide).info
    assert (info.path, info.format, info.width, info.height) == (str(slide), "generic-tiff", 400, 300)
    assert info.level_sizes == ((400, 300), (200, 150)) and info.level_downsamples == (1.0, 2.0)
    assert (info.mpp_x, info.mpp_y, info.mpp_source) == (pytest.approx(0.5), pytest.approx(0.5), "slide")
    assert info.background == (255, 255, 255)


def test_native_patches_are_the_stored_pixels(slide: Path, image: np.ndarray) -> None:
    """At the slide's own spacing nothing is changed, and what overhangs the slide is background."""
    source = OpenSlideSource(slide)
    grid = geometry(source.info, 96, 0.5, overlap=0.25)
    padded = np.full((300 + 96, 400 + 96, 3), 255, np.uint8)
    padded[:300, :400] = image
    out, reasons, beats = read_all(source, grid)
    assert reasons == {} and beats == len(out) == grid.columns * grid.rows
    for patch, (x, y) in zip(out, grid.xy(*np.meshgrid(range(grid.columns), range(grid.rows))), strict=True):
        assert np.array_equal(patch, padded[y : y + 96, x : x + 96])


def test_a_lower_level_is_read_sharp_at_any_place(slide: Path, image: np.ndarray) -> None:
    """Odd level-0 places read the nearest stored pixels of level 1, not a blend of neighbours."""
    source = OpenSlideSource(slide)
    grid = geometry(source.info, 50, 1.0)
    assert (grid.level, grid.resampling) == (1, "none")
    out = np.empty((2, 50, 50, 3), np.uint8)
    source.read(grid, np.array([[101, 57], [40, 20]]), out)
    small = halved(image)
    assert np.array_equal(out[0], small[29:79, 51:101])
    assert np.array_equal(out[1], small[10:60, 20:70])


def test_other_spacings_are_resampled_once(slide: Path, image: np.ndarray) -> None:
    """The region is read exactly, then brought to the model's size by the common function."""
    source = OpenSlideSource(slide)
    for spacing, size in ((0.75, 72), (0.25, 24)):
        grid = geometry(source.info, 48, spacing)
        assert grid.region_px == (size, size) and grid.level == 0
        out = np.empty((1, 48, 48, 3), np.uint8)
        source.read(grid, np.array([[33, 21]]), out)
        expected = np.empty((48, 48, 3), np.uint8)
        resample(image[21 : 21 + size, 33 : 33 + size], 48, expected)
        assert np.array_equal(out[0], expected)


def test_pixels_need_not_be_square(tmp_path: Path, image: np.ndarray) -> None:
    """Each axis is brought to the wanted spacing."""
    source = OpenSlideSource(write_tiff(tmp_path / "a.tif", [image], mpp=(0.25, 0.5)))
    grid = geometry(source.info, 64, 0.5)
    out = np.empty((1, 64, 64, 3), np.uint8)
    assert source.read(grid, grid.xy([1], [1]), out) == {}
    expected = image[64:128, 128:256].reshape(64, 64, 2, 3).mean(2)
    assert np.abs(out[0] - expected).max() <= 0.51


def test_transparent_parts_show_the_background() -> None:
    """Premultiplied colour is laid over the background; opaque pixels stay."""
    alpha = np.array([[255, 0, 128]], np.uint8)
    rgb = np.array([[[10, 20, 30], [0, 0, 0], [64, 0, 128]]], np.uint8)
    _composite(alpha, rgb, (255, 100, 0))
    assert rgb.tolist() == [[[10, 20, 30], [255, 100, 0], [64 + 127, 50, 128]]]


def test_a_damaged_tile_costs_only_its_patches(slide: Path, image: np.ndarray) -> None:
    """Patches over the tile fail with a reason and become background; the others are right; the tile is tried again."""
    clean, _, _ = read_all(OpenSlideSource(slide), geometry(OpenSlideSource(slide).info, TILE, 0.5))
    destroy_tiles(slide, [8])  # second row, second of 7 columns
    source = OpenSlideSource(slide)
    grid = geometry(source.info, TILE, 0.5)
    for _ in range(2):
        out, reasons, beats = read_all(source, grid)
        assert list(reasons) == [8] and reasons[8] and "\n" not in reasons[8]
        assert beats == len(out)
        assert (out[8] == 255).all()
        assert np.array_equal(np.delete(out, 8, 0), np.delete(clean, 8, 0))
    assert source.info.width == 400


def test_unreadable_slide_fails_patch_by_patch(data_dir: Path) -> None:
    """A slide that opens but cannot be read gives a reason for every patch, time after time."""
    source = OpenSlideSource(data_dir / "bad" / "unreadable.svs")
    grid = geometry(source.info, 8, 0.499)
    for _ in range(3):
        out, reasons, _ = read_all(source, grid)
        assert sorted(reasons) == [0, 1, 2, 3] and set(reasons.values()) == {"Bogus marker length"}
        assert (out == 255).all()
    with pytest.raises(SlideError, match="no part of it can be read: Bogus marker length"):
        source.overview(64)


def test_a_slide_that_vanishes_is_lost(slide: Path) -> None:
    """A read error, then no way to open it again: one clear error, no pixels."""
    destroy_tiles(slide, [0])
    source = OpenSlideSource(slide)
    grid = geometry(source.info, TILE, 0.5)
    slide.unlink()
    with pytest.raises(SlideError, match=r"slide\.tif: cannot be opened again .*; check that the file"):
        read_all(source, grid)


def test_a_slide_that_was_replaced_is_lost(slide: Path) -> None:
    """Patches of two different slides never mix."""
    destroy_tiles(slide, [0])
    source = OpenSlideSource(slide)
    slide.unlink()
    write_tiff(slide, [picture(400, 300, seed=5), picture(200, 150, seed=5)])
    with pytest.raises(SlideError, match="replaced"):
        read_all(source, geometry(source.info, TILE, 0.5))


@pytest.mark.parametrize("max_px", [37, 128, 200, 300])
def test_overview_is_the_whole_slide(slide: Path, image: np.ndarray, max_px: int) -> None:
    """The longest side is as asked, and it is made from the smallest level that suffices.

    The picture is pure noise, the worst case for fast shrinking; an overview beside its place would differ by 40.
    """
    overview = OpenSlideSource(slide).overview(max_px)
    level = halved(image) if max_px <= 200 else image
    size = (max_px, round(300 * max_px / 400))
    assert overview.shape == (size[1], size[0], 3)
    averaged = cv2.resize(level, size, interpolation=cv2.INTER_AREA)
    assert np.abs(overview.astype(int) - averaged).mean() < 8
    assert max_px in (128, 300) or np.array_equal(overview, averaged)


def test_overview_is_never_enlarged(slide: Path, image: np.ndarray) -> None:
    """A slide smaller than asked comes as it is."""
    assert np.array_equal(OpenSlideSource(slide).overview(5000), image)


def test_overview_in_blocks_is_that_in_one_piece(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by reading in blocks, which leave no seams where borders fall on whole pixels."""
    whole = OpenSlideSource(slide).overview(100)
    monkeypatch.setattr("slides.openslide_source._BLOCK", 32)
    beats: list[int] = []
    assert np.array_equal(OpenSlideSource(slide).overview(100, lambda: beats.append(1)), whole)
    assert len(beats) == 7 * 5


def test_overview_paints_what_cannot_be_read(tmp_path: Path) -> None:
    """A damaged tile of the overview's level shows in the colour that counts as tissue, the rest as it is."""
    path = write_tiff(tmp_path / "a.tif", [np.full((1024, 1024, 3), 240, np.uint8)])
    destroy_tiles(path, [0])
    overview = OpenSlideSource(path).overview(512)
    assert (overview[:32, :32] == UNREADABLE).all()
    unreadable = (overview == UNREADABLE).all(-1)
    assert (overview[~unreadable] == 240).all() and unreadable.mean() < 0.07


def test_overview_ignores_associated_images(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label and macro may name the patient: they are never read."""

    def refuse(*_: object) -> None:
        raise RuntimeError("an associated image was read")

    monkeypatch.setattr(openslide.lowlevel, "read_associated_image", refuse)
    monkeypatch.setattr(openslide.lowlevel, "_read_associated_image", refuse)
    overview = OpenSlideSource(data_dir / "slides" / "CMU-1-Small-Region.svs").overview(512)
    assert overview.shape == (512, 383, 3) and overview.std() > 20


@pytest.mark.parametrize(("name", "spacing"), [("CMU-1-Small-Region.svs", 0.499), ("fluorescence-387.ndpi", 0.91270)])
def test_real_slides_give_the_pixels_of_openslide(data_dir: Path, name: str, spacing: float) -> None:
    """The fast way of reading equals openslide-python's read_region."""
    path = data_dir / "slides" / name
    source = OpenSlideSource(path)
    grid = geometry(source.info, 224, spacing)
    assert grid.resampling == "none"
    out, reasons, _ = read_all(source, grid)
    assert reasons == {}
    plain = openslide.OpenSlide(path)
    for i in (0, grid.columns + 1, len(out) - 1):
        x, y = grid.xy([i % grid.columns], [i // grid.columns])[0].tolist()
        rgba = np.asarray(plain.read_region((x, y), grid.level, (224, 224)))
        assert np.array_equal(out[i], np.where(rgba[..., 3:] == 0, 255, rgba[..., :3]))


def test_missing_mpp_names_the_setting(data_dir: Path) -> None:
    """The remedy works."""
    path = data_dir / "slides" / "no-mpp.tif"
    with pytest.raises(SlideError, match=r"no-mpp\.tif: does not say its µm per pixel \(mpp\).*--set slides\.mpp="):
        open_source(path, None)
    info = open_source(path, 0.5).info
    assert (info.mpp_x, info.mpp_y, info.mpp_source) == (0.5, 0.5, "configuration")


@pytest.mark.parametrize(("stored", "configured"), [((352.8, 352.8), None), ((0.5, 0.5), 500.0), ((0.5, 30.0), None)])
def test_absurd_mpp_is_refused(tmp_path: Path, image: np.ndarray, stored, configured) -> None:
    """72 dpi is not a spacing, wherever it comes from."""
    path = write_tiff(tmp_path / "a.tif", [image], mpp=stored)
    with pytest.raises(SlideError, match=r"a\.tif: .* cannot be right .*slides\.mpp="):
        open_source(path, configured)


def test_sidecar_gives_the_mpp(slide: Path) -> None:
    """`<slide>.mpp` beside the slide holds one number or two; the configuration overrides it."""
    sidecar = Path(f"{slide}.mpp")
    sidecar.write_text("0.25\n")
    info = open_source(slide, None).info
    assert (info.mpp_x, info.mpp_y, info.mpp_source) == (0.25, 0.25, "sidecar")
    sidecar.write_text("0.25, 0.3")
    assert open_source(slide, None).info.mpp_y == 0.3
    assert open_source(slide, 0.4).info.mpp_source == "configuration"


def test_a_slide_with_the_longest_name_needs_no_sidecar(slide: Path) -> None:
    """No file could be called `<slide>.mpp` there."""
    path = slide.rename(slide.parent / f"{'x' * 251}.tif")
    assert open_source(path, None).info.mpp_source == "slide"


@pytest.mark.parametrize("text", ["", "a quarter", "1 2 3", "72"])
def test_a_wrong_sidecar_is_an_error(slide: Path, text: str) -> None:
    """It is not passed over in silence."""
    Path(f"{slide}.mpp").write_text(text)
    with pytest.raises(SlideError, match=r"slide\.tif\.mpp: "):
        open_source(slide, None)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"Dear Sir or Madam,\n", "is not a slide in a format that OpenSlide knows"),
        (b"II*\0\x08\0\0\0", "OpenSlide"),
    ],
)
def test_files_that_are_no_slides(tmp_path: Path, content: bytes, problem: str) -> None:
    """Empty, text, truncated: each has one clear line."""
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=problem) as error:
        open_source(path, None)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    """They are named as what they are."""
    with pytest.raises(SlideError, match="does not exist"):
        open_source(tmp_path / "none.svs", None)
    with pytest.raises(SlideError, match="is a folder"):
        open_source(tmp_path, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(slide: Path) -> None:
    """Not called an unsupported format."""
    slide.chmod(0)
    with pytest.raises(SlideError, match="permission denied"):
        open_source(slide, None)


def test_unopenable_slide(data_dir: Path) -> None:
    """OpenSlide's own reason is passed on."""
    with pytest.raises(SlideError, match="OpenSlide cannot open it: Unsupported TIFF compression: 52479"):
        open_source(data_dir / "bad" / "unopenable.tiff", None)


def test_truncated_slide(data_dir: Path, tmp_path: Path) -> None:
    """It either does not open, or its lost patches fail: never wrong pixels."""
    source = data_dir / "slides" / "CMU-1-Small-Region.svs"
    path = tmp_path / "short.svs"
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(SlideError, match=r"short\.svs: "):
        open_source(path, None)


@pytest.mark.parametrize("name", ["with space.tif", "Präparat 1 ☃.tif", "new\nline.tif", "a" * 200 + ".tif"])
def test_odd_names_open(slide: Path, name: str) -> None:
    """Spaces, Unicode and newlines are only characters."""
    path = slide.parent / name
    shutil.copy(slide, path)
    assert open_source(path, None).info.width == 400


def test_out_must_be_writable_in_place(slide: Path) -> None:
    """A view that OpenCV would copy is refused rather than left unfilled."""
    source = OpenSlideSource(slide)
    grid = geometry(source.info, 8, 0.5)
    for out in (np.empty((1, 8, 8, 4), np.uint8)[..., :3], np.empty((2, 8, 8, 3), np.uint8), np.empty((1, 8, 8, 3))):
        with pytest.raises(ValueError):
            source.read(grid, grid.xy([0], [0]), out)  # type: ignore[arg-type]


def test_closed_is_closed(slide: Path) -> None:
    """Closing twice is fine, reading afterwards is a mistake."""
    source = OpenSlideSource(slide)
    source.close()
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.overview(10)


def test_unknown_kind(slide: Path) -> None:
    """The error lists the kinds."""
    with pytest.raises(ValueError, match="auto, openslide"):
        open_source(slide, None, "magic")


def test_the_reader_is_light_to_import(root: Path) -> None:
    """A reader process starts without the heavy packages."""
    heavy = ["onnxruntime", "pyarrow", "scipy", "pydantic", "pandas", "tifffile", "torch", "onnx", "rich"]
    modules = "slides.source, slides.openslide_source, slides.plan, slides.tissue"
    code = f"import sys, {modules}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
