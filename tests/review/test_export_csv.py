"""The table of findings."""

from __future__ import annotations

import csv
import io

from review.export import FORMS
from tests.review.exports import HEAD, reviewed


def lines(**changes: object) -> list[dict[str, str]]:
    text = FORMS["csv"].make(reviewed(**changes), "en").decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def test_every_finding_is_a_line() -> None:
    """By rank, then what is not among the regions of now; the signature and the log's head are in each."""
    found = lines()
    assert [line["finding"] for line in found] == ["r1", "r2", "r3", "r4", "d4"]
    assert [line["verdict"] for line in found] == ["accepted", "rejected", "unsure", "", "accepted"]
    assert (found[0]["x"], found[0]["width"], found[0]["max"]) == ("100", "200", "0.98")
    assert {line["signed_by"] for line in found} == {"王丽"} and {line["log_head"] for line in found} == {HEAD}


def test_a_comment_is_never_a_formula() -> None:
    """What a spreadsheet would compute is text."""
    assert lines()[1]["comment"] == '\'=HYPERLINK("http://evil.example")'


def test_a_region_judged_at_another_threshold_is_still_said() -> None:
    """Nothing that somebody judged is lost when thresholds move."""
    assert [line["finding"] for line in lines(regions=1)] == ["r1", "r2", "r3", "d4"]


def test_nothing_found_is_a_table_without_lines() -> None:
    """With its header, for a spreadsheet that knows the code page by the mark at the start."""
    raw = FORMS["csv"].make(reviewed(regions=0, findings=[]), "en")
    assert raw.startswith(b"\xef\xbb\xbfslide,finding,") and raw.count(b"\r\n") == 1
