"""What the tissue filter keeps for the writer comes back as it was, or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from results.pictures import load_pictures, save_pictures

OVERVIEW = np.random.default_rng(1).integers(0, 256, (30, 40, 3)).astype(np.uint8)
MASK = np.random.default_rng(2).random((30, 40)) > 0.5


def test_pictures_come_back_as_they_were(tmp_path):
    """Also where the overview is a view into something larger, as in shared memory."""
    save_pictures(tmp_path / "work", np.repeat(OVERVIEW, 2, axis=0)[::2], MASK)
    overview, mask = load_pictures(tmp_path / "work")
    np.testing.assert_array_equal(overview, OVERVIEW)
    np.testing.assert_array_equal(mask, MASK)
    assert mask.dtype == bool


@pytest.mark.parametrize("name", ["overview.npy", "mask.png"])
@pytest.mark.parametrize("left", [None, 0, 20, 100])
def test_what_is_missing_or_cut_short_is_none(tmp_path, name, left):
    """A picture that was lost must not cost the slide."""
    save_pictures(tmp_path, OVERVIEW, MASK)
    if left is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:left])
    overview, mask = load_pictures(tmp_path)
    assert (overview is None, mask is None) == (name == "overview.npy", name == "mask.png")
