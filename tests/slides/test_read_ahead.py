"""Reads under way while tiles are decoded: the same pixels, fewer waits, bounded memory, and errors told as before."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from slides import read_ahead
from slides.geometry import geometry
from slides.read_ahead import ReadAhead, Span, groups
from slides.source import open_source
from tests.slides.jpeg_tiffs import Flavour, tissue, write_jpeg_tiff

FILE = bytes(range(256)) * 64


def read(offset: int, count: int) -> bytes:
    return FILE[offset : offset + count]


def span(key: int, offset: int, count: int = 10) -> Span:
    return Span(key, offset, count)


def test_neighbours_are_read_together() -> None:
    """In the order of the file, over small gaps, not over large ones, and in pieces."""
    near, far = span(1, 15), span(2, 10_000)
    assert groups([far, near, span(3, 0)]) == [[span(3, 0), near], [far]]
    large = [span(n, n * 700_000, 700_000) for n in range(3)]
    assert groups(large) == [[one] for one in large]
    assert groups([]) == []


def test_what_was_wanted_is_given_once() -> None:
    """Every tile has its own bytes; what was never wanted, or was taken, is not there."""
    ahead = ReadAhead(read, 2)
    ahead.want([span(1, 3), span(2, 20), span(3, 9000), span(4, 50, 0)])
    assert 1 in ahead and 4 not in ahead and ahead.bytes == 30
    assert [ahead.take(key) for key in (3, 1, 2)] == [read(9000, 10), read(3, 10), read(20, 10)]
    assert ahead.take(1) is None and ahead.take(9) is None and ahead.bytes == 0


def test_errors_and_short_reads_are_left_to_who_asks() -> None:
    """A tile that did not come, or not in full, is not given."""

    def broken(offset: int, count: int) -> bytes:
        raise OSError(5, "Input/output error")

    ahead = ReadAhead(broken, 2)
    ahead.want([span(1, 0)])
    assert ahead.take(1) is None
    ahead = ReadAhead(read, 2)
    ahead.want([span(1, len(FILE) - 5), span(2, len(FILE) - 20)])
    assert ahead.take(1) is None and ahead.take(2) == read(len(FILE) - 20, 10)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is not read ahead; what nobody came for makes room after a while."""
    monkeypatch.setattr(read_ahead, "LIMIT_BYTES", 25)
    ahead = ReadAhead(read, 2)
    ahead.want(span(n, n * 10) for n in range(9))
    assert ahead.bytes == 20 and 1 in ahead and 2 not in ahead
    monkeypatch.setattr(read_ahead, "_STALE_S", -1.0)
    ahead.want([span(7, 70), span(8, 80)])
    assert 7 in ahead and 8 in ahead and 1 not in ahead and ahead.bytes == 20


def test_several_reads_are_under_way() -> None:
    """As many as there are threads, before anybody asks for the first."""
    together = threading.Barrier(3, timeout=5)

    def wait(offset: int, count: int) -> bytes:
        together.wait()
        return read(offset, count)

    ahead = ReadAhead(wait, 3)
    ahead.want(span(n, n * 5000) for n in range(3))
    assert [ahead.take(n) for n in range(3)] == [read(n * 5000, 10) for n in range(3)]


def test_closing_waits_for_reads_that_have_begun() -> None:
    """None is at the file afterwards: its number may soon be another file's."""
    at_it = []

    def slow(offset: int, count: int) -> bytes:
        at_it.append(offset)
        time.sleep(0.05)
        at_it.remove(offset)
        return b""

    ahead = ReadAhead(slow, 2)
    ahead.want(span(n, n * 5000) for n in range(3))
    ahead.close()
    assert not at_it and ahead.bytes == 0 and 0 not in ahead


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jpeg_tiff(tmp_path_factory.mktemp("ahead") / "a.tif", [tissue(600, 500)], Flavour(tile=(64, 64)))


def test_same_pixels_however_many_reads(slide: Path) -> None:
    """With and without reads under way, advised or not: the same patches, and no tile decoded twice for it."""
    got = []
    for preads, advised in ((1, False), (1, True), (4, False), (4, True)):
        source = open_source(slide, 0.5, "direct", preads=preads)
        grid = geometry(source.info, 48, 0.5)
        xy = grid.xy(*np.meshgrid(np.arange(grid.columns), np.arange(grid.rows))[:2]).reshape(-1, 2)
        out = np.zeros((len(xy), 48, 48, 3), np.uint8)
        if advised:
            source.advise(grid, xy)
        assert source.read(grid, xy, out) == {}
        got.append((out, source.decodes, source.overview(100)))
        source.close()
    for out, decodes, overview in got[1:]:
        assert np.array_equal(out, got[0][0]) and np.array_equal(overview, got[0][2]) and decodes == got[0][1]


def test_a_file_that_is_cut_off_fails_the_same_patches(slide: Path, tmp_path: Path) -> None:
    """Whether its tiles were read ahead or not: the same patches, for the same reasons."""
    cut = tmp_path / "cut.tif"
    cut.write_bytes(slide.read_bytes())
    reasons = []
    for preads in (1, 4):
        source = open_source(cut, 0.5, "direct", preads=preads)
        grid = geometry(source.info, 64, 0.5)
        xy = np.array([[x, y] for y in range(0, 448, 64) for x in range(0, 576, 64)], np.int64)
        with open(cut, "r+b") as file:
            file.truncate(slide.stat().st_size // 2)
        source.advise(grid, xy)
        reasons.append(source.read(grid, xy, np.zeros((len(xy), 64, 64, 3), np.uint8)))
        source.close()
        cut.write_bytes(slide.read_bytes())
    assert reasons[0] == reasons[1] and 0 < len(reasons[0]) < len(xy)


def test_latency_is_hidden(slide: Path) -> None:
    """With several reads under way, what was advised comes in a fraction of the time of one read after the other."""
    seconds = []
    for preads in (1, 16):
        source = open_source(slide, 0.5, "direct", preads=preads, latency_s=0.02)
        grid = geometry(source.info, 64, 0.5)
        xy = np.array([[x, y] for y in range(0, 448, 64) for x in range(0, 576, 64)], np.int64)
        out = np.zeros((1, 64, 64, 3), np.uint8)
        began = time.perf_counter()
        source.advise(grid, xy)
        for place in xy:
            source.read(grid, place[None], out)
        seconds.append(time.perf_counter() - began)
        source.close()
    assert seconds[0] > 0.02 * 60 and seconds[1] < seconds[0] / 4
