from __future__ import annotations

import io
import resource
import threading
import time

import numpy as np
import pytest
from PIL import Image

from slides.jpeg_tiles import GRAY, RGB, YCBCR, JpegTiles, TileError, shrink_whole
from tests.slides.jpeg_tiffs import Flavour, encode, segments, tissue, without_markers

SIDE = 96


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return tissue(SIDE, SIDE, 3)


def decoded(stream: bytes, photometric: int = YCBCR, tables: bytes | None = None, side: int = SIDE) -> np.ndarray:
    out = np.full((side, side, 3), 7, np.uint8)
    JpegTiles(side, side, photometric, tables).decode(stream, out)
    return out


def by_pillow(stream: bytes) -> np.ndarray:
    """libjpeg-turbo by another way, with the colours that the markers say."""
    return np.asarray(Image.open(io.BytesIO(stream)).convert("RGB"))


@pytest.mark.parametrize("chroma", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_pixels_of_libjpeg(image: np.ndarray, chroma: str, progressive: bool) -> None:
    """Exact DCT and smooth upsampling, as everywhere else: no difference."""
    stream = encode(image, Flavour(chroma, progressive=progressive))
    assert np.array_equal(decoded(stream), by_pillow(stream))


def test_gray(image: np.ndarray) -> None:
    """One component in three equal channels."""
    out = decoded(encode(image, Flavour("gray", quality=100)), GRAY)
    assert np.array_equal(out[..., 0], out[..., 1]) and np.array_equal(out[..., 0], out[..., 2])
    assert np.abs(out[..., 1].astype(int) - image[..., 1]).max() <= 3


@pytest.mark.parametrize("markers", [True, False], ids=["markers", "no markers"])
def test_the_tag_tells_the_colours(image: np.ndarray, markers: bool) -> None:
    """Whatever JFIF and Adobe segments say: as OpenSlide, which follows the TIFF."""
    ycbcr = encode(image, Flavour("444", markers=markers, quality=100))
    rgb = encode(image, Flavour("444", "RGB", markers=markers, quality=100))
    assert np.abs(decoded(ycbcr, YCBCR).astype(int) - image).max() <= 6
    assert np.abs(decoded(rgb, RGB).astype(int) - image).max() <= 6
    raw = np.asarray(Image.fromarray(image).convert("YCbCr"))
    assert np.abs(decoded(ycbcr, RGB).astype(int) - raw).max() <= 6
    assert np.abs(decoded(rgb, YCBCR).astype(int) - image).mean() > 20


@pytest.mark.parametrize("chroma", ["444", "420"])
def test_tables_apart(image: np.ndarray, chroma: str) -> None:
    """An abbreviated stream with its tables is the whole stream; without them it cannot be decoded."""
    flavour = Flavour(chroma)
    tables, rest, whole = (encode(image, flavour, kind) for kind in (1, 2, 0))
    assert len(tables) + len(rest) < len(whole) + 60
    assert np.array_equal(decoded(rest, tables=tables), decoded(whole))
    with pytest.raises(TileError, match="is damaged"):
        decoded(rest)


def test_tables_in_both_places(image: np.ndarray) -> None:
    """Those of the stream itself come last, and count."""
    other = encode(image, Flavour(quality=10), 1)
    stream = encode(image, Flavour(quality=90))
    assert np.array_equal(decoded(stream, tables=other), decoded(stream))


@pytest.mark.parametrize(
    "tables", [b"\xff\xd8", b"abc", b"\xff\xd8\xff\xdb\x00\x43" + bytes(5), b"\xff\xd8\xff\xc0\x00\x04ab\xff\xd9"]
)
def test_tables_that_are_none(tables: bytes) -> None:
    """Found at once, not at the first tile."""
    with pytest.raises(TileError, match="JPEGTables are|is damaged"):
        JpegTiles(SIDE, SIDE, YCBCR, tables)


def test_other_segments_do_no_harm(image: np.ndarray) -> None:
    """Comments, EXIF and fill bytes, before and between the tables."""
    stream = encode(image, Flavour())
    plain = decoded(stream)
    (_, _, end), *_ = segments(stream)
    extra = b"\xff\xe1\x00\x08Exif\0\0" + b"\xff\xfe\x00\x07hello" + b"\xff\xff\xff"
    assert np.array_equal(decoded(stream[:2] + extra[:-3] + stream[2:]), plain)
    assert np.array_equal(decoded(stream[:end] + extra + stream[end:]), plain)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("chroma", ["444", "420", "gray"])
def test_decoding_smaller(image: np.ndarray, factor: int, chroma: str) -> None:
    """The decoder's own shrinking is close to the average over the tile."""
    stream = encode(image, Flavour(chroma))
    jpeg = JpegTiles(SIDE, SIDE, GRAY if chroma == "gray" else YCBCR, None)
    whole, small = np.empty((SIDE, SIDE, 3), np.uint8), np.empty((SIDE // factor, SIDE // factor, 3), np.uint8)
    jpeg.decode(stream, whole)
    jpeg.decode(stream, small, factor)
    expected = np.empty_like(small)
    shrink_whole(whole, expected)
    assert np.abs(small.astype(int) - expected).mean() < 1.2
    assert jpeg.scales(factor)


def test_factors_that_cannot_be() -> None:
    """Only the decoder's own, and only where they divide the tile."""
    assert not JpegTiles(SIDE, SIDE, YCBCR, None).scales(3)
    assert not JpegTiles(100, SIDE, YCBCR, None).scales(8)


def test_not_the_size_that_the_directory_says(image: np.ndarray) -> None:
    """Neither larger, nor smaller, nor of the same number of pixels in another shape."""
    for height, width in ((SIDE, 2 * SIDE), (SIDE // 2, SIDE), (SIDE // 2, 2 * SIDE), (SIDE + 8, SIDE)):
        with pytest.raises(TileError, match=f"has {width} x {height} pixels, not 96 x 96"):
            decoded(encode(tissue(width, height), Flavour()))


def test_a_bomb_is_not_decoded(image: np.ndarray) -> None:
    """A few bytes that claim to be 65,500 pixels squared, or hold thousands of scans."""
    stream = bytearray(encode(image, Flavour()))
    at = stream.index(b"\xff\xc0")
    stream[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(TileError, match="65500 x 65500"):
        decoded(bytes(stream))
    progressive = encode(image, Flavour(progressive=True))
    scan = progressive.rindex(b"\xff\xda")
    started = time.process_time()
    with pytest.raises(TileError, match="more than 100 scans"):
        decoded(progressive[:-2] + progressive[scan:-2] * 20_000 + b"\xff\xd9")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("stream", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", bytes(1000), b"\xff" * 99])
def test_no_stream(stream: bytes) -> None:
    """An error, not a crash."""
    with pytest.raises(TileError):
        decoded(stream)


def test_warnings_are_errors(image: np.ndarray) -> None:
    """Data between the end of the scan and the next marker: libjpeg goes on, we do not."""
    stream = encode(image, Flavour())
    middle = len(stream) - len(stream) // 3
    with pytest.raises(TileError, match="is damaged"):
        decoded(stream[:middle] + bytes(b ^ 0x55 for b in stream[middle : middle + 300]) + stream[middle + 300 :])
    with pytest.raises(TileError, match="is damaged: Premature end"):
        decoded(stream[:-2])


def test_a_bad_tile_spoils_no_other(image: np.ndarray) -> None:
    """The decoder keeps nothing of a stream that it refused."""
    jpeg = JpegTiles(SIDE, SIDE, YCBCR, None)
    good = encode(image, Flavour())
    first, again = np.empty((SIDE, SIDE, 3), np.uint8), np.empty((SIDE, SIDE, 3), np.uint8)
    jpeg.decode(good, first)
    for bad in (good[: len(good) // 2], encode(tissue(32, 32), Flavour()), encode(image, Flavour("gray")), b""):
        with pytest.raises(TileError):
            jpeg.decode(bad, again)
        jpeg.decode(good, again)
        assert np.array_equal(first, again)


def test_heads_that_change_from_tile_to_tile(image: np.ndarray) -> None:
    """Each stream is decoded by its own head."""
    jpeg = JpegTiles(SIDE, SIDE, YCBCR, None)
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    for quality in (20, 90, 20, 50):
        for chroma in ("444", "420"):
            stream = without_markers(encode(image, Flavour(chroma, quality=quality)))
            jpeg.decode(stream, out)
            assert np.array_equal(out, by_pillow(stream))


def test_decoding_lets_other_threads_run() -> None:
    """The interpreter's lock is free while a large tile is decoded."""
    stream = encode(tissue(2048, 2048), Flavour("444", quality=95))
    jpeg, out = JpegTiles(2048, 2048, YCBCR, None), np.empty((2048, 2048, 3), np.uint8)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    for _ in range(5):
        jpeg.decode(stream, out)
    ended = time.perf_counter()
    done.set()
    thread.join()
    within = [t for t in ticks if began < t < ended]
    assert len(within) > 20, f"{len(within)} ticks in {ended - began:.3f} s"


def fuzz_streams(count: int, seed: int, seconds_of_cpu: float) -> tuple[int, int]:
    """Mutate small streams `count` times; gives how many were refused and how many decoded."""
    rng = np.random.default_rng(seed)
    picture = tissue(48, 48)
    flavours = [Flavour(), Flavour("444", progressive=True), Flavour("422", restart=2), Flavour(tables=True)]
    kinds = []
    for flavour in flavours:
        tables = encode(picture, flavour, 1) if flavour.tables else None
        kinds.append((encode(picture, flavour, 2 if flavour.tables else 0), JpegTiles(48, 48, YCBCR, tables)))
    guarded = np.full(48 * 48 * 3 + 128, 99, np.uint8)
    out = guarded[64:-64].reshape(48, 48, 3)
    refused = good = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    for number in range(count):
        stream, jpeg = kinds[number % len(kinds)]
        data = bytearray(stream)
        for _ in range(rng.integers(1, 5)):
            at = int(rng.integers(2, len(data) - 2))
            match rng.integers(6):
                case 0 | 1:
                    data[at] ^= 1 << rng.integers(8)
                case 2:
                    data[at : at + 2] = rng.choice([0x0000, 0xFFFF, 0xFFDA, 0xFFC4, 0xFFD9, 0x0102]).item().to_bytes(2)
                case 3:
                    del data[at : at + int(rng.integers(1, 200))]
                case 4:
                    data[at:at] = data[at : at + int(rng.integers(1, 200))]
                case 5 if len(data) > 64:
                    head = int(rng.integers(2, 620)) % (len(data) - 2)
                    data[head] = rng.integers(256)
            if len(data) < 8:
                break
        try:
            jpeg.decode(bytes(data), out)
        except TileError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 300
        else:
            good += 1
        assert (guarded[:64] == 99).all() and (guarded[-64:] == 99).all()
    spent = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    assert spent < seconds_of_cpu, f"{count} inputs took {spent:.0f} s: one of them hangs"
    return refused, good


def test_mutated_streams() -> None:
    """Refused or decoded: no other exception, nothing written beside the tile."""
    refused, good = fuzz_streams(1000, 0, 60)
    assert refused > 200 and good > 50


@pytest.mark.long
def test_many_mutated_streams() -> None:
    """The same, 20,000 times, without memory growing."""
    fuzz_streams(500, 1, 60)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz_streams(20_000, 2, 600)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
