"""All that the ledger knows of one slide, for a person and for a program. Reads the ledger itself: no service is needed."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.service.migrations import LedgerError
from pipeline.service.outbox import shown
from pipeline.service.reasons import RULES
from pipeline.service.records import Name, Slide, Step
from pipeline.service.state import LEDGER
from pipeline.service.view import View


def report(state: Path, name: str, route: str | None) -> tuple[Any, list[str]]:
    """(plain JSON, lines) of the slides of this name or number: one, or a list of them where several routes have it.

    ConfigError: no ledger there, or no such slide.
    """
    try:
        view = View.open(state / LEDGER)
    except LedgerError as error:
        raise ConfigError(str(error)) from error
    try:
        slides = [slide for slide in view.named(name) if route in (None, slide.route)]
        if not slides:
            raise ConfigError(
                f"{name}: no run is under way there, and no slide of this name or number is in {state / LEDGER}"
            )
        values, lines = [], []
        for slide in slides:
            names, history = view.names(slide.id), view.history(slide.id)
            values.append(_values(slide, names, history))
            lines += _lines(slide, names, history)
    finally:
        view.close()
    return values[0] if len(values) == 1 else values, lines


def _values(slide: Slide, names: list[Name], history: list[Step]) -> dict[str, Any]:
    plain = {**asdict(slide), "path": shown(slide.path)}
    return {
        **plain,
        "names": [{**asdict(name), "path": shown(name.path)} for name in names],
        "history": [asdict(step) for step in history],
    }


def _lines(slide: Slide, names: list[Name], history: list[Step]) -> list[str]:
    lines = [
        f"{_printable(slide.name)} ({slide.route}), number {slide.id}: {slide.state.replace('_', ' ')}, {slide.urgency}"
    ]
    if slide.reason:
        lines.append(f"  {_printable(slide.reason)}" + (f"; {RULES[slide.kind].remedy}" if slide.kind else ""))
    if slide.result:
        counts = {name: slide.result.get(name) for name in ("planned", "inferred", "failed")}
        if all(count is not None for count in counts.values()):
            lines.append("  patches: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
        for label, values in (slide.result.get("probabilities") or {}).items():
            lines.append(f"  {label}: highest {values['max']:.3f}, mean {values['mean']:.3f}")
    if slide.deadline is not None:
        lines.append(f"  deadline {_time(slide.deadline)}" + (", alarm was raised" if slide.alarmed else ""))
    lines.append(f"  attempts {slide.attempts}, failures {slide.failures}, interruptions {slide.interruptions}")
    for name in names:
        lines.append(f"  {_printable(shown(name.path))}" + ("" if name.gone is None else f" (gone {_time(name.gone)})"))
    for step in history:
        by = "" if step.by == "service" else f" by the {step.by}"
        lines.append(
            f"  {_time(step.time)} {step.old} -> {step.new}{by}{': ' + _printable(step.reason) if step.reason else ''}"
        )
    return lines


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
