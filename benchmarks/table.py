"""What every benchmark prints: a plain table, or with --json the same figures with the machine's facts and the date."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.python_path import python_path
from pipeline.machine import MIB, detect

ROOT = Path(__file__).resolve().parent.parent


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    made = argparse.ArgumentParser(f"python -m benchmarks.{program}", description=description)
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return made


def facts() -> dict[str, Any]:
    """The machine, and how busy it is before the benchmark adds to it."""
    machine = detect()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": machine.cores,
        "memory_mib": machine.memory_bytes // MIB,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def emit(as_json: bool, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], **figures: Any) -> None:
    """Print one benchmark: `rows` under `columns`, then `figures`, the ones that count."""
    if as_json:
        record = {"benchmark": title, "machine": figures.pop("machine"), "figures": figures}
        record["rows"] = [dict(zip(columns, row, strict=True)) for row in rows]
        print(json.dumps(record, indent=2))
        return
    machine = figures.pop("machine")
    print(title)
    print(
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_before']:g} before the start, "
        f"{machine['date']}\n"
    )
    print(text(columns, rows))
    print()
    for name, value in figures.items():
        print(f"{name.replace('_', ' ')}: {shown(value)}")


def text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for people: the first column to the left, numbers to the right."""
    cells = [list(columns), *[[shown(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = []
    for row in cells:
        parts = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished command: wall seconds, and seconds of processor time of it and all its descendants."""

    wall_s: float
    cpu_s: float
    code: int
    output: str


def run(command: Sequence[str], timeout_s: float, environment: dict[str, str] | None = None) -> Ran:
    """Run a command to its end. RuntimeError with its last lines where it fails, subprocess.TimeoutExpired."""
    before = os.times()
    began = time.monotonic()
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path(), **(environment or {})},
    )
    wall_s, after = time.monotonic() - began, os.times()
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{last}")
    return Ran(wall_s, cpu_s, done.returncode, done.stdout)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def slidestream(*arguments: str) -> list[str]:
    return python("-m", "pipeline.cli", *arguments)
