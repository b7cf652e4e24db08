"""Whether a DICOM file is there to its end, and whether it says that it is one of several.

As `slides.dicom`, by PS3.5 and PS3.10. A concatenation (PS3.3 C.7.6.16.1.1) is one image in several files, of which each
has its number and may have the number of all.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from slides.dicom import (
    _BIG_ENDIAN,
    _DEFLATED,
    _IMPLICIT,
    _SEQUENCE_END,
    _TRANSFER_SYNTAX,
    _UNDEFINED,
    _element,
    _skip,
    _uid,
)

_PIXELS = (0x7FE0, 0x0010)
_CONCATENATION, _NUMBER, _TOTAL = (0x0020, 0x9161), (0x0020, 0x9162), (0x0020, 0x9163)
_END = struct.pack("<HHI", *_SEQUENCE_END, 0)


@dataclass(frozen=True, slots=True)
class Instance:
    """`problem`: why the file is not whole, or empty. `concatenation`: the UID that its parts share, or empty; then
    `number` is which it is (from 1), and `total` how many there are (0: not said)."""

    problem: str = ""
    concatenation: str = ""
    number: int = 0
    total: int = 0


def examine(path: str | bytes | os.PathLike[str]) -> Instance:
    """Look through a file's elements, passing over pixels. OSError as of open()."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(128)
        if file.read(4) != b"DICM":
            return Instance("is no DICOM file, or its first bytes are missing")
        found: dict[tuple[int, int], bytes] = {}
        try:
            problem = _walk(file, size, found)
        except (struct.error, ValueError):
            problem = f"ends at byte {size}, within an element"
    number, total = (int.from_bytes(found.get(tag, b"")[:4], "little") for tag in (_NUMBER, _TOTAL))
    uid = found.get(_CONCATENATION, b"").rstrip(b"\0 ").decode("ascii", "replace")
    return Instance(problem, uid, number, total)


def _walk(file: BinaryIO, size: int, found: dict[tuple[int, int], bytes]) -> str:
    explicit = True
    meta = True
    while (start := file.tell()) < size:
        group = struct.unpack("<H", file.read(2))[0]
        file.seek(start)
        meta = meta and group == 0x0002
        tag, representation, length = _element(file, meta or explicit)
        if tag == _PIXELS:
            return _pixels(file, size, length)
        if length != _UNDEFINED and file.tell() + length > size:
            return f"ends at byte {size}, within an element"
        if tag == _TRANSFER_SYNTAX:
            syntax = _uid(file, length)
            if syntax in (_BIG_ENDIAN, _DEFLATED):
                return ""  # not looked into
            explicit = syntax != _IMPLICIT
        elif tag in (_CONCATENATION, _NUMBER, _TOTAL):
            found[tag] = _uid(file, length)
        else:
            _skip(file, (meta or explicit) and representation != b"UN", length, 0)
    return "has no pixels" if file.tell() == size else f"ends at byte {size}, within an element"


def _pixels(file: BinaryIO, size: int, length: int) -> str:
    start = file.tell()
    if length != _UNDEFINED:
        return "" if start + length <= size else f"ends at byte {size}, within its pixels"
    # Frame after frame would be a read each, a hundred thousand over a network; nearly always the pixels come last.
    file.seek(max(start, size - len(_END)))
    if file.read() == _END:
        return ""
    file.seek(start)
    try:
        _skip(file, False, length, 0)
    except struct.error:
        return f"ends at byte {size}, within its pixels"
    return "" if file.tell() <= size else f"ends at byte {size}, within its pixels"
