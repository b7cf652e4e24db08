"""Tiled JPEG TIFFs written by hand, in every flavour that scanners write and some that they should not."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# Type codes of TIFF and the letters of struct.
SHORT, LONG, LONG8, ASCII, RATIONAL, UNDEFINED = 3, 4, 16, 2, 5, 7
_LETTERS = {SHORT: "H", LONG: "I", LONG8: "Q", ASCII: "s", UNDEFINED: "s"}

APERIO = "Aperio Image Library v11.2.1\r\n46000x32914 (256x256) JPEG/RGB Q=80|AppMag = 20|MPP = 0.5000"


def tissue(width: int, height: int, seed: int = 0, chroma: float = 8.0) -> np.ndarray:
    """Colourful blobs with fine grain, uint8 (height, width, 3): JPEG has something to do everywhere. `chroma`: how
    much of the grain differs by colour, which in tissue is little."""
    rng = np.random.default_rng(seed)
    small = rng.normal(0, 1, (height // 24 + 3, width // 24 + 3, 3)).astype(np.float32)
    blobs = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * 60
    gray = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 1)).astype(np.float32), (0, 0), 1.0)[..., None] * 60
    colour = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 3)).astype(np.float32), (0, 0), 1.0) * chroma
    return np.clip(np.array([180, 130, 175]) + blobs + gray + colour, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Flavour:
    """How tiles are stored. `chroma`: 444, 422, 420, 440, 411 or gray; `colour`: of the JPEG data, YCbCr or RGB;
    `photometric`: what the TIFF says, or None for the truth; `tables`: abbreviated streams with JPEGTables; `markers`:
    whether JFIF and Adobe markers stay in the streams."""

    chroma: str = "420"
    colour: str = "YCbCr"
    photometric: int | None = None
    tables: bool = False
    markers: bool = True
    progressive: bool = False
    restart: int = 0
    quality: int = 80
    tile: tuple[int, int] = (256, 256)
    big: bool = False
    order: str = "<"
    compression: int = 7
    extra: dict[int, tuple[int, Sequence[int] | bytes]] = field(default_factory=dict)

    @property
    def gray(self) -> bool:
        return self.chroma == "gray"


# Every way of storing a tile that is read directly.
FLAVOURS = {
    "444": Flavour("444"),
    "422": Flavour("422"),
    "420": Flavour("420"),
    "440": Flavour("440"),
    "411": Flavour("411"),
    "gray": Flavour("gray"),
    "RGB, Adobe marker": Flavour("444", "RGB"),
    "RGB, no marker": Flavour("444", "RGB", markers=False),
    "RGB called YCbCr": Flavour("444", "RGB", photometric=6),
    "YCbCr called RGB, JFIF marker": Flavour("420", photometric=2),
    "tables": Flavour(tables=True),
    "RGB, tables": Flavour("444", "RGB", tables=True, markers=False),
    "progressive": Flavour(progressive=True),
    "restart markers": Flavour("422", restart=4),
    "BigTIFF": Flavour(big=True),
    "BigTIFF, big-endian": Flavour(big=True, order=">"),
    "tiles not square": Flavour(tile=(128, 304)),
    "tiles of 240": Flavour("444", tile=(240, 240)),
    "lowest quality": Flavour(quality=5),
}


_CHROMA = {"444": "4:4:4", "422": "4:2:2", "420": "4:2:0", "gray": "4:4:4"}
_RARE_CHROMA = {"440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440, "411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411}


def encode(image: np.ndarray, flavour: Flavour, stream: int = 0) -> bytes:
    """One JPEG stream: whole (0), tables alone (1), or image without tables (2)."""
    if flavour.chroma in _RARE_CHROMA:  # Pillow does not write these, OpenCV no tables
        factors = [
            cv2.IMWRITE_JPEG_QUALITY,
            flavour.quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            _RARE_CHROMA[flavour.chroma],
        ]
        data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), factors)[1].tobytes()
        return data if flavour.markers else without_markers(data)
    picture = Image.fromarray(image if not flavour.gray else image[..., 1])
    options = {"quality": flavour.quality, "subsampling": _CHROMA[flavour.chroma], "streamtype": stream}
    if flavour.colour == "RGB":
        options["keep_rgb"] = True
    if flavour.restart:
        options["restart_marker_blocks"] = flavour.restart
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", progressive=flavour.progressive, **options)
    data = buffer.getvalue()
    return data if flavour.markers else without_markers(data)


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, begin, end) of each segment before the scan."""
    found, at = [], 2
    while data[at + 1] != 0xDA and data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        found.append((data[at + 1], at, end))
        at = end
    return found


def without_markers(data: bytes) -> bytes:
    """The stream without its JFIF and Adobe segments."""
    for marker, begin, end in reversed(segments(data)):
        if marker in (0xE0, 0xEE):
            data = data[:begin] + data[end:]
    return data


def tiles_of(image: np.ndarray, flavour: Flavour, stream: int = 0) -> list[bytes]:
    """The tiles of an image in row order; what overhangs repeats the border."""
    width, height = flavour.tile
    rows, columns = -(-image.shape[0] // height), -(-image.shape[1] // width)
    pad = ((0, rows * height - image.shape[0]), (0, columns * width - image.shape[1]), (0, 0))
    padded = np.pad(image, pad, mode="edge")
    return [
        encode(padded[y : y + height, x : x + width], flavour, stream)
        for y in range(0, padded.shape[0], height)
        for x in range(0, padded.shape[1], width)
    ]


Change = Callable[[int, list[bytes]], list[bytes]]


def write_jpeg_tiff(
    path: Path,
    levels: Sequence[np.ndarray],
    flavour: Flavour = Flavour(),
    description: str = "",
    mpp: float = 0.5,
    change: Change | None = None,
    lie: Callable[[int, dict], None] | None = None,
) -> Path:
    """Write the levels, one directory each, in the order given. `change(level, tiles)` may replace the stored streams,
    `lie(level, tags)` spoil what the directory says."""
    writer = Writer(flavour.order, flavour.big)
    for number, image in enumerate(levels):
        tiles = tiles_of(image, flavour, 2 if flavour.tables else 0)
        if change is not None:
            tiles = change(number, tiles)
        entries = tags(image, flavour, tiles, writer, description, mpp, number)
        if lie is not None:
            lie(number, entries)
        writer.directory(entries)
    path.write_bytes(writer.finish())
    return path


def tags(
    image: np.ndarray, flavour: Flavour, tiles: list[bytes], writer: Writer, description: str, mpp: float, number: int
) -> dict[int, tuple[int, Sequence[int] | bytes]]:
    """The tags of a tiled directory, whose tiles are written on the way."""
    samples = 1 if flavour.gray else 3
    truth = 1 if flavour.gray else 2 if flavour.colour == "RGB" else 6
    entries: dict[int, tuple[int, Sequence[int] | bytes]] = {
        254: (LONG, [1 if number else 0]),
        256: (LONG, [image.shape[1]]),
        257: (LONG, [image.shape[0]]),
        258: (SHORT, [8] * samples),
        259: (SHORT, [flavour.compression]),
        262: (SHORT, [flavour.photometric or truth]),
        277: (SHORT, [samples]),
        284: (SHORT, [1]),
        296: (SHORT, [3]),
        322: (LONG, [flavour.tile[0]]),
        323: (LONG, [flavour.tile[1]]),
    }
    if not number:
        entries[282] = entries[283] = (RATIONAL, [round(1e4 / mpp * 1000), 1000])
    if description:
        entries[270] = (ASCII, description.encode() + b"\0")
    if flavour.tables:
        entries[347] = (UNDEFINED, encode(np.zeros((16, 16, 3), np.uint8), flavour, 1))
    if (flavour.photometric or truth) == 6:
        factors = {"444": [1, 1], "422": [2, 1], "420": [2, 2], "440": [1, 2], "411": [4, 1], "gray": [1, 1]}
        entries[530] = (SHORT, factors[flavour.chroma])
    kind = LONG8 if flavour.big else LONG
    entries[324] = (kind, [writer.blob(tile) if tile else 0 for tile in tiles])
    entries[325] = (LONG, [len(tile) for tile in tiles])
    entries.update(flavour.extra)
    return entries


class Writer:
    """Builds a TIFF in memory: blobs first, directories where they come."""

    def __init__(self, order: str = "<", big: bool = False) -> None:
        self.order, self.big = order, big
        mark = b"II" if order == "<" else b"MM"
        if big:
            self.data = bytearray(mark + struct.pack(order + "HHHQ", 43, 8, 0, 0))
        else:
            self.data = bytearray(mark + struct.pack(order + "HI", 42, 0))
        self._link = 8 if big else 4  # where the offset of the next directory goes

    def blob(self, data: bytes) -> int:
        self.data += bytes(-len(self.data) % 2)
        offset = len(self.data)
        self.data += data
        return offset

    def directory(self, entries: dict[int, tuple[int, Sequence[int] | bytes]]) -> int:
        """Append a directory; gives its offset."""
        packed = []
        for tag, (kind, values) in sorted(entries.items()):
            raw, count = self._values(kind, values)
            inline = 8 if self.big else 4
            field_ = raw.ljust(inline, b"\0") if len(raw) <= inline else self._offset(self.blob(raw))
            packed.append(struct.pack(self.order + ("HHQ" if self.big else "HHI"), tag, kind, count) + field_)
        head = struct.pack(self.order + ("Q" if self.big else "H"), len(packed))
        offset = self.blob(head + b"".join(packed) + self._offset(0))
        self.data[self._link : self._link + (8 if self.big else 4)] = self._offset(offset)
        self._link = len(self.data) - (8 if self.big else 4)
        return offset

    def finish(self) -> bytes:
        return bytes(self.data)

    def _offset(self, value: int) -> bytes:
        return struct.pack(self.order + ("Q" if self.big else "I"), value)

    def _values(self, kind: int, values: Sequence[int] | bytes) -> tuple[bytes, int]:
        if isinstance(values, bytes):
            return values, len(values)
        if kind == RATIONAL:
            return struct.pack(f"{self.order}{len(values)}I", *values), len(values) // 2
        return struct.pack(f"{self.order}{len(values)}{_LETTERS[kind]}", *values), len(values)


def philips_description(mpp: float, levels: int) -> str:
    """The least of a Philips TIFF's XML that OpenSlide wants: the spacing of each level, in mm."""
    parts = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING">'
        f'"{mpp * 2**n / 1000}" "{mpp * 2**n / 1000}"</Attribute></DataObject>'
        for n in range(levels)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        '<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        f'<Attribute Name="DICOM_PIXEL_SPACING">"{mpp / 1000}" "{mpp / 1000}"</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{parts}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )


def write_philips(
    path: Path,
    levels: Sequence[np.ndarray],
    flavour: Flavour = Flavour(),
    mpp: float = 0.5,
    change: Change | None = None,
) -> Path:
    """As `write_jpeg_tiff`, with Philips' XML; lower levels are padded to whole tiles, and one more where the
    level above is large enough."""
    padded = [levels[0]]
    for image in levels[1:]:
        above, pad = padded[-1].shape, []
        for axis, tile in enumerate(reversed(flavour.tile)):
            more = -image.shape[axis] % tile
            pad.append((0, more + tile if image.shape[axis] + more + tile <= above[axis] else more))
        padded.append(np.pad(image, (*pad, (0, 0)), constant_values=90))
    software = {**flavour.extra, 305: (ASCII, b"Philips DP v1.0\0")}
    flavour = replace(flavour, extra=software)
    return write_jpeg_tiff(path, padded, flavour, philips_description(mpp, len(levels)), mpp, change)
