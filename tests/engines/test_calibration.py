"""engines.calibration: which patches are taken."""

from __future__ import annotations

import numpy as np
import pytest

from engines.calibration import Patches, join, pick


def patches(n: int, slides: int = 2, seed: int = 0) -> Patches:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), np.uint8)
    return Patches(pixels, np.arange(n) % slides, tuple(f"slide {i}" for i in range(slides)), seed)


def test_rare_scores_are_not_crowded_out() -> None:
    """Of 1,000 easy patches and 5 hard ones, all 5 are among the 20 that are taken."""
    scores = np.concatenate([np.full(1000, 0.02), np.full(5, 0.95)])
    chosen = pick(np.zeros(1005, int), scores, 20, seed=1)
    assert len(chosen) == 20 and set(range(1000, 1005)) <= set(chosen.tolist())


def test_slides_share_evenly() -> None:
    """A slide with ten times the tissue gives no more patches than the others."""
    groups = np.array([0] * 1000 + [1] * 100 + [2] * 100)
    chosen = pick(groups, np.full(1200, 0.5), 90, seed=1)
    assert np.bincount(groups[chosen]).tolist() == [30, 30, 30]


def test_the_seed_decides() -> None:
    """The same seed takes the same patches, another one others; none is taken twice."""
    groups, scores = np.zeros(200, int), np.linspace(0, 1, 200)
    first = pick(groups, scores, 50, seed=1)
    assert (first == pick(groups, scores, 50, seed=1)).all()
    assert not np.array_equal(first, pick(groups, scores, 50, seed=2))
    assert len(set(first.tolist())) == 50


def test_fewer_candidates_than_wanted_are_all_taken() -> None:
    """And a score that is no number does no harm."""
    assert pick(np.zeros(3, int), np.array([0.1, np.nan, 1.0]), 10, seed=0).tolist() == [0, 1, 2]


def test_the_hash_is_of_the_pixels() -> None:
    """One changed pixel is another calibration."""
    first, second = patches(4), patches(4)
    assert first.sha256 == second.sha256
    second.pixels[0, 0, 0, 0] ^= 1
    assert first.sha256 != second.sha256


@pytest.mark.parametrize(
    ("n", "slides", "words"), [(500, 2, []), (499, 2, ["only 499"]), (500, 1, ["one slide"]), (3, 1, ["only 3", "one"])]
)
def test_a_poor_sample_is_told(n: int, slides: int, words: list[str]) -> None:
    """Fewer than 500 patches, or one slide only, go into the record as warnings."""
    found = patches(n, slides).to_dict()["warnings"]
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_samples_are_joined_by_the_names_of_their_slides() -> None:
    """A slide that is in both stays one."""
    one, two = patches(4), Patches(patches(2, seed=1).pixels, np.array([0, 1]), ("slide 1", "other"), 1)
    both = join([one, two])
    assert both.names == ("slide 0", "slide 1", "other")
    assert both.groups.tolist() == [0, 1, 0, 1, 1, 2]
    with pytest.raises(ValueError, match="no patches"):
        join([])
