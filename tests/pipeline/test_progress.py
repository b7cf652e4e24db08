"""The progress display: plain lines, a terminal, nothing."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from fcntl import ioctl
from typing import TextIO

import pytest

from pipeline.progress import Progress
from pipeline.status import StageStatus, Status


def status(elapsed_s: float, patches: int = 0, **more: object) -> Status:
    stages = (
        StageStatus("reader", 2, elapsed_s * 0.9, elapsed_s * 0.1, 0),
        StageStatus("inference", 1, elapsed_s, 0, 0, 1),
    )
    return Status(
        slides_total=3, slides_done=1, patches_planned=1000, patches_inferred=patches, stages=stages,
        active=(("folder/CMU-1", 30, 100),), elapsed_s=elapsed_s, **more,
    )  # fmt: skip


class Terminal:
    """Both ends of a pseudo-terminal: `stream` to write to, `read()` what came out."""

    def __init__(self, columns: int) -> None:
        self._outer, inner = pty.openpty()
        ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.set_blocking(self._outer, False)
        self.stream: TextIO = os.fdopen(inner, "w")

    def read(self) -> str:
        found = b""
        try:
            while chunk := os.read(self._outer, 65536):
                found += chunk
        except BlockingIOError:
            pass
        return found.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self._outer)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    made = Terminal(80)
    yield made
    made.close()


def test_plain_lines_come_now_and_then():
    """Where there is no terminal: the first line after two seconds, then one every ten."""
    stream = io.StringIO()
    progress = Progress("auto", stream, 3)
    for second in range(25):
        progress.update(status(float(second), 40 * second))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("slides 1/3; patches 480/1,000; 40 patches/s; time left ")
    assert "busy: slide readers 90 %, inference 100 %" in lines[1]
    assert "1 process replaced" in lines[1]
    assert "\x1b" not in stream.getvalue()


def test_speed_is_smoothed_over_the_last_seconds():
    """The speed shown is that of the last five seconds, not of the whole run."""
    stream = io.StringIO()
    progress = Progress("auto", stream, 3)
    for second in range(13):
        progress.update(status(float(second), 0 if second < 7 else 100 * (second - 7)))
    assert "; 100 patches/s;" in stream.getvalue().splitlines()[-1]


def test_none_shows_nothing_but_the_summary():
    """Without progress, log lines and the summary are still written."""
    stream = io.StringIO()
    progress = Progress("none", stream, 3)
    progress.update(status(100.0))
    progress.log("a log line")
    progress.close("the end")
    assert stream.getvalue() == "a log line\nthe end\n"


def test_terminal_shows_a_panel(terminal: Terminal):
    """On a terminal: slides, speed, current slides with their percent, and a line for each stage."""
    progress = Progress("auto", terminal.stream, 3)
    progress.update(status(1.0, 100))
    progress.update(status(2.0, 200))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.read())
    progress.close()
    for part in (
        "slides 1/3",
        "100 patches/s",
        "folder/CMU-1 30 %",
        "slide readers",
        "inference",
        "waits for room",
        "90 %",
    ):
        assert part in text


def test_panel_is_redrawn_at_most_four_times_a_second(terminal: Terminal):
    """Many snapshots in a short time cost one drawing."""
    progress = Progress("auto", terminal.stream, 3)
    progress.update(status(1.0))
    terminal.read()
    for n in range(20):
        progress.update(status(1.0 + n / 1000))
    assert terminal.read() == ""
    progress.close()


def test_panel_goes_away(terminal: Terminal):
    """At the end the cursor is shown again and the summary stands where the panel was; closing twice is fine."""
    with Progress("auto", terminal.stream, 3) as progress:
        progress.update(status(1.0))
        terminal.read()
        progress.close("the end")
    text = terminal.read()
    assert "\x1b[?25h" in text
    assert text.endswith("the end\r\n")


def test_log_lines_stand_above_the_panel(terminal: Terminal):
    """A log line is written whole, in its own line, and the panel is drawn again below it."""
    progress = Progress("auto", terminal.stream, 3)
    progress.update(status(1.0))
    terminal.read()
    long = "[bold] is not markup; " + "x" * 150 + " end"
    progress.log(long)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.read())
    progress.close()
    assert long in text.replace("\r", "")
    assert text.index(long[:40]) < text.index("slide readers")


def test_no_color_has_no_colours(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    """With NO_COLOR the panel moves the cursor but has no colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    progress = Progress("auto", terminal.stream, 3)
    progress.update(status(1.0, 100))
    progress.close()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m|\x1b\[38", terminal.read())


def test_many_slides_and_strange_names(terminal: Terminal):
    """Of many slides the first are shown and the rest counted; a name with brackets is only a name."""
    progress = Progress("auto", terminal.stream, 9)
    active = tuple((f"[red]s{n}", 1, 0) for n in range(7))
    progress.update(Status(slides_total=9, active=active, elapsed_s=1.0))
    text = terminal.read()
    progress.close()
    assert "[red]s0 0 %" in text and "and 3 more" in text


def test_dumb_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    """A terminal that cannot move its cursor gets plain lines."""
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress("auto", terminal.stream, 3)
    progress.update(status(3.0, 300))
    progress.close()
    assert "\x1b" not in terminal.read()


def test_a_reader_that_is_gone_does_not_stop_the_run():
    """`slidestream run | head` may close the other end."""
    read, write = os.pipe()
    os.close(read)
    progress = Progress("auto", os.fdopen(write, "w"), 3)
    progress.update(status(3.0))
    progress.close("the end")
