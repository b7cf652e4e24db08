"""Tissue pictures: the same pixels whichever window shows them, and tumour that looks like tumour."""

from __future__ import annotations

import numpy as np
import pytest

from slides import texture
from slides.noise import hash_unit, seamless, value_noise, window
from slides.scene import Scene, Uniform
from slides.stain import Stain
from slides.texture import CHUNK, KINDS, patch, render


@pytest.mark.parametrize("um_per_px", [0.25, 0.5])
def test_a_window_shows_the_same_pixels_as_a_larger_one(um_per_px: float) -> None:
    """What a window shows does not depend on how it was asked for, also across the borders of chunks."""
    scene = Scene(3, Uniform(tumour=0.5, lymphoid=0.5))
    large = render(scene, CHUNK - 150, CHUNK - 200, 300, 320, um_per_px)
    small = render(scene, CHUNK - 30, CHUNK - 41, 77, 63, um_per_px)
    assert np.array_equal(small, large[159 : 159 + 63, 120 : 120 + 77])


@pytest.mark.parametrize("kind", ["tumour", "normal"])
def test_there_is_no_seam_between_chunks(kind: str) -> None:
    """Two chunks painted apart meet without a line: the step over the border is no larger than steps elsewhere."""
    scene = Scene(8, Uniform(tumour=float(kind == "tumour"), lymphoid=0.4))
    image = render(scene, CHUNK - 200, 100, 400, 700, 0.25).astype(np.float32).mean(axis=2)
    steps = np.abs(np.diff(image, axis=1)).mean(axis=0)
    assert steps[199] < steps.mean() + 4 * steps.std()
    whole = texture._render(scene, CHUNK - 200, 100, 400, 700, 0.25).astype(np.int16)
    difference = np.abs(whole - render(scene, CHUNK - 200, 100, 400, 700, 0.25))
    assert (difference > 24).mean() < 1e-3


def test_negative_places_are_places_too() -> None:
    """The scene has no edge at zero."""
    scene = Scene(2, Uniform(lymphoid=1.0))
    large = render(scene, -120, -90, 200, 180, 0.5)
    assert np.array_equal(render(scene, -20, -10, 40, 30, 0.5), large[80:110, 100:140])


def test_the_same_seed_gives_the_same_patch_and_another_seed_another() -> None:
    """patch() is a function of its arguments."""
    first, again, other = (patch("tumour", seed, size_px=128) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", [*KINDS, "normal"])
@pytest.mark.parametrize("um_per_px", [0.24, 0.5, 1.0])
def test_every_kind_can_be_drawn_at_every_usual_resolution(kind: str, um_per_px: float) -> None:
    """Shape and dtype are as promised, and only background is blank."""
    image = patch(kind, 1, um_per_px, 96)
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    assert (image.std() < 4) == (kind == "background")


def test_tumour_nuclei_are_larger_and_less_even_than_lymphocytes() -> None:
    """The kinds differ in their nuclei: those of tumour have a larger area and a larger spread of it."""
    bank = texture._bank(0.25)

    def areas(sprites: list[np.ndarray]) -> np.ndarray:
        return np.array([(sprite > 20).sum() for sprite in sprites]) * 0.25**2

    lymphocytes = areas(bank.lymphocytes)
    for sprites in (bank.vesicular, bank.dark):
        tumour = areas(sprites)
        assert np.median(tumour) > 2 * np.median(lymphocytes)
        assert tumour.std() > 3 * lymphocytes.std()
    assert 14 < np.median(lymphocytes) < 35  # square micrometres: 4.5 to 6.5 across


def test_colour_alone_does_not_tell_tumour_from_normal() -> None:
    """Mean colours overlap: no threshold on one channel's mean parts 90 of 100 patches rightly."""
    tumour = np.array([patch("tumour", k, 0.5, 96).mean(axis=(0, 1)) for k in range(50)])
    normal = np.array([patch("normal", 1000 + k, 0.5, 96).mean(axis=(0, 1)) for k in range(50)])
    for channel in range(3):
        a, b = tumour[:, channel], normal[:, channel]
        cuts = np.concatenate([a, b])
        right = max(max((a < t).mean() + (b >= t).mean(), (a >= t).mean() + (b < t).mean()) / 2 for t in cuts)
        assert right < 0.9


def test_staining_follows_beer_and_lambert() -> None:
    """Twice the stain squares the transmission; none is white."""
    stain = Stain.reference()
    steps = np.array([[0, 40, 80]], np.uint8)
    rgb = stain.colour(steps, np.zeros_like(steps))[0].astype(float) / np.array(stain.white)
    assert np.allclose(rgb[0], 1)
    assert np.allclose(rgb[2], rgb[1] ** 2, atol=0.01)


def test_bad_requests_are_refused() -> None:
    """An unknown kind, an empty window and an absurd resolution are ValueErrors that say so."""
    with pytest.raises(ValueError, match="unknown kind of tissue 'liver'"):
        patch("liver", 0)
    with pytest.raises(ValueError, match="window is 0 x 5"):
        render(Scene(0, Uniform()), 0, 0, 0, 5, 0.25)
    with pytest.raises(ValueError, match="micrometres a pixel"):
        patch("tumour", 0, um_per_px=30.0)


def test_hash_is_even_and_noise_is_smooth_and_seamless() -> None:
    """The building blocks: uniform hashes, noise without jumps, textures that repeat without a seam."""
    i, j = np.meshgrid(np.arange(-100, 100), np.arange(-100, 100))
    values = hash_unit(1, i, j)
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.std() - 12**-0.5) < 0.01
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.02
    x = np.linspace(-50, 50, 5001)[None, :]
    assert np.abs(np.diff(value_noise(x, np.zeros((1, 1)), 10.0, 3, 2))).max() < 0.03
    field = seamless((64, 96), 4, 4, 0)
    assert np.abs(field[:, 0] - field[:, -1]).max() < 1
    assert np.array_equal(window(field, -10, 60, 30, 20), np.roll(field, (-60, 10), (0, 1))[:20, :30])
