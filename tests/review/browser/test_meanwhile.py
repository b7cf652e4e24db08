"""What happens while somebody works: others act, the session ends, the network is slow. Nothing goes away under the hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from review.facts import slide_key
from tests.review.browser.conftest import BROKEN, DAMAGED, LUNG, Server
from tests.review.browser.desk import PASSWORDS, Desk

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = pytest.mark.long
Pair = tuple[Desk, Desk]


@pytest.fixture
def pair(acts_server: Server, fresh: str, sit: Callable[..., Desk]) -> Pair:
    """Two reviewers on one slide that nobody has reviewed yet, both at its first region."""
    desks = sit(acts_server.address), sit(acts_server.address)
    for desk, name in zip(desks, ("rosa", "ruth"), strict=True):
        desk.sign_in(name)
        desk.slide(fresh)
        desk.page.locator(".thumb").nth(1).wait_for()
        desk.page.keyboard.press("n")
        desk.page.locator(".thumb[aria-current=true]").wait_for()
    return desks


def test_a_comment_overwrites_no_other_unseen(pair: Pair):
    """What another has written meanwhile is shown beside one's own, which is saved when that is asked for, and not before."""
    rosa, ruth = pair
    for desk, words in ((rosa, "rosa's words"), (ruth, "ruth's words")):
        desk.page.keyboard.press("c")
        desk.page.keyboard.type(words)
    ruth.page.keyboard.press("Control+Enter")
    rosa.page.get_by_text("ruth has written meanwhile: “ruth's words”").wait_for()
    field = rosa.page.locator(".comment textarea")
    assert field.input_value() == "rosa's words"
    rosa.page.keyboard.press("Escape")
    rosa.settled()
    key = rosa.page.url.partition("/slide/")[2][:20]
    comments = lambda: [one["comment"] for one in rosa.api(f"/api/slides/{key}/review")["findings"]]
    assert comments() == ["ruth's words"]
    rosa.page.get_by_role("button", name="Save comment").click()
    ruth.until("document.querySelector('.comment textarea').value === \"rosa's words\"")
    assert comments() == ["rosa's words"]


def test_a_signature_is_of_what_its_dialog_shows(pair: Pair):
    """The numbers follow another's verdict, and that they have changed is said; the dialog goes with its page."""
    rosa, ruth = pair
    rosa.page.keyboard.press("s")
    box = rosa.page.locator("dialog[open]")
    box.get_by_text("Accepted: 0").wait_for()
    ruth.page.keyboard.press("a")
    box.get_by_text("Accepted: 1").wait_for()
    box.get_by_text("The review has changed meanwhile").wait_for()
    rosa.page.go_back()
    rosa.page.locator("table.worklist tbody a").first.wait_for()
    assert rosa.page.locator("dialog").count() == 0


def test_two_who_judge_different_regions_do_not_hinder_each_other(pair: Pair):
    """A verdict on one region is kept though the news of another's on the next one has not come yet."""
    rosa, ruth = pair
    ruth.page.route("**/api/slides/*/review", lambda route: None)
    rosa.page.keyboard.press("a")
    rosa.page.locator(".thumb .verdict", has_text="Accepted").wait_for()
    ruth.page.keyboard.press("n")
    ruth.page.keyboard.press("r")
    rosa.page.locator(".thumb .verdict", has_text="Rejected").wait_for()
    ruth.page.locator(".thumb .verdict", has_text="Accepted").wait_for()
    ruth.page.unroute_all(behavior="ignoreErrors")
    assert ruth.page.locator(".notice.error").count() == 0


def test_a_comment_half_written_is_kept_on_the_way_elsewhere(acts_server: Server, fresh: str, sit):
    """By the browser's own "back", and by the next picture."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    desk.page.locator(".thumb").nth(1).wait_for()
    desk.page.keyboard.press("n")
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("first")
    desk.page.locator(".thumb").nth(1).click()
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("second")
    desk.page.go_back()
    desk.page.locator("table.worklist tbody a").first.wait_for()
    desk.settle_requests()
    assert sorted(one["comment"] for one in desk.review(fresh)["findings"]) == ["first", "second"]


def test_the_end_of_a_session_takes_neither_comment_nor_drawing(acts_server: Server, fresh: str, sit):
    """After the password both are there, and go to the server."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    desk.page.locator(".thumb").first.wait_for()
    desk.page.keyboard.press("n")
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("crushed")
    desk.page.context.clear_cookies()
    desk.page.keyboard.press("Control+Enter")
    desk.page.get_by_text("Your session has ended").wait_for()
    desk.sign_in_again("rosa")
    assert desk.page.locator(".comment textarea").input_value() == "crushed"
    desk.page.locator(".comment textarea").focus()
    desk.page.keyboard.press("Control+Enter")
    desk.page.locator(".comment .by", has_text="rosa").wait_for()
    desk.page.keyboard.press("Escape")

    desk.page.locator("main").focus()
    desk.page.keyboard.press("d")
    desk.page.context.clear_cookies()
    desk.page.keyboard.press("Enter")
    desk.page.get_by_text("Your session has ended").wait_for()
    desk.sign_in_again("rosa")
    desk.page.get_by_text("This outline is not saved yet").wait_for()
    desk.page.keyboard.press("Enter")
    desk.page.locator(".thumb", has_text="drawn").wait_for()
    found = {one["kind"]: one["comment"] for one in desk.review(fresh)["findings"]}
    assert found == {"region": "crushed", "drawn": ""}


def test_two_windows_of_one_person(acts_server: Server, fresh: str, sit):
    """Signing out and in again in the one does not make the other useless."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")
    desk.slide(fresh)
    desk.page.locator(".thumb").first.wait_for()
    other = Desk(desk.page.context.new_page(), acts_server.address)
    other.open()
    other.page.get_by_role("button", name="Sign out").click()
    other.page.locator("dialog.sign-in input[name=user]").fill("rosa")
    other.sign_in_again("rosa")
    desk.page.bring_to_front()
    desk.page.keyboard.press("n")
    desk.page.keyboard.press("a")
    desk.page.locator(".thumb .verdict", has_text="Accepted").wait_for()
    assert not other.complaints


def test_a_tab_that_nobody_sees_holds_no_connection(desk: Desk, sit, server: Server):
    """A browser has six to a server; on the screen again, the tab is up to date and counts as open."""
    desk.sign_in("vera")
    there = desk.page.locator("tr", has_text=LUNG).get_by_text("Open now by ruth")
    other = sit(server.address)
    other.page.clock.install()
    other.sign_in("ruth", f"/#/slide/{slide_key(LUNG)}")
    there.wait_for()
    other.page.evaluate(SHOWN, False)
    other.page.clock.run_for(6_000)
    there.wait_for(state="detached")
    other.page.evaluate(SHOWN, True)
    there.wait_for()


def test_the_worklist_is_as_it_was_left(desk: Desk):
    """Esc comes back to the list in its order, and n goes on from the slide that one comes from."""
    desk.sign_in("vera", "/#/?q=&sort=id&order=desc")
    link = desk.page.locator("table.worklist tbody a").first
    link.wait_for()
    first, second = desk.page.locator("table.worklist tbody a").all_inner_texts()[:2]
    link.click()
    desk.page.locator(".side h1, .no-slide h1", has_text=first).wait_for()
    desk.page.keyboard.press("Escape")
    desk.page.locator("table.worklist tbody a").first.wait_for()
    assert "sort=id&order=desc" in desk.page.url
    desk.page.keyboard.press("n")
    desk.until(f"document.activeElement.textContent === {json.dumps(second)}")


def test_news_do_not_overtake_a_question(desk: Desk, sit, server: Server):
    """On a slow network a filter is answered though an event comes before its answer, with the pointer on the rows."""
    desk.sign_in("vera")
    desk.page.get_by_role("link", name=LUNG).hover()
    held = []
    desk.page.route(
        "**/api/worklist?*state=failed*", lambda route: held.append(route) if not held else route.continue_()
    )
    desk.page.get_by_label("State").select_option("failed")
    desk.page.get_by_role("link", name=DAMAGED).hover()
    desk.until("document.querySelector('tbody.asked')")
    other = sit(server.address)
    other.sign_in("ruth", f"/#/slide/{slide_key(BROKEN)}")
    desk.until("document.querySelectorAll('table.worklist tbody a').length === 1")
    desk.page.unroute_all(behavior="ignoreErrors")
    assert desk.page.locator("table.worklist tbody a").all_inner_texts() == [BROKEN]
    desk.page.locator("tr", has_text=BROKEN).get_by_text("Open now by ruth").wait_for()


def test_a_link_stays_where_it_is_while_its_line_changes(desk: Desk, sit, server: Server):
    """Who opens a slide elsewhere does not take the click on its line, nor the focus."""
    desk.sign_in("vera")
    link = desk.page.get_by_role("link", name=LUNG)
    link.focus()
    box = link.bounding_box()
    desk.page.mouse.move(box["x"] + 5, box["y"] + 5)
    desk.page.mouse.down()
    other = sit(server.address)
    other.sign_in("ruth", f"/#/slide/{slide_key(LUNG)}")
    desk.page.locator("tr", has_text=LUNG).get_by_text("Open now by ruth").wait_for()
    assert link.evaluate("(link) => link === document.activeElement")
    desk.page.mouse.up()
    desk.page.locator(".side h1", has_text=LUNG).wait_for()


# As if the tab were brought to the front, or another one over it.
SHOWN = """(shown) => { Object.defineProperty(document, "hidden", { get: () => !shown, configurable: true });
document.dispatchEvent(new Event("visibilitychange")); }"""
CATCH_UP = "import('/static/js/live.js').then((live) => live.catchUp())"


def test_a_slide_that_waited_and_failed_says_so(desk: Desk):
    """The page that was opened before the slide was read does not go on promising it, and lets it be signed."""
    desk.sign_in("rosa")

    def waiting(route: Route) -> None:
        detail = {**route.fetch().json(), "state": "waiting", "reason": None}
        route.fulfill(json=detail)

    desk.page.route(f"**/api/slides/{slide_key(BROKEN)}", waiting)
    desk.page.get_by_role("link", name=BROKEN).click()
    desk.page.get_by_text("This slide has not been read yet").wait_for()
    assert desk.page.get_by_role("button", name="Sign", exact=True).is_disabled()
    desk.page.unroute_all(behavior="wait")
    desk.page.evaluate(CATCH_UP)
    desk.page.get_by_text("Nothing was examined on it").wait_for()
    desk.until("!document.querySelector('.sign-off button.main').disabled")


def test_a_result_at_another_patch_size_says_so(desk: Desk):
    """Before anything else: the model was made for other patches than it was shown."""
    desk.sign_in("vera")

    def other(route: Route) -> None:
        detail = route.fetch().json()
        route.fulfill(json={**detail, "model": {**detail["model"], "patch_px": 320, "own_patch_px": 224}})

    desk.slide(LUNG)
    assert "was made for" not in desk.page.locator(".side").inner_text()
    desk.page.goto("about:blank")
    desk.page.route(f"**/api/slides/{slide_key(LUNG)}", other)
    desk.page.goto(f"{desk.address}/#/slide/{slide_key(LUNG)}")
    desk.page.get_by_text("Analysed in patches of 320 px; the model was made for 224 px.").wait_for()


def test_what_is_still_loading_is_not_said_to_be_nothing(desk: Desk):
    """While patches and regions are on their way, and when they do not come; they are asked for again."""
    desk.sign_in("vera")
    held: list[Route] = []
    desk.page.route(re.compile(r"/(heat|regions)\?"), lambda route: held.append(route))
    desk.page.evaluate(f"location.hash = '#/slide/{slide_key(LUNG)}'")
    desk.page.locator(".legend", has_text="What was analysed is not loaded yet").wait_for()
    desk.page.locator(".strip", has_text="The regions are not loaded yet").wait_for()
    desk.until("document.querySelector('.scale-bar .zoom')?.textContent")
    while held:
        held.pop().fulfill(status=503, json={"error": "no answer", "code": "storage"})
    desk.page.locator(".notice.error").first.wait_for()
    shown = desk.page.locator("main").inner_text()
    assert "Nothing was analysed" not in shown and "found no region" not in shown
    desk.page.unroute_all(behavior="ignoreErrors")
    desk.page.evaluate(CATCH_UP)
    desk.page.locator(".thumb").first.wait_for()
    assert "not loaded yet" not in desk.page.locator("main").inner_text()


def test_a_dialog_tells_of_a_result_that_has_changed(acts_server: Server, fresh: str, sit):
    """A signature for a result that is not the one on the screen is refused, and the reason stands in the dialog."""
    desk = sit(acts_server.address)
    desk.sign_in("rosa")

    def earlier(route: Route) -> None:
        detail = route.fetch().json()
        detail["review"]["result"] = "0" * 64
        route.fulfill(json=detail)

    desk.page.route(f"**/api/slides/{slide_key(fresh)}", earlier)
    desk.slide(fresh)
    # As if the slide had been analysed again while the dialog is open.
    desk.page.route(f"**/api/slides/{slide_key(fresh)}/acts", as_earlier)
    desk.page.keyboard.press("s")
    box = desk.page.locator("dialog[open]")
    box.locator("input[type=password]").fill(PASSWORDS["rosa"])
    desk.page.unroute_all(behavior="wait")
    box.get_by_role("button", name="Sign", exact=True).click()
    box.get_by_text("has been analysed again meanwhile").wait_for()
    assert desk.review(fresh)["state"] == "in_review"


def as_earlier(route: Route) -> None:
    """The answer to an act, from before the slide was analysed again."""
    route.fulfill(json={**route.fetch().json(), "result": "0" * 64})
