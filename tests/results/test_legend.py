from __future__ import annotations

import pytest

from results.legend import layout, scale_bar


@pytest.mark.parametrize(
    ("um_per_px", "room", "words"),
    [(8.0, 500, "2 mm"), (2.5, 250, "0.5 mm"), (1.0, 100, "0.1 mm"), (10.0, 500, "5 mm"), (0.25, 30, "0.005 mm")],
)
def test_scale_bar_is_the_longest_round_length_that_fits(um_per_px, room, words):
    """1, 2 or 5 of a power of ten, and as many pixels as that length has."""
    pixels, said = scale_bar(um_per_px, room)
    assert said == words
    assert pixels <= room * (1 + 1e-6) and pixels > room / 2.6
    assert pixels * um_per_px == pytest.approx(float(words.split()[0]) * 1000)


@pytest.mark.parametrize(("width", "height"), [(1000, 1000), (4096, 3000), (4096, 200), (150, 1000), (1000, 4)])
def test_nothing_overlaps_whatever_the_slides_shape(width, height):
    """Picture and legend lie side by side within the canvas, also for strips."""
    places = layout(width, height)
    assert places.picture[0] >= places.unit
    assert places.picture[0] + width < places.legend[0]
    assert places.legend[0] + 12 * places.unit <= places.size[0]
    assert places.picture[1] + height + 3 * places.unit <= places.size[1]
    assert places.legend[1] + 25 * places.unit <= places.size[1]
    assert 18 <= places.unit <= 72
