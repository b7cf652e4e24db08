"""One stored JPEG tile to pixels, as OpenSlide shows them.

OpenSlide (openslide-decode-tiff.c) puts JPEGTables before the stream, takes the colours for what the TIFF's photometric
tag says whatever the stream's markers say, and lets libjpeg-turbo decode with its defaults: the exact integer DCT and
smooth chroma upsampling. Here the same is had from TurboJPEG (by way of simplejpeg) by rewriting the head of the stream:
application segments go, an Adobe segment that names the colours comes. The markers are those of ITU-T T.81, annex B, and
of Adobe technical note 5116.

A stream that libjpeg only warns of (bits that flipped, data between segments) is an error here, where OpenSlide gives
the damaged pixels. What leaves no trace in the stream's grammar nobody can tell.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from slides.errors import one_line

# Photometric interpretations of TIFF.
GRAY, RGB, YCBCR = 1, 2, 6

# Progressive streams of real encoders have about ten scans; every scan costs a pass over the whole tile.
_MAX_SCANS = 100

_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
_SOS, _EOI, _COM = 0xDA, 0xD9, 0xFE
_TABLES = (0xDB, 0xC4, 0xDD)  # DQT, DHT, DRI
_PROGRESSIVE = 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)  # baseline, extended, progressive; what else T.81 has, nobody writes into slides
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)

# What the decoder can shrink by.
_FACTORS = (2, 4, 8)


class TileError(Exception):
    """A tile that cannot be decoded; one line, without the tile's name."""


class JpegTiles:
    """Decodes the tiles of one directory: `tile_width` x `tile_height` pixels of colours `photometric`.

    TileError (from the constructor, too) for JPEGTables that are none. ValueError for another photometric.
    """

    def __init__(self, tile_width: int, tile_height: int, photometric: int, tables: bytes | None) -> None:
        if photometric not in (GRAY, RGB, YCBCR):
            raise ValueError(f"photometric {photometric} is none of JPEG")
        self._size = tile_height, tile_width
        self._components = 1 if photometric == GRAY else 3
        colours = b"" if photometric == GRAY else _ADOBE + (b"\x01" if photometric == YCBCR else b"\x00")
        self._start = b"\xff\xd8" + colours + (_table_segments(tables) if tables else b"")
        # The last head that was found good, what takes its place, and whether one scan follows or several.
        self._head: tuple[bytes, bytes, bool] = (b"", b"", True)

    def decode(self, stream: bytes, out: npt.NDArray[np.uint8], factor: int = 1) -> None:
        """Fill `out` uint8 (tile_height / factor, tile_width / factor, 3), contiguous.

        With a factor (see `scales`) the decoder leaves the fine part of the DCT out, which is close to the average of
        factor x factor pixels. TileError where the stream is not sound.
        """
        height, width = (side // factor for side in self._size)
        data = self.complete(stream)
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=out)
        except (ValueError, RuntimeError) as error:
            raise TileError(f"is damaged: {one_line(str(error))}") from error
        if pixels.shape != (height, width, 3):
            raise TileError(
                f"is damaged: decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels, not {width} x {height}"
            )

    def scales(self, factor: int) -> bool:
        """Whether tiles can be decoded at a factor at all."""
        return factor in _FACTORS and not any(side % factor for side in self._size)

    def complete(self, stream: bytes) -> bytes:
        """The stream with tables and the right colours, a JPEG for anyone. TileError where its head is not what the
        directory says."""
        head, ours, several = self._head
        if not head or not stream.startswith(head):  # in most files all tiles have the same head
            head, ours, several = self._head = self._read_head(stream)
        if several and stream.count(b"\xff\xda", len(head)) >= _MAX_SCANS:
            raise TileError(f"is damaged: it has more than {_MAX_SCANS} scans")
        return ours + stream[len(head) :]

    def _read_head(self, stream: bytes) -> tuple[bytes, bytes, bool]:
        """What comes before the data of the first scan, as it is and as it shall be; whether there are more scans."""
        if stream[:2] != b"\xff\xd8":
            raise TileError("is damaged: it is no JPEG stream")
        kept: list[bytes] = [self._start]
        frame = b""
        begin = at = 2
        while True:
            marker, after = marker_at(stream, at)
            end = segment_end(stream, after)
            if marker == _SOS:
                break
            if marker in _FRAMES:
                frame = stream[after + 2 : end]
                self._check_frame(frame)
                progressive = marker == _PROGRESSIVE
            elif marker in _OTHER_FRAMES:
                raise TileError(f"is of a kind of JPEG (marker {marker:02X}) that is not read")
            elif 0xE0 <= marker <= 0xEF or marker == _COM:
                kept.append(stream[begin:at])
                begin = end
            at = end
        if not frame:
            raise TileError("is damaged: its scan comes before its frame")
        kept.append(stream[begin:end])
        several = progressive or stream[after + 2 : after + 3] != bytes([self._components])
        return stream[:end], b"".join(kept), several

    def _check_frame(self, segment: bytes) -> None:
        if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
            raise TileError("is damaged: its frame is of the wrong length")
        size = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
        if segment[0] != 8 or segment[5] != self._components:
            raise TileError(f"has {segment[5]} components of {segment[0]} bits, not {self._components} of 8")
        if size != self._size:
            raise TileError(f"has {size[1]} x {size[0]} pixels, not {self._size[1]} x {self._size[0]}")


def shrink_whole(image: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Area average by a whole factor, to the size of `out`."""
    cv2.resize(image, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_AREA)


def _table_segments(tables: bytes) -> bytes:
    """The segments of JPEGTables that a decoder needs."""
    if tables[:2] != b"\xff\xd8":
        raise TileError("JPEGTables are damaged: no JPEG stream")
    kept: list[bytes] = []
    at = 2
    while True:
        marker, after = marker_at(tables, at)
        if marker == _EOI:
            return b"".join(kept)
        end = segment_end(tables, after)
        if marker in _TABLES:
            kept.append(tables[at:end])
        elif not (0xE0 <= marker <= 0xEF or marker == _COM):
            raise TileError(f"JPEGTables are damaged: marker {marker:02X}")
        at = end


def marker_at(data: bytes, at: int) -> tuple[int, int]:
    """The marker at a place, after any fill bytes, and where its segment's length stands."""
    if data[at : at + 1] != b"\xff":
        raise TileError("is damaged: no marker where one must be")
    while data[at : at + 1] == b"\xff":
        at += 1
    if at >= len(data) or data[at] == 0:
        raise TileError("is damaged: it ends within its head")
    return data[at], at + 1


def segment_end(data: bytes, at: int) -> int:
    size = int.from_bytes(data[at : at + 2])
    if size < 2 or at + size > len(data):
        raise TileError("is damaged: a segment is longer than the stream")
    return at + size
