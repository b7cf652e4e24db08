"""The benchmarks for GPUs, as far as a machine without one can run them: the same stages, with the engine for CPUs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_stage, whole
from benchmarks.inputs import DEMO_MODEL, tiny
from benchmarks.mosaic import BLOCK, mosaic
from benchmarks.recovery import journal_bytes

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


def ran(module: str, *words: str) -> dict[str, Any]:
    """A benchmark's JSON. Fails with what it said where it does not end well."""
    out = Path(words[words.index("--out") + 1])
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_the_real_stage_beside_the_bare_loop(tmp_path: Path) -> None:
    """Two real inference processes, fed from full slots, give a rate, latencies and full batches; so does the bare loop."""
    model = tiny(tmp_path / "tiny")
    words = ["--networks", str(model), "--engine", "onnx", "--batches", "8", "--contexts", "2", "--processes", "2"]
    (row,) = ran("gpu_stage", *words, "--seconds", "0.3", "--out", str(tmp_path / "out.json"))["rows"]
    assert row["ratio"] == pytest.approx(row["stage/s"] / row["bare/s"])
    assert 0 < row["p50 ms"] <= row["p99 ms"]
    assert row["stage"]["fill"] == 1.0 and row["stage"]["engine"]["engine"] == "onnx"
    assert len(row["bare"]) == 2


def test_figures_of_a_stage_leave_out_its_start_and_its_end() -> None:
    """Batches of two processes are put together; the rate is that of the middle, whatever came first and last."""
    batches = [[float(i), i + 0.5, 4] for i in range(100)]
    batches[0][1] = 0.01  # an early one, and a last one after a long pause
    batches[-1] = [99.0, 500.0, 1]
    found = gpu_stage._figures([{"batches": batches[::2]}, {"batches": batches[1::2]}])
    assert found["per_s"] == pytest.approx(4.0)
    assert found["p50_ms"] == found["p99_ms"] == pytest.approx(500.0)
    assert found["batches"] == 100


@pytest.mark.parametrize(("digest", "words"), [("aa", "the same"), ("bb", "DIFFER")])
def test_results_are_compared_over_copies_and_cores(digest: str, words: str) -> None:
    """Slides of one size must have one result, on any number of cores."""
    row = {
        "network": "n",
        "slides": 2,
        "patches": 20,
        "ratio": 1.0,
        "failed": 0,
        "patches/s": 9.0,
        "bottleneck": "b",
        "limit": "e",
        "stages": {"tissue": {"cpu_s": 0.001}, "reader": {"cpu_s": 0.01}},
    }
    rows = [{**row, "cores": 8, "results": ["aa"]}, {**row, "cores": 4, "results": [digest]}]
    first, *lines = whole.verdict(rows)
    assert words in first
    assert len(lines) == 2 and all(line.endswith("processor ms a patch: reader 0.500, tissue 0.050") for line in lines)


def test_a_network_without_figures_is_said_to_have_none() -> None:
    """A run that failed is not a run whose results are the same."""
    assert whole.verdict([{"network": "n", "cores": 8, "problem": "no GPU"}]) == ["n: no figures"]


def test_journals_of_unfinished_slides_are_measured(tmp_path: Path) -> None:
    """All of them together, and nothing else in their folders."""
    for name, size in (("a", 5), ("b", 7)):
        folder = tmp_path / ".slidestream" / "work" / name
        folder.mkdir(parents=True)
        (folder / "journal").write_bytes(bytes(size))
        (folder / "overview.png").write_bytes(bytes(1000))
    assert journal_bytes(tmp_path) == 12


@pytest.mark.long
def test_a_mosaic_is_a_slide_with_tissue_inside_a_border(tmp_path: Path) -> None:
    """OpenSlide reads it; its blocks are alike; the border is background."""
    import numpy as np
    import openslide

    with openslide.OpenSlide(mosaic(tmp_path / "slide.tif", 2, 1)) as slide:
        assert slide.level_dimensions == (
            (4 * BLOCK, 3 * BLOCK),
            (BLOCK, 3 * BLOCK // 4),
            (BLOCK // 4, 3 * BLOCK // 16),
        )
        at = [np.asarray(slide.read_region((x, BLOCK), 0, (512, 512)).convert("RGB")) for x in (0, BLOCK, 2 * BLOCK)]
    assert at[0].min() > 200
    assert (at[1] == at[2]).all() and at[1].std() > 10


@pytest.mark.long
def test_killed_in_mid_run_it_infers_again(tmp_path: Path) -> None:
    """kill -9 of the inference process: a time, one restart, the same results."""
    if not (DEMO_MODEL / "model.onnx").exists():
        pytest.skip("the demonstration model is not there")
    words = ["--network", "demo", "--engine", "onnx", "--batch", "16", "--blocks", "2", "--kills", "1"]
    (row,) = ran("recovery", *words, "--folder", str(tmp_path), "--out", str(tmp_path / "out.json"))["killed"]
    assert row["max_difference"] == 0 and row["restarts"] == 1
    assert 0 < row["started_again_s"] <= row["infers_again_s"] < 60


@pytest.mark.long
def test_from_disk_to_disk(tmp_path: Path) -> None:
    """Small and large slides on one core: figures, equal results, and every patch."""
    if not (DEMO_MODEL / "model.onnx").exists():
        pytest.skip("the demonstration model is not there")
    words = [
        "--networks",
        "demo",
        "--engine",
        "onnx",
        "--batch",
        "16",
        "--cores",
        "1",
        "--large",
        "2x1",
        "--large-count",
        "1",
    ]
    more = [
        "--small",
        "1x1",
        "--count",
        "2",
        "--seconds",
        "0.3",
        "--folder",
        str(tmp_path),
        "--out",
        str(tmp_path / "o.json"),
    ]
    small, large = ran("whole", *words, *more)["rows"]
    assert small["patches"] > 0 and small["patches"] % 2 == 0
    assert large["patches"] > small["patches"] / 2
    assert small["ratio"] > 0 and large["failed"] == small["failed"] == 0
    assert len(small["results"]) == 1


def test_the_script_for_gpus_is_sound() -> None:
    """bash takes it, and every module that it names is there."""
    script = ROOT / "benchmarks" / "gpu.sh"
    assert subprocess.run([shutil.which("bash") or "bash", "-n", str(script)], check=False).returncode == 0
    for word in script.read_text().split():
        if word.startswith("benchmarks.") and word.count(".") == 1:
            assert (ROOT / "benchmarks" / f"{word.partition('.')[2]}.py").exists(), word
