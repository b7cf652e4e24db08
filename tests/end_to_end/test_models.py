"""Several models in one pass over a slide: each one's results are those of a run with it alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import helper, numpy_helper

from engines.check import check_model
from engines.errors import ModelError
from engines.model import load_model
from results.columns import NOT_A_NUMBER
from results.layout import FORMATS, output_path
from tests.end_to_end import runs
from tests.end_to_end.runs import FEWEST, Finished, assert_same
from tests.end_to_end.test_crashes import ONE_OF_EACH, SLOW
from tests.engines.tiny import tiny_model

NAMES = ("first", "second")
SLIDES = ("blank", "small")
VARIES = ("seconds", "engine")  # in summaries: times, and how long it took to load


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of different classes, for the same patches."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_model(folder / "first"), tiny_model(folder / "second", classes=("tumour", "stroma", "normal"))


@dataclass(frozen=True)
class Both:
    """The same slides (one of them is none) through both models at once, and through each alone."""

    folder: Path
    together: Finished
    alone: dict[str, Finished]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, two: tuple[Path, Path], small: Path, blank: Path) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    slides = folder / "slides"
    slides.mkdir()
    for name, path in (("small", small), ("blank", blank)):
        shutil.copyfile(path, slides / f"{name}.tif")
    (slides / "none.tif").write_bytes(b"this is no slide")
    started = [runs.start([slides], folder / "together", two, *FEWEST)]
    together = started[0].finish()
    alone = {}
    for model in two:
        started.append(runs.start([slides], folder / model.name, model, *FEWEST))
        alone[model.name] = started[-1].finish()
    yield Both(folder, together, alone)
    for run in started:
        run.destroy()


def of(finished: Finished, name: str) -> Finished:
    """The results of one model, as if its folder were the output."""
    return Finished(finished.code, finished.console, finished.out / name)


def spoilt(directory: Path, expected: pd.DataFrame) -> tuple[Path, pd.Series]:
    """A tiny model that answers NaN to about a tenth of the patches of a table; which of its rows those are.

    Sqrt is NaN below 0: (d - low)(d - high) is, where the difference d of the logits lies in between.
    """
    odds = np.log(expected["prob_tumour"] / expected["prob_normal"])
    for share in (0.4, 0.5, 0.6, 0.7, 0.3):  # the patches of the model's own check must not be among them
        low, high = np.quantile(odds, [share, share + 0.1])
        shutil.rmtree(directory, ignore_errors=True)
        path = tiny_model(directory) / "model.onnx"
        proto = onnx.load(path)
        graph = proto.graph
        graph.node[-1].output[0] = "plain"
        constants = {
            "sign": np.array([[-1.0], [1.0]], np.float32),
            "low": np.array(low, np.float32),
            "high": np.array(high, np.float32),
            "zero": np.array(0, np.float32),
        }
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        graph.node.extend(
            helper.make_node(kind, inputs, [output])
            for kind, inputs, output in (
                ("MatMul", ["plain", "sign"], "d"),
                ("Sub", ["d", "low"], "above"),
                ("Sub", ["d", "high"], "below"),
                ("Mul", ["above", "below"], "product"),
                ("Sqrt", ["product"], "root"),
                ("Mul", ["root", "zero"], "nothing"),
                ("Add", ["plain", "nothing"], "logits"),
            )
        )
        onnx.save(proto, path)
        try:
            check_model(load_model(directory))
        except ModelError:
            continue
        return directory, (odds > low) & (odds < high)
    raise AssertionError("every window catches a patch of the model's own check")


class TestTheSameAsAlone:
    """Nothing in a model's folder tells that another one ran beside it."""

    def test_the_exit_code_is_the_same(self, both: Both):
        """One of the files is no slide."""
        assert [both.together.code, *(run.code for run in both.alone.values())] == [1, 1, 1], both.together.console

    @pytest.mark.parametrize("name", NAMES)
    def test_each_model_has_the_files_of_a_run_alone(self, both: Both, name: str):
        """The same names, and nothing else."""

        def files(out: Path) -> set[str]:
            return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}

        extra = {name for name in files(both.alone[name].out) if name.startswith(".slidestream/")}
        assert files(of(both.together, name).out) == files(both.alone[name].out) - extra - {
            "run.json",
            "slidestream.log",
        }

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("slide", SLIDES)
    @pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "parquet"])
    def test_files_are_the_same_byte_for_byte(self, both: Both, name: str, slide: str, kind: str):
        """Tables, mask and heatmaps."""
        path = output_path(slide, kind)
        assert (of(both.together, name).out / path).read_bytes() == (both.alone[name].out / path).read_bytes()

    @pytest.mark.parametrize("name", NAMES)
    def test_parquet_says_the_same(self, both: Both, name: str):
        """But for the seconds that it took to load the engine, in its metadata."""
        path = output_path("small", "parquet")
        pd.testing.assert_frame_equal(
            pd.read_parquet(of(both.together, name).out / path), pd.read_parquet(both.alone[name].out / path)
        )

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("slide", [*SLIDES, "none"])
    def test_summaries_say_the_same(self, both: Both, name: str, slide: str):
        """Model, key, counts, probabilities, failures; also of what is no slide."""
        found, expected = of(both.together, name).summary(slide), both.alone[name].summary(slide)
        for key in VARIES:
            found.pop(key), expected.pop(key)
        assert found == expected

    def test_the_engine_is_the_models_own(self, both: Both):
        """Not that of all."""
        about = of(both.together, "second").summary("small")["engine"]
        assert about.keys() == both.alone["second"].summary("small")["engine"].keys()

    def test_a_later_run_alone_takes_them_for_its_own(self, both: Both, two, start, tmp_path: Path):
        """A model's folder can be the output of a run with it alone: what is complete there is skipped."""
        shutil.copytree(of(both.together, "first").out, tmp_path / "first")
        finished = start([both.folder / "slides" / "small.tif"], tmp_path / "first", two[0], *FEWEST).finish()
        assert finished.code == 0 and finished.record["slides"]["skipped"] == 1


class TestOneRun:
    """What is of the run as a whole."""

    def test_pixels_are_read_once(self, both: Both):
        """As many patches as a run with one model, each of them counted once."""
        assert both.together.record["patches"] == both.alone["first"].record["patches"]

    def test_the_output_folder_holds_nothing_beside(self, both: Both):
        """A folder a model, run.json and the log."""
        visible = {path.name for path in both.together.out.iterdir() if not path.name.startswith(".")}
        assert visible == {*NAMES, "run.json", "slidestream.log"}

    def test_run_json_names_all_models(self, both: Both):
        """In their order, with each one's engine; alone it is as it always was."""
        record = both.together.record
        assert [model["name"] for model in record["models"]] == list(NAMES) and "model" not in record
        assert set(record["engine"]["models"]) == set(NAMES)
        assert both.alone["first"].record["model"]["name"] == "first" and "models" not in both.alone["first"].record

    def test_the_console_names_their_folders(self, both: Both):
        """Where to look."""
        assert all(str(both.together.out / name) in both.together.console for name in NAMES)

    def test_what_is_complete_for_all_is_skipped(self, both: Both, two, start, tmp_path: Path):
        """And done again where the results of one are missing."""
        out, slide = tmp_path / "out", both.folder / "slides" / "small.tif"
        shutil.copytree(both.together.out, out)
        finished = start([slide], out, two, *FEWEST).finish()
        assert (finished.code, finished.record["slides"]["skipped"]) == (0, 1)
        table = out / "second" / output_path("small", "csv")
        expected = table.read_bytes()
        table.unlink()
        finished = start([slide], out, two, *FEWEST).finish()
        assert (finished.code, finished.record["slides"]["skipped"]) == (0, 0)
        assert table.read_bytes() == expected

    @pytest.mark.long
    def test_one_more_model_is_another_set_of_results(self, both: Both, two, start, tmp_path: Path):
        """Slides are done again for all of them, and the third has its folder too."""
        out, slide = tmp_path / "out", both.folder / "slides" / "small.tif"
        shutil.copytree(both.together.out, out)
        third = tiny_model(tmp_path / "third", classes=("tumour",))
        finished = start([slide], out, [*two, third], *FEWEST).finish()
        assert (finished.code, finished.record["slides"]["skipped"]) == (0, 0)
        assert "prob_tumour" in of(finished, "third").table("small")


@pytest.mark.long
def test_after_kill_of_all_each_model_goes_on(tmp_path, native: Path, two, start):
    """kill -9 of the supervisor in mid-slide: what the journal has is not inferred again, and the tables are the same."""
    expected = {}
    for model in two:
        finished = start([native], tmp_path / model.name, model, *FEWEST).finish()
        expected[model.name] = (finished.out / output_path("native", "csv")).read_bytes()
    out = tmp_path / "out"
    run = start([native], out, two, *ONE_OF_EACH, sabotage=SLOW)
    run.at_work()
    run.process.kill()
    run.process.wait()
    finished = start([native], out, two, *FEWEST).finish()
    assert finished.code == 0, finished.console
    assert 0 < finished.record["patches"]["inferred_before"] < finished.record["patches"]["inferred"]
    for name in NAMES:
        assert (out / name / output_path("native", "csv")).read_bytes() == expected[name]
    assert list(out.glob(".slidestream/work/*")) == []


def test_after_a_death_between_two_models_files_both_are_written(tmp_path, small: Path, two, small_csv, start):
    """The writer hangs before the second model's summary and is killed: its successor writes both."""
    run = start([small], tmp_path / "out", two, *ONE_OF_EACH, sabotage={"writer": {"block": 1, "after": 1}})
    pid = run.blocked("writer")
    assert (tmp_path / "out" / "first" / "slides" / "small.json").exists()
    assert not (tmp_path / "out" / "second" / "slides" / "small.json").exists()
    next(process for process in run.stages("writer") if process.pid == pid).kill()
    finished = run.finish()
    assert finished.code == 0, finished.console
    assert_same(of(finished, "first").table("small"), small_csv)
    assert len(of(finished, "second").table("small")) == len(small_csv)


def test_nan_from_one_model_is_a_failure_of_that_model_alone(tmp_path, small: Path, model: Path, small_csv, start):
    """The other model's slide is complete; a run again tries those patches again, and the state stays partial."""
    bad, silent = spoilt(tmp_path / "spoilt", small_csv)
    assert 5 < silent.sum() < len(small_csv) / 2
    out = tmp_path / "out"
    alone = start([small], tmp_path / "alone", bad, *FEWEST).finish()
    for _ in range(2):
        finished = start([small], out, [model, bad], *FEWEST).finish()
        assert finished.code == 1, finished.console
        assert_same(of(finished, model.name).table("small"), small_csv)
        good = of(finished, model.name).summary("small")
        assert good["state"] == "complete" and good["patches"]["failed"] == 0
        summary = of(finished, "spoilt").summary("small")
        assert (summary["state"], summary["patches"]["failed"]) == ("partial", silent.sum())
        assert {failed["reason"] for failed in summary["failed_patches"]} == {NOT_A_NUMBER}
        assert summary["failed_patches"] == alone.summary("small")["failed_patches"]
        expected = small_csv[~silent].reset_index(drop=True)
        assert_same(of(finished, "spoilt").table("small"), expected)
        patches = finished.record["patches"]
        assert (patches["failed"], patches["inferred"]) == (silent.sum(), len(small_csv) - silent.sum())
    assert patches["inferred_before"] == len(small_csv) - silent.sum()


class TestRefused:
    """What cannot be one pass is one line, before anything starts."""

    def complaint(self, start, tmp_path: Path, small: Path, models: list[Path], *sets: str) -> str:
        finished = start([small], tmp_path / "out", models, *sets).finish()
        assert finished.code == 2, finished.console
        assert not (tmp_path / "out").exists()
        return finished.complaint()

    @pytest.mark.parametrize(
        ("options", "said"), [({"patch_px": 96}, "96 px at 0.5"), ({"spacing": 0.25}, "64 px at 0.25")]
    )
    def test_models_that_see_other_patches(self, tmp_path, small, two, start, options, said):
        """Both are named, with what they see, and what to do instead."""
        other = tiny_model(tmp_path / "other", **options)
        text = self.complaint(start, tmp_path, small, [two[0], other])
        assert "first sees patches of 64 px at 0.5 µm/px" in text and f"other sees patches of {said}" in text
        assert "make two runs" in text

    def test_two_models_of_one_name(self, tmp_path, small, two, start):
        """Also where only case tells them apart; both directories are named."""
        other = tiny_model(tmp_path / "FIRST", classes=("a", "b"))
        text = self.complaint(start, tmp_path, small, [two[0], other])
        assert str(two[0]) in text and str(other) in text and "one name" in text

    def test_a_model_that_is_named_like_a_folder_of_results(self, tmp_path, small, two, start):
        """OUT/heatmaps is taken."""
        other = tiny_model(tmp_path / "heatmaps")
        assert "heatmaps cannot be a name" in self.complaint(start, tmp_path, small, [two[0], other])

    def test_a_class_for_heatmaps_that_no_model_has(self, tmp_path, small, two, start):
        """The classes that there are, by model."""
        text = self.complaint(start, tmp_path, small, list(two), "results.heatmap_class=nothing")
        assert "first has normal, tumour" in text and "second has tumour, stroma, normal" in text


@pytest.mark.long
def test_a_class_for_heatmaps_that_one_model_has(tmp_path, small: Path, two, start):
    """It shows that class, and the other model the one that it shows by itself."""
    sets = ("results.heatmap_class=stroma", "results.formats=heatmap_png")
    finished = start([small], tmp_path / "out", two, *sets).finish()
    assert finished.code == 0, finished.console
    plain = start([small], tmp_path / "plain", two[0], "results.formats=heatmap_png").finish()
    picture = output_path("small", "heatmap_png")
    assert (of(finished, "first").out / picture).read_bytes() == (plain.out / picture).read_bytes()


@pytest.mark.long
def test_models_can_be_named_in_the_configuration(tmp_path, small: Path, two, start):
    """As a list, where the command line names none; `slidestream check` tells of both."""
    names = json.dumps([str(model) for model in two])
    finished = start([small], tmp_path / "out", [], f"model={names}", "results.formats=csv").finish()
    assert finished.code == 0, finished.console
    assert all(len(of(finished, name).table("small")) for name in NAMES)
    assert finished.record["configuration"]["model"] == [str(model) for model in two]
