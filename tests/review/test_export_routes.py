"""Exports over HTTP: what the page's buttons get."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pypdf
import pytest

from review import guard
from review.facts import slide_key
from tests.review.page import MadeUp, Page, facts, serve

KEY = slide_key("ward/甲 1")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with serve(
        guard.implicit("anna"), tmp_path, MadeUp(facts(), facts("empty", classes=(), state="failed"))
    ) as running:
        yield running


def test_an_export_has_what_was_judged_and_the_logs_head(page: Page) -> None:
    """As a download with the slide's name; the head is the one that verify-log will find."""
    browser = page.browser().start()
    browser.act(KEY, None, "open")
    browser.act(KEY, 1, "verdict", finding="r2", verdict="rejected")
    answer = browser.ask("GET", f"/api/slides/{KEY}/export/geojson")
    assert answer.status == 200 and answer.headers["content-type"] == "application/geo+json"
    assert answer.headers["content-disposition"].startswith("attachment;")
    made = json.loads(answer.body)
    verdicts = {feature["properties"]["name"]: feature["properties"]["verdict"] for feature in made["features"]}
    assert verdicts == {"r1": None, "r2": "rejected", "r3": None}
    assert made["slidestream"]["log_head"] == str(page.log.head)
    assert answer.headers["cache-control"] == "no-store"


def test_the_report_comes_in_both_languages(page: Page) -> None:
    """By ?lang=; anything else is English."""
    for query, word in (
        ("", "Review of a slide"),
        ("?lang=zh-CN", "切片审阅报告"),
        ("?lang=../x", "Review of a slide"),
    ):
        answer = page.browser().ask("GET", f"/api/slides/{KEY}/export/pdf{query}")
        assert word in pypdf.PdfReader(io.BytesIO(answer.body)).pages[0].extract_text()


def test_a_failed_slide_exports_what_there_is(page: Page) -> None:
    """Tables and report say that there is nothing, DICOM that it cannot."""
    key = slide_key("empty")
    for form in ("geojson", "csv", "pdf"):
        assert page.browser().ask("GET", f"/api/slides/{key}/export/{form}").status == 200
    answer = page.browser().ask("GET", f"/api/slides/{key}/export/dicom-sr")
    assert answer.json["code"] in ("cannot_say", "not_installed")


def test_without_the_extra_dicom_says_what_is_missing(root: Path) -> None:
    """One line, not a fault."""
    code = (
        "import sys; sys.modules['highdicom'] = None\n"
        "from review.export import FORMS, NotInstalled\n"
        "try: FORMS['dicom-seg'].make(None, 'en')\n"
        "except NotInstalled as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert "slidestream[dicom]" in run.stdout


def test_formats_load_nothing_before_they_are_asked_for(root: Path) -> None:
    """The server starts without reportlab, highdicom and fonts in memory."""
    code = "import sys, review.routes; print(sorted({'reportlab', 'highdicom', 'pydicom', 'PIL', 'cv2'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"
