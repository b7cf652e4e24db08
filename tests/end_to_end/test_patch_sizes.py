"""A model at another patch size than its own: what it answers, what is said of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pyarrow.parquet as pq
import pytest

from results.layout import output_path
from tests.end_to_end import runs
from tests.end_to_end.runs import FEWEST, Finished
from tests.engines import tiny
from tests.engines.tiny import tiny_model

OWN, OTHER = 64, 96
FAST = ("results.formats=csv", *FEWEST)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made for 64 px at 0.5 µm/px; the network takes any size."""
    return tiny_model(tmp_path_factory.mktemp("free") / "free", free=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, free: Path, small: Path) -> Iterator[dict[int, Finished]]:
    """The same slide at both sizes."""
    folder = tmp_path_factory.mktemp("sizes")
    started = {}
    for px in (OWN, OTHER):
        sets = (
            "results.formats=[csv, geojson, parquet, heatmap_png]",
            f"inference.patch_px={'auto' if px == OWN else px}",
        )
        started[px] = runs.start([small], folder / str(px), free, *FAST, *sets)
        started[px].finish()
    yield {px: Finished(run.process.returncode, run.console(), run.out) for px, run in started.items()}
    for run in started.values():
        run.destroy()


def directly(slide: Path, table: pd.DataFrame) -> np.ndarray:
    """The probabilities of a table's patches, by OpenSlide and numpy alone."""
    with openslide.OpenSlide(slide) as source:
        patches = [
            np.asarray(source.read_region((row.minx, row.miny), 0, (row.width, row.height)).convert("RGB"))
            for row in table.itertuples()
        ]
    return tiny.expected(np.stack(patches))


@pytest.mark.parametrize("px", [OWN, OTHER])
def test_patches_and_answers_are_those_of_the_size(made: dict[int, Finished], small: Path, px: int) -> None:
    """The grid has that step, and each probability is the one that is computed directly from those pixels."""
    assert made[px].code == 0, made[px].console
    table = made[px].table("small")
    assert len(table) > 20 and set(table["width"]) == set(table["height"]) == {px}
    assert (table["minx"] % px == 0).all() and (table["miny"] % px == 0).all()
    found = table[["prob_normal", "prob_tumour"]].to_numpy()
    np.testing.assert_allclose(found, directly(small, table), atol=1e-5)


def test_results_at_another_size_are_marked(made: dict[int, Finished]) -> None:
    """In summary, run.json and log, once; those at the model's own size are not."""
    own, other = made[OWN].summary("small")["model"], made[OTHER].summary("small")["model"]
    assert other == {**own, "patch_px": OTHER, "own_patch_px": OWN} and "own_patch_px" not in own
    assert made[OTHER].record["model"] == other
    assert [made[px].record["configuration"]["inference"]["patch_px"] for px in (OWN, OTHER)] == [OWN, OTHER]
    said = {px: [line for line in made[px].log if "was made for patches of 64 px" in line["event"]] for px in made}
    assert said[OWN] == [] and len(said[OTHER]) == 1 and said[OTHER][0]["level"] == "warning"


def test_files_that_leave_the_folder_are_marked_too(made: dict[int, Finished]) -> None:
    """GeoJSON and Parquet name the size that the model was made for."""
    for px, own in ((OWN, None), (OTHER, OWN)):
        head = json.loads((made[px].out / output_path("small", "geojson")).read_text())["slidestream"]
        about = json.loads(pq.read_schema(made[px].out / output_path("small", "parquet")).metadata[b"slidestream"])
        assert head["model"].get("own_patch_px") == about["model"].get("own_patch_px") == own
        assert about["patch_px"] == px


def test_a_model_that_was_made_for_that_size_gives_the_same_bytes(made, small: Path, tmp_path: Path, start) -> None:
    """Where only the size in config.json differs."""
    finished = start(
        [small], tmp_path / "out", tiny_model(tmp_path / "free", patch_px=OTHER, free=True), *FAST
    ).finish()
    table = output_path("small", "csv")
    assert (finished.out / table).read_bytes() == (made[OTHER].out / table).read_bytes()


def test_the_size_decides_whether_a_slide_is_done(free: Path, small: Path, tmp_path: Path, start) -> None:
    """At another one it is done again; the model's own, named or not, is one."""
    skipped = []
    for wanted in ("auto", str(OWN), str(OTHER), str(OTHER), "auto"):
        finished = start([small], tmp_path / "out", free, *FAST, f"inference.patch_px={wanted}").finish()
        assert finished.code == 0, finished.console
        skipped.append(finished.record["slides"]["skipped"])
    assert skipped == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "model.onnx: input input is (batch, 3, 64, 64): the network takes patches of one size, not 96 px too"),
        ({"kind": "flat", "free": True}, "model.onnx: does not take patches of 96 px: "),
        ({"patch_px": 64, "resize": 40, "free": True, "px": 100}, "100 px to no whole number; take a multiple of 8 px"),
    ],
    ids=["declared", "inside", "resize"],
)
def test_a_size_that_cannot_be_is_refused_at_the_start(options, said: str, small: Path, tmp_path: Path, start) -> None:
    """One line, which names what to do; nothing is written."""
    px = options.get("px", OTHER)
    model = tiny_model(tmp_path / "model", **{key: value for key, value in options.items() if key != "px"})
    finished = start([small], tmp_path / "out", model, *FAST, "log.file=false", f"inference.patch_px={px}").finish()
    assert finished.code == 2, finished.console
    (line,) = [line for line in finished.console.splitlines() if line.startswith("slidestream: ")]
    assert said in line and "inference.patch_px=auto" in line
    assert "Traceback" not in finished.console and not list((tmp_path / "out").rglob("*.json"))


def test_models_of_different_sizes_run_together_at_one(made, free: Path, small: Path, tmp_path: Path, start) -> None:
    """Each one's table is that of a run alone."""
    native = tiny_model(tmp_path / "native", patch_px=OTHER, classes=("a", "b", "c"), free=True)
    finished = start([small], tmp_path / "out", [free, native], *FAST, f"inference.patch_px={OTHER}").finish()
    assert finished.code == 0, finished.console
    table = output_path("small", "csv")
    assert (finished.out / "free" / table).read_bytes() == (made[OTHER].out / table).read_bytes()
    records = {model["name"]: model for model in finished.record["models"]}
    assert records["free"]["own_patch_px"] == OWN and "own_patch_px" not in records["native"]
