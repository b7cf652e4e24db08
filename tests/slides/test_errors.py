from __future__ import annotations

from pathlib import Path

from slides.errors import SlideError


def test_str_is_path_problem_remedy() -> None:
    """A SlideError says in one line which file, what is wrong and what to do."""
    assert str(SlideError(Path("/a/b.svs"), "is empty", "copy it again")) == "/a/b.svs: is empty; copy it again"


def test_reason_leaves_the_path_out() -> None:
    """The reason is for records that name the slide elsewhere."""
    assert SlideError("/a/b.svs", "is empty", "copy it again").reason == "is empty; copy it again"
    assert SlideError("/a/b.svs", "is empty").reason == "is empty"


def test_odd_names_stay_on_one_printable_line() -> None:
    """Newlines, control characters and undecodable bytes in a name are escaped, Unicode is kept."""
    text = str(SlideError("/a/Präparat 1\n\x1b[31m\udcff.svs", "is\nbroken"))
    assert text == "/a/Präparat 1\\n\\x1b[31m\\udcff.svs: is\\nbroken"
    text.encode("utf-8")


def test_path_is_optional() -> None:
    """A value that belongs to no slide (a configured mpp) has no path to show."""
    assert str(SlideError("", "is wrong", "mend it")) == "is wrong; mend it"
