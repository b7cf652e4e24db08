"""The patches of a slide for the viewer: from tables and journals, and as bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from results.write import write_slide
from review.errors import Refused
from review.heat import FINAL, Table, encode, finished, nothing, patch
from tests.results.conftest import build
from tests.review.reading_page import Heat


def load(out: Path, slide: str = "ward/slide 1") -> Table:
    summary = json.loads((out / "slides" / f"{slide}.json").read_text())
    return finished(out, slide, summary, "1")


def test_parquet_and_csv_give_the_same_patches(tmp_path):
    """With failed ones and their reasons; with overlap and an origin too."""
    geometry = {"step_x": 224, "step_y": 112, "origin_x": 30, "origin_y": 7, "columns": 18, "rows": 26}
    record = build(failed=(3, 7), geometry=geometry)
    tables = []
    for name in ("parquet", "csv"):
        write_slide(record, tmp_path / name, {name})
        tables.append(load(tmp_path / name))
    expected = {
        (int(c), int(r)): (int(s), tuple(p.tolist()) if s == 1 else record.reasons[i])
        for i, (c, r, s, p) in enumerate(
            zip(record.columns, record.rows, record.state, record.probabilities, strict=True)
        )
    }
    for table in tables:
        found = {
            (int(c), int(r)): (int(s), tuple(p.tolist()) if s == 1 else table.reasons[i])
            for i, (c, r, s, p) in enumerate(
                zip(table.columns, table.rows, table.states, table.probabilities, strict=True)
            )
        }
        assert found == expected
        assert np.isnan(table.probabilities[table.states == 2]).all()


def test_a_slide_without_patches_has_an_empty_table(tmp_path):
    """No tissue, or never opened."""
    write_slide(build(cells=0), tmp_path, {"csv"})
    table = load(tmp_path)
    assert len(table.states) == 0 and table.classes == ("normal", "tumour")
    assert Heat.of(encode(table)).following == FINAL


def test_a_result_without_a_table_says_what_to_do(tmp_path):
    """Only pictures were asked for."""
    write_slide(build(), tmp_path, {"heatmap_tiff"})
    with pytest.raises(Refused, match="results.formats"):
        load(tmp_path)


def test_the_bytes_are_as_described(tmp_path):
    """Places, states, probabilities in 255ths; 0 where nothing was inferred; rows of one byte are padded."""
    record = build(cells=21, failed=(2,))
    write_slide(record, tmp_path, {"parquet"})
    heat = Heat.of(encode(load(tmp_path)))
    assert heat.following == FINAL and len(heat.states) == 21
    for (column, row), (state, levels) in heat.by_place().items():
        (index,) = np.flatnonzero((record.columns == column) & (record.rows == row))
        assert state == record.state[index]
        expected = np.round(record.probabilities[index] * 255) if state == 1 else np.zeros(2)
        assert np.abs(np.array(levels) - expected).max() <= (0.5 if state == 1 else 0)


def changing(changed: list[int], epoch: int = 5) -> Table:
    """Five patches, of which some have changed."""
    places = np.arange(5, dtype=np.int32)
    probabilities = np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)
    return dataclasses.replace(
        nothing(("a", "b"), {}, "1"),
        columns=places, rows=places, states=np.ones(5, np.uint8), probabilities=probabilities,
        changed=np.array(changed, np.int32), epoch=epoch,
    )  # fmt: skip


def test_later_answers_have_what_changed_since():
    """Each patch once; nothing where nothing changed."""
    first = Heat.of(encode(changing([0, 1, 2])))
    assert len(first.states) == 5
    second = Heat.of(encode(changing([0, 1, 2, 4, 1, 4]), first.following))
    assert second.columns.tolist() == [1, 4]
    assert len(Heat.of(encode(changing([0, 1, 2, 4, 1, 4]), second.following)).states) == 0


@pytest.mark.parametrize("since", [1, 7, FINAL, (6 << 24) + 2, (5 << 24) + 9])
def test_a_number_of_another_journal_gives_all_patches(since):
    """Also one that this journal has not reached, and the end of a result that is made anew."""
    assert len(Heat.of(encode(changing([0, 1, 2]), since)).states) == 5


def test_the_end_of_a_slide_gives_all_patches_once(tmp_path):
    """Whoever followed it; and then nothing more."""
    write_slide(build(), tmp_path, {"csv"})
    table = load(tmp_path)
    assert len(Heat.of(encode(table, (5 << 24) + 3)).states) == 20
    assert len(Heat.of(encode(table, FINAL)).states) == 0


def test_one_patch(tmp_path):
    """Its probabilities; the reason of a failed one; nothing where none is planned."""
    record = build(failed=(3,))
    write_slide(record, tmp_path, {"parquet"})
    table = load(tmp_path)
    good = patch(table, int(record.columns[0]), int(record.rows[0]))
    assert good["state"] == "inferred" and good["probabilities"]["tumour"] == float(record.probabilities[0, 1])
    bad = patch(table, int(record.columns[3]), int(record.rows[3]))
    assert bad == {"state": "failed", "reason": "tile 3 cannot be decoded", "probabilities": {}}
    assert patch(table, 500, 500)["state"] is None
