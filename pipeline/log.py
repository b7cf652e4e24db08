"""Structured logs: every process writes one JSON object a line; the supervisor collects, shows and keeps them.

A record has `timestamp` (UTC, ISO 8601), `level`, `process`, `event`, and `slide` where one is in hand. Workers call
`configure_later` and then use `get_logger()`; their standard error is a pipe to the supervisor, which feeds it to a
`LogSink`. Whatever else comes through that pipe (a traceback, faulthandler, a C library) becomes a record with
event "stderr", so nothing is lost and every line of the file is JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
MAX_LINE_BYTES = 64 * 1024  # a longer line is cut: a log must not become a way to fill memory
BRIEF_LINES = 2
RAW_WAIT_S = 0.5  # loose lines of a process wait so long for the rest of their traceback
RAW_LINES = 500
_FIRST = ("timestamp", "level", "process", "event", "slide")
_COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "31;1"}


class Stream(Protocol):
    """Where text goes: a file, or a LogSink."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


def configure(process: str, fmt: str = "json", level: str = "info", stream: Stream | None = None) -> None:
    """Set up structlog for this process. `fmt` is console, json or auto (console); `stream` is standard error by default."""
    import structlog

    target = sys.stderr if stream is None else stream
    colours = wants_colours(target)

    def name_process(_: Any, __: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        record.setdefault("process", process)  # not a context variable: those do not reach other threads
        return record

    def to_line(_: Any, __: str, record: MutableMapping[str, Any]) -> str:
        return to_json(record) if fmt == "json" else to_console(record, colours)

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            name_process,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            to_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _LineLogger(target),
        cache_logger_on_first_use=False,
    )


_later: Callable[[], None] | None = None


def configure_later(process: str, fmt: str = "json", level: str = "info", stream: Stream | None = None) -> None:
    """As `configure`, at the first use of a logger of `get_logger`.

    structlog imports rich and asyncio with it, a tenth of a second in each process, and most processes of a run never
    have anything to say.
    """
    global _later
    _later = partial(configure, process, fmt, level, stream)


class Logger:
    """A structlog logger that is made when it is first used."""

    def __getattr__(self, name: str) -> Any:
        global _later
        import structlog

        if _later is not None:
            ready, _later = _later, None
            ready()
        return getattr(structlog.get_logger(), name)


def get_logger() -> Logger:
    """The logger for everything that a process of a run says."""
    return Logger()


def slide_context(slide: str) -> contextlib.AbstractContextManager[None]:
    """Within it, every record of this thread names the slide."""
    import structlog

    return structlog.contextvars.bound_contextvars(slide=slide)


class _LineLogger:
    """What structlog calls at the end: one write for each record."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        # The reader of the pipe may be gone, or the disk full: work that is under way must not die of its log.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    log = debug = info = warning = warn = error = critical = fatal = failure = exception = err = msg


def wants_colours(stream: object) -> bool:
    """Colours go only to a terminal, and never against NO_COLOR (no-color.org)."""
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def parse(line: bytes, process: str = "") -> dict[str, Any]:
    """A line from a worker as a record; what is not a record of ours becomes one with event "stderr" and the text."""
    text = line[:MAX_LINE_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")
    if text.startswith("{"):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and isinstance(record.get("event"), str):
            if process:
                record.setdefault("process", process)
            return record
    return raw_record(text, process)


def raw_record(text: str, process: str) -> dict[str, Any]:
    """A record for text that is not one."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"timestamp": now, "level": "warning", "process": process, "event": "stderr", "text": text}


def render(line: bytes, fmt: str, colours: bool = False) -> str:
    """A line from a worker as text for people (`console`, `auto`) or machines (`json`), without the newline."""
    record = parse(line)
    return to_json(record) if fmt == "json" else to_console(record, colours)


def to_json(record: MutableMapping[str, Any]) -> str:
    """A record as one line of JSON, the common fields first."""
    ordered = {name: record[name] for name in _FIRST if record.get(name) is not None}
    ordered.update((name, value) for name, value in record.items() if name not in _FIRST)
    return json.dumps(ordered, ensure_ascii=False, default=str)


def to_console(record: MutableMapping[str, Any], colours: bool) -> str:
    """A record as one line for people; a traceback or raw text follows indented."""
    level = str(record.get("level", "info"))
    time = str(record.get("timestamp", ""))[:19]
    event = _printable(str(record.get("event", "")))
    fields = [
        f"{name}={_field(value)}"
        for name, value in record.items()
        if name not in ("timestamp", "level", "process", "event", "exception", "text") and value is not None
    ]
    line = f"{time}Z {level:<7} {_printable(str(record.get('process', ''))):<12} {event}"
    line = "  ".join([line.rstrip(), " ".join(fields)]) if fields else line.rstrip()
    if colours and level in _COLOURS:
        line = f"\x1b[{_COLOURS[level]}m{line}\x1b[0m"
    for name in ("text", "exception"):
        for extra in str(record.get(name) or "").splitlines():
            line += f"\n    {_printable(extra)}"
    return line


def brief(record: MutableMapping[str, Any]) -> dict[str, Any]:
    """For a console beside a log file that keeps everything: of a traceback or a dump, the line that says most."""
    shown = dict(record)
    for name in ("text", "exception"):
        lines = [line for line in str(record.get(name) or "").splitlines() if line.strip()]
        if len(lines) > BRIEF_LINES:
            crash = lines[0].startswith("Fatal Python error")
            shown[name] = f"{lines[0] if crash else lines[-1]} (more in the log file)"
    return shown


def _field(value: object) -> str:
    text = _printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return json.dumps(text, ensure_ascii=False) if isinstance(value, str) and (" " in text or not text) else text


def _printable(text: str) -> str:
    """File names and damaged files can hold control characters; a terminal must not obey them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _append_to(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


class LogSink:
    """Collects the records of all processes: shows them, and appends them to a file as JSON lines.

    `feed` takes bytes as they come out of a worker's pipe. A LogSink is also a stream for `configure(..., "json",
    stream=sink)`, which is how the supervisor's own records come here. `show` replaces writing to `stream`, for a
    progress display that keeps its place below the log. Not for use from several threads. Raises OSError when `file`
    cannot be opened; a write that fails later (disk full) is said once and does not stop the run. A file of `rotate_bytes`
    (0: of any size) is renamed to .1, the one before to .2, and so on; `keep` of them stay.
    """

    def __init__(
        self,
        fmt: str = "auto",
        stream: Stream | None = None,
        file: Path | None = None,
        show: Callable[[str], None] | None = None,
        rotate_bytes: int = 0,
        keep: int = 0,
    ) -> None:
        self._fmt = fmt
        self._stream = sys.stderr if stream is None else stream
        self._colours = wants_colours(self._stream)
        self.show = self._write if show is None else show
        self._hear: Callable[[MutableMapping[str, Any]], None] | None = None
        self._rest: dict[str, bytes] = {}
        self._raw: dict[str, tuple[float, list[str]]] = {}
        self._complained = False
        self._file, self._rotate_bytes, self._keep = file, rotate_bytes, keep
        self._fd = None if file is None else _append_to(file)

    def listen(self, hear: Callable[[MutableMapping[str, Any]], None]) -> None:
        """`hear` is given every record, before it is shown."""
        self._hear = hear

    def feed(self, process: str, chunk: bytes) -> None:
        """Bytes of a worker's standard error; unfinished lines wait for their end."""
        *lines, rest = (self._rest.pop(process, b"") + chunk).split(b"\n")
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        if rest:
            self._rest[process] = rest
        self._lines(process, lines)

    def end(self, process: str) -> None:
        """The process is gone: what is left of its last line is all there will be."""
        self._lines(process, [rest] if (rest := self._rest.pop(process, b"")) else [])
        self._flush_raw(process)

    def settle(self, now: float | None = None) -> None:
        """To be called now and then: loose lines that have waited for others long enough become records."""
        now = time.monotonic() if now is None else now
        for process, (since, _) in list(self._raw.items()):
            if now - since > RAW_WAIT_S:
                self._flush_raw(process)

    def _lines(self, process: str, lines: list[bytes]) -> None:
        for line in lines:
            record = parse(line, process)
            if record["event"] == "stderr" and "text" in record:
                raw = self._raw.setdefault(process, (time.monotonic(), []))[1]
                raw.append(record["text"])
                if len(raw) >= RAW_LINES:
                    self._flush_raw(process)
                continue
            self._flush_raw(process)
            self.emit(record)

    def _flush_raw(self, process: str) -> None:
        """Neighbouring lines that are no records are one thing, such as a traceback, though they come in pieces."""
        _, raw = self._raw.pop(process, (0.0, []))
        if text := "\n".join(raw).strip("\n"):
            self.emit(raw_record(text, process))

    def emit(self, record: MutableMapping[str, Any]) -> None:
        """Show and keep one record."""
        if self._hear is not None:
            self._hear(record)
        if self._fd is None:
            self.show(self._text(record))
            return
        self.show(self._text(record if self._fmt == "json" else brief(record)))
        try:
            os.write(self._fd, (to_json(record) + "\n").encode("utf-8", "backslashreplace"))
            if self._rotate_bytes and os.fstat(self._fd).st_size >= self._rotate_bytes:
                self._rotate()
        except OSError as error:
            if not self._complained:
                self._complained = True
                problem = f"the log file cannot be written: {error.strerror}; messages go on here only"
                self.show(self._text({**raw_record("", "supervisor"), "event": problem}))

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            older, newer = f"{self._file}.{number}", f"{self._file}.{number - 1}" if number > 1 else str(self._file)
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        if not self._keep:
            os.unlink(self._file)
        fresh = _append_to(self._file)
        os.close(self._fd)
        self._fd = fresh

    def _text(self, record: MutableMapping[str, Any]) -> str:
        return to_json(record) if self._fmt == "json" else to_console(record, self._colours)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text + "\n")
            self._stream.flush()

    def write(self, text: str) -> int:
        """As a stream: lines of this process's own records."""
        self.feed("", text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """As a stream: nothing is held back."""

    def close(self) -> None:
        """Show what is left and close the file. Can be called twice."""
        for process in {*self._rest, *self._raw}:
            self.end(process)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
