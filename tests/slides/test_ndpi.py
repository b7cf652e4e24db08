from __future__ import annotations

import resource
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slides.direct_source import DirectSource
from slides.errors import SlideError
from slides.geometry import SlideInfo, geometry
from slides.ndpi import read_levels
from slides.openslide_source import OpenSlideSource
from slides.source import open_source
from slides.tiff_index import TiffError
from slides.tile_file import Unsuitable
from tests.slides.jpeg_tiffs import tissue
from tests.slides.mutations import at_most, mutate
from tests.slides.ndpi_files import KINDS, Ndpi, write_ndpi
from tests.slides.test_direct_source import difference, direct, everywhere, read
from tests.slides.tiffs import halved

WIDTH, HEIGHT = 768, 400


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    """Of 50 rows of JPEG units, so that the last stack of eight has two."""
    return tissue(WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_pixels_are_those_of_openslide(tmp_path: Path, image: np.ndarray, kind: Ndpi) -> None:
    """Stored levels and those made of them, aligned and unaligned patches, edges and overlaps: no difference at all."""
    path = write_ndpi(tmp_path / "a.ndpi", [image, halved(image)], kind)
    source = direct(path)
    assert source.notice == "" and source.info.format == "hamamatsu"
    assert len(source.info.level_sizes) > 2
    odd = np.array([[1, 1], [333, 157], [WIDTH - 10, HEIGHT - 1], [0, 300], [500, 3]])
    assert difference(path, 96, 0.5, 0.3, odd).max() == 0
    for spacing in (1.0, 2.0, 4.0, 0.8):
        assert difference(path, 40, spacing).max() == 0
    assert np.array_equal(source.overview(300), OpenSlideSource(path).overview(300))


@pytest.mark.parametrize("spacing", [0.22817, 0.46, 0.9127, 3.65, 0.3])
def test_real_slide(data_dir: Path, spacing: float) -> None:
    """A fluorescence slide of NDP.scan 2.5: no difference."""
    assert difference(data_dir / "slides" / "fluorescence-387.ndpi", 224, spacing).max() == 0


def test_a_pyramid_by_fours(tmp_path: Path) -> None:
    """Levels between are OpenSlide's own, made by decoding smaller; they come from the same stored image."""
    big = tissue(1024, 512, 2)
    path = write_ndpi(tmp_path / "a.ndpi", [big, halved(halved(big))], Ndpi(interval=256))
    assert direct(path).info.level_sizes[:3] == ((1024, 512), (512, 256), (256, 128))
    for spacing in (0.5, 1.0, 2.0, 4.0):
        assert difference(path, 64, spacing).max() == 0


def test_several_reads_at_a_time(tmp_path: Path, image: np.ndarray) -> None:
    """The parts of a stack come in any order; the pixels are the same."""
    path = write_ndpi(tmp_path / "a.ndpi", [image], Ndpi(interval=128))
    ahead = open_source(path, None, "direct", preads=4)
    grid = geometry(ahead.info, 64, 0.5)
    xy = everywhere(grid)
    ahead.advise(grid, xy[:20])
    out, failed = read(ahead, grid, xy)
    plain, _ = read(direct(path), grid, xy)
    assert failed == {} and np.array_equal(out, plain)


def test_without_markers_it_is_left_to_openslide(tmp_path: Path, image: np.ndarray) -> None:
    """A level of one piece, or one whose table is missing; lower levels one by one, the highest with the whole slide."""
    for kind in (Ndpi(interval=0), Ndpi(starts=False)):
        source = open_source(write_ndpi(tmp_path / "a.ndpi", [image], kind), None)
        assert isinstance(source, OpenSlideSource) and "no restart markers" in source.notice

    path = tmp_path / "b.ndpi"
    write_ndpi(path, [image, halved(image)], change=lambda n, data, starts: (data, starts if n == 0 else starts[:1]))
    source = direct(path)
    assert source.notice.startswith("levels [1, 2, 3, 4] are read by OpenSlide, as they have no restart markers")
    for spacing in (0.5, 1.0, 2.0):
        assert difference(path, 64, spacing).max() == 0


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda s: [*s[:5], s[6], s[5], *s[7:]], "do not follow each other"),
        (lambda s: [*s[:-1], 1 << 31], "do not follow each other"),
        (lambda s: s[:-1], "has 49 restart intervals where 50 must be"),
        (lambda s: [s[0] + 1, *s[1:]], "not where its data begins"),
        (lambda s: [1, *s[1:]], "a segment is longer|ends within its head|no JPEG stream"),
    ],
)
def test_lying_tables(tmp_path: Path, image: np.ndarray, spoil, problem: str) -> None:
    """The slide is left to OpenSlide, with the reason."""
    path = write_ndpi(tmp_path / "a.ndpi", [image], change=lambda _, data, starts: (data, spoil(starts)))
    with open(path, "rb") as file, pytest.raises(TiffError, match=problem):
        read_levels(file.fileno(), [(WIDTH, HEIGHT)])


@pytest.mark.parametrize("interval", [None, 256])
def test_a_damaged_stack_costs_only_its_patches(tmp_path: Path, image: np.ndarray, interval: int | None) -> None:
    """A marker in the wrong place, or rubbish: the patches over those 64 rows of pixels fail, and no others."""
    clean = write_ndpi(tmp_path / "clean.ndpi", [image], Ndpi(interval=interval))
    columns = WIDTH // (interval or WIDTH)
    for number, spoil in enumerate((b"\xff\xd9", b"rubbish!" * 20)):

        def change(_: int, data: bytes, starts: list[int], spoil: bytes = spoil) -> tuple[bytes, list[int]]:
            at = starts[20 * columns] + 4  # row 20 lies in the third stack
            return data[:at] + spoil + data[at + len(spoil) :], starts

        source = direct(write_ndpi(tmp_path / f"{number}.ndpi", [image], Ndpi(interval=interval), change=change))
        grid = geometry(source.info, 64, 0.5)
        xy = everywhere(grid)
        out, reasons = read(source, grid, xy)
        good, _ = read(direct(clean), grid, xy)
        touching = (xy[:, 1] == 128) & (xy[:, 0] < (interval or WIDTH))
        assert sorted(reasons) == np.flatnonzero(touching).tolist()
        assert all(reason.startswith("tile (0, 2) of level 0 is damaged") for reason in reasons.values())
        assert (out[touching] == 255).all() and np.array_equal(out[~touching], good[~touching])


def test_a_level_of_more_than_4_gib(tmp_path: Path, image: np.ndarray) -> None:
    """The high halves of the table count: here they point where nothing is, which costs those intervals."""
    hole = 4 << 30
    clean = direct(write_ndpi(tmp_path / "clean.ndpi", [image], Ndpi(hole=hole)))
    write_ndpi(tmp_path / "a.ndpi", [image], Ndpi(hole=hole, far=40))
    source = DirectSource(replace(clean.info, path=str(tmp_path / "a.ndpi"), level_sizes=clean.info.level_sizes[:1]))
    grid = geometry(source.info, 64, 0.5)
    xy = everywhere(grid)
    out, reasons = read(source, grid, xy)
    good, _ = read(clean, grid, xy)
    near = xy[:, 1] + 64 <= 256  # the stack of intervals 32 to 39 ends where the far ones begin, which is far
    assert sorted(reasons) == np.flatnonzero(~near).tolist()
    assert np.array_equal(out[near], good[near])
    assert all("bytes" in reason for reason in reasons.values())


def test_a_table_of_millions_is_refused(tmp_path: Path, image: np.ndarray) -> None:
    """Before it is read."""
    path = write_ndpi(tmp_path / "a.ndpi", [image])
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HHI", 65426, 4, 50))
    data[at + 4 : at + 8] = struct.pack("<I", 1 << 30)
    path.write_bytes(data)
    with open(path, "rb") as file, pytest.raises(TiffError, match="tag 65426 has 1073741824 values"):
        read_levels(file.fileno(), [(WIDTH, HEIGHT)])


def read_whole(info: SlideInfo, exact: bool, preads: int) -> Counter[str]:
    """Read every patch that needs no OpenSlide; gives what came of it."""
    try:
        source = DirectSource(info, exact=exact, preads=preads)
    except Unsuitable as error:
        assert "\n" not in str(error)
        return Counter(refused=1)
    outcome: Counter[str] = Counter()
    for spacing in (0.5, 1.0, 2.0):
        grid = geometry(info, 24, spacing)
        if not source._file.levels[grid.level].by_openslide:
            _, reasons = read(source, grid, everywhere(grid))
            outcome["failed patches" if reasons else "whole"] += 1
            assert all("\n" not in reason and len(reason) < 300 for reason in reasons.values())
    if not source.notice:
        try:
            source.overview(50)
        except SlideError:
            outcome["no overview"] += 1
    source.close()
    return outcome


def fuzz_ndpi(tmp_path: Path, count: int, seed: int) -> Counter[str]:
    """Mutate small slides anywhere and read them whole, without OpenSlide; gives what came of it."""
    rng = np.random.default_rng(seed)
    image = tissue(128, 96)
    path = tmp_path / "fuzzed.ndpi"
    seeds = []
    for kind in (Ndpi(quality=40), Ndpi("444", 64, quality=40)):
        write_ndpi(path, [image, halved(image)], kind)
        seeds.append((path.read_bytes(), OpenSlideSource(path).info))
    outcome: Counter[str] = Counter()
    for number in range(count):
        good, info = seeds[number % len(seeds)]
        data = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            mutate(rng, data)
        path.write_bytes(data)
        with at_most(60):
            outcome += read_whole(info, exact=number % 3 > 0, preads=1 + number % 2)
    return outcome


def test_mutated_slides(tmp_path: Path) -> None:
    """Refused, or read with a reason for each patch that is lost: no other exception."""
    outcome = fuzz_ndpi(tmp_path, 200, 0)
    assert min(outcome[key] for key in ("refused", "failed patches", "whole")) > 20, outcome


@pytest.mark.long
def test_many_mutated_slides(tmp_path: Path) -> None:
    """The same, 20,000 times, within bounded time and memory."""
    fuzz_ndpi(tmp_path, 300, 1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    fuzz_ndpi(tmp_path, 20_000, 2)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 300 << 10
    assert after.ru_utime - before.ru_utime < 1200
