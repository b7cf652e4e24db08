"""Who may use the review page: a JSON file with a role and an Argon2id hash for each user.

    {"format": "slidestream-users/1", "users": {"Wang Li": {"role": "reviewer", "password": "$argon2id$...", "changed": "..."}}}

`slidestream user` writes it (`review.user_command`); the server reads it again whenever it has changed. A user without a
password ("password": null) can only come in through a proxy's header.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import argon2

from results.atomic import sync_folder
from review.errors import UsersError

FORMAT = "slidestream-users/1"
VIEWER, REVIEWER, ADMIN = "viewer", "reviewer", "admin"
ROLES = (VIEWER, REVIEWER, ADMIN)  # each may do what the ones before it may
NAME_CHARACTERS = 64
PASSWORD_LEAST, PASSWORD_MOST = 12, 256
# Each hash takes 64 MiB while it is computed (RFC 9106, the second recommended option), so few run at a time.
HASHES_AT_A_TIME = 2

_hasher = argon2.PasswordHasher()
_hashing = threading.BoundedSemaphore(HASHES_AT_A_TIME)
_FILE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class User:
    """One line of the file. `password`: an Argon2id hash, or None."""

    name: str
    role: str
    password: str | None
    changed: str


def name_key(name: str) -> str:
    """Names that look the same are the same: NFKC, without case."""
    return unicodedata.normalize("NFKC", name).casefold()


def check_name(name: str) -> str:
    """The name as it is kept (NFC). UsersError where it cannot be one."""
    name = unicodedata.normalize("NFC", name)
    if not name.strip() or name != name.strip() or len(name) > NAME_CHARACTERS or not name.isprintable():
        raise UsersError(
            f"user name {name!r}: 1 to {NAME_CHARACTERS} printable characters, without spaces at the ends, are allowed"
        )
    return name


def check_role(role: str) -> str:
    """The role itself. UsersError where there is no such role."""
    if role not in ROLES:
        raise UsersError(f"role {role!r}: there are {', '.join(ROLES)}")
    return role


def check_password(name: str, password: str) -> str:
    """The password itself, normalised. UsersError where it is too short, too long, or the user's name.

    Length is what counts, and any character is allowed (NIST SP 800-63B, 3.1.1).
    """
    password = unicodedata.normalize("NFKC", password)
    if len(password) < PASSWORD_LEAST:
        raise UsersError(f"the password has {len(password)} characters; at least {PASSWORD_LEAST} are needed")
    if len(password) > PASSWORD_MOST:
        raise UsersError(f"the password is longer than {PASSWORD_MOST} characters")
    if len(set(password)) < 4 or name_key(name) in password.casefold() and len(password) < len(name) + 8:
        raise UsersError("the password is the user's name or nearly one character; choose another")
    return password


def hash_password(password: str) -> str:
    """Argon2id (RFC 9106) of a normalised password."""
    with _hashing:
        return _hasher.hash(password)


def matches(user: User | None, password: str) -> bool:
    """Whether this is the user's password. As much work for a user who is not there, or has none, as for a wrong password."""
    known = user is not None and user.password is not None
    stored = user.password if known else _nobody()
    text = unicodedata.normalize("NFKC", password[: PASSWORD_MOST + 1])
    with _hashing:
        try:
            return _hasher.verify(stored, text) and known
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


_nobodys: list[str] = []


def _nobody() -> str:
    if not _nobodys:
        _nobodys.append(_hasher.hash(os.urandom(24).hex()))
    return _nobodys[0]


def read_users(path: Path) -> dict[str, User]:
    """The users by `name_key`. UsersError where the file cannot be read, others may read it, or it is not as it should be."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_FILE_BYTES)
    except OSError as error:
        raise UsersError(
            f"{path}: {error.strerror or error}; `slidestream user add NAME --users {path}` makes it"
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise UsersError(f"{path}: other users of this machine may read or write it; chmod 600 {path}")
    return parse_users(text, path)


def parse_users(text: bytes, path: Path) -> dict[str, User]:
    """The users in a file's bytes. UsersError, with the file's name, where they are not as they should be."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsersError(f"{path}: is not JSON ({error}); restore it from a copy") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("users"), dict):
        raise UsersError(f'{path}: is no users file of this slidestream ("format" is not {FORMAT!r})')
    found: dict[str, User] = {}
    for name, entry in values["users"].items():
        try:
            user = User(check_name(name), check_role(entry["role"]), entry["password"], str(entry.get("changed", "")))
            if user.password is not None and argon2.extract_parameters(user.password).type is not argon2.Type.ID:
                raise UsersError("its password is no Argon2id hash")
        except (UsersError, KeyError, TypeError, AttributeError, argon2.exceptions.InvalidHashError) as error:
            raise UsersError(f"{path}: user {name!r}: {error or 'no Argon2id hash'}; set it again") from error
        if name_key(name) in found:
            raise UsersError(f"{path}: two users are called {name!r}; remove one")
        found[name_key(name)] = user
    return found


@contextlib.contextmanager
def _editing(path: Path) -> Iterator[dict[str, User]]:
    """The users, written back when the block ends without an error. One editor at a time."""
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        users = read_users(path) if path.exists() else {}
        yield users
        _write(path, users)
    finally:
        os.close(lock)


def _write(path: Path, users: Mapping[str, User]) -> None:
    # Not results.atomic.write_atomic: this file must never be readable for others, not even under its temporary name.
    values = {
        user.name: {"role": user.role, "password": user.password, "changed": user.changed}
        for user in sorted(users.values(), key=lambda user: name_key(user.name))
    }
    text = json.dumps({"format": FORMAT, "users": values}, ensure_ascii=False, indent=1)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                owner = os.stat(path)  # an edit by root must not take the file away from the service's user
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def add_user(path: Path, name: str, role: str, password: str | None) -> User:
    """Add a user; the file is made where there is none. UsersError where the name is taken or something is not allowed."""
    name = check_name(name)
    user = User(name, check_role(role), password and hash_password(check_password(name, password)), _now())
    with _editing(path) as users:
        if name_key(name) in users:
            raise UsersError(f"{path}: {name!r} is there already; `passwd` and `role` change a user")
        users[name_key(name)] = user
    return user


def set_password(path: Path, name: str, password: str) -> None:
    """Give a user another password; sessions of that user end. UsersError where there is no such user."""
    hashed = hash_password(check_password(name, password))
    with _editing(path) as users:
        users[name_key(name)] = replace(_there(users, name, path), password=hashed, changed=_now())


def set_role(path: Path, name: str, role: str) -> None:
    """Give a user another role, at once. UsersError where there is no such user or role."""
    with _editing(path) as users:
        users[name_key(name)] = replace(_there(users, name, path), role=check_role(role), changed=_now())


def remove_user(path: Path, name: str) -> None:
    """Take a user out; sessions of that user end. What the user did stays in the log. UsersError where there is none."""
    with _editing(path) as users:
        del users[name_key(_there(users, name, path).name)]


def _there(users: Mapping[str, User], name: str, path: Path) -> User:
    user = users.get(name_key(name))
    if user is None:
        raise UsersError(f"{path}: there is no user {name!r}; `slidestream user list --users {path}` shows them")
    return user


class Users:
    """The file as the server sees it: read again when it changes. A file that cannot be read lets nobody in."""

    def __init__(self, path: Path) -> None:
        """UsersError where the file cannot be used at the start, or has no users."""
        self.path = path
        self.problem: str | None = None
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._users = read_users(path)
        if not self._users:
            raise UsersError(f"{path}: has no users; `slidestream user add NAME --users {path}` adds one")

    def get(self, name: str) -> User | None:
        """The user of this name, now."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                try:
                    self._users, self.problem = read_users(self.path), None
                except UsersError as error:
                    self._users, self.problem = {}, str(error)
                self._stamp = stamp
            return self._users.get(name_key(name))

    def _look(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.path)
        except OSError:
            return ()
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
