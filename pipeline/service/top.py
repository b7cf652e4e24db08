"""`slidestream top`: the service, live, on a terminal; plain lines now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from pipeline.service.recent import Recent, Sample
from pipeline.status import StageStatus, shares, stage_name

_SLIDES_SHOWN = 12
_BAR = 24


def watch(look: Callable[[], dict[str, Any]], every_s: float, once: bool, stream: TextIO | None = None) -> int:
    """Look again and again until interrupted. `look` gives what the control socket answers to `status`."""
    out = sys.stdout if stream is None else stream
    recent = Recent()
    answer = look()
    if once or not out.isatty():
        while True:
            out.write("\n".join(plain(answer, recent)) + "\n")
            out.flush()
            if once:
                return 0
            time.sleep(max(every_s, 10.0))
            answer = look()
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=out, highlight=False, markup=False), auto_refresh=False, screen=True) as live:
        while True:
            live.update(panel(answer, recent), refresh=True)
            time.sleep(every_s)
            answer = look()


def plain(answer: Mapping[str, Any], recent: Recent) -> list[str]:
    """The look as lines of text: what `status` says, a line for each stage, each GPU and each lane."""
    run = answer["run"]
    _note(run, recent)
    lines = [time.strftime("%H:%M:%S"), *answer["lines"]]
    for name, workers, busy, waiting_input, waiting_room, restarts in stage_rows(run, recent):
        lines.append(
            f"{name}: {workers} workers, busy {busy}, wait for input {waiting_input}, for room {waiting_room}"
            + (f", {restarts} replaced" if restarts else "")
        )
    lines += [": ".join((row[0], ", ".join(filter(None, row[1:])))) for row in gpu_rows(run, recent)]
    for name, lane in run.get("lanes", {}).items():
        lines.append(
            f"lane {name}: {'up' if lane['up'] else 'down'}, {lane['slides']} slides, {lane['restarts']} restarts"
        )
    return lines


def panel(answer: Mapping[str, Any], recent: Recent) -> Any:
    """The look as a page of rich."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    run = answer["run"]
    _note(run, recent)
    parts: list[Any] = [Text(f"slidestream  {time.strftime('%H:%M:%S')}", style="bold")]
    parts += [Text(line, style="yellow" if line.startswith(("held", "lane")) else "") for line in answer["lines"]]
    if not run:
        return Group(*parts)
    parts += [Text(""), _stage_table(run, recent)]
    if gpus := gpu_rows(run, recent):
        table = Table.grid(padding=(0, 3, 0, 0))
        for row in gpus:
            table.add_row(*row)
        parts += [Text(""), table]
    slides = Table.grid(padding=(0, 2, 0, 0))
    active = run.get("active", ())
    for name, done, planned in active[:_SLIDES_SHOWN]:
        share = done / planned if planned else 0.0
        bar = "█" * round(_BAR * share) + "·" * (_BAR - round(_BAR * share))
        slides.add_row(
            Text(_printable(name), overflow="ellipsis", no_wrap=True),
            bar,
            f"{100 * share:.0f} %",
            f"{done:,} of {planned:,}",
        )
    if len(active) > _SLIDES_SHOWN:
        slides.add_row(f"and {len(active) - _SLIDES_SHOWN} more")
    return Group(*parts, Text(""), slides)


def stage_rows(run: Mapping[str, Any], recent: Recent) -> list[tuple[str, str, str, str, str, str]]:
    """(stage, workers, busy, waiting for input, waiting for room, replaced), over the last minute."""
    before = {stage.kind: stage for stage in recent.oldest.stages} if recent.oldest is not None else {}
    rows = []
    for values in run.get("stages", ()):
        stage = StageStatus(**values)
        fractions = [f"{100 * share:.0f} %" for share in shares(stage, before.get(stage.kind))]
        rows.append((stage_name(stage.kind), str(stage.workers), *fractions, str(stage.restarts or "")))
    return rows


def gpu_rows(run: Mapping[str, Any], recent: Recent) -> list[tuple[str, ...]]:
    """(worker, busy, batch, fill, memory, power) of each inference worker that tells of it."""
    rows = []
    for worker, values in sorted((run.get("telemetry") or {}).items()):
        busy, fill = recent.gpu_busy(worker), values.get("fill")
        rows.append(
            (
                worker,
                "" if busy is None else f"busy {100 * busy:.0f} %",
                f"batch {values['batch_ms_p50']:.1f} ms" if "batch_ms_p50" in values else "",
                "" if fill is None else f"full {100 * fill:.0f} %",
                f"{values['gpu_mib']:,.0f} MiB" if "gpu_mib" in values else "",
                f"{values['gpu_watts']:.0f} W" if "gpu_watts" in values else "",
            )
        )
    return rows


def _stage_table(run: Mapping[str, Any], recent: Recent) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("stage")
    for title in ("workers", "busy", "waits for input", "waits for room", "replaced"):
        table.add_column(title, justify="right")
    for row in stage_rows(run, recent):
        table.add_row(*row)
    slots = run.get("slots") or {}
    table.caption = ("slots: " + ", ".join(f"{count} {state}" for state, count in slots.items())) if slots else None
    table.caption_justify = "left"
    return table


def _note(run: Mapping[str, Any], recent: Recent) -> None:
    if not run:
        return
    patches = int(run.get("patches_inferred", 0)) + int(run.get("patches_failed", 0))
    stages = tuple(StageStatus(**stage) for stage in run.get("stages", ()))
    recent.add(Sample(time.monotonic(), patches, stages, run.get("telemetry") or {}))


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
