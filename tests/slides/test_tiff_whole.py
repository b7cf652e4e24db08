from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slides.tiff_whole import lack
from tests.slides.mutations import mutate
from tests.slides.ndpi_files import Ndpi, write_ndpi
from tests.slides.tiffs import picture, write_tiff


def of(path: Path) -> str:
    with open(path, "rb") as file:
        return lack(file.fileno(), path.suffix == ".ndpi")


def test_real_slides_are_whole_and_lack_something_at_any_other_length(data_dir: Path, tmp_path: Path) -> None:
    """Aperio, Hamamatsu NDPI and generic TIFF, cut at forty places and one byte before the last tile's end."""
    for name in ("CMU-1-Small-Region.svs", "fluorescence-387.ndpi", "no-mpp.tif"):
        whole = data_dir / "slides" / name
        assert of(whole) == "", name
        data = whole.read_bytes()
        for size in range(0, len(data) - 2048, len(data) // 40):
            (tmp_path / name).write_bytes(data[:size])
            assert of(tmp_path / name), (name, size)


@pytest.mark.parametrize("seed", range(100))
def test_no_damage_is_an_error_of_ours(tmp_path: Path, seed: int) -> None:
    """Bits flipped, pieces overwritten, cut or repeated: a reason or none, in bounded time."""
    rng = np.random.default_rng(seed)
    path = write_tiff(tmp_path / ("a.ndpi" if seed % 2 else "a.tif"), [picture(128, 128)])
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 20)):
        mutate(rng, data)
    path.write_bytes(data)
    assert isinstance(of(path), str)


def test_ndpi_beyond_four_gigabytes_is_followed(tmp_path: Path) -> None:
    """By the high halves of its offsets; without its last byte it is not whole."""
    path = write_ndpi(tmp_path / "a.ndpi", [picture(256, 256), picture(128, 128)], Ndpi(hole=5 << 30))
    assert of(path) == ""
    size = path.stat().st_size
    for cut in (1, 3000, size - (4 << 30)):
        with open(path, "r+b") as file:
            file.truncate(size - cut)
        assert of(path), cut
