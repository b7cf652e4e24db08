"""The report of one page."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pypdf
import pytest

from review.export import FORMS, Reviewed, pdf
from review.export.texts import TEXTS
from tests.review.exports import HEAD, finding, reviewed
from tests.review.page import facts


def read(report: Reviewed, language: str = "en") -> tuple[pypdf.PdfReader, str]:
    reader = pypdf.PdfReader(io.BytesIO(FORMS["pdf"].make(report, language)))
    return reader, re.sub(r"\s+", " ", reader.pages[0].extract_text())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_is_one_page_that_says_who_what_and_by_what(language: str) -> None:
    """Slide, model, engine, verdicts, comments, signature and hashes, in Latin and Chinese letters, pictures of each finding."""
    reader, text = read(reviewed(), language)
    assert len(reader.pages) == 1
    for word in (
        "ward/甲 1",
        "demo",
        "abababababababab",
        "onnx",
        "浸润性癌，切缘阳性",
        "王丽",
        HEAD,
        "cd" * 32,
        "我已审阅整张切片",
    ):
        assert word in text, word
    for name in ("accepted", "rejected", "unsure", "none", "signed"):
        assert TEXTS[language][name] in text
    assert len(reader.pages[0].images) == 6, "the overview and five findings"


def test_its_letters_are_in_the_file() -> None:
    """A printer without a Chinese font prints it all the same."""
    reader, _ = read(reviewed())
    fonts = [font.get_object() for font in reader.pages[0]["/Resources"]["/Font"].values()]
    ours = [font for font in fonts if "Hei" in str(font["/BaseFont"])]
    assert ours and all("/FontFile2" in font["/FontDescriptor"] for font in ours)


def test_what_is_not_signed_and_not_whole_says_so() -> None:
    """In words, with the reason."""
    slide = facts(state="partial", reason="3 of 10 patches failed; 3 of them: cannot be decoded")
    _, text = read(reviewed(slide, signed=None, state="in_review"))
    assert "NOT SIGNED" in text and "no finding does not mean no tumour" in text and "cannot be decoded" in text
    assert "Signed by" not in text
    _, text = read(reviewed(outdated=True))
    assert "other results now" in text


def test_letters_that_the_font_lacks_are_named() -> None:
    """Never left out: a name must stay a name."""
    _, text = read(reviewed(facts("𠮷田 🔬")))
    assert "[U+20BB7]田 [U+1F52C]" in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_longest_texts_stay_on_the_page_and_off_the_signature(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is cut with an ellipsis, or counted as more; words never cross."""
    drawn: list[tuple[float, float, float]] = []
    real = pdf._Page._line

    def line(self: object, x: float, y: float, text: str, size: float, *colour: object) -> None:
        drawn.append((x + pdf.pdfmetrics.stringWidth(text, pdf.FONT, size), y, size))
        real(self, x, y, text, size, *colour)

    foots: list[float] = []
    sign = pdf._Page._signature
    monkeypatch.setattr(pdf._Page, "_line", line)
    monkeypatch.setattr(pdf._Page, "_signature", lambda self: (foots.append(self.y), sign(self)))
    long = "very long words and 很长的文字" * 60
    slide = facts(long.replace(" ", "_"), state="partial", reason=long, engine={"engine": long})
    findings = [finding(f"r{number}", "accepted", long, by=long) for number in range(1, 9)]
    report = reviewed(slide, regions=9, findings=findings, outdated=True, reviewer=long)
    report.document["signed"] |= {"statement": long, "by": long}
    reader, text = read(report, language)
    assert len(reader.pages) == 1
    assert min(foots) >= pdf.FOOT
    for right, y, _ in drawn:
        assert right <= 595 - pdf.MARGIN + 1 and y >= 20
    assert "…" in text


def test_a_slide_that_cannot_be_read_has_a_report_without_pictures() -> None:
    """It says so."""

    def fail(*_: object) -> bytes:
        raise OSError("gone")

    whole = reviewed()
    reader, text = read(Reviewed(whole.facts, whole.document, whole.findings, whole.head, "a", fail))
    assert "cannot be read" in text and not reader.pages[0].images


def test_every_language_has_all_words_with_the_same_places() -> None:
    """No text falls back, no figure is lost in translation."""
    english = TEXTS["en"]
    for words in TEXTS.values():
        assert words.keys() == english.keys()
        for name, text in words.items():
            assert set(re.findall(r"{(\w+)", text)) == set(re.findall(r"{(\w+)", english[name])), name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_model_at_another_patch_size_is_told(language: str) -> None:
    """Both sizes beside its name; nothing of the kind for one at its own."""
    slide = facts()
    _, plain = read(reviewed(slide), language)
    _, told = read(reviewed(replace(slide, model=slide.model | {"patch_px": 96, "own_patch_px": 64})), language)
    assert TEXTS[language]["other_size"].format(patch_px=96, own_patch_px=64) in told and "64 px" not in plain
