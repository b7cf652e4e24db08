from __future__ import annotations

import pytest

from results.layout import check_formats, name_problem, output_path


@pytest.mark.parametrize("slide", ["", "..", "../x", "a/../b", "/etc/x", "a//b", "a/", "./a", "a\0b"])
def test_an_id_that_leads_elsewhere_is_refused(slide):
    """No slide id writes outside of the output folder."""
    with pytest.raises(ValueError, match="slide id"):
        output_path(slide, "csv")


@pytest.mark.parametrize("slide", ["a", "ward 3/a.b", "Präparat\n日本", "..a", "a..", "-x"])
def test_odd_names_are_kept(slide):
    """Spaces, dots, Unicode and newlines are names like any other."""
    assert output_path(slide, "csv") == f"model-outputs-csv/{slide}.csv"
    assert output_path(slide, "summary") == f"slides/{slide}.json"


def test_formats_are_checked_and_ordered():
    """An unknown format is named together with the known ones."""
    assert check_formats({"heatmap_png", "csv"}) == ["csv", "heatmap_png"]
    with pytest.raises(ValueError, match="'xls'; known are csv, geojson"):
        check_formats({"csv", "xls"})


@pytest.mark.parametrize("slide", ["x" * 247, "é" * 123, f"{'x' * 255}/a"])
def test_names_that_fit_are_no_problem(slide):
    """Of 247 bytes with .parquet, the longest ending; folders have none."""
    assert name_problem(slide, ["csv", "parquet"]) == ""


@pytest.mark.parametrize("slide", ["x" * 248, "é" * 124, f"a/{'x' * 250}"])
def test_a_name_too_long_for_its_results_is_told_before_any_work(slide):
    """A slide's own ending is shorter than that of some results: 255 bytes of name need not suffice for those."""
    assert "247 or less" in name_problem(slide, ["csv", "parquet"])
    assert name_problem(slide, ["csv"]) == ""
