"""The one error of this package."""

from __future__ import annotations

import os


def one_line(text: str | bytes | os.PathLike[str]) -> str:
    """A file name or message as one printable line: control characters and undecodable bytes become escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in os.fsdecode(text)
    )


class SlideError(Exception):
    """A slide that cannot be used, or not any more.

    `str()` is one line, `path: problem; remedy`. `reason` is the same without the path, for records that name the
    slide elsewhere.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str = "") -> None:
        self.path = os.fsdecode(path)
        self.problem = one_line(problem)
        self.remedy = one_line(remedy)
        super().__init__(self.path, problem, remedy)

    @property
    def reason(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem

    def __str__(self) -> str:
        return f"{one_line(self.path)}: {self.reason}" if self.path else self.reason
