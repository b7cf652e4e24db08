"""What may be submitted, what a reload changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.control import Later, Refusal
from pipeline.service.desk import confine, differences
from pipeline.service.state import SYSTEM, find, own_state


@pytest.fixture
def roots(tmp_path: Path) -> list[str]:
    for name in ("in/ward", "out"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("in/a.svs", "in/ward/b.svs", "in/notes.txt", "out/c.svs"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in/inner.svs").symlink_to(tmp_path / "in/a.svs")
    (tmp_path / "in/outer.svs").symlink_to(tmp_path / "out/c.svs")
    (tmp_path / "in/elsewhere").symlink_to(tmp_path / "out")
    return [str(tmp_path / "in"), str(tmp_path / "in/ward")]


@pytest.mark.parametrize(("path", "root"), [("in/a.svs", "in"), ("in/ward/b.svs", "in/ward"), ("in/inner.svs", "in")])
def test_a_slide_in_a_folder_may_be_submitted(tmp_path: Path, roots: list[str], path: str, root: str) -> None:
    """The innermost folder names its results."""
    assert confine(str(tmp_path / path), roots) == str(tmp_path / root)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("in/outer.svs", "leads out of"),
        ("in/elsewhere/c.svs", "leads out of"),
        ("out/c.svs", "service.submit_from"),
        ("in/../out/c.svs", "without .."),
        ("in/notes.txt", "is no slide"),
        ("in/ward", "service.submit_from|is no slide"),
    ],
)
def test_nothing_else_may(tmp_path: Path, roots: list[str], path: str, words: str) -> None:
    """Neither through a link nor by .., whatever the message says."""
    with pytest.raises(Refusal, match=words):
        confine(f"{tmp_path}/{path}", roots)
    with pytest.raises(Refusal):
        confine(path, roots)


def test_differences_name_what_changed() -> None:
    """A list is one value; sections are looked into."""
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert differences(old, {"a": {"b": 2, "c": [1, 3]}, "d": 1}) == ["a.b", "a.c"]
    assert differences(old, old) == []


def test_the_state_folder_is_found(tmp_path: Path) -> None:
    """What is named, what the configuration says, systemd's, the user's."""
    file = tmp_path / "c.yaml"
    file.write_text("service: {state: /var/x}\n")
    assert find(tmp_path, file) == tmp_path and find(None, file) == Path("/var/x")
    assert own_state({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert own_state({"XDG_STATE_HOME": "/s"}) == Path("/s/slidestream")
    assert own_state({"HOME": "/home/x"}) == Path("/home/x/.local/state/slidestream")
    assert SYSTEM == Path("/var/lib/slidestream")


def test_an_answer_may_come_later_or_at_once() -> None:
    """It goes out as soon as both are there: the answer, and the way to send it."""
    sent: list[dict] = []
    early, late = Later(), Later()
    early.answer({"said": "one"})
    early.send_with(sent.append)
    late.send_with(sent.append)
    late.refuse("two")
    assert sent == [{"ok": True, "said": "one"}, {"ok": False, "said": "two"}]
