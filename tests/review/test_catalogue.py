"""The catalogue: what a results folder says of its slides, cheaply, and which files it lets be opened."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from results.journal import Journal
from results.write import write_failed, write_slide
from review import catalogue as module
from review.catalogue import Catalogue, key_of
from review.errors import Refused
from slides.plan import Plan
from tests.end_to_end import runs
from tests.end_to_end.conftest import start  # noqa: F401 (a fixture)
from tests.results.conftest import GEOMETRY, INFO, build


def look(folder: Path, **more) -> dict[str, module.Entry]:
    return {entry.id: entry for entry in Catalogue(folder, **more).look().values()}


def test_a_real_run(results):
    """Every slide with state, reason in words, urgency, score, areas and times, by its id."""
    found = look(results.out)
    assert set(found) == {"ward 3/Präparat", "ward 3/frozen", "torn", "text"}
    whole, torn, text = found["ward 3/Präparat"], found["torn"], found["text"]
    assert (whole.state, whole.reason, whole.urgency) == ("complete", None, "routine")
    assert found["ward 3/frozen"].urgency == "stat"
    summary = json.loads((results.out / "slides" / "ward 3" / "Präparat.json").read_text())
    said = summary["probabilities"]["tumour"]
    assert whole.score == said["p99"] and whole.tissue_mm2 == summary["tissue"]["area_mm2"]
    inferred = summary["patches"]["inferred"]
    assert whole.tumour_mm2 == pytest.approx(said["share_at_least_half"] * inferred * (64 * 0.5e-3) ** 2, abs=1e-4)
    assert (whole.planned, whole.inferred, whole.failed) == (inferred, inferred, 0)
    assert torn.state == "partial" and torn.failed > 0 and "patches failed" in torn.reason
    assert text.state == "failed" and text.score is None and text.size is None and "not a slide" in text.reason
    arrived = os.stat(results.slides / "ward 3" / "Präparat.tif").st_mtime
    assert whole.arrived == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(arrived))
    assert whole.key == key_of("ward 3/Präparat") and len(whole.key) == 20


def test_a_share_that_does_not_answer_costs_the_time_of_arrival_alone(results, monkeypatch) -> None:
    """Its slides are listed with all that the results folder knows, also at the first look; they wait once, not one by one.

    A file system that hangs cannot be had here, so its answer is held up.
    """
    answer, real, asked = threading.Event(), os.stat, []

    def slow(path, *args, **kwargs):
        if str(path).startswith(str(results.slides)):
            asked.append(path)
            answer.wait()
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", slow)
    try:
        found = Catalogue(results.out).look()
    finally:
        answer.set()
    assert {"ward 3/Präparat", "ward 3/frozen"} <= {entry.slide for entry in found.values()}
    assert all(entry.arrived is None for entry in found.values()) and len(asked) == 1


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    """One new summary among many: only that is read, and folders without news are not listed."""
    for number in range(30):
        write_failed(f"ward {number % 3}/{number}", f"/slides/{number}.svs", "gone", tmp_path)
    for folder in (tmp_path / "slides").rglob("*"):
        if folder.is_dir():
            os.utime(folder, (time.time() - 60,) * 2)
    os.utime(tmp_path / "slides", (time.time() - 60,) * 2)
    catalogue = Catalogue(tmp_path)
    assert len(catalogue.look(0)) == 30
    read, listed = [], []
    load, scandir = Catalogue._load, os.scandir

    def counted(self, root, slide, changed):
        read.append(slide)
        return load(self, root, slide, changed)

    monkeypatch.setattr(Catalogue, "_load", counted)
    monkeypatch.setattr(
        os, "scandir", lambda path: listed.append(os.path.basename(os.path.normpath(path))) or scandir(path)
    )
    catalogue.look(0)
    assert not read and not {"slides", "ward 0", "ward 1", "ward 2"} & set(listed)
    write_failed("ward 1/new", "/slides/new.svs", "gone", tmp_path)
    assert len(catalogue.look(0)) == 31
    assert read == ["ward 1/new"] and "ward 1" in listed and "ward 0" not in listed


def test_nobody_waits_for_another_threads_look(tmp_path, monkeypatch):
    """A slow disk holds up only who looks: others get what was seen before, and pictures of known slides need no look."""
    write_failed("a", "/slides/a.svs", "gone", tmp_path)
    catalogue = Catalogue(tmp_path)
    before = catalogue.look()
    entered, leave = threading.Event(), threading.Event()

    def slow(self):
        entered.set()
        leave.wait(20)
        return {}

    monkeypatch.setattr(module.Summaries, "look", slow)
    looker = threading.Thread(target=catalogue.look, args=(0,))
    looker.start()
    entered.wait(20)
    catalogue._looked = 0.0
    assert catalogue.look() is before
    assert catalogue.entry(key_of("a")).id == catalogue.entry(key_of("a"), fresh=False).id == "a"
    leave.set()
    looker.join()
    assert catalogue.look(0) == {}


def test_a_summary_that_is_written_again_is_read_again(tmp_path):
    """Also twice within the grain of a folder's time; one that is removed goes."""
    catalogue = Catalogue(tmp_path)
    for reason in ("first", "second", "third"):
        write_failed("a", "/slides/a.svs", reason, tmp_path)
        assert catalogue.look(0)[key_of("a")].reason == reason
    (tmp_path / "slides" / "a.json").unlink()
    assert catalogue.look(0) == {}


def test_what_is_no_summary_is_passed_over(tmp_path):
    """Half a file, another format, nothing at all: the others are shown."""
    write_failed("good", "/slides/good.svs", "gone", tmp_path)
    for name, text in (("half", '{"slide": "half", "st'), ("list", "[1, 2]"), ("empty", ""), ("other", '{"a": 1}')):
        (tmp_path / "slides" / f"{name}.json").write_text(text)
    assert set(look(tmp_path)) == {"good"}
    assert look(tmp_path / "nothing") == {}


def test_an_older_summary_has_its_highest_probability_as_score(tmp_path):
    """It knows no percentile."""
    write_slide(build(), tmp_path, {"csv"})
    path = tmp_path / "slides" / "ward" / "slide 1.json"
    summary = json.loads(path.read_text())
    for said in summary["probabilities"].values():
        del said["p99"]
    path.write_text(json.dumps(summary))
    assert look(tmp_path)["ward/slide 1"].score == summary["probabilities"]["tumour"]["max"]


def test_several_models_are_several_rows(tmp_path, results, small_model):
    """A folder of each model; the slide's id begins with the model's name."""
    other = tmp_path / "second"
    shutil.copytree(small_model, other)
    run = runs.start([results.slides / "ward 3" / "frozen.tif"], tmp_path / "out", [small_model, other])
    assert run.finish().code == 0
    run.destroy()
    found = look(tmp_path / "out")
    assert {id: (entry.model, entry.slide) for id, entry in found.items()} == {
        "tiny/frozen": ("tiny", "frozen"), "second/frozen": ("second", "frozen")
    }  # fmt: skip
    catalogue = Catalogue(tmp_path / "out")
    tables = [catalogue.patches(key_of(f"{name}/frozen")) for name in ("tiny", "second")]
    np.testing.assert_array_equal(tables[0].probabilities, tables[1].probabilities)


# ------------------------------------------------------------ slides under way


def journal(out: Path, slide: str = "ward/slide 1", classes: int = 2) -> Journal:
    """Six patches, none read yet, as an aggregator begins it."""
    places = np.arange(6, dtype=np.int32)
    header = {
        "id": slide, "path": f"/slides/{slide}.svs", "key": {"fingerprint": "f"}, "classes": classes, "info": INFO,
        "geometry": GEOMETRY, "tissue": {"area_mm2": 0.5}, "plan": Plan(places, places, np.ones(6, np.float32)).to_bytes(),
    }  # fmt: skip
    from pipeline.rundir import work_folder

    return Journal.create(work_folder(out / ".slidestream", slide), header)


def append(to: Journal, patches: list[int], tumour: list[float], failures: list = ()) -> None:
    rows = np.stack([1 - np.float32(tumour), np.float32(tumour)], axis=1)
    to.append(np.array(patches, "<i4").tobytes(), rows.astype("<f4").tobytes(), list(failures))
    to.flush()


def test_a_slide_under_way_is_followed(tmp_path):
    """Its counts, score and heatmap grow with the journal; only what is new is told."""
    (tmp_path / "run.json").write_text(
        json.dumps({"model": {"name": "demo", "classes": ["normal", "tumour"]}, "configuration": {}})
    )
    made = journal(tmp_path)
    made.flush()
    catalogue = Catalogue(tmp_path)
    (entry,) = catalogue.look(0).values()
    assert (entry.state, entry.planned, entry.inferred, entry.score) == ("running", 6, 0, None)
    assert entry.classes == ("normal", "tumour") and entry.finished is None
    append(made, [0, 1], [0.9, 0.2])
    append(made, [3], [0.6], [[2, "cannot be decoded"]])
    (entry,) = catalogue.look(0).values()
    assert (entry.inferred, entry.failed) == (3, 1)
    assert entry.score == pytest.approx(np.quantile(np.float32([0.9, 0.2, 0.6]), 0.99))
    table = catalogue.patches(entry.key)
    assert table.states.tolist() == [1, 1, 2, 1, 0, 0] and table.changed.tolist() == [0, 1, 2, 3]
    assert table.reasons == {2: "cannot be decoded"}
    assert [region.patches for region in catalogue.regions(entry.key, "tumour", 0.5, 0)] == [1, 1]
    made.close()


def test_a_slide_that_nobody_reads_any_more_waits(tmp_path):
    """Its run was ended: the row says how to go on."""
    made = journal(tmp_path)
    append(made, [0], [0.9])
    made.close()
    old = time.time() - 3600
    os.utime(made.folder / "journal", (old, old))
    (entry,) = look(tmp_path).values()
    assert entry.state == "waiting" and "run the same command again" in entry.reason and entry.inferred == 1


def test_a_journal_beside_its_result_is_over(tmp_path):
    """Until it is written to again: failed patches are tried again, and the slide runs."""
    made = journal(tmp_path)
    append(made, [0, 1, 3, 4, 5], [0.9] * 5, [[2, "cannot be decoded"]])
    time.sleep(0.02)
    write_slide(build(cells=6, failed=(2,)), tmp_path, {"csv", "parquet"})
    catalogue = Catalogue(tmp_path)
    assert [entry.state for entry in catalogue.look(0).values()] == ["partial"]
    time.sleep(0.02)
    made.retry()
    made.flush()
    (entry,) = catalogue.look(0).values()
    assert (entry.state, entry.inferred, entry.failed) == ("running", 5, 0)
    made.close()


def test_a_damaged_journal_is_passed_over(tmp_path):
    """The run will say what is wrong with it."""
    made = journal(tmp_path)
    made.flush()
    made.close()
    (made.folder / "journal").write_bytes(b"SSJ1\nnonsense")
    assert look(tmp_path) == {}


def test_a_real_run_is_seen_while_it_runs(tmp_path, results, start):  # noqa: F811
    """With its models, before the first result and to its end."""
    slide = results.slides / "ward 3" / "frozen.tif"
    run = start([slide], tmp_path / "out", results.model, sabotage={"inference": {"slow_s": 0.02}})
    run.at_work()
    catalogue = Catalogue(tmp_path / "out")
    entries = [entry for entry in catalogue.look(0).values() if entry.state == "running"]
    assert entries and entries[0].classes == ("normal", "tumour") and catalogue.run.alive
    assert entries[0].score is not None or entries[0].inferred == 0
    assert run.finish().code == 0
    assert {entry.state for entry in catalogue.look(0).values()} == {"complete"}
    assert not catalogue.run.alive


def test_what_a_service_knows_stands_beside(results):
    """Slides that wait have a row; those with results get their class and time of arrival from it."""
    facts = {
        "new": {
            "state": "waiting",
            "reason": "is still being copied",
            "urgency": "stat",
            "arrived": "2026-01-01T00:00:00Z",
        },
        "torn": {"state": "waiting", "urgency": "stat", "arrived": "2026-01-02T00:00:00Z"},
    }
    found = look(results.out, beside=lambda: facts)
    assert (found["new"].state, found["new"].urgency, found["new"].reason) == (
        "waiting",
        "stat",
        "is still being copied",
    )
    assert (found["torn"].state, found["torn"].urgency, found["torn"].arrived) == (
        "partial",
        "stat",
        "2026-01-02T00:00:00Z",
    )


# ------------------------------------------------------------ files


def summary_with(out: Path, slide: str, path: str) -> None:
    write_failed(slide, path, "gone", out)


def refusal(catalogue: Catalogue, slide: str) -> str:
    with pytest.raises(Refused) as caught:
        catalogue.file(catalogue.entry(key_of(slide)))
    assert caught.value.status == 404
    return caught.value.code


def test_only_slides_that_summaries_name_are_opened(tmp_path, results):
    """And only below the folder of slides, wherever links lead."""
    slides, outside = tmp_path / "slides", tmp_path / "outside.tif"
    slides.mkdir()
    shutil.copyfile(results.slides / "torn.tif", outside)
    shutil.copyfile(outside, slides / "inside.tif")
    (slides / "link.tif").symlink_to(outside)
    (slides / "inner.tif").symlink_to(slides / "inside.tif")
    names = {
        "inside": slides / "inside.tif", "outside": outside, "link": slides / "link.tif", "inner": slides / "inner.tif",
        "dots": slides / ".." / "outside.tif", "folder": slides, "gone": slides / "gone.tif", "nul": "a\0b",
        "device": "/dev/zero",
    }  # fmt: skip
    for name, path in names.items():
        summary_with(tmp_path / "out", name, str(path))
    within, free = Catalogue(tmp_path / "out", [slides]), Catalogue(tmp_path / "out")
    for name in ("inside", "inner"):
        assert within.file(within.entry(key_of(name))) == slides / "inside.tif"
    assert {name: refusal(within, name) for name in ("outside", "link", "dots")} == dict.fromkeys(
        ("outside", "link", "dots"), "slide_outside"
    )
    for catalogue in (within, free):
        assert refusal(catalogue, "gone") == refusal(catalogue, "nul") == refusal(catalogue, "folder") == "slide_gone"
    assert refusal(free, "device") == "slide_gone"
    assert free.file(free.entry(key_of("outside"))) == outside


def test_no_table_is_read_outside_of_the_results(tmp_path):
    """Whatever a summary says of its outputs: the place follows from the slide's id."""
    write_slide(build(), tmp_path, {"csv"})
    path = tmp_path / "slides" / "ward" / "slide 1.json"
    summary = json.loads(path.read_text())
    summary["outputs"] = {"csv": "../../../../etc/passwd"}
    path.write_text(json.dumps(summary))
    table = Catalogue(tmp_path).patches(key_of("ward/slide 1"))
    assert len(table.states) == 20


def test_ten_thousand_slides(tmp_path):
    """A look that finds nothing new takes little beside the first: of its processor time less than a tenth."""
    write_failed("ward 0/0", "/slides/0.svs", "gone", tmp_path)
    text = (tmp_path / "slides" / "ward 0" / "0.json").read_text()
    for number in range(10_000):
        path = tmp_path / "slides" / f"ward {number % 20}" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for folder in (tmp_path / "slides").iterdir():
        os.utime(folder, (time.time() - 60,) * 2)
    catalogue = Catalogue(tmp_path)
    began = time.process_time()
    assert len(catalogue.look(0)) == 10_000
    first = time.process_time() - began
    began = time.process_time()
    for _ in range(10):
        catalogue.look(0)
    again = (time.process_time() - began) / 10
    assert again < first / 10, (again, first)
