"""The benchmarks themselves: that they still run against the pipeline as it is, and print what they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.batcher import Crowd, mind
from benchmarks.decodes import Sharing, count, planned
from benchmarks.inputs import tiny
from benchmarks.memory import split
from results.layout import FORMATS
from slides.synthetic import SyntheticSlide, make_slide

ROOT = Path(__file__).resolve().parents[2]


def test_table_aligns_numbers() -> None:
    """The first column stands to the left, numbers to the right, and large numbers have separators."""
    assert table.text(["what", "n"], [["a", 5], ["long name", 12_345.0], ["none", None]]).splitlines() == [
        "what            n",
        "---------  ------",
        "a               5",
        "long name  12,345",
        "none            -",
    ]


def test_decoding_alone_is_counted_for_each_number_of_processes(tmp_path: Path) -> None:
    """One row for each number that there are cores for; a patch of 224 px is 0.77 tiles of 256."""
    slide = tmp_path / "slide.tif"
    make_slide(slide, SyntheticSlide(1024, 1024, tissue=1.0, tile=256))
    command = [
        sys.executable,
        "-m",
        "benchmarks.decoding",
        "--slide",
        str(slide),
        "--processes",
        "1",
        "4096",
        "--seconds",
        "0.1",
    ]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    record = json.loads(done.stdout)
    (row,) = record["rows"]
    assert row["processes"] == 1 and row["tiles/s"] > 0
    assert row["patches/s"] / row["tiles/s"] == pytest.approx(256**2 / 224**2, rel=0.01)
    assert record["figures"]["tile"] == [256, 256]


def test_mind_deals_out_every_batch() -> None:
    """The decisions alone come to an end, with all batches dealt out, whatever the crowd."""
    for crowd in (Crowd(1, 1, 4, 1, 17), Crowd(3, 2, 8, 5, 64)):
        assert mind(crowd, coded=True)["batches"] == crowd.batches


def test_batcher_runs_among_null_workers() -> None:
    """The real batcher process serves null workers to the end; the figures come as JSON with the machine's facts."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.batcher",
        "--batches",
        "200",
        "--slides",
        "4",
        "--json",
        "--timeout",
        "60",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["figures"]["batches_per_s"] > 0
    assert {"processor", "cores", "date", "load_before"} <= record["machine"].keys()


@pytest.mark.parametrize("tile", [240, 256])
@pytest.mark.parametrize("batch", [32, 64])
def test_readers_that_share_a_slide_decode_each_tile_about_once(tile: int, batch: int) -> None:
    """Whatever readers and batches: at most 1.15 decodes per tile; one reader alone, hardly more than one."""
    corners = planned(4000, "wide")
    assert count(Sharing(1, batch, tile), corners) <= 1.02
    for readers in (2, 4, 6):
        assert count(Sharing(readers, batch, tile), corners) <= 1.15


@pytest.mark.long
def test_pipeline_beside_the_script(tmp_path: Path) -> None:
    """Both see the same patches; ratios, the engine alone, and the processor time of every kind of process are told."""
    command = [sys.executable, "-m", "benchmarks.pipeline", "--size", "2500x2000", "--rounds", "1", "--json"]
    command += [
        "--model",
        str(tiny(tmp_path / "tiny")),
        "--set",
        "inference.workers=1",
        "--set",
        "results.formats=[csv]",
    ]
    environment = {**os.environ, "SLIDESTREAM_BENCH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [row["round"] for row in record["rows"]] == ["1 script", "1 pipeline"]
    figures = record["figures"]
    assert figures["ratio_whole_command"] > 0 and figures["engine_alone_per_s"] > 0
    assert 0 < figures["engine_and_readers_share"] < 1
    kinds = {part.split()[0] for part in figures["processor_s"].split(", ")}
    assert kinds == {"supervisor", "reader", "tissue", "batcher", "inference", "aggregator", "writer"}


def test_a_failing_command_is_told_with_its_last_words() -> None:
    """A command that fails ends the benchmark with what it said."""
    with pytest.raises(RuntimeError, match="no such thing"):
        table.run(table.python("-c", "import sys; sys.exit('no such thing')"), 30)


def test_bound_is_split_by_kind() -> None:
    """The bound's parts become shared memory, and bytes of one process of each kind."""
    bound = [
        ("patches in shared memory, 9 slots", 70),
        ("overviews in shared memory, 2 places", 30),
        ("supervisor", 5),
        ("slide readers, 2", 20),
        ("inference, 3", 33),
    ]
    assert split(bound) == (100, {"supervisor": 5, "reader": 10, "inference": 11})


def test_a_fast_gpu_is_kept_busy_over_small_slides() -> None:
    """With readers for twice its speed, a GPU that takes 3,000 patches in 0.16 s waits for no slide, and slots are full."""
    command = [sys.executable, "-m", "benchmarks.feeding", "--slides", "12", "--tissue-workers", "2", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert figures["gpu_busy"] >= 0.97 and figures["slots_filled"] >= 0.97


def test_every_file_of_a_slide_is_timed() -> None:
    """The benchmark of the writers has a row for the journal and for each format."""
    command = [sys.executable, "-m", "benchmarks.writers", "--patches", "500", "--overview-px", "256", "--rounds", "1"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert {row[""] for row in json.loads(done.stdout)["rows"]} >= {"journal", *FORMATS}


@pytest.mark.long
def test_an_urgent_slide_is_timed_alone_and_under_load(tmp_path: Path) -> None:
    """With the real processes and their supervisor; routine slides that are cancelled in the end leave no result."""
    command = [sys.executable, "-m", "benchmarks.urgent", "--rounds", "1", "--load-s", "0.5", "--json"]
    sizes = ["--urgent", "3000x2000", "--routine", "6000x4500"]
    environment = {**os.environ, "SLIDESTREAM_BENCH": str(tmp_path)}
    done = subprocess.run(
        [*command, *sizes], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["figures"]["ratio"] > 0.1
    assert [row[""] for row in record["rows"]] == ["alone", "loaded", "alone, median", "loaded, median"]
