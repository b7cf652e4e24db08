"""Signing in, and the worklist."""

from __future__ import annotations

import pytest

from tests.review.browser.conftest import BROKEN, DAMAGED, LUNG, Server
from tests.review.browser.desk import Desk

pytestmark = pytest.mark.long


def rows(desk: Desk) -> list[str]:
    """The slides shown, from the top."""
    desk.page.locator("table.worklist tbody a").first.wait_for()
    return desk.page.locator("table.worklist tbody a").all_inner_texts()


def row(desk: Desk, name: str) -> str:
    return desk.page.locator("table.worklist tbody tr", has_text=name).inner_text()


def test_wrong_password_says_so_and_shows_nothing(desk: Desk):
    """Without the right password there is a message and no slide; with it, the worklist."""
    desk.open()
    desk.page.locator("input[name=user]").fill("rosa")
    desk.page.locator("input[name=password]").fill("not her password")
    desk.page.keyboard.press("Enter")
    desk.page.get_by_role("alert").filter(has_text="Name or password is wrong").wait_for()
    assert desk.page.locator("table.worklist tbody a").count() == 0
    desk.page.locator("input[name=password]").fill("rosa judges slides")
    desk.page.keyboard.press("Enter")
    assert sorted(rows(desk)) == sorted([LUNG, DAMAGED, BROKEN])


def test_signing_out_ends_the_session(desk: Desk):
    """After "sign out" the server answers nothing any more, and the page asks who is there."""
    desk.sign_in("rosa")
    desk.page.get_by_role("button", name="Sign out").click()
    desk.page.locator("dialog.sign-in").wait_for()
    assert desk.api("/api/worklist")["code"] == "signed_out"


def test_urgent_first_and_failures_in_words(desk: Desk):
    """The urgent slide is at the top and says so; partial and failed ones say why."""
    desk.sign_in("vera")
    assert rows(desk)[0] == DAMAGED
    urgent, broken, whole = row(desk, DAMAGED), row(desk, BROKEN), row(desk, LUNG)
    assert "URGENT" in urgent and "Partial" in urgent and "patches could not be read" in urgent
    assert "Failed" in broken and "not a slide" in broken
    assert "Complete" in whole and "routine" in whole
    desk.shows_texts()


def test_search_filter_and_sort_stay_in_the_address(desk: Desk):
    """A search narrows the list at once; a filter and an order come back with the address."""
    desk.sign_in("vera")
    desk.page.get_by_label("Search slides").fill("LUNG")
    desk.until("document.querySelectorAll('table.worklist tbody a').length === 1")
    assert rows(desk) == [LUNG]
    desk.page.get_by_label("Search slides").fill("")
    desk.page.get_by_label("State").select_option("failed")
    desk.until("document.querySelectorAll('table.worklist tbody a').length === 1")
    assert rows(desk) == [BROKEN]
    desk.page.reload()
    assert rows(desk) == [BROKEN]
    desk.page.get_by_label("State").select_option("")
    desk.page.get_by_role("button", name="Slide", exact=True).click()
    desk.until("document.querySelectorAll('table.worklist tbody a').length === 3")
    desk.page.locator("th[aria-sort=ascending]").wait_for()
    assert rows(desk) == sorted([LUNG, DAMAGED, BROKEN])


def test_a_changed_row_changes_in_place(desk: Desk, sit, server: Server):
    """Who has a slide open appears in another's list without a reload, and goes again."""
    desk.sign_in("vera")
    rows(desk)
    other = sit(server.address)
    other.sign_in("ruth")
    other.page.locator("table.worklist tbody a").first.wait_for()
    other.page.get_by_role("link", name=BROKEN).click()
    desk.page.locator("table.worklist tr", has_text=BROKEN).get_by_text("Open now by ruth").wait_for()
    other.page.get_by_role("link", name="Worklist").click()
    desk.page.locator("table.worklist tr", has_text=BROKEN).get_by_text("Open now by ruth").wait_for(state="detached")


def test_slides_are_reached_by_keyboard(desk: Desk):
    """n and Enter open a slide without a pointer; Esc comes back."""
    desk.sign_in("vera")
    names = rows(desk)
    desk.page.locator("main").focus()
    desk.page.keyboard.press("n")
    desk.page.keyboard.press("n")
    desk.page.keyboard.press("Enter")
    desk.page.locator(".panel h1", has_text=names[1]).wait_for()
    desk.page.keyboard.press("Escape")
    assert rows(desk) == names


def test_a_failed_slide_says_that_nothing_was_examined(desk: Desk):
    """The page of a slide that never opened gives the reason, and does not look like one without findings."""
    desk.sign_in("vera")
    rows(desk)
    desk.page.get_by_role("link", name=BROKEN).click()
    desk.page.get_by_text("Nothing was examined on it").wait_for()
    assert "not a slide" in desk.page.locator("main").inner_text()


def test_operations(desk: Desk):
    """The stages, the verdict on the bottleneck and the slides that failed."""
    desk.sign_in("vera", "/#/operations")
    desk.page.get_by_text("Slide readers").wait_for()
    shown = desk.page.locator("main").inner_text()
    assert "inference" in shown and "patches/s" in shown and BROKEN in shown and "Inference" in shown
    desk.shows_texts()
