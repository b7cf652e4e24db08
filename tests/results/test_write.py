from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from results import layout
from results.summary import is_complete, read_summary
from results.write import sweep, write_failed, write_slide

ALL = set(layout.FORMATS)


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_all_files_of_a_slide(make_record, tmp_path):
    """Every format at its place, the summary lists them, and the slide counts as complete."""
    record = make_record()
    outputs = write_slide(record, tmp_path, ALL)
    assert set(outputs) == ALL
    assert files(tmp_path) == {*outputs.values(), "slides/ward/slide 1.json"}
    said = read_summary(tmp_path, "ward/slide 1")
    assert said["outputs"] == outputs
    assert is_complete(said, record.key, tmp_path, ALL)


def test_only_the_wanted_formats(make_record, tmp_path):
    """Two formats are two files and a summary."""
    write_slide(make_record(), tmp_path, {"csv", "heatmap_png"})
    assert files(tmp_path) == {
        "model-outputs-csv/ward/slide 1.csv", "heatmaps/ward/slide 1.png", "slides/ward/slide 1.json",
    }  # fmt: skip


def test_the_same_slide_gives_the_same_bytes(make_record, tmp_path):
    """A second run changes no byte of any file."""
    write_slide(make_record(failed=(1,)), tmp_path / "a", ALL)
    write_slide(make_record(failed=(1,)), tmp_path / "b", ALL)
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_slide_of_failures_has_no_probabilities(make_record, tmp_path):
    """Nothing inferred: reasons and mask only, state failed, and an older result of it is gone."""
    write_slide(make_record(cells=3), tmp_path, ALL)
    outputs = write_slide(make_record(cells=3, failed=(0, 1, 2)), tmp_path, ALL)
    assert set(outputs) == {"parquet", "mask"}
    assert files(tmp_path) == {*outputs.values(), "slides/ward/slide 1.json"}
    assert read_summary(tmp_path, "ward/slide 1")["state"] == "failed"


def test_a_slide_without_tissue_is_complete(make_record, tmp_path):
    """Zero patches: every file is there, and it is no error."""
    outputs = write_slide(make_record(cells=0), tmp_path, ALL)
    assert set(outputs) == ALL
    assert read_summary(tmp_path, "ward/slide 1")["state"] == "complete"


def test_a_record_without_mask_leaves_it_out(make_record, tmp_path):
    """No mask, no mask file; the rest is written."""
    assert set(write_slide(make_record(mask=None), tmp_path, ALL)) == ALL - {"mask"}


def test_a_slide_that_cannot_be_opened(make_record, tmp_path):
    """Only a summary with the reason; files of an older result go."""
    write_slide(make_record(), tmp_path, ALL)
    write_failed("ward/slide 1", "/in/x.svs", "not a slide", tmp_path)
    assert files(tmp_path) == {"slides/ward/slide 1.json"}
    assert read_summary(tmp_path, "ward/slide 1")["reason"] == "not a slide"


@pytest.mark.parametrize("slide", ["../x", "/etc/x", "a/../../x", ""])
def test_no_id_escapes(make_record, tmp_path, slide):
    """An id that leads out of the output folder is refused before anything is written."""
    with pytest.raises(ValueError, match="slide id"):
        write_slide(make_record(slide=slide), tmp_path / "out", ALL)
    with pytest.raises(ValueError, match="slide id"):
        write_failed(slide, "/x", "no", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slide", ["a b/ü/日本", "new\nline", "..odd", "x/" * 30 + "deep", "lone\udc80byte", "x" * 246])
def test_odd_ids_are_written(make_record, tmp_path, slide):
    """Any name that the input's file system allows works in the output."""
    outputs = write_slide(make_record(slide=slide), tmp_path, ALL)
    assert all((tmp_path / path).is_file() for path in outputs.values())
    assert read_summary(tmp_path, slide)["slide"] == slide


def test_a_pending_patch_touches_nothing(make_record, tmp_path):
    """An unfinished slide leaves an older result as it is."""
    write_slide(make_record(), tmp_path, {"csv"})
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(ValueError, match="pending"):
        write_slide(make_record(state=np.zeros(20, np.uint8)), tmp_path, {"csv"})
    with pytest.raises(ValueError, match="unknown result format"):
        write_slide(make_record(), tmp_path, {"xls"})
    with pytest.raises(ValueError, match="heatmap_class"):
        write_slide(make_record(), tmp_path, {"csv"}, heatmap_class="x")
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_full_disk_leaves_no_summary_and_no_rubbish(make_record, tmp_path):
    """When one file cannot be written the slide does not count as done, and no half file stays."""
    record = make_record(cells=60)
    write_slide(record, tmp_path, {"csv", "heatmap_png"})
    size = (tmp_path / "heatmaps/ward/slide 1.png").stat().st_size
    picture = (tmp_path / "heatmaps/ward/slide 1.png").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_slide(record, tmp_path, {"csv", "heatmap_png"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename.endswith("heatmaps/ward/slide 1.png")
    assert files(tmp_path) == {"model-outputs-csv/ward/slide 1.csv", "heatmaps/ward/slide 1.png"}
    assert (tmp_path / "heatmaps/ward/slide 1.png").read_bytes() == picture
    assert read_summary(tmp_path, "ward/slide 1") is None


@pytest.mark.parametrize("name", sorted(ALL))
def test_each_format_names_its_file_when_the_disk_is_full(make_record, tmp_path, name):
    """Whatever library writes it, the error is an OSError with the result's path, and no temporary file stays."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_slide(make_record(), tmp_path, {name})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / layout.output_path("ward/slide 1", name))
    assert files(tmp_path) == set()


def test_sweep_cleans_the_result_folders(make_record, tmp_path):
    """What a killed writer left goes, results stay, other files of the folder are not ours to touch."""
    write_slide(make_record(), tmp_path, {"csv"})
    before = files(tmp_path)
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / "heatmaps" / ".0123-1-1.slidestream-part").write_bytes(b"half")
    (tmp_path / "mine.slidestream-part").write_bytes(b"")
    assert sweep(tmp_path) == 1
    assert files(tmp_path) == before | {"mine.slidestream-part"}


def test_a_folder_without_rights_is_a_named_error(make_record, tmp_path):
    """A permission error names the file; root, who may write anywhere, cannot test this."""
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="slide 1"):
            write_slide(make_record(), tmp_path, {"csv"})
    finally:
        tmp_path.chmod(0o700)
