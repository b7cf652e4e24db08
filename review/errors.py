"""What a request is refused with."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """A request that is not answered as asked: an HTTP `status`, a stable `code` for programs, one line for people.

    `more` goes into the answer beside them. The text tells no path and nothing of the inside.
    """

    def __init__(self, status: int, code: str, text: str, **more: Any) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.more = more

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": self.text, "code": self.code, **self.more}


def missing(what: str, code: str = "not_found") -> Refused:
    """404, for things that are not there."""
    return Refused(404, code, what)


def bad(text: str) -> Refused:
    """422, for input that cannot be right."""
    return Refused(422, "bad_input", text)
