"""Who asks, and whether that is allowed: one guard for every route of the review page.

    guard = password_users(Path("users.json"), Path("OUT/review-sessions.sqlite"), tls=True)
    identity = guard.require(request, "reviewer")      # Refused (401, 403) otherwise

Three ways in: a password and a cookie; a header that a proxy with single sign-on sets; or, on loopback without users, nobody
asks and one reviewer is meant. Behind all of them a changing request must carry the session's X-CSRF.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from pipeline import log
from review.errors import Refused, ReviewError, UsersError
from review.security import Network, among, asker, house, networks, peer, same_origin
from review.sessions import ADDRESS_PACE, USER_PACE, Limiter, Session, Sessions
from review.users import ROLES, User, Users, check_name, check_role, matches, name_key

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
KNOWN_MOST = 10_000
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `expires`: seconds since 1970, or None; `token` only the guard needs."""

    user: str
    role: str
    csrf: str
    way: str
    expires: float | None = None
    token: str | None = None

    @property
    def implicit(self) -> bool:
        """Whether nobody signed in: the one user of a page without users."""
        return self.way == "implicit"


class Way(Protocol):
    """How somebody is known."""

    sign_password: bool  # whether a signature asks for the password again

    def who(self, request: Request, touch: bool) -> Identity | None:
        """Who asks; None where nobody is signed in. Refused where the request must not be answered at all."""

    def alive(self, identity: Identity) -> bool:
        """Whether this identity would still be let in."""


class Guard:
    """See above. `sign_in`, `check_password` and `sign_out` do something only where there are passwords."""

    def __init__(self, way: Way) -> None:
        self._way = way

    @property
    def sign_password(self) -> bool:
        """Whether a signature needs the password again."""
        return self._way.sign_password

    def require(self, request: Request, role: str, touch: bool = True) -> Identity:
        """Who asks, where they may do what `role` may. Refused otherwise: 401 where nobody is signed in, else 403.

        A request that may change something must have X-CSRF and come from this page. `touch=False`: the page asks by
        itself, which keeps no session alive.
        """
        if role not in ROLES:
            raise ValueError(f"no such role: {role}")
        identity = self._way.who(request, touch)
        if identity is None:
            raise Refused(401, "signed_out", "sign in first")
        if request.method not in SAFE_METHODS:
            token = request.headers.get("x-csrf", "")
            good = hmac.compare_digest(token.encode("utf-8", "replace"), identity.csrf.encode())
            if not good or not same_origin(request.headers):
                raise Refused(403, "csrf", "this request does not come from the page as it is now; reload it")
        if ROLES.index(identity.role) < ROLES.index(role):
            raise Refused(403, "role", f"this needs the role {role}; you are {identity.role}")
        return identity

    def alive(self, identity: Identity) -> bool:
        """For long answers: whether whoever asked is still signed in, with the same role."""
        return self._way.alive(identity)

    def sign_in(self, request: Request, user: str, password: str) -> tuple[str, Identity]:
        """A new session: its cookie's token and who it is. Refused: 401 for a wrong name or password alike, 429 too soon."""
        if not isinstance(self._way, Passwords):
            raise Refused(405, "no_passwords", "nobody signs in here with a password")
        if not same_origin(request.headers):
            raise Refused(403, "csrf", "this request does not come from the page")
        return self._way.sign_in(request, user, password)

    def check_password(self, request: Request, identity: Identity, password: str) -> None:
        """The password once more, for a signature. Refused as by `sign_in`."""
        if isinstance(self._way, Passwords):
            self._way.check(request, identity.user, password, within=True)

    def sign_out(self, identity: Identity) -> None:
        """End the session."""
        if isinstance(self._way, Passwords) and identity.token is not None:
            self._way.sessions.end(identity.token)

    def set_cookie(self, request: Request, response: Response, token: str | None) -> None:
        """Give the browser the session's cookie, or take it away (None)."""
        if isinstance(self._way, Passwords):
            self._way.set_cookie(request, response, token)


def implicit(name: str) -> Guard:
    """One reviewer without a password, for a page that only this machine can reach."""
    return Guard(Implicit(name))


def password_users(
    users: Path,
    sessions: Path | None,
    *,
    tls: bool,
    proxies: Sequence[str] = (),
    clock: Callable[[], float] = time.time,
) -> Guard:
    """Users with passwords. `proxies`: those that forward requests, so that the brake on guessing sees addresses behind them.

    ReviewError where the users' file or the sessions' cannot be used.
    """
    return Guard(Passwords(Users(users), Sessions(sessions, clock=clock), tls, networks(proxies), clock))


def trusted_header(
    header: str, proxies: Sequence[str], users: Path | None = None, default_role: str | None = None
) -> Guard:
    """Users that a proxy has signed in and names in `header`; requests from elsewhere are refused.

    The role is the one in the users' file, for others `default_role` (None: refused). ReviewError where that lets nobody in.
    """
    return Guard(TrustedHeader(header, networks(proxies), users and Users(users), default_role))


class Implicit:
    """Nobody signs in. What came through a proxy is refused: everybody behind it would be the one reviewer."""

    sign_password = False

    def __init__(self, name: str) -> None:
        self._name, self._csrf = check_name(name), secrets.token_hex(32)

    def who(self, request: Request, touch: bool) -> Identity | None:
        if any(name in request.headers for name in FORWARDED):
            raise Refused(403, "proxy", "this page has no users, so it answers no proxy; start it with --users")
        return Identity(self._name, "reviewer", self._csrf, "implicit")

    def alive(self, identity: Identity) -> bool:
        return True


class Passwords:
    """A cookie with a token; users and roles are looked up at every request, so that a removed user is out at once."""

    sign_password = True

    def __init__(
        self, users: Users, sessions: Sessions, tls: bool, proxies: Sequence[Network], clock: Callable[[], float]
    ) -> None:
        self._users, self.sessions, self._proxies, self._clock = users, sessions, proxies, clock
        self._tls = tls
        # With this prefix a browser takes the cookie over TLS from this very host only.
        self._cookie = "__Host-slidestream" if tls else "slidestream"
        self._by_user, self._by_address = Limiter(USER_PACE), Limiter(ADDRESS_PACE)
        self._known: dict[tuple[str, str], None] = {}  # users and addresses that have signed in, oldest first

    def who(self, request: Request, touch: bool) -> Identity | None:
        token = request.cookies.get(self._cookie)
        session = self.sessions.find(token, touch) if token else None
        return session and self._identity(token, session)

    def alive(self, identity: Identity) -> bool:
        session = self.sessions.find(identity.token, touch=False) if identity.token else None
        now = session and self._identity(identity.token, session)
        return now is not None and now.role == identity.role

    def _identity(self, token: str, session: Session) -> Identity | None:
        user = self._users.get(session.name)
        if user is None or not hmac.compare_digest(_stamp(user), session.stamp):
            self.sessions.end(token)
            return None
        return Identity(user.name, user.role, session.csrf, "password", session.expires, token)

    def sign_in(self, request: Request, name: str, password: str) -> tuple[str, Identity]:
        user = self.check(request, name, password)
        old = request.cookies.get(self._cookie)
        if old:
            self.sessions.end(old)
        token, session = self.sessions.start(user.name, _stamp(user))
        log.get_logger().info("signed in", user=user.name, role=user.role)
        return token, Identity(user.name, user.role, session.csrf, "password", session.expires, token)

    def check(self, request: Request, name: str, password: str, within: bool = False) -> User:
        """The user, where this is the password. `within`: asked from a session of that user."""
        now, address = self._clock(), house(asker(request, self._proxies))
        key = hashlib.sha256(name_key(name).encode("utf-8", "replace")).hexdigest()
        # Strangers' guesses must not lock a user out of the places that the user works from.
        if within or (key, address) in self._known:
            key = f"{key} {address}"
        wait = self._by_address.attempt(address, now)
        if wait <= 0:
            wait = self._by_user.attempt(key, now)
            if wait > 0:
                self._by_address.undo(address)
        if wait > 0:
            raise Refused(429, "slow_down", "too many attempts; wait a little", retry_after=math.ceil(wait))
        user = self._users.get(name)
        if not matches(user, password) or user is None:
            # A name that nobody has may be a password in the wrong field.
            log.get_logger().warning("sign-in refused", user=user.name if user else "(no such user)", address=address)
            raise Refused(401, "wrong", "name or password is wrong")
        # A right password clears its user, but takes from the address only its own attempt: otherwise whoever has one account
        # could guess all others' without a brake.
        self._by_user.succeeded(key)
        self._by_address.undo(address)
        self._known[key.partition(" ")[0], address] = None
        while len(self._known) > KNOWN_MOST:
            del self._known[next(iter(self._known))]
        return user

    def set_cookie(self, request: Request, response: Response, token: str | None) -> None:
        outside = among(peer(request), self._proxies) and request.headers.get("x-forwarded-proto") == "https"
        settings = {"path": "/", "secure": self._tls or outside, "httponly": True, "samesite": "strict"}
        if token is None:
            response.delete_cookie(self._cookie, **settings)
        else:
            response.set_cookie(self._cookie, token, **settings)  # until the browser ends; the server knows the times


class TrustedHeader:
    """A proxy says who it is; nobody else is answered."""

    sign_password = False

    def __init__(self, header: str, proxies: Sequence[Network], users: Users | None, default_role: str | None) -> None:
        if not header.replace("-", "").isalnum() or not header.isascii():
            raise ReviewError(f"trusted header {header!r}: is no header's name; X-Remote-User, say")
        if not proxies:
            raise ReviewError(f"trusted header {header}: name the proxy's address too; anybody could send that header")
        if users is None and default_role is None:
            raise ReviewError(f"trusted header {header}: nobody would have a role; give a users file or a default role")
        self._header, self._proxies, self._users = header.lower(), proxies, users
        self._default = default_role and check_role(default_role)
        self._secret = secrets.token_bytes(32)

    def who(self, request: Request, touch: bool) -> Identity | None:
        if not among(peer(request), self._proxies):
            raise Refused(403, "proxy", "this page answers only its proxy")
        values = request.headers.getlist(self._header)
        if not values or not values[0]:
            return None
        if len(values) > 1:
            raise Refused(403, "proxy", "the proxy named two users")
        try:  # servers hand on bytes as Latin-1 (PEP 3333); a proxy's names are UTF-8
            name = check_name(values[0].encode("latin-1").decode())
        except (UnicodeError, UsersError):
            raise Refused(403, "proxy", "the proxy named a user that cannot be one") from None
        role, name = self._role(name)
        if role is None:
            raise Refused(403, "role", "you have no role here; ask whoever runs this page")
        csrf = hmac.new(self._secret, name_key(name).encode(), hashlib.sha256).hexdigest()
        return Identity(name, role, csrf, "header")

    def alive(self, identity: Identity) -> bool:
        return self._role(identity.user)[0] == identity.role

    def _role(self, name: str) -> tuple[str | None, str]:
        user = self._users.get(name) if self._users else None
        return (user.role, user.name) if user else (self._default, name)


def _stamp(user: User) -> bytes:
    return hashlib.sha256((user.password or "").encode()).digest()
