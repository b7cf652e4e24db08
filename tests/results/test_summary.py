from __future__ import annotations

import json

import numpy as np
import pytest

from results.summary import is_complete, read_head, read_summary, write_failed_summary, write_summary

KEY = {"fingerprint": "f1", "model": "m1", "configuration": "c1"}


def written(record, tmp_path, **options):
    path = tmp_path / "slides" / f"{record.slide}.json"
    write_summary(record, path, **options)
    return json.loads(path.read_text())


def test_it_says_what_became_of_the_slide(make_record, tmp_path):
    """State, where mpp came from, what was read, by which model and engine, how long, and where the files are."""
    said = written(make_record(), tmp_path, outputs={"csv": "model-outputs-csv/a.csv"}, formats=["csv"])
    assert (said["state"], said["reason"]) == ("complete", None)
    assert (said["format"], said["size"]) == ("aperio", {"width": 4000, "height": 3000})
    assert said["mpp"] == {"x": 0.25, "y": 0.25, "source": "slide"}
    assert (said["reading"]["level"], said["reading"]["resampling"]) == (0, "area")
    assert said["patches"] == {"planned": 20, "inferred": 20, "failed": 0}
    assert (said["model"]["name"], said["model"]["sha256"]) == ("demo", "5e" * 32)
    assert said["engine"] == {"engine": "onnx", "version": "1.20"}
    assert said["seconds"] == {"read": 1.25, "inference": 2.5}
    assert said["outputs"] == {"csv": "model-outputs-csv/a.csv"}
    assert said["key"] == KEY
    assert said["failed_patches"] == []


def test_keys_are_stable(make_record, tmp_path):
    """The documented keys, in this order; a new one is a decision, a lost one breaks readers."""
    keys = ["format_version", "slide", "path", "state", "reason", "format", "size", "mpp", "levels", "bounds",
            "objective_power", "reading", "patches", "probabilities", "tissue", "model", "engine", "seconds", "key",
            "versions", "formats", "outputs", "failed_patches"]  # fmt: skip
    assert list(written(make_record(failed=(1,)), tmp_path)) == keys
    write_failed_summary("b", "/b.svs", "not a slide", tmp_path / "slides" / "b.json")
    assert list(read_summary(tmp_path, "b")) == keys


def test_every_failed_patch_is_listed(make_record, tmp_path):
    """Index, place and reason of each, and planned = inferred + failed."""
    record = make_record(failed=(2, 9))
    said = written(record, tmp_path)
    assert said["state"] == "partial"
    assert said["reason"].startswith("2 of 20 patches failed")
    assert said["patches"] == {"planned": 20, "inferred": 18, "failed": 2}
    found = {entry["patch"]: entry for entry in said["failed_patches"]}
    assert set(found) == {2, 9}
    assert found[9] == {
        "patch": 9,
        "column": record.columns[9],
        "row": record.rows[9],
        "minx": record.columns[9] * 448,
        "miny": record.rows[9] * 448,
        "reason": "tile 9 cannot be decoded",
    }


def test_an_unfinished_slide_has_no_summary(make_record, tmp_path):
    """A pending patch, or a failed one without a reason: nothing is written."""
    pending = np.ones(20, np.uint8)
    pending[0] = 0
    for record in (make_record(state=pending), make_record(failed=(1,), reasons={})):
        with pytest.raises(ValueError):
            write_summary(record, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_probabilities_are_of_inferred_patches_alone(make_record, tmp_path):
    """Mean, highest and share at one half, for each class, without the failed."""
    record = make_record(failed=(0,))
    values = record.probabilities[1:, 1]
    said = written(record, tmp_path)["probabilities"]["tumour"]
    assert said["mean"] == pytest.approx(values.mean())
    assert said["max"] == pytest.approx(values.max())
    assert said["p99"] == pytest.approx(np.quantile(values, 0.99))
    assert said["share_at_least_half"] == pytest.approx((values >= 0.5).mean())
    assert written(make_record(cells=0), tmp_path)["probabilities"] == {}


def test_odd_values_are_strict_json(make_record, tmp_path):
    """NaN becomes null, numpy numbers numbers, undecodable path bytes escapes."""
    record = make_record(slide="x", tissue={"threshold": np.nan, "area_mm2": np.float32(0.5)}, path="/a\udc80.svs")
    said = json.loads(
        (written(record, tmp_path) and (tmp_path / "slides" / "x.json")).read_bytes(),
        parse_constant=lambda name: pytest.fail(name),
    )
    assert said["tissue"] == {"threshold": None, "area_mm2": 0.5}
    assert said["path"] == "/a\udc80.svs"


def test_a_slide_without_a_plan_says_why(tmp_path):
    """Not a slide: failed, the reason, no patches, nothing made up."""
    write_failed_summary("a/b", "/in/a/b.svs", "not a slide", tmp_path / "slides" / "a" / "b.json", key=KEY)
    said = read_summary(tmp_path, "a/b")
    assert (said["state"], said["reason"]) == ("failed", "not a slide")
    assert said["patches"] == {"planned": 0, "inferred": 0, "failed": 0}
    assert said["mpp"] is None and said["outputs"] == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"state": "complete"}', b"\xff\xfe"])
def test_what_is_no_summary_is_none(tmp_path, content):
    """A damaged or foreign file counts as no summary."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.json").write_bytes(content)
    assert read_summary(tmp_path, "a") is None
    assert read_summary(tmp_path, "b") is None


def test_complete_needs_state_key_and_files(make_record, tmp_path):
    """A slide is skipped only if it is complete, from the same key, with every file and format there."""
    (tmp_path / "a.csv").write_bytes(b"")
    said = written(make_record(), tmp_path, outputs={"csv": "a.csv"})
    assert is_complete(said, KEY, tmp_path)
    assert is_complete(said, KEY, tmp_path, {"csv"})
    assert not is_complete(said, KEY, tmp_path, {"csv", "geojson"})
    assert not is_complete(said, KEY | {"model": "m2"}, tmp_path)
    assert not is_complete(said | {"state": "partial"}, KEY, tmp_path)
    assert not is_complete(None, KEY, tmp_path)
    (tmp_path / "a.csv").unlink()
    assert not is_complete(said, KEY, tmp_path)


def test_the_head_of_a_summary_is_all_but_the_failed_patches(make_record, tmp_path):
    """However many those are, and whatever names hold; what is no summary is refused."""
    name = 'a\n "failed_patches": [ b'
    record = make_record(cells=60, failed=tuple(range(0, 60, 2)), slide=name)
    for number, given in enumerate((record, make_record(cells=0))):
        path = tmp_path / f"{number}.json"
        write_summary(given, path)
        expected = json.loads(path.read_bytes())
        assert expected.pop("failed_patches") is not None
        assert read_head(path) == expected
    for text in ("", "{", "[]", '{"format_version": "other"}'):
        path.write_text(text)
        with pytest.raises(ValueError):
            read_head(path)
