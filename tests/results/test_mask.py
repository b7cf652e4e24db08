from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from results.mask import write_mask


def test_mask_is_grey_black_and_white(make_record, tmp_path):
    """255 where there is tissue, 0 elsewhere, in the overview's size."""
    record = make_record()
    write_mask(record, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.mode, image.size) == ("L", (400, 300))
        np.testing.assert_array_equal(np.asarray(image), np.where(record.mask, 255, 0))


def test_no_mask_is_an_error(make_record, tmp_path):
    """Nothing is written that nobody computed."""
    with pytest.raises(ValueError, match="no tissue mask"):
        write_mask(make_record(mask=None), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
