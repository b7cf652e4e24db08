from __future__ import annotations

import pytest

from results.layout import check_formats, output_path


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
