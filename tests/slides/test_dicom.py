from __future__ import annotations

import struct
from pathlib import Path

import pytest

from slides.dicom import series_uid

UID = "1.2.826.0.1.3680043.8.498.1"
UNDEFINED = 0xFFFFFFFF


def element(
    group: int, number: int, kind: bytes, value: bytes, explicit: bool = True, length: int | None = None
) -> bytes:
    size = len(value) if length is None else length
    if not explicit:
        return struct.pack("<HHI", group, number, size) + value
    if kind in (b"SQ", b"OB", b"UN"):
        return struct.pack("<HH2s2xI", group, number, kind, size) + value
    return struct.pack("<HH2sH", group, number, kind, size) + value


def delimiter(number: int, length: int = 0) -> bytes:
    return struct.pack("<HHI", 0xFFFE, number, length)


def dicom(body: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    meta = element(2, 1, b"OB", b"\0\1") + element(2, 0x10, b"UI", syntax)
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + body


def series(uid: str = UID, explicit: bool = True) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    study = element(0x20, 0x0D, b"UI", b"1.2.3\0", explicit)
    return study + element(0x20, 0x0E, b"UI", value, explicit) + element(0x28, 2, b"US", b"\3\0", explicit)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def nested(explicit: bool) -> bytes:
    """A sequence of undefined length, with an item of undefined and one of defined length, and one more inside."""
    code = element(8, 0x100, b"SH", b"T-04", explicit)
    inner = element(8, 0x2218, b"SQ", delimiter(0xE000, len(code)) + code + delimiter(0xE0DD), explicit, UNDEFINED)
    items = delimiter(0xE000, UNDEFINED) + code + inner + delimiter(0xE00D) + delimiter(0xE000, len(code)) + code
    return element(8, 0x1111, b"SQ", items + delimiter(0xE0DD), explicit, UNDEFINED)


@pytest.mark.parametrize("explicit", [True, False])
def test_uid_is_found_behind_sequences(tmp_path: Path, explicit: bool) -> None:
    """Whether values are typed or not, and however sequences say their length."""
    syntax = b"1.2.840.10008.1.2.1\0" if explicit else b"1.2.840.10008.1.2\0"
    flat = element(8, 0x60, b"CS", b"SM", explicit)
    path = write(tmp_path / "a.dcm", dicom(flat + nested(explicit) + series(explicit=explicit), syntax))
    assert series_uid(path) == UID


def test_unknown_values_are_passed_over(tmp_path: Path) -> None:
    """A private sequence of type UN is untyped inside."""
    code = element(9, 0x1002, b"", b"abcd", False)
    private = delimiter(0xE000, len(code)) + code + delimiter(0xE0DD)
    path = write(tmp_path / "a.dcm", dicom(element(9, 0x1001, b"UN", private, True, UNDEFINED) + series()))
    assert series_uid(path) == UID


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        bytes(128) + b"DICM",
        dicom(b""),
        dicom(element(0x28, 2, b"US", b"\3\0")),
        dicom(series(), b"1.2.840.10008.1.2.2\0"),
        dicom(element(0x20, 0x0E, b"UI", b"", length=60_000)),
        dicom(element(8, 0x1111, b"SQ", b"garbage!", length=UNDEFINED) + series()),
        dicom((element(8, 0x1111, b"SQ", delimiter(0xE000, UNDEFINED), length=UNDEFINED)) * 100),
    ],
)
def test_other_files_have_none(tmp_path: Path, data: bytes) -> None:
    """Not DICOM, cut short, without a series, in a form that is not read, damaged, nested without end."""
    assert series_uid(write(tmp_path / "a.dcm", data)) is None


def test_every_cut_is_survived(tmp_path: Path) -> None:
    """A truncated file has the UID or none, never an error."""
    data = dicom(nested(True) + series())
    assert {series_uid(write(tmp_path / "a.dcm", data[:n])) for n in range(len(data))} <= {None, UID} | {
        UID[:n] for n in range(len(UID))
    }
