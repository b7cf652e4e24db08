"""Logs: records of workers, rendering, and the collection of all of them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from pipeline.log import MAX_LINE_BYTES, LogSink, configure, parse, render, slide_context

RECORD = {"timestamp": "2026-01-02T03:04:05.678901Z", "level": "info", "process": "reader-1", "event": "slide opened"}


@pytest.fixture(autouse=True)
def _restore_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def line(**fields: object) -> bytes:
    return json.dumps({**RECORD, **fields}).encode()


def shown(*chunks: bytes, process: str = "reader-1", fmt: str = "console", file: Path | None = None) -> str:
    stream = io.StringIO()
    sink = LogSink(fmt, stream, file)
    for chunk in chunks:
        sink.feed(process, chunk)
    sink.close()
    return stream.getvalue()


def test_every_record_has_process_time_and_slide():
    """A record is one JSON object with UTC time, level, process and event, and the slide that is in hand."""
    stream = io.StringIO()
    configure("reader-1", "json", "info", stream)
    with slide_context("a/b"):
        structlog.get_logger().info("slide opened", width=3)
    structlog.get_logger().warning("idle")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"level": "info", "process": "reader-1", "event": "slide opened", "slide": "a/b", "width": 3}
    assert "slide" not in second


def test_other_threads_name_the_process_too():
    """The process is in the records of threads that were started before or after."""
    stream = io.StringIO()
    configure("writer-0", "json", "info", stream)
    thread = threading.Thread(target=lambda: structlog.get_logger().info("from a thread"))
    thread.start()
    thread.join()
    assert json.loads(stream.getvalue())["process"] == "writer-0"


def test_level_filters():
    """Records below the level are not written."""
    stream = io.StringIO()
    configure("reader-1", "json", "warning", stream)
    structlog.get_logger().info("no")
    structlog.get_logger().error("yes")
    assert [json.loads(text)["event"] for text in stream.getvalue().splitlines()] == ["yes"]


def test_exceptions_stay_in_their_record():
    """A traceback is a field of its record, so the record stays one line; for people it follows indented."""
    stream = io.StringIO()
    configure("reader-1", "json", "info", stream)
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        structlog.get_logger().exception("failed")
    (text,) = stream.getvalue().splitlines()
    assert "ValueError: broken" in json.loads(text)["exception"]
    assert "\n    ValueError: broken\n    in two" in render(text.encode(), "console")


def test_file_names_that_are_not_utf8_can_be_logged(tmp_path: Path):
    """A name with bytes that are no text, or values of unknown types, do not break a record."""
    file = tmp_path / "log"
    sink = LogSink("json", io.StringIO(), file)
    configure("supervisor", "json", "info", sink)
    structlog.get_logger().info("found", path=os.fsdecode(b"\xff.svs"), other=Path("/x"))
    sink.close()
    assert json.loads(file.read_bytes())["other"] == "/x"


def test_a_closed_pipe_does_not_kill_the_worker():
    """A worker whose log nobody reads any more goes on working."""
    code = (
        "import os, structlog; from pipeline.log import configure; configure('w', 'json')\n"
        "structlog.get_logger().info('x'); os.write(1, b'alive')"
    )
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, env=env, check=False)
    os.close(write)
    assert done.stdout == b"alive"


def test_console_line():
    """For people: time to the second, level, process, event, then the fields; text with blanks is quoted."""
    text = render(line(slide="a b", width=3, seconds=0.5, ok=None), "console")
    assert text == '2026-01-02T03:04:05Z info    reader-1     slide opened  slide="a b" width=3 seconds=0.5'


def test_json_line_is_kept():
    """For machines a record stays what it was."""
    assert json.loads(render(line(width=3), "json")) == {**RECORD, "width": 3}


@pytest.mark.parametrize(
    "raw", [b"Fatal Python error: Segmentation fault", b"{not json}", b'{"a": 1}', b"[1]", b"\xff\xfe", b'{"event": 3}']
)
def test_what_is_no_record_becomes_one(raw: bytes):
    """Text of C libraries, tracebacks, other JSON and bytes that are no text are kept as records."""
    record = parse(raw, "reader-1")
    assert (record["event"], record["process"], record["level"]) == ("stderr", "reader-1", "warning")
    assert record["text"] == raw.decode("utf-8", "backslashreplace")


def test_deeply_nested_json_is_only_text():
    """JSON made to exhaust the parser is text like any other."""
    assert parse(b'{"event":' + b"[" * 30_000, "w")["event"] == "stderr"


def test_control_characters_do_not_reach_the_terminal():
    """A file name with terminal commands in it is shown, not obeyed; it cannot forge a second line either."""
    text = render(line(slide="\x1b[2Jx\ny"), "console")
    assert "\x1b" not in text and "\n" not in text
    assert "\x1b" not in render(b"\x1b[31mred", "console")


def test_a_line_may_come_in_pieces():
    """A record that comes in several reads is one record."""
    raw = line() + b"\n"
    assert shown(*(raw[n : n + 7] for n in range(0, len(raw), 7))).count("slide opened") == 1


def test_pieces_of_two_processes_are_not_mixed():
    """Each process has its own unfinished line."""
    stream = io.StringIO()
    sink = LogSink("json", stream)
    raw = line()
    for part in (raw[:9], raw[9:] + b"\n"):
        sink.feed("a", part)
        sink.feed("b", part)
    assert [json.loads(text)["event"] for text in stream.getvalue().splitlines()] == ["slide opened"] * 2


def test_last_words_without_newline_are_shown():
    """What a process wrote before it was killed is shown when it ends, also without the end of the line."""
    stream = io.StringIO()
    sink = LogSink("console", stream)
    sink.feed("reader-1", b"Segmentation fault")
    assert stream.getvalue() == ""
    sink.end("reader-1")
    assert "Segmentation fault" in stream.getvalue()


def test_a_traceback_is_one_record():
    """Lines of text that come together are one record, between the records around them."""
    text = shown(line() + b"\nTraceback:\n  line 1\nValueError\n" + line() + b"\n", fmt="json")
    events = [json.loads(item) for item in text.splitlines()]
    assert [event["event"] for event in events] == ["slide opened", "stderr", "slide opened"]
    assert events[1]["text"] == "Traceback:\n  line 1\nValueError"


def test_endless_line_is_bounded():
    """Bytes without any newline are cut into records and never pile up."""
    sink = LogSink("json", io.StringIO())
    for _ in range(8):
        sink.feed("w", b"x" * MAX_LINE_BYTES)
    assert sum(map(len, sink._rest.values())) <= MAX_LINE_BYTES


def test_file_is_json_lines_and_appended(tmp_path: Path):
    """The file gets every record as JSON, whatever is shown, and a second run adds to it."""
    file = tmp_path / "slidestream.log"
    for _ in range(2):
        shown(line() + b"\ngarbage\n", file=file)
    records = [json.loads(text) for text in file.read_text().splitlines()]
    assert [record["event"] for record in records] == ["slide opened", "stderr"] * 2


def test_full_disk_is_said_once_and_does_not_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A log file that cannot grow is told once; messages go on on the terminal."""
    stream = io.StringIO()
    sink = LogSink("console", stream, tmp_path / "log")
    monkeypatch.setattr(
        "pipeline.log.os.write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    sink.feed("w", line() + b"\n" + line() + b"\n")
    assert stream.getvalue().count("No space left") == 1
    assert stream.getvalue().count("slide opened") == 2


def test_supervisor_logs_into_its_own_sink():
    """The supervisor's records come to the sink like all others."""
    stream = io.StringIO()
    configure("supervisor", "json", "info", LogSink("console", stream))
    structlog.get_logger().info("started", workers=2)
    assert "supervisor   started  workers=2" in stream.getvalue()


def test_show_takes_the_place_of_the_stream():
    """With a progress display, lines go to it and not to the stream."""
    stream, lines = io.StringIO(), []
    sink = LogSink("console", stream, show=lines.append)
    sink.feed("w", line() + b"\n")
    assert stream.getvalue() == "" and len(lines) == 1


def test_a_listener_hears_every_record():
    """Who listens is given each record as data, raw text too."""
    heard = []
    sink = LogSink("console", io.StringIO())
    sink.listen(heard.append)
    sink.feed("w", line() + b"\ngarbage\n")
    sink.end("w")
    assert [record["event"] for record in heard] == ["slide opened", "stderr"]


def test_a_traceback_that_comes_in_pieces_is_one_record():
    """Loose lines wait a moment for their neighbours, and longer for none."""
    heard = []
    sink = LogSink("console", io.StringIO())
    sink.listen(heard.append)
    sink.feed("w", b"Traceback\n  File x")
    sink.feed("w", b", line 1\n")
    sink.settle()
    assert heard == []
    sink.settle(time.monotonic() + 1)
    assert [record["text"] for record in heard] == ["Traceback\n  File x, line 1"]


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    """Colours are for terminals, and NO_COLOR turns them off there too."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    warning = line(level="warning") + b"\n"
    for stream, no_colour, coloured in ((Terminal(), "", True), (Terminal(), "1", False), (io.StringIO(), "", False)):
        monkeypatch.setenv("NO_COLOR", no_colour)
        LogSink("console", stream).feed("w", warning)
        assert ("\x1b[" in stream.getvalue()) == coloured


def test_structlog_is_loaded_when_there_is_something_to_say() -> None:
    """A worker's modules load neither structlog nor what it brings; the first record does, and is like any other."""
    code = (
        "import sys; import stages.aggregator, stages.batcher, stages.reader, stages.writer; from pipeline import log\n"
        "log.configure_later('reader-0')\n"
        "logger = log.get_logger()\n"
        "print([name for name in ('structlog', 'rich', 'asyncio') if name in sys.modules])\n"
        "logger.info('seen', n=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    record = json.loads(done.stderr)
    assert (record["process"], record["event"], record["n"], record["level"]) == ("reader-0", "seen", 1, "info")


def test_a_full_file_is_renamed_and_so_many_are_kept(tmp_path: Path):
    """The newest records are in the file, the ones before in .1, then .2; what is older is gone."""
    file = tmp_path / "slidestream.log"
    sink = LogSink("json", io.StringIO(), file, rotate_bytes=2000, keep=2)
    for number in range(100):
        sink.emit({**RECORD, "event": f"event {number}"})
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, f"{file.name}.1", f"{file.name}.2"]
    text = "".join((tmp_path / name).read_text() for name in (f"{file.name}.2", f"{file.name}.1", file.name))
    numbers = [int(json.loads(line)["event"].split()[1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 100)) and numbers[0] > 0
    assert all(path.stat().st_size < 2300 for path in tmp_path.iterdir())
