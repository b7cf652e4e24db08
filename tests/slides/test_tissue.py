from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from slides.geometry import SlideInfo
from slides.openslide_source import OpenSlideSource
from slides.source import UNREADABLE
from slides.tissue import TissueMask, is_fluorescence, overview_um_per_px, tissue_mask

UM = 8.0  # a slide of 8 x 6 mm
SIZE = (750, 1000)
PINK, PURPLE, PALE = (225, 140, 185), (110, 70, 150), (236, 212, 226)


def glass(colour: tuple[int, int, int] = (243, 242, 244), noise: float = 1.5, seed: int = 0) -> np.ndarray:
    """An empty slide, with the noise of a camera and the blur of an overview."""
    rng = np.random.default_rng(seed)
    image = rng.normal(colour, noise, (*SIZE, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def stained(image: np.ndarray, region: tuple[slice, slice], colours=(PINK, PURPLE), seed: int = 1) -> np.ndarray:
    """Tissue: a mottle of two stains."""
    rng = np.random.default_rng(seed)
    mottle = cv2.GaussianBlur(rng.random(SIZE).astype(np.float32), (0, 0), 2)
    purple = (mottle > np.quantile(mottle, 0.7))[..., None]
    texture = np.where(purple, colours[1], colours[0]) + rng.normal(0, 6, (*SIZE, 1))
    image = image.copy()
    image[region] = np.clip(texture, 0, 255).astype(np.uint8)[region]
    return image


def shining(image: np.ndarray, region: tuple[slice, slice], glow: int = 12, seed: int = 1) -> np.ndarray:
    """Tissue in fluorescence: a faint glow with bright nuclei, in blue."""
    rng = np.random.default_rng(seed)
    nuclei = cv2.GaussianBlur(rng.random(SIZE).astype(np.float32), (0, 0), 1.5)
    blue = np.where(nuclei > np.quantile(nuclei, 0.93), 230, glow) + rng.normal(0, 1, SIZE)
    image = image.copy()
    image[(*region, 2)] = np.clip(blue, 0, 255).astype(np.uint8)[region]
    return image


MIDDLE = (slice(200, 500), slice(300, 700))


def truth(*regions: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    for region in regions:
        mask[region] = True
    return mask


def overlap(done: TissueMask, wanted: np.ndarray) -> float:
    """Intersection over union."""
    assert done.mask.dtype == bool and done.mask.shape == wanted.shape
    return np.count_nonzero(done.mask & wanted) / np.count_nonzero(done.mask | wanted)


@pytest.mark.parametrize("colours", [(PINK, PURPLE), (PALE, PINK), (PALE, PALE), ((150, 110, 80), (200, 205, 225))])
def test_stained_tissue_is_found(colours) -> None:
    """H&E strong and pale, and a brown stain with blue, against glass."""
    done = tissue_mask(stained(glass(), MIDDLE, colours), UM)
    assert done.method == "brightfield" and overlap(done, truth(MIDDLE)) > 0.97


def test_glowing_tissue_is_found() -> None:
    """Fluorescence is recognised, and its faint parts between the nuclei belong to the tissue."""
    done = tissue_mask(shining(glass((3, 3, 3), 1), MIDDLE), UM)
    assert done.method == "fluorescence" and overlap(done, truth(MIDDLE)) > 0.95


@pytest.mark.parametrize("colour", [(255, 255, 255), (243, 242, 244), (240, 232, 228), (200, 198, 197)])
def test_a_blank_slide_has_no_tissue(colour) -> None:
    """Otsu divides even noise: the limits see that it does not count."""
    done = tissue_mask(glass(colour), UM)
    assert done.method == "brightfield" and not done.mask.any()


@pytest.mark.parametrize(("level", "noise"), [(0, 0), (3, 1), (12, 2), (30, 2)])
def test_a_dark_blank_slide_has_no_tissue(level: int, noise: float) -> None:
    """The same in fluorescence."""
    done = tissue_mask(glass((level, level, level), noise), UM)
    assert done.method == "fluorescence" and not done.mask.any()


@pytest.mark.parametrize("colours", [(PINK, PURPLE), (PALE, PURPLE)])
def test_a_slide_full_of_tissue_is_all_tissue(colours) -> None:
    """Otsu divides it into two stains: the limits see that both count."""
    done = tissue_mask(stained(glass(), (slice(None), slice(None)), colours), UM)
    assert done.method == "brightfield" and done.mask.mean() > 0.99


def test_a_bright_slide_full_of_fluorescence_is_all_tissue() -> None:
    """Without any background to be seen."""
    image = shining(glass((60, 3, 3), 2), (slice(None), slice(None)), glow=60)
    done = tissue_mask(image, UM)
    assert done.method == "fluorescence" and done.mask.mean() > 0.99


def test_a_black_scan_border_is_no_tissue() -> None:
    """Nor does it make a brightfield slide one of fluorescence, even where it is most of the picture."""
    image = stained(glass(), (slice(300, 450), slice(450, 650)))
    for width in (40, 180):
        rng = np.random.default_rng(2)
        framed = rng.integers(0, 9, image.shape, np.uint8)
        framed[width:-width, width:-width] = image[width:-width, width:-width]
        done = tissue_mask(framed, UM)
        assert done.method == "brightfield"
        assert overlap(done, truth((slice(300, 450), slice(450, 650)))) > 0.95


def test_dust_and_black_ink_are_no_tissue() -> None:
    """What is grey or black is not stained."""
    image = stained(glass(), MIDDLE)
    cv2.line(image, (50, 50), (900, 120), (25, 24, 26), 30)
    cv2.circle(image, (150, 600), 60, (170, 170, 172), -1)
    assert overlap(tissue_mask(image, UM), truth(MIDDLE)) > 0.97


@pytest.mark.parametrize("colour", [(20, 130, 70), (30, 60, 190), (0, 140, 160)])
def test_green_and_blue_pen_is_no_tissue(colour) -> None:
    """Broad strokes of a pure colour are taken out, tissue beside them stays."""
    image = stained(glass(), MIDDLE)
    cv2.line(image, (50, 80), (900, 130), colour, 40)
    assert overlap(tissue_mask(image, UM), truth(MIDDLE)) > 0.96


@pytest.mark.parametrize("colour", [(88, 66, 130), (75, 60, 140), (110, 160, 200), (95, 130, 190)])
def test_blue_stains_are_tissue(colour) -> None:
    """Dense haematoxylin, Alcian blue and aniline blue are not taken for pen."""
    done = tissue_mask(stained(glass(), MIDDLE, (colour, colour)), UM)
    assert overlap(done, truth(MIDDLE)) > 0.97


def test_a_tinted_lamp_is_no_tissue() -> None:
    """The colour of the glass is taken for white."""
    done = tissue_mask(stained(glass((244, 240, 233)), MIDDLE), UM)
    assert overlap(done, truth(MIDDLE)) > 0.97


def test_small_pieces_are_dropped_by_area() -> None:
    """0.01 mm² is 156 pixels of 8 µm."""
    pieces = [(slice(100, 110), slice(100, 110)), (slice(100, 120), slice(300, 320))]
    image = glass()
    for piece in pieces:
        image[piece] = PURPLE
    assert overlap(tissue_mask(image, UM, min_area_mm2=0.01), truth(pieces[1])) > 0.85
    assert overlap(tissue_mask(image, UM, min_area_mm2=0.0), truth(*pieces)) > 0.85
    assert not tissue_mask(image, UM, min_area_mm2=0.1).mask.any()


def test_holes_are_filled_by_area() -> None:
    """Up to the given size, and never the glass around the tissue."""
    image = stained(glass(), MIDDLE)
    hole = (slice(300, 340), slice(400, 440))  # 0.1 mm²
    image[hole] = (243, 242, 244)
    assert not tissue_mask(image, UM, max_hole_mm2=0.05).mask[310:330, 410:430].any()
    assert tissue_mask(image, UM, max_hole_mm2=0.2).mask[hole].all()
    assert overlap(tissue_mask(image, UM, max_hole_mm2=1e6), truth(MIDDLE)) > 0.97


def test_tissue_reaches_to_the_frame() -> None:
    """Neither closing nor filling takes tissue from the edge of the slide."""
    region = (slice(0, 750), slice(0, 300))
    done = tissue_mask(stained(glass(), region), UM)
    assert done.mask[:, :295].all() and not done.mask[:, 305:].any()


def test_none_takes_everything() -> None:
    """The whole slide, whatever it shows."""
    done = tissue_mask(glass(), UM, "none")
    assert (done.method, done.threshold) == ("none", 0.0) and done.mask.all()


def test_the_method_may_be_given() -> None:
    """Then it is not guessed."""
    image = stained(glass(), MIDDLE)
    assert tissue_mask(image, UM, "fluorescence").method == "fluorescence"
    assert tissue_mask(image, UM, "brightfield").method == "brightfield"


@pytest.mark.parametrize("method", ["auto", "brightfield", "fluorescence"])
def test_what_could_not_be_read_counts_as_tissue(method: str) -> None:
    """Its patches are then tried and listed, not dropped."""
    image = glass() if method != "fluorescence" else glass((3, 3, 3), 1)
    image[MIDDLE] = UNREADABLE
    assert overlap(tissue_mask(image, UM, method), truth(MIDDLE)) > 0.95


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (3, 2, 3), (40, 1, 3)])
@pytest.mark.parametrize("um", [0.1, 8.0, 500.0])
def test_tiny_pictures_work(shape, um: float) -> None:
    """No kernel is larger than the picture can bear."""
    for value in (0, 255):
        assert tissue_mask(np.full(shape, value, np.uint8), um).mask.shape == shape[:2]


def test_fine_overviews_give_the_same_tissue() -> None:
    """Work is done at 2 µm/px at the finest; the mask has the overview's size again."""
    image = stained(glass(), MIDDLE)
    done = tissue_mask(image, 0.5, min_area_mm2=0.001)
    assert overlap(done, truth(MIDDLE)) > 0.93


def test_wrong_pictures_and_methods_are_refused() -> None:
    """They are mistakes of the caller."""
    for picture in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="overview"):
            tissue_mask(picture, UM)
    with pytest.raises(ValueError, match="auto, brightfield"):
        tissue_mask(glass(), UM, "magic")


def test_um_per_px_of_an_overview() -> None:
    """The mean of both axes, such that areas are right."""
    info = SlideInfo("a", "b", 1000, 500, ((1000, 500),), (1.0,), 0.25, 0.5, "slide")
    assert overview_um_per_px(info, (50, 100, 3)) == pytest.approx((2.5 * 5) ** 0.5)


@pytest.mark.parametrize("max_px", [256, 1024])
def test_real_brightfield_slide(data_dir: Path, max_px: int) -> None:
    """Skin, seen by eye: 38 % tissue; the strand at the left counts, glass and a flake of dirt do not."""
    source = OpenSlideSource(data_dir / "slides" / "CMU-1-Small-Region.svs")
    overview = source.overview(max_px)
    done = tissue_mask(overview, overview_um_per_px(source.info, overview.shape))
    assert done.method == "brightfield"
    assert 0.35 < done.mask.mean() < 0.41

    def at(x: float, y: float) -> bool:
        return bool(done.mask[int(y * done.mask.shape[0]), int(x * done.mask.shape[1])])

    assert at(0.5, 0.72) and at(0.55, 0.5) and at(0.3, 0.93) and at(0.22, 0.361)
    assert not any([at(0.1, 0.1), at(0.94, 0.207), at(0.9, 0.9), at(0.1, 0.7)])


@pytest.mark.parametrize("max_px", [300, 1024])
def test_real_fluorescence_slide(data_dir: Path, max_px: int) -> None:
    """Skin in DAPI: dense and sparse nuclei count, the dark corners do not."""
    source = OpenSlideSource(data_dir / "slides" / "fluorescence-387.ndpi")
    overview = source.overview(max_px)
    assert is_fluorescence(overview)
    done = tissue_mask(overview, overview_um_per_px(source.info, overview.shape))
    assert 0.7 < done.mask.mean() < 0.87

    def at(x: float, y: float) -> bool:
        return bool(done.mask[int(y * done.mask.shape[0]), int(x * done.mask.shape[1])])

    assert at(0.2, 0.15) and at(0.5, 0.42) and at(0.8, 0.8) and at(0.85, 0.13) and at(0.1, 0.75)
    assert not any([at(0.05, 0.05), at(0.98, 0.05), at(0.1, 0.97), at(0.9, 0.97)])
