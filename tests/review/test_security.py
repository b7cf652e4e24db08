"""Headers, errors, roles, tokens, and where the page may listen: over real HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from review import guard, routes, security, users
from review.errors import ReviewError
from review.facts import slide_key
from review.security import Listening, check_listening
from tests.review.page import PASSWORD, Page, serve

KEY = slide_key("ward/甲 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("review")
    for role in users.ROLES:
        users.add_user(path / "users.json", role, role, PASSWORD)
    return path


@pytest.fixture
def page(folder: Path, tmp_path: Path) -> Iterator[Page]:
    # The clock stands still: what is told to wait waits, however slow the machine is.
    with serve(guard.password_users(folder / "users.json", None, tls=False, clock=lambda: 1e9), tmp_path) as running:
        yield running


def test_nobody_sees_anything_without_signing_in(page: Page) -> None:
    """Every route but the sign-in answers 401, and says no more."""
    for path in (
        "/api/session",
        f"/api/slides/{KEY}/review",
        f"/api/slides/{KEY}/log",
        f"/api/slides/{KEY}/export/csv",
    ):
        answer = page.browser().ask("GET", path)
        assert answer.status == 401
        assert answer.json == {"error": "sign in first", "code": "signed_out"}


def test_a_right_password_gives_a_cookie_that_no_script_reads(page: Page) -> None:
    """HttpOnly, SameSite=Strict, for the browser's session."""
    browser = page.browser()
    answer = browser.sign_in("reviewer")
    assert answer.status == 200 and answer.json["role"] == "reviewer"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "expires" not in cookie
    assert browser.ask("GET", "/api/session").json["csrf"] == browser.csrf


def test_over_tls_the_cookie_is_bound_to_this_host(folder: Path, tmp_path: Path) -> None:
    """Secure, and named __Host-."""
    with serve(guard.password_users(folder / "users.json", None, tls=True), tmp_path) as page:
        cookie = page.browser().sign_in("viewer").headers["set-cookie"]
    assert cookie.startswith("__Host-slidestream=") and "Secure" in cookie and "Path=/" in cookie


def test_behind_a_proxy_with_tls_the_cookie_is_secure(folder: Path, tmp_path: Path) -> None:
    """Where a known proxy says https; anybody else's word makes no difference."""
    for proxies, secure in ((["127.0.0.1"], True), ([], False)):
        kept = guard.password_users(folder / "users.json", None, tls=False, proxies=proxies)
        with serve(kept, tmp_path) as page:
            answer = page.browser(x_forwarded_proto="https").sign_in("viewer")
        assert ("Secure" in answer.headers["set-cookie"]) == secure


def test_a_wrong_password_and_an_unknown_user_are_told_alike(page: Page) -> None:
    """The same status and the same words."""
    wrong, unknown = page.browser().sign_in("viewer", "x" * 20), page.browser().sign_in("nobody", "x" * 20)
    assert wrong.status == unknown.status == 401 and wrong.body == unknown.body


def test_guessing_is_braked_for_known_and_unknown_users(page: Page) -> None:
    """After five failures 429 with Retry-After, even with the right password; another user is not touched."""
    for name in ("viewer", "ghost"):
        codes = [page.browser().sign_in(name, "guess number").status for _ in range(6)]
        assert codes == [401] * 5 + [429]
    late = page.browser().sign_in("viewer")
    assert late.status == 429 and int(late.headers["retry-after"]) >= 1
    assert page.browser().sign_in("admin").status == 200


def test_strangers_cannot_lock_a_user_out(folder: Path, tmp_path: Path) -> None:
    """From where the user has signed in before, guesses from elsewhere make no difference, nor do they to a signature."""
    proxies = ["127.0.0.1"]
    kept = guard.password_users(folder / "users.json", None, tls=False, proxies=proxies, clock=lambda: 1e9)
    with serve(kept, tmp_path) as page:
        mine = page.browser(x_forwarded_for="192.0.2.1")
        assert mine.sign_in("reviewer").status == 200
        codes = [page.browser(x_forwarded_for="198.51.100.9").sign_in("reviewer", "guess").status for _ in range(6)]
        assert codes == [401] * 5 + [429]
        assert page.browser(x_forwarded_for="203.0.113.5").sign_in("reviewer").status == 429
        assert page.browser(x_forwarded_for="192.0.2.1").sign_in("reviewer").status == 200
        mine.act(KEY, None, "open")
        assert mine.act(KEY, 1, "sign", statement="seen", password=PASSWORD).status == 200


def test_one_address_cannot_try_all_users(page: Page) -> None:
    """After twenty failures with twenty names the address waits, and an account of one's own does not reset that."""
    codes = [page.browser().sign_in(f"user {number}", "guess number").status for number in range(19)]
    assert set(codes) == {401}
    assert page.browser().sign_in("admin").status == 200
    assert [page.browser().sign_in(f"other {number}", "guess").status for number in range(2)] == [401, 429]


def test_a_crowd_that_signs_in_leaves_room_for_others(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """While hashes are slow, what others ask is answered, and no more than a few wait."""
    browser, go = page.browser(), threading.Event()
    browser.sign_in("viewer")
    monkeypatch.setattr(guard, "matches", lambda user, password: go.wait(30) and False)
    codes: list[int] = []
    crowd = [
        threading.Thread(target=lambda number=number: codes.append(page.browser().sign_in(f"u{number}", "x").status))
        for number in range(60)
    ]
    try:
        for thread in crowd:
            thread.start()
        assert browser.ask("GET", f"/api/slides/{KEY}/review").status == 200
    finally:
        go.set()
        for thread in crowd:
            thread.join(30)
    # The others are sent away: there are too many at once, or too many from one address.
    assert len(codes) == 60 and set(codes) <= {401, 429, 503}
    assert codes.count(401) <= routes.SIGNING_IN_MOST + users.HASHES_AT_A_TIME


def test_signing_out_ends_the_session(page: Page) -> None:
    """The old cookie is good for nothing."""
    browser = page.browser()
    browser.sign_in("viewer")
    old = browser.cookie
    assert browser.ask("DELETE", "/api/session").status == 200
    assert page.browser(cookie=old).ask("GET", "/api/session").status == 401


def test_signing_in_again_ends_the_session_before(page: Page) -> None:
    """No token from before a sign-in is good after it (session fixation)."""
    browser = page.browser()
    browser.sign_in("viewer")
    old = browser.cookie
    browser.sign_in("viewer")
    assert browser.cookie != old and page.browser(cookie=old).ask("GET", "/api/session").status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"x_csrf": ""},
        {"x_csrf": "0" * 64},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
def test_a_change_from_another_page_is_refused(page: Page, headers: dict[str, str]) -> None:
    """Without the token, or where the browser says it comes from elsewhere; nothing is written."""
    browser = page.browser()
    browser.sign_in("reviewer")
    answer = browser.ask("POST", f"/api/slides/{KEY}/acts", {"act": "open"}, **headers)
    assert answer.status == 403 and answer.json["code"] == "csrf"
    assert page.log.head.n == 0


def test_the_token_of_another_session_is_refused(page: Page) -> None:
    """Each session has its own."""
    one, other = page.browser(), page.browser()
    one.sign_in("reviewer"), other.sign_in("reviewer")
    one.csrf = other.csrf
    assert one.act(KEY, None, "open").json["code"] == "csrf"


def test_a_form_of_another_site_is_refused(page: Page) -> None:
    """Only application/json is read: a cross-site form cannot send that."""
    answer = page.browser().ask("POST", "/api/session", b"user=a&password=b", content_type="text/plain")
    assert answer.status == 415


def test_a_viewer_may_look_and_not_act(page: Page) -> None:
    """403 with the role that it needs; nothing is written."""
    browser = page.browser()
    browser.sign_in("viewer")
    assert browser.ask("GET", f"/api/slides/{KEY}/review").status == 200
    for act in ("open", "sign", "reopen", "verdict"):
        answer = browser.act(
            KEY, 0, act, statement="x", password=PASSWORD, reason="x", finding="r1", verdict="accepted"
        )
        assert (answer.status, answer.json["code"]) == (403, "role")
    assert page.log.head.n == 0


def test_a_removed_user_and_a_changed_role_count_at_once(page: Page, folder: Path) -> None:
    """Sessions that are open follow the users' file."""
    file = folder / "users.json"
    users.add_user(file, "temp", "reviewer", PASSWORD)
    browser, second = page.browser(), page.browser()
    browser.sign_in("temp"), second.sign_in("temp")
    users.set_role(file, "temp", "viewer")
    assert browser.act(KEY, None, "open").json["code"] == "role"
    users.set_password(file, "temp", "quite another password")
    assert browser.ask("GET", "/api/session").status == 401
    users.remove_user(file, "temp")
    assert second.ask("GET", "/api/session").status == 401


def test_every_answer_has_the_headers(page: Page) -> None:
    """Good ones and errors; answers of the API are never stored."""
    for path in ("/api/session", "/api/none", "/", "/api/slides/x/acts"):
        headers = page.browser().ask("GET", path).headers
        for name, value in security.HEADERS.items():
            assert headers[name] == value
        assert headers["cache-control"] == ("no-store" if path.startswith("/api") else "no-cache")
        assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/slides/../../etc/passwd/review",
        "/api/slides/%2e%2e%2f%2e%2e/review",
        "/api/slides/%00/review",
        f"/api/slides/{KEY}/export/..%2f..%2fusers.json",
        f"/api/slides/{KEY}/export/exe",
        "/api/slides/ffffffffffffffffffff/log",
    ],
)
def test_what_is_not_there_is_404_without_a_word_of_why(page: Page, path: str) -> None:
    """No path leads out of the results."""
    browser = page.browser()
    browser.sign_in("viewer")
    answer = browser.ask("GET", path)
    assert answer.status == 404 and set(answer.json) == {"error", "code"}
    assert b"Traceback" not in answer.body and b"/" not in answer.body


def test_a_fault_inside_tells_nothing(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with one stable word; what failed is not in it."""
    browser = page.browser()
    browser.sign_in("viewer")

    def fail(*_: object) -> None:
        raise RuntimeError("the secret is in /srv/keys")

    monkeypatch.setattr(page.slides, "facts", fail)
    answer = browser.ask("GET", f"/api/slides/{KEY}/review")
    assert answer.status == 500 and answer.json["code"] == "fault" and b"secret" not in answer.body


def test_a_body_without_end_is_refused(page: Page) -> None:
    """More than 256 KiB is not read, signed in or not."""
    answer = page.browser().ask("POST", "/api/session", b" " * (300 << 10))
    assert answer.status == 413


def test_deep_and_broken_json_is_400(page: Page) -> None:
    """Whatever is sent, it is no fault."""
    for body in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"user": NaN'):
        assert page.browser().ask("POST", "/api/session", body).status == 400


def test_without_users_there_is_one_reviewer(tmp_path: Path) -> None:
    """Shown as such; acts need the token all the same."""
    with serve(guard.implicit("pathologist"), tmp_path) as page:
        browser = page.browser().start()
        session = browser.ask("GET", "/api/session").json
        assert session["implicit"] and session["user"] == "pathologist" and not session["sign_password"]
        assert browser.act(KEY, None, "open").status == 200
        assert page.browser().act(KEY, None, "open").json["code"] == "csrf"
        assert page.browser().sign_in("a").json["code"] == "no_passwords"


def test_without_users_no_proxy_is_answered(tmp_path: Path) -> None:
    """Everybody behind it would be the one reviewer."""
    with serve(guard.implicit("pathologist"), tmp_path) as page:
        assert page.browser(x_forwarded_for="10.0.0.9").ask("GET", "/api/session").json["code"] == "proxy"


def test_a_proxy_says_who_it_is(tmp_path: Path, folder: Path) -> None:
    """With a role from the users' file, or the default one; names are UTF-8."""
    single = guard.trusted_header("X-Remote-User", ["127.0.0.1"], folder / "users.json", "viewer")
    with serve(single, tmp_path) as page:
        known = page.browser(x_remote_user="reviewer").start()
        assert known.ask("GET", "/api/session").json["role"] == "reviewer"
        assert known.act(KEY, None, "open").status == 200
        stranger = page.browser(x_remote_user="王".encode().decode("latin-1")).ask("GET", "/api/session").json
        assert (stranger["user"], stranger["role"]) == ("王", "viewer")
        assert page.browser().ask("GET", "/api/session").status == 401
        assert page.browser(x_remote_user="a\x09b").ask("GET", "/api/session").status == 403


def test_a_header_from_elsewhere_is_refused(tmp_path: Path, folder: Path) -> None:
    """Only the proxy's address is believed, whatever else the request says."""
    single = guard.trusted_header("X-Remote-User", ["10.9.8.7"], folder / "users.json")
    with serve(single, tmp_path) as page:
        browser = page.browser(x_remote_user="admin", x_forwarded_for="10.9.8.7")
        answer = browser.ask("GET", "/api/session")
        assert (answer.status, answer.json["code"]) == (403, "proxy")


@pytest.mark.parametrize(
    ("header", "proxies", "role"),
    [
        ("X-User", [], "viewer"),
        ("X-User", ["0.0.0.0/0"], "viewer"),
        ("X-User", ["10.0.0.1"], None),
        ("a b", ["::1"], "viewer"),
    ],
)
def test_a_header_that_anybody_could_send_is_not_configured(header: str, proxies: list[str], role: str | None) -> None:
    """A proxy's address and a role are needed."""
    with pytest.raises(ReviewError):
        guard.trusted_header(header, proxies, None, role)


@pytest.mark.parametrize(
    ("how", "good"),
    [
        (Listening(host="127.0.0.1", users=False, tls=False), True),
        (Listening(host="::1", users=False, tls=False), True),
        (Listening(host="localhost", users=False, tls=False), True),
        (Listening(host="0.0.0.0", users=False, tls=True), False),
        (Listening(host="0.0.0.0", users=True, tls=False), False),
        (Listening(host="::", users=True, tls=False), False),
        (Listening(host="10.0.0.5", users=True, tls=True), True),
        (Listening(host="10.0.0.5", users=False, trusted=True, tls=True), True),
        (Listening(host="localhost.evil.example", users=False, tls=False), False),
        (Listening(host="10.0.0.5", users=False, tls=False, override=True), True),
    ],
)
def test_others_reach_it_only_with_users_and_tls(how: Listening, good: bool) -> None:
    """Loopback always; elsewhere only so, or when it was said explicitly."""
    if good:
        check_listening(how)
    else:
        with pytest.raises(ReviewError):
            check_listening(how)


def test_addresses_behind_a_proxy_are_told_apart() -> None:
    """The last hop that is no proxy; what a client wrote before it is not believed, and an IPv6 house is one."""
    from starlette.requests import Request

    def asked(peer: str, *hops: str) -> str:
        headers = [(b"x-forwarded-for", hop.encode()) for hop in hops]
        request = Request({"type": "http", "client": (peer, 1), "headers": headers})
        return security.house(security.asker(request, security.networks(["10.0.0.1", "10.0.0.2"])))

    assert asked("10.0.0.1", "6.6.6.6, 192.0.2.7") == "192.0.2.7"
    assert asked("10.0.0.1", "6.6.6.6", "192.0.2.7, 10.0.0.2") == "192.0.2.7"
    assert asked("192.0.2.9", "6.6.6.6") == "192.0.2.9"
    assert asked("2001:db8::1:2") == asked("2001:db8::9") != asked("2001:db8:0:1::9")
    assert asked("::ffff:192.0.2.9") == "192.0.2.9"


def test_an_open_stream_learns_that_its_user_is_gone(folder: Path, tmp_path: Path) -> None:
    """`alive` says no after sign-out and after another role."""
    from starlette.requests import Request

    kept = guard.password_users(folder / "users.json", None, tls=False, clock=time.time)
    scope = {"type": "http", "client": ("127.0.0.1", 1), "headers": [(b"host", b"x")], "method": "POST"}
    token, identity = kept.sign_in(Request(scope), "admin", PASSWORD)
    assert kept.alive(identity)
    users.set_role(folder / "users.json", "admin", "viewer")
    assert not kept.alive(identity)
    users.set_role(folder / "users.json", "admin", "admin")
    kept.sign_out(identity)
    assert token and not kept.alive(identity)
