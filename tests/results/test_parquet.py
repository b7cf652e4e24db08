from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from results.csv_file import write_csv
from results.parquet import write_parquet


def test_every_planned_patch_has_a_row(make_record, tmp_path):
    """Failed patches are there too: null probabilities, a reason, the state."""
    record = make_record(failed=(2, 9))
    write_parquet(record, tmp_path / "a.parquet")
    frame = pd.read_parquet(tmp_path / "a.parquet").set_index("patch")
    assert sorted(frame.index) == list(range(20))
    assert frame.loc[2, "state"] == "failed"
    assert frame.loc[2, "reason"] == "tile 2 cannot be decoded"
    assert frame.loc[[2, 9], ["prob_normal", "prob_tumour"]].isna().all(axis=None)
    good = frame.drop([2, 9])
    assert set(good["state"]) == {"inferred"}
    assert good["reason"].isna().all()
    np.testing.assert_array_equal(good.sort_index()["prob_tumour"], record.probabilities[good.sort_index().index, 1])
    np.testing.assert_array_equal(frame.sort_index()["column"], record.columns)
    np.testing.assert_array_equal(frame.sort_index()["row"], record.rows)
    np.testing.assert_array_equal(frame.sort_index()["tissue_fraction"], record.fraction)


def test_types_are_small_and_null_is_not_nan(make_record, tmp_path):
    """float32 probabilities, int32 places, dictionary states; a failed patch is null, not a NaN that sums could eat."""
    write_parquet(make_record(failed=(2,)), tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types["prob_tumour"] == types["tissue_fraction"] == "float"
    assert {types[name] for name in ("minx", "miny", "width", "height", "column", "row", "patch")} == {"int32"}
    assert types["state"].startswith("dictionary")
    assert table["prob_tumour"].null_count == 1


def test_inferred_rows_are_the_csv(make_record, tmp_path):
    """The two tables agree, row by row."""
    record = make_record(failed=(2,))
    write_parquet(record, tmp_path / "a.parquet")
    write_csv(record, tmp_path / "a.csv")
    frame = pd.read_parquet(tmp_path / "a.parquet")
    frame = frame[frame["state"] == "inferred"].reset_index(drop=True)
    table = pd.read_csv(tmp_path / "a.csv")
    for name in table:
        np.testing.assert_array_equal(frame[name].astype(np.float32), table[name].astype(np.float32))


def test_the_schema_says_slide_and_model(make_record, tmp_path):
    """The file alone tells what it was made from."""
    write_parquet(make_record(), tmp_path / "a.parquet")
    said = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"slidestream"])
    assert said["slide"] == "ward/slide 1"
    assert (said["mpp_x"], said["mpp_source"], said["level"], said["spacing"]) == (0.25, "slide", 0, 0.5)
    assert said["model"] == {"name": "demo", "sha256": "5e" * 32, "classes": ["normal", "tumour"]}
    assert said["engine"]["engine"] == "onnx"
    assert said["versions"] == {"slidestream": "0.1.0"}


def test_bytes_are_the_same_in_every_run(make_record, tmp_path):
    """No time, no random number in the file."""
    for name in ("a", "b"):
        write_parquet(make_record(failed=(1,)), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_tissue_and_nothing_inferred(make_record, tmp_path):
    """An empty table keeps its columns; a table of failures alone is a table."""
    write_parquet(make_record(cells=0), tmp_path / "none.parquet")
    write_parquet(make_record(cells=2, failed=(0, 1)), tmp_path / "failed.parquet")
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0
    assert "prob_tumour" in pq.read_schema(tmp_path / "none.parquet").names
    assert list(pd.read_parquet(tmp_path / "failed.parquet")["state"]) == ["failed", "failed"]
