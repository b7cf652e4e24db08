"""For everybody: two languages, axe, light and dark, less motion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.review.browser.conftest import BROKEN, LUNG, Server
from tests.review.browser.desk import PASSWORDS, Desk, texts

STATIC = Path(__file__).resolve().parents[3] / "review" / "static"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def test_both_languages_have_the_same_texts():
    """The same keys, the same {places}, nothing empty; and every text that the page names is there."""
    english, chinese = texts("en"), texts("zh")
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert text.strip() and chinese[key].strip(), key
        assert sorted(re.findall(r"{\w+}", text)) == sorted(re.findall(r"{\w+}", chinese[key])), key
    named = {
        name for script in STATIC.glob("js/*.js") for name in re.findall(r'\bt\("([\w.-]+)"[,)]', script.read_text())
    }
    assert named and not named - set(english)


def test_every_key_on_the_help_page_has_a_text():
    """The tables of keys name texts that are there."""
    named = {
        name for script in STATIC.glob("js/*.js") for name in re.findall(r'text: "(keys\.\w+)"', script.read_text())
    }
    assert len(named) > 20 and not named - set(texts("en"))


def test_scripts_stay_small():
    """No module of ours has more than 400 lines."""
    assert not [script.name for script in STATIC.glob("js/*.js") if script.read_text().count("\n") > 400]


def axe(desk: Desk, what: str) -> None:
    """axe finds nothing on the page as it is, what OpenSeadragon makes included; in the dark, nothing wrong with contrast."""
    module = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed (set test-browser)"
    )
    rules = {"type": "tag", "values": TAGS}, {"type": "rule", "values": ["color-contrast"]}
    for scheme, only in zip(("light", "dark"), rules, strict=True):
        desk.page.emulate_media(color_scheme=scheme)
        found: dict[str, Any] = module.Axe().run(desk.page, options={"runOnly": only}).response
        assert found["passes"]
        problems = [
            f"{problem['id']}: {node['html'][:160]} {node.get('failureSummary', '')}"
            for problem in found["violations"]
            for node in problem["nodes"]
        ]
        assert not problems, f"{what}, {scheme}\n" + "\n".join(problems)


def test_axe_finds_nothing_on_any_page(sit, server: Server):
    """Sign-in, worklist, slide with a region, keys, signing, log, failed slide, operations: light and dark."""
    desk = sit(server.address, reduced_motion="reduce")
    desk.open()
    desk.page.locator("dialog.sign-in").wait_for()
    axe(desk, "sign-in")
    desk.page.locator("input[name=user]").fill("rosa")
    desk.page.locator("input[name=password]").fill(PASSWORDS["rosa"])
    desk.page.keyboard.press("Enter")
    desk.page.locator("table.worklist tbody a").first.wait_for()
    axe(desk, "worklist")
    desk.slide(LUNG)
    desk.page.locator(".thumb").first.wait_for()
    desk.page.keyboard.press("n")
    for summary in desk.page.locator("summary").all():
        summary.click()
    axe(desk, "slide")
    for key, what in (("?", "keys"), ("s", "signing")):
        desk.page.keyboard.press(key)
        desk.page.locator("dialog[open]").wait_for()
        axe(desk, what)
        desk.page.keyboard.press("Escape")
    desk.page.get_by_role("button", name="Log").click()
    desk.page.locator("dialog[open]").wait_for()
    axe(desk, "log")
    desk.page.keyboard.press("Escape")
    desk.page.get_by_role("link", name="Worklist").click()
    desk.page.get_by_role("link", name=BROKEN).click()
    desk.page.get_by_text("Nothing was examined on it").wait_for()
    axe(desk, "failed slide")
    desk.page.get_by_role("link", name="Operations").click()
    desk.page.get_by_text("Recent failures").wait_for()
    axe(desk, "operations")


def test_chinese_throughout_and_kept(desk: Desk):
    """The switch changes all texts at once, on every page, and the choice is there after a reload."""
    desk.sign_in("rosa")
    desk.page.get_by_label("Language").select_option("zh")
    desk.page.get_by_role("heading", name="工作列表").wait_for()
    desk.page.locator("table.worklist tbody a").first.wait_for()
    shown = desk.page.locator("main").inner_text()
    assert "紧急" in shown and "失败" in shown and "个无法读取" in shown and "Failed" not in shown
    assert desk.page.evaluate("document.documentElement.lang") == "zh-Hans"
    desk.slide(LUNG)
    desk.page.locator(".thumb").first.wait_for()
    desk.page.keyboard.press("n")
    shown = desk.page.locator("main").inner_text()
    assert "接受" in shown and "阈值" in shown and "待定" in shown and "Accept" not in shown
    desk.shows_texts()
    desk.page.reload()
    desk.page.locator(".side").get_by_text("热图", exact=True).wait_for()


def test_a_chinese_browser_gets_chinese(sit, server: Server):
    """Without a choice the browser's language decides."""
    desk = sit(server.address, locale="zh-CN")
    desk.open()
    desk.page.get_by_role("heading", name="登录").wait_for()


def test_single_keys_can_be_switched_off(desk: Desk):
    """WCAG 2.1.4: after the switch a letter does nothing; the arrow keys and Esc still work."""
    desk.sign_in("rosa")
    desk.slide(LUNG)
    desk.page.locator(".thumb").first.wait_for()
    desk.page.keyboard.press("?")
    desk.page.get_by_label("Single letters work as keys").uncheck()
    desk.page.keyboard.press("Escape")
    desk.page.keyboard.press("n")
    assert desk.page.locator(".thumb[aria-current=true]").count() == 0
    desk.page.keyboard.press("Escape")
    desk.page.locator("table.worklist").wait_for()


def test_the_choice_of_brightness_wins_over_the_systems(sit, server: Server):
    """Dark chosen on a light system is dark, also after a reload."""
    desk = sit(server.address, color_scheme="light")
    desk.sign_in("vera")
    brightness = "parseInt(getComputedStyle(document.querySelector('header')).backgroundColor.match(/\\d+/)[0])"
    assert desk.page.evaluate(brightness) > 200
    desk.page.get_by_label("Brightness").select_option("dark")
    assert desk.page.evaluate(brightness) < 60
    desk.page.reload()
    desk.page.locator("header .who").wait_for()
    assert desk.page.evaluate(brightness) < 60
