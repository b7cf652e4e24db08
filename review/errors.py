"""What can go wrong on the review page, for operators (one line, exit code 2) and for whoever asks over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ReviewError(Exception):
    """Something the operator has to put right: one line that names the file or option, the problem and the remedy."""


class UsersError(ReviewError):
    """The users file, or a name, role or password for it."""


class AuditError(ReviewError):
    """The log of acts cannot be opened, read or written, or is not whole."""


class Refused(Exception):
    """A request that is answered with an error: `status`, a stable `code`, one line for people, and more fields."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        more: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.more, self.retry_after = dict(more or {}), retry_after

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": self.message, "code": self.code, **self.more}
