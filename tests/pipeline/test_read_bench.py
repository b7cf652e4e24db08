from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import read_bench
from slides.errors import SlideError
from slides.geometry import geometry
from slides.source import open_source
from tests.slides.jpeg_tiffs import Flavour, tissue, write_jpeg_tiff


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "slide.tif"
    return write_jpeg_tiff(path, [tissue(600, 500)], Flavour(tile=(64, 64)))


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    read_bench.add_arguments(parser)
    return parser.parse_args(list(words))


def test_json(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every reader, spacing and order has its figures, and the tiles that the direct source decoded are counted."""
    options = ("--patches", "20", "--patch-px", "48", "--rounds", "1", "--processes", "2", "--json")
    assert read_bench.run(arguments(str(slide), *options)) == 0
    record = json.loads(capsys.readouterr().out)
    figures = record["figures"]
    direct = [f for f in figures if f["reader"] == "our source, direct"]
    assert [(f["spacing"], f["order"]) for f in direct] == [
        (spacing, order) for spacing in ("native", "a factor of 2") for order in ("tile", "random")
    ]
    assert all(f["decodes_per_tile"] >= 0.9 and f["cpu_s"] > 0 and f["patches"] == 20 for f in direct)
    plain = [f for f in figures if f["reader"] == "OpenSlide read_region"]
    assert all(f["ratio"] == 1 for f in plain) and len(plain) == 4
    assert set(record["patches_per_s_by_processes"]) == {"1", "2"}
    assert record["ratios"]["OpenSlide read_region, native, tile order"] == pytest.approx(direct[0]["ratio"])


def test_table(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people, on few lines."""
    options = ("--patches", "8", "--patch-px", "48", "--rounds", "1", "--processes", "1")
    assert read_bench.run(arguments(str(slide), *options)) == 0
    text = capsys.readouterr().out
    assert "our source, direct" in text and "spacing: a factor of 2; random order" in text
    assert max(map(len, text.splitlines()[1:])) <= 120


def test_orders_are_of_the_same_patches_or_as_many(slide: Path) -> None:
    """Random order is as many patches, and always the same ones."""
    info = open_source(slide, None).info
    grid = geometry(info, 48, 0.5)
    tile, random, again = (read_bench.places(grid, info, 30, order) for order in ("tile", "random", "random"))
    assert len(tile) == len(random) == 30 and np.array_equal(random, again)
    assert not np.array_equal(tile, random)


def test_figures_that_make_no_sense(slide: Path) -> None:
    """One line that names the option."""
    with pytest.raises(SlideError, match="must be 1 or more"):
        read_bench.run(arguments(str(slide), "--patches", "0"))
    with pytest.raises(SlideError, match="too many to read at once"):
        read_bench.run(arguments(str(slide), "--patch-px", "100000"))
    with pytest.raises(SlideError, match="processes must be between 0"):
        read_bench.run(arguments(str(slide), "--processes", "100000"))


def test_slow_reads_are_hidden(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With latency, each setting has its figures; several reads under way cost less time than one after the other."""
    options = ("--patches", "80", "--patch-px", "48", "--rounds", "1", "--processes", "1", "--latency-ms", "5")
    assert read_bench.run(arguments(str(slide), *options, "--json")) == 0
    slow = json.loads(capsys.readouterr().out)["slow_reads"]
    cost = {(f["preads"], f["latency_ms"]): f["cost"] for f in slow}
    assert set(cost) == {(preads, ms) for preads in (1, 4, 8, 16) for ms in (0.0, 5.0)}
    assert cost[16, 5.0] < cost[1, 5.0]
    with pytest.raises(SlideError, match="latency"):
        read_bench.run(arguments(str(slide), "--latency-ms", "-1"))
