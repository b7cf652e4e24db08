from __future__ import annotations

import struct
from pathlib import Path

import pytest

from slides.dicom_whole import Instance, examine
from tests.slides.test_dicom import UNDEFINED, delimiter, dicom, element, series

FRAMES = delimiter(0xE000) + delimiter(0xE000, 6) + b"frame1" + delimiter(0xE000, 4) + b"fr 2"
NATIVE = element(0x7FE0, 0x10, b"OB", b"pixels")
ENCAPSULATED = element(0x7FE0, 0x10, b"OB", FRAMES + delimiter(0xE0DD), length=UNDEFINED)
TRAILING = element(0xFFFC, 0xFFFC, b"OB", bytes(8))


def write(path: Path, body: bytes) -> Path:
    path.write_bytes(dicom(body))
    return path


@pytest.mark.parametrize("pixels", [NATIVE, ENCAPSULATED, ENCAPSULATED + TRAILING])
def test_a_whole_file_is_whole_and_cut_short_anywhere_is_not(tmp_path: Path, pixels: bytes) -> None:
    """At every byte before the end of its pixels."""
    path = write(tmp_path / "a.dcm", series() + pixels)
    data = path.read_bytes()
    assert examine(path) == Instance()
    end = len(data) - (len(TRAILING) if pixels.endswith(TRAILING) else 0)
    for size in range(end):
        path.write_bytes(data[:size])
        assert examine(path).problem, size


def test_a_part_of_an_image_says_which_it_is(tmp_path: Path) -> None:
    """Its concatenation's UID, its number, and how many there are."""
    parts = element(0x20, 0x9161, b"UI", b"1.2.9\0") + element(0x20, 0x9162, b"US", struct.pack("<H", 2))
    parts += element(0x20, 0x9163, b"US", struct.pack("<H", 3))
    path = write(tmp_path / "a.dcm", series()[: -len(element(0x28, 2, b"US", b"\3\0"))] + parts + NATIVE)
    assert examine(path) == Instance("", "1.2.9", 2, 3)


def test_what_has_no_pixels_or_is_no_dicom_says_so(tmp_path: Path) -> None:
    """Such as a DICOMDIR, or a file that was made long before it is filled."""
    assert examine(write(tmp_path / "a.dcm", series())).problem == "has no pixels"
    (tmp_path / "b.dcm").write_bytes(bytes(4096))
    assert "no DICOM file" in examine(tmp_path / "b.dcm").problem
