"""A person at the review page, in a real browser: the steps that every test has in common."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from review.facts import slide_key

if TYPE_CHECKING:
    from playwright.sync_api import Page

PASSWORDS = {"vera": "vera looks at slides", "rosa": "rosa judges slides", "ruth": "ruth judges them too"}
# A missing text shows its key.
KEY_SHOWN = re.compile(
    r"\b(?:worklist|column|state|review|verdict|heat|regions|sign|log|tools|facts|keys|error)\.[a-z_]+"
)


@dataclass
class Desk:
    """`complaints`: what the browser said of errors, policy violations included; a test fails if there are any at its end."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    _under_way: set[Any] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: "/api/events" in request.url or self._under_way.add(request))
        self.page.on("requestfinished", lambda request: self._under_way.discard(request))
        self.page.on("requestfailed", lambda request: self._under_way.discard(request))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        # The browser reports every refusal (401, 403, 409) as an error of its own; the page's answer to it is what is tested.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def open(self, path: str = "/") -> None:
        self.page.goto(self.address + path)

    def sign_in(self, user: str, path: str = "/") -> None:
        """Opens the page and signs in there."""
        self.open(path)
        self.page.locator("dialog.sign-in input[name=user]").fill(user)
        self.page.locator("dialog.sign-in input[name=password]").fill(PASSWORDS[user])
        self.page.locator("dialog.sign-in button.main").click()
        self.page.locator("header .who", has_text=user).wait_for()

    def sign_in_again(self, user: str) -> None:
        """The password, in the dialog that has come over the page."""
        self.page.locator("dialog.sign-in input[name=password]").fill(PASSWORDS[user])
        self.page.keyboard.press("Enter")
        self.page.locator("dialog.sign-in").wait_for(state="detached")

    def slide(self, name: str) -> None:
        """Opens a slide by its address, and waits until picture, patches and regions are there."""
        self.page.evaluate("key => { location.hash = `#/slide/${key}` }", slide_key(name))
        self.page.locator(".side h1", has_text=name).wait_for()
        self.settled()

    def settled(self) -> None:
        self.page.locator(".overlay.heat").wait_for(state="attached")
        self.until("document.querySelector('.scale-bar .zoom')?.textContent")
        self.settle_requests()

    def still(self) -> None:
        """Waits until the view has come to rest, is drawn, and stands in the address. On a slow machine that takes longer."""
        quiet, before = 0, ""
        while quiet < 3:
            self.page.evaluate(_TWO_PICTURES)
            self.page.wait_for_timeout(150)
            quiet = quiet + 1 if self.page.url == before else 0
            before = self.page.url

    def settle_requests(self) -> None:
        """Waits until the page has asked for nothing for 200 ms."""
        quiet = 0
        while quiet < 4:
            self.page.wait_for_timeout(50)
            quiet = 0 if self._under_way else quiet + 1

    def api(self, path: str) -> Any:
        """What the server says to the person who is signed in here."""
        return self.page.evaluate("path => fetch(path).then((answer) => answer.json())", path)

    def review(self, name: str) -> dict[str, Any]:
        return self.api(f"/api/slides/{slide_key(name)}/review")

    def verdicts(self, name: str) -> dict[str, str | None]:
        return {finding["id"]: finding["verdict"] for finding in self.review(name)["findings"]}

    def until(self, script: str, limit_s: float = 30.0) -> None:
        """Waits until a script in the page gives something true. (Playwright's own waiting needs eval in the page, which
        the page's policy forbids.)"""
        deadline = time.monotonic() + limit_s
        while not self.page.evaluate(script):
            assert time.monotonic() < deadline, f"not within {limit_s:.0f} s: {script}"
            self.page.wait_for_timeout(50)

    def heat(self, x: float, y: float) -> list[int]:
        """The heatmap's RGBA over a level-0 pixel, as it is on the screen (before it is laid over the slide)."""
        return self.page.evaluate(_PIXEL, [x, y])

    def heat_around(self, x: float, y: float, size: int) -> list[list[int]]:
        """Distinct RGBA values within `size` device px around it."""
        return self.page.evaluate(_PIXELS, [x, y, size])

    def shows_texts(self) -> None:
        """No text of the page is a key that a language lacks."""
        shown = self.page.evaluate("document.body.innerText")
        assert not KEY_SHOWN.search(shown), KEY_SHOWN.search(shown)


# What was asked to be drawn before is drawn after this.
_TWO_PICTURES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
# Where a level-0 pixel is on the screen is computed here from the link in the address, not by the page's own matrix.
_PLACE = """
const canvas = document.querySelector(".overlay.heat");
const values = new URLSearchParams(location.hash.split("?")[1]);
const scale = Number(values.get("s"));
const left = (x - Number(values.get("x"))) * scale + canvas.clientWidth / 2;
const top = (y - Number(values.get("y"))) * scale + canvas.clientHeight / 2;
const ratio = canvas.width / canvas.clientWidth;
const context = canvas.getContext("2d");
"""
_PIXEL = f"""([x, y]) => {{ {_PLACE}
return [...context.getImageData(Math.round(left * ratio), Math.round(top * ratio), 1, 1).data]; }}"""
_PIXELS = f"""([x, y, size]) => {{ {_PLACE}
const data = context.getImageData(Math.round(left * ratio - size / 2), Math.round(top * ratio - size / 2), size, size).data;
const found = new Set();
for (let i = 0; i < data.length; i += 4) found.add(data.slice(i, i + 4).join());
return [...found].map((value) => value.split(",").map(Number)); }}"""


def texts(language: str) -> dict[str, str]:
    """All texts of the page in a language."""
    folder = Path(__file__).resolve().parents[3] / "review" / "static" / "i18n"
    return json.loads((folder / f"{language}.json").read_text(encoding="utf-8"))
