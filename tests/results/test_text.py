from __future__ import annotations

import pytest

from results import text


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(text, "FALLBACKS", ())


def test_plain_names_use_the_built_in_font():
    """ASCII looks the same on every machine."""
    drawn, font = text.fitting("Slide_7 (B).2", 20)
    assert drawn == "Slide_7 (B).2"
    assert font.getname() == text.builtin(20).getname()


def test_without_fonts_accents_go_and_the_rest_is_a_question_mark(no_system_fonts):
    """No name fails, and none becomes empty boxes."""
    assert text.fitting("Präparat 日本", 20)[0] == "Praparat ??"


def test_control_characters_become_question_marks():
    """A newline in a file name does not break the line, and no surrogate reaches the font."""
    assert text.fitting("a\nb\x07\udc80", 20)[0] == "a?b??"


def test_long_names_lose_their_middle():
    """Beginning and end of a path are what tells slides apart."""
    drawn, font = text.shorten("folder/" * 30 + "slide 12", 20, 300)
    assert drawn.startswith("folder/") and drawn.endswith("slide 12") and "..." in drawn
    assert font.getlength(drawn) <= 300
    assert text.shorten("short", 20, 300)[0] == "short"
