"""The configuration that `slidestream tune` writes: the operator's own keys, and beside those proposed, why. Pure but for
`write`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ConfigError, load_config
from pipeline.tune import Setting

_WIDTH = 110
_INDENT = "  "


def text(head: Sequence[str], own: Mapping[str, Any], settings: Sequence[Setting]) -> str:
    """YAML: `head` as comments, the values of `own` (plain data, as read from a file), and the settings with their reasons.

    A setting replaces the operator's value. Comments of the operator's file are not kept.
    """
    merged = _copy(own)
    for setting in settings:
        *sections, leaf = setting.key.split(".")
        place = merged
        for name in sections:
            if not isinstance(place.get(name), dict):  # a section without keys is null in YAML
                place[name] = {}
            place = place[name]
        place[leaf] = setting.value
    reasons = {setting.key: _reason(setting) for setting in settings}
    lines = [line for words in head for line in _comment(words, "")]
    return "\n".join([*lines, "", *_section(merged, "", "", reasons)]) + "\n"


def write(file: Path, content: str) -> None:
    """A new file. ConfigError where there is one already, where it cannot be written, or would not be accepted."""
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(content)
    except FileExistsError:
        raise ConfigError(f"{file}: is there already; name a new file, or move that one away") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
    try:
        load_config(file)
    except ConfigError:
        file.unlink()
        raise


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) if isinstance(value, dict) else value for name, value in data.items()}


def _reason(setting: Setting) -> str:
    changed = "" if setting.value == setting.now else f"{setting.now} before; "
    return f"{changed}{setting.why}"


def _section(data: Mapping[str, Any], prefix: str, indent: str, reasons: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", *_section(value, f"{key}.", indent + _INDENT, reasons)]
            lines += [""] if not indent else []
            continue
        lines += _comment(reasons[key], indent) if key in reasons else []
        lines += textwrap.indent(_yaml({name: value}), indent).splitlines()
    return lines


def _comment(words: str, indent: str) -> list[str]:
    return textwrap.wrap(
        words, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ", break_long_words=False
    )


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=_WIDTH, default_flow_style=False)
