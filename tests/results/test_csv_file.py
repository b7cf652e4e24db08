from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from results import table
from results.csv_file import write_csv


def test_pandas_reads_the_same_float32_back(make_record, tmp_path):
    """Coordinates are level-0 integers and every probability comes back bit by bit."""
    record = make_record()
    write_csv(record, tmp_path / "a.csv")
    frame = pd.read_csv(tmp_path / "a.csv")
    order = record.inferred_order()
    assert list(frame) == ["minx", "miny", "width", "height", "prob_normal", "prob_tumour"]
    assert [str(frame[name].dtype) for name in list(frame)[:4]] == ["int64"] * 4
    np.testing.assert_array_equal(frame["minx"], record.columns[order] * 448)
    np.testing.assert_array_equal(frame["miny"], record.rows[order] * 448)
    assert set(frame["width"]) == set(frame["height"]) == {448}
    np.testing.assert_array_equal(frame["prob_tumour"].astype(np.float32), record.probabilities[order, 1])


def test_a_failed_patch_has_no_line(make_record, tmp_path):
    """What was not inferred is never a number."""
    record = make_record(failed=(0, 7))
    write_csv(record, tmp_path / "a.csv")
    frame = pd.read_csv(tmp_path / "a.csv")
    assert len(frame) == 18
    assert not frame.isna().any(axis=None)
    gone = {(record.columns[i] * 448, record.rows[i] * 448) for i in (0, 7)}
    assert gone.isdisjoint(zip(frame["minx"], frame["miny"], strict=True))


def test_bytes_do_not_depend_on_the_read_order(make_record, tmp_path):
    """The same patches read in another order give the same file."""
    record = make_record()
    shuffled = np.random.default_rng(5).permutation(20)
    fields = ("columns", "rows", "fraction", "state", "probabilities")
    other = replace(record, **{name: getattr(record, name)[shuffled] for name in fields})
    write_csv(record, tmp_path / "a.csv")
    write_csv(other, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_numbers_at_the_edges(make_record, tmp_path):
    """0 and 1 keep their point, tiny values their exponent, none has more than 9 digits."""
    values = np.array([0, 1, 1e-7, 1.1754944e-38, 1 / 3, 0.99999994, -0.0, 2**-149], np.float32)
    record = make_record(cells=8, classes=("tumour",), probabilities=values[:, None])
    write_csv(record, tmp_path / "a.csv")
    texts = [line.rsplit(",", 1)[1] for line in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    assert {"0.0", "1.0", "1e-7", "1e-45"} <= set(texts)
    assert all(len(re.sub(r"e.*|\D", "", text).lstrip("0")) <= 9 for text in texts)
    np.testing.assert_array_equal(np.array(texts, np.float32), values[record.inferred_order()])


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 63])
def test_pieces_join_without_a_seam(make_record, tmp_path, monkeypatch, rows):
    """Whatever the number of rows written at a time, the file is the same."""
    record = make_record(cells=63)
    write_csv(record, tmp_path / "whole.csv")
    monkeypatch.setattr(table, "CHUNK_ROWS", rows)
    write_csv(record, tmp_path / "pieces.csv")
    assert (tmp_path / "pieces.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_class_names_with_commas_are_quoted(make_record, tmp_path):
    """A header that pandas splits right."""
    write_csv(make_record(classes=('a,"b"', "c d")), tmp_path / "a.csv")
    assert list(pd.read_csv(tmp_path / "a.csv"))[4:] == ['prob_a,"b"', "prob_c d"]


def test_no_tissue_is_a_header_alone(make_record, tmp_path):
    """A slide without patches has a valid, empty table."""
    write_csv(make_record(cells=0), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "minx,miny,width,height,prob_normal,prob_tumour\n"
