"""Judging regions, signing, the log, what goes out, and who may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from review.facts import slide_key
from tests.review.browser.conftest import BROKEN, LUNG, Server
from tests.review.browser.desk import PASSWORDS, Desk


def judged(desk: Desk) -> list[str]:
    """The verdicts under the pictures, from the left."""
    return desk.page.locator(".thumb .verdict").all_inner_texts()


def sign(desk: Desk, user: str) -> None:
    desk.page.keyboard.press("s")
    box = desk.page.locator("dialog[open]")
    box.locator("input[type=password]").fill(PASSWORDS[user])
    box.get_by_role("button", name="Sign", exact=True).click()
    desk.page.get_by_text(f"Signed by {user}").wait_for()


def test_a_review_by_keyboard_alone(acts_server: Server, fresh: str, sit):
    """Next, accept, next, reject, unsure, comment, undo, sign, reopen: the server has each, the log in order."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    desk.page.locator(".thumb").nth(1).wait_for()
    press = desk.page.keyboard.press
    for key, words in (("n", None), ("a", "Accepted"), ("n", None), ("r", "Rejected"), ("u", "Unsure")):
        press(key)
        if words:
            desk.page.locator(".thumb[aria-current=true] .verdict", has_text=words).wait_for()
    assert judged(desk)[:2] == ["Accepted", "Unsure"]
    press("z")
    desk.page.locator(".thumb[aria-current=true] .verdict", has_text="Rejected").wait_for()
    press("c")
    desk.page.keyboard.type("crushed, no nuclei")
    press("Control+Enter")
    desk.until("document.querySelector('.comment button:not([hidden])') === null")
    press("Escape")
    comments = [finding["comment"] for finding in desk.review(fresh)["findings"]]
    assert "crushed, no nuclei" in comments and sorted(desk.verdicts(fresh).values()) == ["accepted", "rejected"]

    press("s")
    box = desk.page.locator("dialog[open]")
    box.locator("input[type=password]").fill("wrong")
    box.get_by_role("button", name="Sign", exact=True).click()
    box.get_by_text("Name or password is wrong").wait_for()
    press("Escape")
    sign(desk, "rosa")
    assert desk.page.get_by_role("button", name="Accept", exact=True).is_disabled()
    press("a")
    assert desk.review(fresh)["state"] == "signed"
    assert sorted(desk.verdicts(fresh).values()) == ["accepted", "rejected"]

    desk.page.get_by_role("button", name="Log").click()
    desk.page.locator("table.log tbody tr").first.wait_for()
    acts = desk.page.locator("table.log tbody tr td:nth-child(4)").all_inner_texts()
    assert acts == ["judged", "judged", "judged", "undid", "commented", "signed"]
    press("Escape")
    desk.page.get_by_role("button", name="Reopen").click()
    desk.page.locator("dialog[open] textarea").fill("the second region again")
    desk.page.locator("dialog[open]").get_by_role("button", name="Reopen").click()
    desk.page.get_by_text("Reopened: the second region again").wait_for()
    desk.shows_texts()


@pytest.mark.long
def test_the_tab_key_passes_the_pictures_in_one_step(desk: Desk):
    """There may be thousands of them before the verdicts; the arrow keys go through them."""
    desk.sign_in("vera")
    desk.slide(LUNG)
    desk.page.locator(".thumb").nth(1).wait_for()
    focused = "[...document.querySelectorAll('.thumb')].indexOf(document.activeElement)"
    desk.page.locator(".thumb").first.focus()
    desk.page.keyboard.press("ArrowRight")
    desk.page.keyboard.press("ArrowRight")
    assert desk.page.evaluate(focused) == 1
    desk.page.keyboard.press("Tab")
    assert "Previous" in desk.page.evaluate("document.activeElement.innerText")
    desk.page.keyboard.press("Shift+Tab")
    assert desk.page.evaluate(focused) == 1


def test_a_glance_is_no_review(acts_server: Server, fresh: str, sit):
    """A slide is in review when somebody has had it before their eyes for twenty seconds, or acts: not when it is opened."""
    desk = sit(acts_server.address)
    desk.page.clock.install()
    desk.sign_in("rosa")
    desk.slide(fresh)
    # Time goes on by itself too: on a slow machine some seconds have passed.
    desk.page.clock.run_for(5_000)
    assert desk.review(fresh)["state"] == "new"
    desk.page.clock.run_for(21_000)
    desk.page.locator(".sign-off", has_text="In review").wait_for()
    assert (desk.review(fresh)["state"], desk.review(fresh)["opened"]) == ("in_review", ["rosa"])


def test_a_missed_region_is_drawn(acts_server: Server, fresh: str, sit):
    """By dragging, corner by corner, and by keyboard; Esc draws nothing; what was drawn can be taken away."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    box = desk.page.locator(".slide-place").bounding_box()
    at = lambda x, y: (box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    mouse, press = desk.page.mouse, desk.page.keyboard.press
    press("d")
    mouse.move(*at(0.4, 0.4))
    mouse.down()
    for corner in ((0.6, 0.4), (0.6, 0.6), (0.4, 0.6), (0.41, 0.42)):
        mouse.move(*at(*corner), steps=6)
    mouse.up()
    desk.page.locator(".thumb", has_text="drawn").wait_for()
    press("d")
    for corner in ((0.2, 0.3), (0.3, 0.3), (0.3, 0.5)):
        mouse.click(*at(*corner))
    press("Enter")
    desk.until(
        "[...document.querySelectorAll('.thumb .words')].filter((t) => t.innerText.includes('drawn')).length === 2"
    )
    press("d")
    press("Escape")
    press("d")
    press("Enter")
    desk.until(
        "[...document.querySelectorAll('.thumb .words')].filter((t) => t.innerText.includes('drawn')).length === 3"
    )
    drawn = [finding for finding in desk.review(fresh)["findings"] if finding["kind"] == "drawn"]
    assert [finding["verdict"] for finding in drawn] == ["accepted"] * 3
    assert all(finding["area_um2"] > 1000 for finding in drawn)
    desk.page.get_by_role("button", name="Erase this drawing").click()
    desk.until(
        "[...document.querySelectorAll('.thumb .words')].filter((t) => t.innerText.includes('drawn')).length === 2"
    )


def test_regions_follow_the_threshold_when_told(acts_server: Server, fresh: str, sit):
    """Moving the threshold moves no region; the button does, and the review keeps the settings, smallest area included."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    desk.page.locator(".thumb").first.wait_for()
    before = desk.page.locator(".thumb").count()
    for _ in range(8):
        desk.page.keyboard.press("[")
    assert desk.page.locator(".thumb").count() == before
    desk.page.get_by_role("button", name="Find regions again").click()
    desk.page.get_by_role("button", name="Find regions again").wait_for(state="hidden")
    assert desk.review(fresh)["threshold"] == pytest.approx(0.1)
    found = desk.api(f"/api/slides/{slide_key(fresh)}/regions?class=tumour&threshold=0.1&min_um2=0")["regions"]
    desk.until(f"document.querySelectorAll('.thumb').length === {len(found)}")
    desk.page.locator(".side summary", has_text="More").click()
    least = max(region["area_um2"] for region in found) - 1
    desk.page.get_by_label("Leave out regions under").fill(str(round(least)))
    desk.page.keyboard.press("Tab")
    desk.page.get_by_role("button", name="Find regions again").click()
    desk.until("document.querySelectorAll('.thumb').length === 1")


def test_two_reviewers_see_each_other_and_overwrite_nothing(acts_server: Server, fresh: str, sit):
    """A verdict of the one appears at the other; one given on an old review is refused, shown, and can be given again."""
    rosa, ruth = sit(acts_server.address), sit(acts_server.address)
    for desk, name in ((rosa, "rosa"), (ruth, "ruth")):
        desk.sign_in(name)
        desk.slide(fresh)
        desk.page.locator(".thumb").first.wait_for()
    rosa.page.get_by_text("Open now by ruth").wait_for()
    ruth.page.get_by_text("Open now by rosa").wait_for()
    for desk in (rosa, ruth):
        desk.page.keyboard.press("n")
    rosa.page.keyboard.press("a")
    ruth.page.locator(".thumb .verdict", has_text="Accepted").wait_for()

    # The news does not reach ruth in time: her act is on a review that is not there any more.
    ruth.page.route("**/api/slides/*/review", lambda route: route.abort())
    rosa.page.keyboard.press("u")
    rosa.page.locator(".thumb .verdict", has_text="Unsure").wait_for()
    ruth.page.keyboard.press("r")
    ruth.page.locator(".notice.error").first.wait_for()
    ruth.page.locator(".thumb .verdict", has_text="Unsure").wait_for()
    assert list(rosa.verdicts(fresh).values()) == ["unsure"]
    ruth.page.unroute("**/api/slides/*/review")
    ruth.page.keyboard.press("r")
    rosa.page.locator(".thumb .verdict", has_text="Rejected").wait_for()


def test_a_viewer_sees_and_cannot_sign(desk: Desk):
    """Buttons and keys of a viewer do nothing, the page says why, and the server refuses what a script sends."""
    desk.sign_in("vera")
    desk.slide(LUNG)
    desk.page.locator(".thumb").first.wait_for()
    before = desk.review(LUNG)
    for key in "nasdrz":
        desk.page.keyboard.press(key)
    desk.page.get_by_text("You may look, but not judge or sign.").wait_for()
    assert desk.page.locator("dialog[open]").count() == 0
    buttons = [desk.page.get_by_role("button", name=name, exact=True) for name in ("Accept", "Reject", "Sign")]
    assert all(button.is_disabled() for button in buttons)
    refused = desk.page.evaluate(
        """async (key) => {
        const { csrf } = await (await fetch("/api/session")).json();
        const body = JSON.stringify({ revision: 0, act: "sign", statement: "I say so" });
        const headers = { "Content-Type": "application/json", "X-CSRF": csrf };
        const answer = await fetch(`/api/slides/${key}/acts`, { method: "POST", headers, body });
        return [answer.status, (await answer.json()).code]; }""",
        slide_key(LUNG),
    )
    assert refused == [403, "role"]
    assert desk.review(LUNG) == before


def test_the_result_goes_out(desk: Desk, tmp_path: Path):
    """GeoJSON and CSV are saved by buttons, under the slide's name."""
    desk.sign_in("vera")
    desk.slide(LUNG)
    desk.page.get_by_text("Save the result").click()
    saved = {}
    for name in ("GeoJSON", "CSV"):
        with desk.page.expect_download() as download:
            desk.page.get_by_role("button", name=name).click()
        saved[name] = tmp_path / name
        download.value.save_as(saved[name])
        assert "lung" in download.value.suggested_filename
    assert json.loads(saved["GeoJSON"].read_text())["type"] == "FeatureCollection"
    assert saved["CSV"].read_text().strip()


def test_the_list_of_files_stays_open_while_somebody_judges(acts_server: Server, fresh: str, sit):
    """What is under the hand does not go away because a region was judged, here or elsewhere."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    desk.page.get_by_text("Save the result").click()
    desk.page.keyboard.press("n")
    desk.page.keyboard.press("a")
    desk.page.locator(".thumb[aria-current=true] .verdict", has_text="Accepted").wait_for()
    desk.page.locator(".sign-off", has_text="In review").wait_for()
    assert desk.page.get_by_role("button", name="GeoJSON").is_visible()


def test_a_click_counts_whatever_comes_between_press_and_release(acts_server: Server, fresh: str, sit):
    """Accept is pressed, another's verdict arrives, the button is released: accepted."""
    rosa, ruth = sit(acts_server.address), sit(acts_server.address)
    for desk, name in ((rosa, "rosa"), (ruth, "ruth")):
        desk.sign_in(name)
        desk.slide(fresh)
        desk.page.locator(".thumb").nth(1).wait_for()
        desk.page.keyboard.press("n")
    box = rosa.page.get_by_role("button", name="Accept", exact=True).bounding_box()
    rosa.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    rosa.page.mouse.down()
    ruth.page.keyboard.press("n")
    ruth.page.keyboard.press("u")
    rosa.page.locator(".thumb .verdict", has_text="Unsure").wait_for()
    rosa.page.mouse.up()
    rosa.page.locator(".thumb .verdict", has_text="Accepted").wait_for()
    assert judged(rosa)[:2] == ["Accepted", "Unsure"]


def saved(desk: Desk, name: str, folder: Path) -> Path:
    """The file that a button of "Save the result" gives."""
    with desk.page.expect_download() as download:
        desk.page.get_by_role("button", name=name).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.long
def test_the_report_says_what_was_signed(acts_server: Server, fresh: str, sit, tmp_path: Path):
    """PDF and DICOM, saved by buttons after a signature, and opened: slide, model, verdicts, comment, who signed, its hash."""
    pypdf, pydicom = pytest.importorskip("pypdf"), pytest.importorskip("pydicom")
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    desk.page.locator(".thumb").first.wait_for()
    desk.page.keyboard.press("n")
    desk.page.keyboard.press("a")
    desk.page.locator(".thumb[aria-current=true] .verdict", has_text="Accepted").wait_for()
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("solid nests")
    desk.page.keyboard.press("Control+Enter")
    desk.until("document.querySelector('.comment button:not([hidden])') === null")
    desk.page.keyboard.press("Escape")
    sign(desk, "rosa")
    review = desk.review(fresh)
    desk.page.get_by_text("Save the result").click()

    report = pypdf.PdfReader(saved(desk, "PDF report", tmp_path))
    text = " ".join(" ".join(page.extract_text() for page in report.pages).split())
    for word in (fresh, "demo-tumour", "rosa", "Accepted", "solid nests", review["signed"]["hash"][:16]):
        assert word.casefold() in text.casefold(), (word, text)
    assert sum(len(page.images) for page in report.pages) >= 1

    mask = pydicom.dcmread(saved(desk, "DICOM segmentation", tmp_path))
    assert mask.Modality == "SEG" and mask.pixel_array.any() and mask.SegmentSequence[0].SegmentLabel
    findings = pydicom.dcmread(saved(desk, "DICOM structured report", tmp_path))
    said = findings.to_json()
    assert findings.Modality == "SR" and findings.VerificationFlag in ("VERIFIED", "UNVERIFIED")
    assert "solid nests" in said and "rosa" in said.casefold()


@pytest.mark.long
def test_tiles_that_do_not_come_are_said_and_asked_for_again(desk: Desk):
    """Nobody takes an empty place for glass: the page says what is missing, and loads it at a button."""
    desk.sign_in("vera")
    desk.page.route("**/tile/**", lambda route: route.fulfill(status=503, json={"error": "no", "code": "storage"}))
    desk.slide(LUNG)
    desk.page.get_by_text("Parts of the picture could not be loaded").wait_for()
    desk.page.unroute("**/tile/**")
    with desk.page.expect_response(lambda answer: "/tile/" in answer.url and answer.ok):
        desk.page.get_by_role("button", name="Load again").click()
    desk.settled()
    assert desk.page.get_by_text("Parts of the picture could not be loaded").count() == 0
    assert all("failed to load" in complaint for complaint in desk.complaints)  # OpenSeadragon tells of each
    desk.complaints.clear()


@pytest.mark.long
def test_reasons_in_chinese_keep_the_pipelines_words(desk: Desk):
    """The kind of the reason is said in the page's language, the detail as it was."""
    desk.sign_in("vera")
    row = desk.page.locator("tr", has_text=BROKEN)
    row.get_by_text("is not a slide in a format that OpenSlide knows", exact=True).wait_for()
    desk.page.get_by_label("Language").select_option("zh")
    row.get_by_text("不是已知格式的切片（is not a slide in a format that OpenSlide knows）").wait_for()


def test_no_path_leads_out(desk: Desk, results: Path):
    """Other files, other slides, other levels: refused, and no word of where things are."""
    desk.sign_in("vera")
    key = slide_key(LUNG)
    for path in (
        "/static/..%2f..%2f..%2fetc/passwd",
        "/static/%2e%2e/app.py",
        f"/api/slides/..%2f..%2f{key}",
        f"/api/slides/{key}/tile/0/..%2f0_0.jpg",
        f"/api/slides/{key}/tile/99/0_0.jpg",
        f"/api/slides/{'0' * 20}",
        f"/api/slides/{key}/export/..%2f..%2fusers.json",
    ):
        status, text = desk.page.evaluate("path => fetch(path).then(async (a) => [a.status, await a.text()])", path)
        assert status in (404, 422), path
        assert str(results) not in text and "Traceback" not in text, path
    desk.page.evaluate("location.hash = '#/slide/00000000000000000000'")
    desk.page.get_by_text("There is no such slide.").wait_for()


def test_a_session_that_ends_loses_nothing_on_the_page(acts_server: Server, fresh: str, sit):
    """When the session is gone, the page asks for the password over what is there, and says what was not saved."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    desk.page.locator(".thumb").first.wait_for()
    desk.page.keyboard.press("n")
    desk.still()
    desk.settle_requests()  # a tile that is under way would be refused, and the browser would complain of it
    desk.page.context.clear_cookies()
    desk.page.keyboard.press("a")
    desk.page.get_by_text("Your session has ended").wait_for()
    desk.sign_in_again("rosa")
    desk.settled()
    desk.page.locator(".thumb").first.wait_for()
    assert desk.verdicts(fresh) == {}
