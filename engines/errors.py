"""What can go wrong with a model or an engine, as one line that an operator can act on."""

from __future__ import annotations

from pathlib import Path


def one_line(text: object, limit: int = 300) -> str:
    """`text` with every run of white space (newlines too) made one space, cut at `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class ModelError(Exception):
    """A model directory that cannot be used. `str()` is one line: `path: problem; remedy`.

    Attributes: `path` (str, the file or directory at fault), `problem` and `remedy` (str, remedy may be empty).
    """

    def __init__(self, path: str | Path, problem: str, remedy: str = "") -> None:
        self.path = str(path)
        self.problem = one_line(problem)
        self.remedy = one_line(remedy)
        super().__init__(f"{self.path}: {self.problem}" + (f"; {self.remedy}" if self.remedy else ""))

    def __reduce__(self) -> tuple[type[ModelError], tuple[str, str, str]]:
        return type(self), (self.path, self.problem, self.remedy)


class EngineError(Exception):
    """An engine that could not be opened, or a batch that it could not answer. `str()` is one line.

    Attributes:
        fatal: True when the *worker* is lost (for example the CUDA context is poisoned): exit at once, the slot runs
        elsewhere.
            False when only *this batch* failed: the context and the engine are good for the next `submit`.
    """

    def __init__(self, problem: str, *, fatal: bool = False) -> None:
        self.problem = one_line(problem)
        self.fatal = fatal
        super().__init__(self.problem)


class DeadlyError(EngineError):
    """An engine that kills the process that runs it: it is wrong on this machine, whatever was found before."""
