"""Hamamatsu's NDPI written by hand: levels that are one JPEG each, with restart markers and a table of where they are."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHORT, LONG, RATIONAL, SLONG, FLOAT = 3, 4, 5, 9, 11
_LETTERS = {SHORT: "H", LONG: "I", SLONG: "i", FLOAT: "f"}
_CHROMA = {"444": ("4:4:4", 8, 8), "422": ("4:2:2", 16, 8), "420": ("4:2:0", 16, 16)}


@dataclass(frozen=True)
class Ndpi:
    """How levels are stored. `interval`: pixels across between restart markers, None for the whole width, 0 for no markers;
    `starts`: whether the table of markers is there; `hole`: so many bytes of nothing before the first level;
    `far`: intervals from this one on are said to lie 4 GiB further."""

    chroma: str = "422"
    interval: int | None = None
    quality: int = 80
    starts: bool = True
    hole: int = 0
    lens: float = 20.0
    planes: tuple[int, ...] = (0,)
    far: int | None = None


KINDS = {
    "422, whole rows": Ndpi(),
    "422, intervals of 256": Ndpi(interval=256),
    "444, whole rows": Ndpi("444"),
    "444, intervals of 128": Ndpi("444", 128),
    "several planes": Ndpi(planes=(0, 1, -1), interval=256),
    "beyond 4 GiB": Ndpi(hole=5 << 30),
    "beyond 4 GiB, intervals of 256": Ndpi(hole=(9 << 30) - 20_000, interval=256),
}


def encode(image: np.ndarray, kind: Ndpi, interval: int | None) -> tuple[bytes, list[int]]:
    """One level as a JPEG, and where in it each restart interval starts."""
    subsampling, width, _ = _CHROMA[kind.chroma]
    options = {"quality": kind.quality, "subsampling": subsampling}
    if interval != 0:
        options["restart_marker_blocks"] = (interval or image.shape[1]) // width
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    starts = [at + 2 + int.from_bytes(data[at + 2 : at + 4])]
    at = starts[0]
    while (at := data.find(b"\xff", at)) >= 0:
        if 0xD0 <= data[at + 1] <= 0xD7:
            starts.append(at + 2)
        at += 2
    return data, starts


Change = Callable[[int, bytes, list[int]], tuple[bytes, list[int]]]


def write_ndpi(
    path: Path, levels: Sequence[np.ndarray], kind: Ndpi = Ndpi(), mpp: float = 0.5, change: Change | None = None
) -> Path:
    """Write levels, largest first, whose sides are multiples of the JPEG's units. `change(level, jpeg, starts)` may spoil
    what is stored."""
    link = 4
    with open(path, "wb") as file:
        file.write(b"II*\0" + bytes(8) + b"fill")
        file.seek(kind.hole, 1)
        for number, image in enumerate(levels):
            interval = kind.interval if not kind.interval or image.shape[1] % kind.interval == 0 else None
            data, starts = encode(image, kind, interval)
            if change is not None:
                data, starts = change(number, data, starts)
            for plane in kind.planes if number == 0 else (0,):
                link = _directory(file, link, image, kind, data, starts, mpp, number, plane)
    return path


def _directory(
    file: io.BufferedWriter,
    link: int,
    image: np.ndarray,
    kind: Ndpi,
    data: bytes,
    starts: list[int],
    mpp: float,
    number: int,
    plane: int,
) -> int:
    height, width = image.shape[:2]
    scale = 2**number
    offset = _blob(file, data)
    entries: dict[int, tuple[int, list]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8, 8, 8]),
        259: (SHORT, [7]),
        262: (SHORT, [6]),
        273: (LONG, [offset]),
        277: (SHORT, [3]),
        278: (LONG, [height]),
        279: (LONG, [len(data) + (0 if kind.far is None else 1 << 32)]),
        282: (RATIONAL, [round(1e4 / mpp / scale), 1]),
        283: (RATIONAL, [round(1e4 / mpp / scale), 1]),
        296: (SHORT, [3]),
        65420: (SHORT, [1]),
        65421: (FLOAT, [kind.lens / scale]),
        65424: (SLONG, [plane]),
    }
    if kind.starts and len(starts) > 1:
        entries[65426] = (LONG, starts)
    if kind.far is not None:
        entries[65432] = (LONG, [int(i >= kind.far) for i in range(len(starts))])
    packed, high = [], []
    for tag, (code, values) in sorted(entries.items()):
        letter = "I" if code == RATIONAL else _LETTERS[code]
        if tag in (273, 279):
            raw = struct.pack("<Q", values[0])
        else:
            raw = struct.pack(f"<{len(values)}{letter}", *values).ljust(8, b"\0")
            if len(values) * struct.calcsize(letter) > 4:
                raw = struct.pack("<Q", _blob(file, raw))
        count = len(values) // 2 if code == RATIONAL else len(values)
        packed.append(struct.pack("<HHI", tag, code, count) + raw[:4])
        high.append(raw[4:8] if tag in (273, 279) or len(values) * struct.calcsize(letter) > 4 else bytes(4))
    start = _blob(file, struct.pack("<H", len(packed)) + b"".join(packed))
    end = file.tell()
    file.write(bytes(8) + b"".join(high))
    file.seek(link)
    file.write(struct.pack("<Q", start))
    file.seek(0, 2)
    return end


def _blob(file: io.BufferedWriter, data: bytes) -> int:
    file.write(bytes(-file.tell() % 2))
    offset = file.tell()
    file.write(data)
    return offset
