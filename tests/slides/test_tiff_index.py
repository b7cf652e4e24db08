from __future__ import annotations

import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile

from slides.tiff_index import MAX_DIRECTORIES, MAX_ENTRIES, MAX_TILES, Directory, TiffError, largest_tile, read_index
from tests.slides.jpeg_tiffs import LONG, LONG8, SHORT, Flavour, Writer, tissue, write_jpeg_tiff
from tests.slides.mutations import mutate


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def index(path: Path) -> tuple[Directory, ...]:
    with opened(path) as fd:
        return read_index(fd)


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_every_kind_of_tiff(tmp_path: Path, big: bool, order: str) -> None:
    """Both sizes and both byte orders, with what another reader finds in them."""
    flavour = Flavour(big=big, order=order, tables=True, tile=(128, 96))
    path = write_jpeg_tiff(tmp_path / "a.tif", [tissue(500, 300), tissue(250, 150)], flavour)
    directories = index(path)
    with tifffile.TiffFile(path) as tiff:
        assert len(directories) == len(tiff.pages) == 2
        for ours, page in zip(directories, tiff.pages, strict=True):
            assert (ours.width, ours.height) == (page.imagewidth, page.imagelength)
            assert (ours.tile_width, ours.tile_height) == (page.tilewidth, page.tilelength) == (128, 96)
            assert (ours.compression, ours.photometric, ours.samples, ours.planar) == (7, 6, 3, 1)
            assert ours.bits == (8, 8, 8) and ours.orientation == 1
            assert ours.offsets.tolist() == list(page.dataoffsets) and ours.counts.tolist() == list(page.databytecounts)
            assert ours.tables == page.jpegtables
            assert ours.tiled and ours.columns * ours.rows == len(ours.offsets)


def test_images_that_are_not_tiled_are_only_counted(tmp_path: Path) -> None:
    """Label and macro are strips: nothing of theirs is kept."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(np.zeros((64, 64, 3), np.uint8), tile=(32, 32), photometric="rgb")
        tiff.write(np.zeros((40, 30, 3), np.uint8), photometric="rgb", rowsperstrip=8)
    first, second = index(path)
    assert first.tiled and not second.tiled
    assert (second.width, second.height, second.offsets, second.tables) == (30, 40, None, None)


def test_real_slide(data_dir: Path) -> None:
    """Level, thumbnail, label and macro of an Aperio slide."""
    directories = index(data_dir / "slides" / "CMU-1-Small-Region.svs")
    assert [(d.width, d.height, d.tiled) for d in directories] == [
        (2220, 2967, True),
        (574, 768, False),
        (387, 463, False),
        (1280, 431, False),
    ]
    assert directories[0].photometric == 2 and directories[0].tables[:2] == b"\xff\xd8"


def test_offsets_beyond_4_gib(tmp_path: Path) -> None:
    """BigTIFF's numbers are whole."""
    writer = Writer("<", big=True)
    writer.directory({**BASE, 324: (LONG8, [5 << 40] * 4), 325: (LONG8, [6 << 33] * 4)})
    (directory,) = index(written(tmp_path, writer.finish()))
    assert directory.offsets.tolist() == [5 << 40] * 4 and directory.counts.tolist() == [6 << 33] * 4


BASE = {256: (LONG, [100]), 257: (LONG, [100]), 322: (SHORT, [64]), 323: (SHORT, [64])}
TILES = {324: (LONG, [8] * 4), 325: (LONG, [10] * 4)}


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.tif"
    path.write_bytes(data)
    return path


def tiff(entries: dict, order: str = "<", big: bool = False) -> bytes:
    writer = Writer(order, big)
    writer.directory(entries)
    return writer.finish()


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({**BASE, **TILES, 256: (LONG, [0])}, "0 x 100 pixels"),
        ({**BASE, **TILES, 257: (LONG, [1 << 31])}, "100 x 2147483648 pixels"),
        ({**BASE, **TILES, 322: (SHORT, [0])}, "0 x 64 pixels"),
        ({**BASE, **TILES, 324: (LONG, [8] * 3)}, "tag 324 has 3 values for 4 tiles"),
        ({**BASE, **TILES, 325: (LONG, [8] * 5)}, "tag 325 has 5 values for 4 tiles"),
        ({**BASE, **TILES, 324: (2, b"abcd")}, "tag 324 has values of type 2"),
        ({**BASE, **TILES, 256: (LONG, [100, 100])}, "tag 256 has 2 values"),
        ({**BASE, **TILES, 347: (7, bytes(1 << 17))}, "tag 347 has 131072 values"),
        ({**BASE, **TILES, 258: (SHORT, [8] * 17)}, "tag 258 has 17 values"),
        ({**BASE, 324: TILES[324]}, "how long its tiles are"),
        ({**BASE, **TILES, 256: (LONG, [1 << 30]), 257: (LONG, [1 << 30])}, f"more than {MAX_TILES} tiles"),
    ],
)
def test_lying_directories(tmp_path: Path, entries: dict, problem: str) -> None:
    """Each is refused in one line, before anything is allocated for it."""
    with pytest.raises(TiffError, match=problem) as error:
        index(written(tmp_path, tiff(entries)))
    assert "\n" not in str(error.value)


def test_a_count_beyond_the_file(tmp_path: Path) -> None:
    """A table that would be as large as memory is held against the file first."""
    data = bytearray(tiff({**BASE, **TILES, 256: (LONG, [64 * 2000]), 257: (LONG, [64 * 2000])}))
    for tag in (324, 325):
        at = data.index(struct.pack("<HHI", tag, LONG, 4))
        data[at + 4 : at + 8] = struct.pack("<I", 2000 * 2000)
    with pytest.raises(TiffError, match="past the end of the file"):
        index(written(tmp_path, bytes(data)))


@pytest.mark.parametrize(
    "data",
    [b"", b"II", b"II*\0", b"MM\0*\0\0", b"II+\0\x04\0\0\0" + bytes(8), b"II\x2b\0\x08\0\0\0", b"PK\x03\x04" + bytes(20)],
)
def test_no_tiff(tmp_path: Path, data: bytes) -> None:
    """Whatever else it is."""
    with pytest.raises(TiffError):
        index(written(tmp_path, data))


def test_no_directory(tmp_path: Path) -> None:
    """A chain that ends before it begins."""
    with pytest.raises(TiffError, match="no directory"):
        index(written(tmp_path, b"II*\0" + bytes(4)))


def test_loops_end(tmp_path: Path) -> None:
    """A chain of directories that returns to itself, at once or after a while."""
    writer = Writer()
    first = writer.directory({**BASE, **TILES})
    second = writer.directory({**BASE, **TILES})
    for back in (first, second):
        data = bytearray(writer.finish())
        data[-4:] = struct.pack("<I", back)
        with pytest.raises(TiffError, match=f"returns to byte {back}"):
            index(written(tmp_path, bytes(data)))


def test_too_many_directories(tmp_path: Path) -> None:
    """The longest chain that is followed."""
    writer = Writer()
    for _ in range(MAX_DIRECTORIES):
        writer.directory({256: (LONG, [1]), 257: (LONG, [1])})
    assert len(index(written(tmp_path, writer.finish()))) == MAX_DIRECTORIES
    writer.directory({256: (LONG, [1]), 257: (LONG, [1])})
    with pytest.raises(TiffError, match="more than"):
        index(written(tmp_path, writer.finish()))


def test_too_many_entries(tmp_path: Path) -> None:
    """A directory of tens of thousands of entries is none."""
    data = bytearray(tiff({**BASE, **TILES}))
    data[8:8] = b""
    offset = struct.unpack_from("<I", data, 4)[0]
    data[offset : offset + 2] = struct.pack("<H", MAX_ENTRIES + 1)
    with pytest.raises(TiffError, match=f"{MAX_ENTRIES + 1} entries"):
        index(written(tmp_path, bytes(data) + bytes(20 * MAX_ENTRIES)))


def test_a_tag_that_comes_twice(tmp_path: Path) -> None:
    """Readers differ in which of the two they take."""
    data = bytearray(tiff({**BASE, **TILES, 258: (SHORT, [8])}))
    at = data.index(struct.pack("<HHI", 258, SHORT, 1))
    data[at : at + 2] = struct.pack("<H", 257)
    with pytest.raises(TiffError, match="tag 257 comes twice"):
        index(written(tmp_path, bytes(data)))


def test_cut_anywhere(tmp_path: Path) -> None:
    """A file that ends within its index is an error, wherever it ends."""
    path = write_jpeg_tiff(tmp_path / "a.tif", [tissue(300, 200)], Flavour(tables=True, tile=(64, 64)))
    data = path.read_bytes()
    whole = len(index(path))
    start = struct.unpack_from("<I", data, 4)[0] - 600
    for size in range(start, len(data), 7):
        with pytest.raises(TiffError):
            index(written(tmp_path, data[:size]))
    assert len(index(written(tmp_path, data))) == whole


def test_tile_spans_may_lie(tmp_path: Path) -> None:
    """What an entry of the table says of its tile is judged when that tile is read, not here."""
    (directory,) = index(written(tmp_path, tiff({**BASE, 324: (LONG, [2**32 - 1] * 4), 325: (LONG, [2**32 - 1] * 4)})))
    assert directory.offsets.max() == 2**32 - 1
    assert largest_tile(directory) < 1 << 20


def fuzz_index(path: Path, seconds_of_cpu: float, count: int, seed: int = 0) -> tuple[int, int]:
    """Mutate the index of small TIFFs `count` times; gives how many were refused and how many read."""
    rng = np.random.default_rng(seed)
    blank = np.full((200, 300, 3), 200, np.uint8)
    seeds = []
    for big in (False, True):
        for order in "<>":
            flavour = Flavour(big=big, order=order, tables=True, tile=(64, 64), quality=1)
            seeds.append(write_jpeg_tiff(path, [blank, blank[::2, ::2]], flavour).read_bytes())
    refused = read = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    for number in range(count):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(rng.integers(1, 4)):
            mutate(rng, data)
        path.write_bytes(data)
        with opened(path) as fd:
            try:
                directories = read_index(fd)
            except TiffError as error:
                refused += 1
                assert len(str(error)) < 200 and "\n" not in str(error)
            else:
                read += 1
                assert sum(len(d.offsets) for d in directories if d.tiled) <= MAX_TILES
    spent = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    assert spent < seconds_of_cpu, f"{count} inputs took {spent:.0f} s: one of them hangs"
    return refused, read


def test_mutations(tmp_path: Path) -> None:
    """A mutated index is refused or read: no other exception, no hang, no table beyond the limit."""
    refused, read = fuzz_index(tmp_path / "a.tif", 60, 600)
    assert refused > 50 and read > 50


@pytest.mark.long
def test_many_mutations(tmp_path: Path) -> None:
    """The same, 20,000 times, without memory growing."""
    fuzz_index(tmp_path / "a.tif", 300, 500, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz_index(tmp_path / "a.tif", 600, 20_000, seed=2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
