"""An undisturbed run: what comes out, and what it looks like while it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import tifffile
from PIL import Image

from benchmarks import sequential
from engines.model import load_model
from tests.end_to_end import runs
from tests.end_to_end.conftest import ODD_NAMES, Clean
from tests.end_to_end.runs import FEWEST, assert_same
from tests.engines.tiny import tiny_model

SLIDES = ("native", "zz-frozen", *(f"ward 3/{name}" for name in ODD_NAMES))


def plainly(slide: Path, model: Path, mpp: float | None = None) -> pd.DataFrame:
    """The sequential script's answer, as a table in slidestream's columns."""
    loaded = load_model(model)
    grid, xy, answers, _ = sequential.run(slide, loaded, mpp)
    frame = pd.DataFrame(xy, columns=["minx", "miny"])
    frame["width"], frame["height"] = grid.patch_width, grid.patch_height
    for i, name in enumerate(loaded.classes):
        frame[f"prob_{name}"] = answers[:, i].astype(np.float64)
    return frame.sort_values(["miny", "minx"]).reset_index(drop=True)


def test_exit_code_is_0_when_every_slide_is_complete(clean: Clean):
    """Nothing failed, so the exit code says so and run.json counts every slide."""
    assert clean.finished.code == 0, clean.finished.console
    slides = clean.finished.record["slides"]
    assert (slides["total"], slides["complete"], slides["unfinished"]) == (5, 5, 0)


@pytest.mark.parametrize("slide", SLIDES)
def test_planned_is_inferred_plus_failed(clean: Clean, slide: str):
    """Every planned patch is accounted for, and in the CSV once."""
    patches = clean.finished.summary(slide)["patches"]
    assert patches["planned"] == patches["inferred"] + patches["failed"] > 50
    assert len(clean.finished.table(slide)) == patches["inferred"]


@pytest.mark.parametrize("slide", SLIDES)
def test_all_result_files_agree(clean: Clean, slide: str):
    """CSV, GeoJSON, Parquet, mask, both heatmaps: each is read by another library and tells the same story."""
    out, summary, table = clean.finished.out, clean.finished.summary(slide), clean.finished.table(slide)
    outputs = {name: out / path for name, path in summary["outputs"].items()}
    assert set(outputs) == {"csv", "geojson", "parquet", "mask", "heatmap_png", "heatmap_tiff"}
    features = json.loads(outputs["geojson"].read_text())["features"]
    assert len(features) == len(table)
    parquet = pyarrow.parquet.read_table(outputs["parquet"]).to_pandas()
    both = parquet.sort_values(["miny", "minx"]).reset_index(drop=True)
    assert np.allclose(both["prob_tumour"], table["prob_tumour"], atol=1e-6)
    with tifffile.TiffFile(outputs["heatmap_tiff"]) as tiff:
        heatmap = tiff.pages[0].asarray()
    assert np.isfinite(heatmap).any()
    for name in ("mask", "heatmap_png"):
        with Image.open(outputs[name]) as image:
            image.load()
            assert min(image.size) > 100


@pytest.mark.parametrize(("slide", "name", "resampling"), [("native", "native", "none"), ("fine", "zz-frozen", "area")])
def test_probabilities_are_those_of_the_plain_script(clean: Clean, request, model: Path, slide, name, resampling):
    """Read patch by patch with OpenSlide and inferred with the model's own file, the numbers are the same to 1e-5."""
    assert clean.finished.summary(name)["reading"]["resampling"] == resampling
    assert_same(clean.finished.table(name), plainly(request.getfixturevalue(slide), model), 1e-5)


def test_same_slide_under_two_names_has_the_same_result(clean: Clean):
    """Odd names (Unicode, a newline, spaces) change nothing, and a batch mix does not either."""
    first, second = (clean.finished.table(f"ward 3/{name}") for name in ODD_NAMES)
    assert_same(second, first)


def test_a_slide_without_tissue_is_complete_with_zero_patches(clean: Clean):
    """It is no error to have nothing to say."""
    summary = clean.finished.summary("blank")
    assert summary["state"] == "complete"
    assert summary["patches"] == {"planned": 0, "inferred": 0, "failed": 0}
    assert clean.finished.table("blank").empty


def test_urgent_slides_come_first(clean: Clean):
    """The urgent slide, last by name, is done before any routine one that has tissue."""
    ended = [entry["slide"] for entry in clean.finished.log if entry["event"] == "slide complete"]
    assert ended.index("zz-frozen") < ended.index("native")
    assert len(ended) == 5


def test_memory_stays_below_the_bound_that_is_printed(clean: Clean):
    """The PSS of all processes together, sampled while they ran."""
    record = clean.finished.record
    printed = next(entry for entry in clean.finished.log if entry["event"] == "starting")["memory_at_most_mib"]
    assert 0 < clean.memory_bytes < record["memory_bound_bytes"]
    assert printed == record["memory_bound_bytes"] >> 20


def test_the_run_directory_is_private(clean: Clean):
    """Mode 0700: nobody else may speak with the batcher."""
    assert clean.mode == 0o700


def test_nothing_is_left_behind(clean: Clean):
    """No process, socket or run directory outlives the run, and no journal of a complete slide."""
    assert clean.run.left_behind() == []  # ONNX Runtime's telemetry would leave a file here, too
    assert list(clean.finished.out.glob(".slidestream/work/*")) == []


def test_every_line_of_the_log_is_json_and_names_its_process(clean: Clean):
    """And what is about a slide names the slide."""
    log = clean.finished.log
    assert all(entry["process"] and entry["level"] and entry["timestamp"] for entry in log)
    assert {entry.get("slide") for entry in log if entry["event"].startswith("slide ")} == {"blank", *SLIDES}


def test_the_console_shows_no_traceback_and_stays_line_by_line(clean: Clean):
    """An undisturbed run shows what it does and what came out, nothing else; a newline in a name does not break a line."""
    assert "Traceback" not in clean.finished.console
    assert "two\nlines" not in clean.finished.console
    assert "5 of 5 slides complete" in clean.finished.console


def test_run_json_says_where_the_time_went(clean: Clean):
    """Each stage with working and waiting seconds and processor time, the speed, and the bottleneck in words."""
    record = clean.finished.record
    assert set(record["stages"]) == {"reader", "tissue", "batcher", "inference", "aggregator", "writer"}
    assert all(stage["working_s"] > 0 for stage in record["stages"].values())
    assert all(stage["cpu_s"] > 0.05 for stage in record["stages"].values())  # no process of ours starts with less
    assert record["patches_per_s"] > 0 and record["bottleneck"] and record["first_result_s"] > 0


@pytest.mark.data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "fluorescence-387.ndpi"])
def test_real_slides(data_dir: Path, tmp_path: Path, model: Path, start, name: str):
    """Slides from real scanners come out as by the plain script."""
    slide = data_dir / "slides" / name
    finished = start([slide], tmp_path / "out", model).finish()
    assert finished.code == 0, finished.console
    assert finished.record["patches"]["inferred"] > 0
    assert_same(finished.table(slide.stem), plainly(slide, model), 1e-5)


@pytest.fixture(scope="module")
def done_once(tmp_path_factory, model: Path, small: Path) -> Iterator[Path]:
    """A folder with one slide, and its finished output."""
    folder = tmp_path_factory.mktemp("again")
    slide = folder / "small.tif"
    shutil.copyfile(small, slide)
    run = runs.start([slide], folder / "out", model, *FEWEST)
    finished = run.finish()
    assert finished.code == 0, finished.console
    yield folder
    run.destroy()


@pytest.fixture
def again(done_once: Path, tmp_path: Path) -> Path:
    """A copy of it that the test may change; the slide keeps its times."""
    shutil.copytree(done_once, tmp_path / "copy", dirs_exist_ok=True)
    return tmp_path / "copy"


def test_complete_slides_are_skipped(again: Path, model: Path, start):
    """Nothing is inferred again, and no file is written again."""
    csv = again / "out/model-outputs-csv/small.csv"
    before = csv.stat().st_mtime_ns
    finished = start([again / "small.tif"], again / "out", model, *FEWEST).finish()
    assert finished.code == 0
    assert (finished.record["slides"]["skipped"], finished.record["patches"]["inferred"]) == (1, 0)
    assert csv.stat().st_mtime_ns == before


def test_a_changed_configuration_is_done_again(again: Path, model: Path, start):
    """What depends on the configuration is not taken for done under another one."""
    finished = start([again / "small.tif"], again / "out", model, *FEWEST, "tissue.min_fraction=0.6").finish()
    assert finished.code == 0 and finished.record["slides"]["skipped"] == 0
    assert 0 < finished.record["patches"]["inferred"] == len(finished.table("small"))


def test_another_model_is_done_again(again: Path, start, small_csv: pd.DataFrame):
    """The new model's classes replace the old ones."""
    other = tiny_model(again / "other", classes=("stroma", "normal", "tumour"))
    finished = start([again / "small.tif"], again / "out", other, *FEWEST).finish()
    assert finished.code == 0 and finished.record["patches"]["inferred"] == len(small_csv)
    assert "prob_stroma" in finished.table("small")


def test_a_changed_slide_is_done_again(again: Path, blank: Path, model: Path, start):
    """A slide copied anew under the old name is another slide."""
    shutil.copyfile(blank, again / "small.tif")
    finished = start([again / "small.tif"], again / "out", model, *FEWEST).finish()
    assert finished.code == 0 and finished.record["slides"]["skipped"] == 0
    assert finished.table("small").empty
