"""Signatures: over what, and when."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from review import acts, guard, signoff
from review.acts import NotAllowed, Review, Row
from review.facts import slide_key
from tests.review.page import MadeUp, facts, region, serve

KEY = slide_key("ward/甲 1")


def reviewed(**fields: Any) -> Review:
    region_fields = acts.region_fields(region())
    values = {"finding": "r1", "verdict": "accepted", "region": region_fields, **fields}
    return acts.apply(Review(), Row(1, "2026-11-24T00:00:00Z", "anna", KEY, "verdict", values, "", ""))


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_what_is_still_read_is_not_signed(state: str) -> None:
    """What is unread must not look like nothing found."""
    with pytest.raises(NotAllowed) as caught:
        signoff.sign_fields(reviewed(), facts(state=state), "s")
    assert caught.value.code == "not_finished"


def test_a_signature_names_what_it_is_over() -> None:
    """Result, model, failed patches and verdicts; another verdict, result or outline gives another document."""
    fields = signoff.sign_fields(reviewed(), facts(state="partial"), "s")
    assert fields["verdicts"] == {"accepted": 1} and fields["state"] == "partial" and fields["result"] == "cd" * 32
    others = [
        signoff.sign_fields(reviewed(verdict="rejected"), facts(state="partial"), "s"),
        signoff.sign_fields(reviewed(), facts(state="partial", result="ee"), "s"),
        signoff.sign_fields(reviewed(), facts(state="partial", model={"sha256": "other"}), "s"),
        signoff.sign_fields(reviewed(), facts(state="complete"), "s"),
    ]
    assert len({fields["document"], *(other["document"] for other in others)}) == 5
    assert signoff.sign_fields(reviewed(), facts(state="partial"), "other words")["document"] == fields["document"]


def test_results_that_changed_after_signing_are_shown(tmp_path: Path) -> None:
    """The signature stands, and the document says that it is about other results."""
    with serve(guard.implicit("anna"), tmp_path) as page:
        browser = page.browser().start()
        browser.act(KEY, None, "open")
        signed = browser.act(KEY, 1, "sign", statement="seen").json
        assert signed["state"] == "signed" and not signed["outdated"]
        page.slides.slides[KEY] = facts(result="ff" * 32)
        assert browser.ask("GET", f"/api/slides/{KEY}/review").json["outdated"]


def test_over_a_broken_log_nothing_is_done(tmp_path: Path) -> None:
    """A row changed under a page that had read it is seen when it counts: 503 with a stable code for acts and exports. What
    exactly is wrong is for the operator."""
    with serve(guard.implicit("anna"), tmp_path) as page:
        browser = page.browser().start()
        browser.act(KEY, None, "open")
        with sqlite3.connect(tmp_path / "review.sqlite") as connection:
            connection.execute("DROP TRIGGER acts_stay")
            connection.execute("UPDATE acts SET user = 'bo'")
        connection.close()
        for answer in (
            browser.act(KEY, 1, "sign", statement="seen"),
            browser.ask("GET", f"/api/slides/{KEY}/export/csv"),
            browser.ask("GET", f"/api/slides/{KEY}/log"),
            browser.act(KEY, 1, "comment", finding="r1", comment="x"),
        ):
            assert (answer.status, answer.json["code"]) == (503, "log_broken") and b"row" not in answer.body


def test_a_signature_is_of_the_result_that_was_seen(tmp_path: Path) -> None:
    """Where the slide has been analysed again since, 409 and nothing is signed; with the result as it is now, it is."""
    with serve(guard.implicit("anna"), tmp_path) as page:
        browser = page.browser().start()
        seen = browser.act(KEY, None, "open").json["result"]
        page.slides.slides[KEY] = facts(result="ef" * 32)
        refused = browser.act(KEY, 1, "sign", statement="seen", result=seen)
        assert (refused.status, refused.json["code"]) == (409, "result_changed")
        now = refused.json["review"]
        assert (now["state"], now["result"]) == ("in_review", "ef" * 32)
        assert browser.act(KEY, 1, "sign", statement="seen", result=now["result"]).json["state"] == "signed"


def test_a_slide_that_nobody_opened_is_not_signed(tmp_path: Path) -> None:
    """409 over HTTP; also while it runs."""
    with serve(guard.implicit("anna"), tmp_path, MadeUp(facts(), facts("b", state="running"))) as page:
        browser = page.browser().start()
        assert browser.act(KEY, 0, "sign", statement="seen").json["code"] == "not_opened"
        running = slide_key("b")
        browser.act(running, None, "open")
        answer = browser.act(running, 1, "sign", statement="seen")
        assert (answer.status, answer.json["code"]) == (409, "not_finished")
        assert browser.act(KEY, 0, "reopen", reason="x").json["code"] == "not_signed"


def test_one_value_has_one_canonical_form() -> None:
    """Order of names and spelling of letters make no difference; NaN is refused."""
    assert signoff.canonical({"b": 1, "a": "甲"}) == '{"a":"\\u7532","b":1}'
    with pytest.raises(ValueError):
        signoff.canonical(float("nan"))
