"""The users' file."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from review import users
from review.errors import UsersError

PASSWORD = "correct horse battery"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users.json"
    users.add_user(path, "王丽", "reviewer", PASSWORD)
    return path


def command(*arguments: str, words: str = "") -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "user", *arguments],
        input=words,
        text=True,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )


def test_a_user_is_kept_as_a_hash_that_only_the_owner_may_read(file: Path) -> None:
    """The file has mode 0600 and an Argon2id hash, and the password is nowhere in it."""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PASSWORD not in file.read_text()
    assert json.loads(file.read_text())["users"]["王丽"]["password"].startswith("$argon2id$")


def test_only_the_right_password_matches(file: Path) -> None:
    """Another password, no user and a user without a password match nothing."""
    found = users.read_users(file)[users.name_key("王丽")]
    assert users.matches(found, PASSWORD)
    assert not users.matches(found, PASSWORD + " ")
    assert not users.matches(None, PASSWORD)
    assert not users.matches(users.User("a", "viewer", None, ""), "")


def test_a_user_who_is_not_there_takes_as_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Argon2 computation with the same parameters, whoever is asked for: time tells nobody who has an account."""
    asked = []
    real = users._hasher.verify
    monkeypatch.setattr(
        type(users._hasher), "verify", lambda self, stored, text: asked.append(stored) or real(stored, text)
    )
    users.matches(None, "something")
    users.matches(users.User("a", "viewer", users.hash_password(PASSWORD), ""), "something")
    assert len(asked) == 2
    assert asked[0].rpartition("$")[0].rpartition("$")[0] == asked[1].rpartition("$")[0].rpartition("$")[0]


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 65, "a\u202eb"])
def test_a_name_that_could_deceive_is_refused(name: str) -> None:
    """Control characters, blanks at the ends and endless names are refused."""
    with pytest.raises(UsersError):
        users.check_name(name)


def test_names_that_look_alike_are_one(file: Path) -> None:
    """Case and compatibility forms make no second user."""
    users.add_user(file, "Li", "viewer", PASSWORD)
    with pytest.raises(UsersError, match="is there already"):
        users.add_user(file, "ＬＩ", "admin", PASSWORD)


@pytest.mark.parametrize("password", ["short", "aaaaaaaaaaaaaaaa", "anna1234", "x" * 300])
def test_a_weak_password_is_refused(password: str) -> None:
    """Too short, one letter, the name with some digits, or endless."""
    with pytest.raises(UsersError):
        users.check_password("anna", password)


def test_role_password_and_removal_change_what_they_name(file: Path) -> None:
    """Each leaves the rest as it was."""
    users.add_user(file, "b", "viewer", PASSWORD)
    users.set_role(file, "b", "admin")
    users.set_password(file, "b", "another long password")
    found = users.read_users(file)["b"]
    assert found.role == "admin" and users.matches(found, "another long password")
    users.remove_user(file, "b")
    assert list(users.read_users(file)) == [users.name_key("王丽")]
    with pytest.raises(UsersError, match="no user"):
        users.remove_user(file, "b")


def test_two_edits_at_once_both_count(file: Path) -> None:
    """Editors wait for each other; none is lost."""
    threads = [
        threading.Thread(target=users.add_user, args=(file, f"u{number}", "viewer", None)) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(users.read_users(file)) == 9


def test_a_file_that_others_may_read_is_refused(file: Path) -> None:
    """As with a key of ssh."""
    file.chmod(0o640)
    with pytest.raises(UsersError, match="chmod 600"):
        users.read_users(file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "slidestream-users/1"}',
        '{"format": "slidestream-users/1", "users": {"a": {"role": "king", "password": null}}}',
        '{"format": "slidestream-users/1", "users": {"a": {"role": "viewer", "password": "secret"}}}',
        '{"format": "slidestream-users/1", "users": {"a": {"role": "viewer", "password": null}, "A": {"role": "admin", "password": null}}}',
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_one_line(file: Path, text: str) -> None:
    """Whatever is in it."""
    file.write_text(text)
    with pytest.raises(UsersError) as caught:
        users.read_users(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_the_server_sees_changes_and_a_broken_file_lets_nobody_in(file: Path) -> None:
    """Read again when it changes; damaged, it is as if it had no users."""
    server = users.Users(file)
    assert server.get("王丽").role == "reviewer"
    users.set_role(file, "王丽", "viewer")
    assert server.get("王丽").role == "viewer"
    file.write_text("{")
    assert server.get("王丽") is None and "JSON" in server.problem


def test_the_command_line_manages_the_file(tmp_path: Path) -> None:
    """Passwords come from standard input; errors are one line and exit code 2."""
    path = str(tmp_path / "users.json")
    assert command("add", "anna", "--role", "reviewer", "--users", path, words=f"{PASSWORD}\n").returncode == 0
    assert command("passwd", "anna", "--users", path, words="quite another password\n").returncode == 0
    assert command("role", "anna", "admin", "--users", path).returncode == 0
    assert "$m=65536,t=3,p=4$" in Path(path).read_text(), "the second recommended option of RFC 9106"
    listed = command("list", "--users", path)
    assert listed.stdout.startswith("anna\tadmin\tpassword\t") and "argon2" not in listed.stdout
    wrong = command("add", "bob", "--role", "king", "--users", path, words=f"{PASSWORD}\n")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    short = command("passwd", "anna", "--users", path, words="short\n")
    assert short.returncode == 2 and "12 are needed" in short.stderr
    assert users.matches(users.read_users(Path(path))["anna"], "quite another password")
    assert command("remove", "anna", "--users", path).returncode == 0
