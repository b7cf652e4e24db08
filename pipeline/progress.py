"""Shows a run while it goes on: a live panel on a terminal, a plain line now and then anywhere else, or nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from pipeline.status import Status, duration, eta_s, rate, shares, stage_name

if TYPE_CHECKING:
    from rich.console import RenderableType

SMOOTHING_S = 5.0  # patches/s and the shares of the stages are taken over this time
REFRESH_S = 0.25
FIRST_LINE_S = 2.0
LINE_EVERY_S = 10.0
_SLIDES_SHOWN = 4


class Progress:
    """The display of one run. `mode` is "auto" or "none"; `stream` decides between the panel and plain lines.

    Time is `Status.elapsed_s`; call `update` as often as you like. Log lines go through `log`, which keeps them above the
    panel. `close` takes the panel away and can be called twice.
    """

    def __init__(self, mode: str = "auto", stream: TextIO | None = None, total_slides: int = 0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total = total_slides
        self._quiet = mode == "none"
        self._recent: deque[Status] = deque()
        self._live: Any = None
        self._next_s = FIRST_LINE_S
        if not self._quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._live = _start_live(self._stream, f"slides 0/{total_slides}, starting")
            self._next_s = 0.0

    def update(self, status: Status) -> None:
        """A new snapshot."""
        self._recent.append(status)
        while len(self._recent) > 2 and status.elapsed_s - self._recent[1].elapsed_s >= SMOOTHING_S:
            self._recent.popleft()
        if self._quiet or status.elapsed_s < self._next_s:
            return
        older = self._recent[0]
        if self._live is not None:
            self._next_s = status.elapsed_s + REFRESH_S
            self._live.update(_panel(status, older), refresh=True)
        else:
            self._next_s = status.elapsed_s + LINE_EVERY_S
            self._print(plain_line(status, older))

    def now(self) -> str:
        """The newest snapshot in one line."""
        return plain_line(self._recent[-1], self._recent[0]) if self._recent else "starting"

    def log(self, text: str) -> None:
        """A line of the log (it may be coloured), above the panel."""
        if self._live is None:
            self._print(text)
        else:
            from rich.text import Text

            self._live.console.print(Text.from_ansi(text), soft_wrap=True)

    def close(self, summary: str | None = None) -> None:
        """Take the panel away and print the summary, if there is one (also where no progress is shown)."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if summary:
            self._print(summary)

    def _print(self, text: str) -> None:
        # Whoever read this may be gone (`slidestream run | head`): that is no reason to stop the run.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text + "\n")
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def plain_line(status: Status, older: Status) -> str:
    """The state of a run in one line."""
    speed = rate(older, status)
    left = eta_s(status, speed)
    parts = [
        f"slides {status.slides_finished}/{status.slides_total}",
        f"patches {status.patches_finished:,}/{status.patches_planned:,}",
        f"{speed:,.0f} patches/s",
        f"time left {'unknown' if left is None else duration(left)}",
    ]
    before = {stage.kind: stage for stage in older.stages} if older is not status else {}
    busy = [f"{stage_name(s.kind)} {100 * shares(s, before.get(s.kind))[0]:.0f} %" for s in status.stages]
    if busy:
        parts.append("busy: " + ", ".join(busy))
    return "; ".join(parts + _troubles(status))


def _troubles(status: Status) -> list[str]:
    restarts = sum(stage.restarts for stage in status.stages)
    counts = [
        (status.slides_failed, "slide", "failed"),
        (status.slides_partial, "slide", "partial"),
        (status.patches_failed, "patch", "failed"),
        (restarts, "process", "replaced"),
    ]
    plural = {"slide": "slides", "patch": "patches", "process": "processes"}
    return [f"{count:,} {noun if count == 1 else plural[noun]} {what}" for count, noun, what in counts if count]


def _start_live(stream: TextIO, text: str) -> Any:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream, force_terminal=True, highlight=False, markup=False)  # obeys NO_COLOR by itself
    live = Live(text, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
    live.start(refresh=True)
    return live


def _panel(status: Status, older: Status) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    speed = rate(older, status)
    left = eta_s(status, speed)
    head = Table.grid(padding=(0, 2, 0, 0))
    within = sum(done / planned for _, done, planned in status.active if planned > 0)
    head.add_row(
        Text(f"slides {status.slides_finished}/{status.slides_total}", style="bold"),
        ProgressBar(total=max(1, status.slides_total), completed=status.slides_finished + within, width=20),
        f"{speed:,.0f} patches/s",
        f"time left {'unknown' if left is None else duration(left)}",
    )
    slides = Table.grid(padding=(0, 2, 0, 0))
    shown = [
        f"{name} {100 * done // planned if planned else 0} %" for name, done, planned in status.active[:_SLIDES_SHOWN]
    ]
    if len(status.active) > _SLIDES_SHOWN:
        shown.append(f"and {len(status.active) - _SLIDES_SHOWN} more")
    slides.add_row(*(Text(text, overflow="ellipsis", no_wrap=True) for text in shown or ["no slide under way"]))

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("stage")
    for title in ("workers", "busy", "waits for input", "waits for room", "replaced"):
        table.add_column(title, justify="right")
    before = {stage.kind: stage for stage in older.stages} if older is not status else {}
    for stage in status.stages:
        fractions = [f"{100 * share:.0f} %" for share in shares(stage, before.get(stage.kind))]
        table.add_row(stage_name(stage.kind), str(stage.workers), *fractions, str(stage.restarts or ""))
    troubles = _troubles(status)
    return Group(head, slides, table, *([Text(", ".join(troubles), style="yellow")] if troubles else []))
