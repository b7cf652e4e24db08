"""Sessions, and the brake on guessing."""

from __future__ import annotations

import stat
from pathlib import Path

from review import sessions
from review.sessions import Limiter, Pace, Sessions


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_the_file_has_no_token(tmp_path: Path) -> None:
    """Whoever reads the sessions' file cannot be anybody by it."""
    file = tmp_path / "s.sqlite"
    kept = Sessions(file)
    token, session = kept.start("anna", b"stamp")
    kept.close()
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in everything and session.csrf.encode() not in everything
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_session_outlives_a_restart(tmp_path: Path) -> None:
    """The token is good for another server over the same file, with the same X-CSRF."""
    first = Sessions(tmp_path / "s.sqlite")
    token, session = first.start("anna", b"stamp")
    first.close()
    found = Sessions(tmp_path / "s.sqlite").find(token)
    assert found is not None and (found.name, found.csrf) == ("anna", session.csrf)


def test_an_idle_session_ends() -> None:
    """After IDLE_S without use; what the page asks by itself is no use."""
    clock = Clock()
    kept = Sessions(None, clock=clock)
    token, _ = kept.start("anna", b"")
    for _ in range(3):
        clock.now += sessions.IDLE_S / 2
        assert kept.find(token)
    clock.now += sessions.IDLE_S / 2
    assert kept.find(token, touch=False)
    clock.now += sessions.IDLE_S / 2
    assert kept.find(token) is None


def test_a_session_in_use_ends_at_last() -> None:
    """ABSOLUTE_S after the sign-in, however busy."""
    clock = Clock()
    kept = Sessions(None, clock=clock)
    token, _ = kept.start("anna", b"")
    end = clock.now + sessions.ABSOLUTE_S
    while clock.now + 600 < end:
        clock.now += 600
        assert kept.find(token)
    clock.now = end
    assert kept.find(token) is None


def test_other_tokens_find_nothing() -> None:
    """Neither guesses nor tokens of sessions that were ended."""
    kept = Sessions(None)
    token, _ = kept.start("anna", b"")
    assert kept.find(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
    kept.end(token)
    assert kept.find(token) is None


def test_sessions_of_a_user_are_bounded() -> None:
    """The oldest ends."""
    clock = Clock()
    kept = Sessions(None, clock=clock)
    tokens = []
    for _ in range(sessions.PER_USER + 1):
        clock.now += 1
        tokens.append(kept.start("anna", b"")[0])
    assert kept.find(tokens[0]) is None
    assert all(kept.find(token) for token in tokens[1:])


def test_guessing_gets_slower() -> None:
    """After the free attempts the wait doubles, up to its bound."""
    limiter, now, waits = Limiter(Pace(free=2, most_s=8.0)), 0.0, []
    for _ in range(8):
        wait = limiter.attempt("anna", now)
        if wait:
            waits.append(wait)
            now += wait
            assert limiter.attempt("anna", now) == 0
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0] and max(waits) == 8.0


def test_attempts_count_before_they_are_decided() -> None:
    """A hundred at once are not a hundred free ones."""
    limiter = Limiter(Pace(free=5, most_s=60.0))
    assert sum(limiter.attempt("anna", 0.0) == 0 for _ in range(100)) == 5


def test_success_and_time_forgive() -> None:
    """Both begin anew."""
    limiter = Limiter(Pace(free=1, most_s=60.0, forget_s=100.0))
    assert limiter.attempt("anna", 0.0) == 0 and limiter.attempt("anna", 0.0) > 0
    limiter.succeeded("anna")
    assert limiter.attempt("anna", 0.0) == 0 and limiter.attempt("anna", 0.5) > 0
    assert limiter.attempt("anna", 101.0) == 0


def test_memory_of_failures_is_bounded() -> None:
    """The oldest are forgotten."""
    limiter = Limiter(Pace(free=1, most_s=60.0), most=10)
    for number in range(1000):
        limiter.attempt(str(number), 0.0)
    assert len(limiter._failures) == 10
