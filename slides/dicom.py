"""The one thing about a DICOM file that is needed before OpenSlide opens it: which series it belongs to.

Reads data elements as in DICOM PS3.5 (7.1 explicit and implicit VR, 7.5 sequences) and PS3.10 (file meta information),
as far as (0020,000E), which comes early and in ascending order of tags. Not a DICOM library.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_SERIES_UID = (0x0020, 0x000E)
_TRANSFER_SYNTAX = (0x0002, 0x0010)
_IMPLICIT = b"1.2.840.10008.1.2"
_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_DEFLATED = b"1.2.840.10008.1.2.1.99"

_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}

# UIDs have 64 bytes at most; whatever claims much more here is no UID.
_UID_MAX = 128
_DEPTH_MAX = 16


def series_uid(path: str | os.PathLike[str]) -> str | None:
    """SeriesInstanceUID of a DICOM file, or None where it has none or is not read by this. OSError as of open()."""
    with open(path, "rb", opener=_at_once) as file:
        file.seek(128)  # OSError for a pipe
        if file.read(4) != b"DICM":
            return None
        try:
            return _series_uid(file)
        except (struct.error, ValueError):  # cut short, or not what it says
            return None


def _at_once(path: str, flags: int) -> int:
    """open() that does not wait: a pipe would be opened when its writer comes, if ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _series_uid(file: BinaryIO) -> str | None:
    explicit = True
    while True:
        start = file.tell()
        if struct.unpack("<H", file.read(2))[0] != 0x0002:
            file.seek(start)
            break
        file.seek(start)
        tag, _, length = _element(file, True)
        if tag == _TRANSFER_SYNTAX:
            syntax = _uid(file, length)
            if syntax in (_BIG_ENDIAN, _DEFLATED):
                return None
            explicit = syntax != _IMPLICIT
        else:
            _skip(file, True, length, 0)
    while True:
        tag, representation, length = _element(file, explicit)
        if tag == _SERIES_UID:
            return _uid(file, length).decode("ascii") or None
        if tag > _SERIES_UID:
            return None
        # Sequences of unknown content are implicit inside, whatever surrounds them (PS3.5 6.2.2).
        _skip(file, explicit and representation != b"UN", length, 0)


def _element(file: BinaryIO, explicit: bool) -> tuple[tuple[int, int], bytes, int]:
    group, element = struct.unpack("<HH", file.read(4))
    if not explicit or group == 0xFFFE:
        return (group, element), b"", struct.unpack("<I", file.read(4))[0]
    representation = file.read(2)
    if representation in _LONG:
        return (group, element), representation, struct.unpack("<2xI", file.read(6))[0]
    return (group, element), representation, struct.unpack("<H", file.read(2))[0]


def _skip(file: BinaryIO, explicit: bool, length: int, depth: int) -> None:
    """Pass over a value; one of undefined length is a sequence of items, each perhaps undefined too."""
    if length != _UNDEFINED:
        file.seek(length, os.SEEK_CUR)
        return
    if depth > _DEPTH_MAX:
        raise ValueError("nested too deeply")
    while True:
        tag, _, length = _element(file, explicit)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM:
            raise ValueError("an item was expected")
        if length != _UNDEFINED:
            file.seek(length, os.SEEK_CUR)
            continue
        while True:
            tag, representation, length = _element(file, explicit)
            if tag == _ITEM_END:
                break
            _skip(file, explicit and representation != b"UN", length, depth + 1)


def _uid(file: BinaryIO, length: int) -> bytes:
    if length > _UID_MAX:
        raise ValueError("too long for a UID")
    return file.read(length).rstrip(b"\0 ")
