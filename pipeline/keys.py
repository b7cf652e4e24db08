"""Every configuration key as data: for error messages, the table in the documentation, and the JSON Schema for editors.

`python -m pipeline.keys` writes what is generated from here.
"""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.schema import Config
from pipeline.section import AS_BEFORE, CHANGES_RESULTS

SCHEMA_FILE = "configs/slidestream.schema.json"
TABLE_START = "<!-- all keys: written by `python -m pipeline.keys` -->"
TABLE_END = "<!-- end of all keys -->"


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `name` is dotted, with `[]` after a list of sections (service.watch[].path); `allowed` says in words what it
    takes, `default` is JSON text, or "(needed)" where there is none; `as_before`: see pipeline.section.key."""

    name: str
    allowed: str
    default: str
    description: str
    changes_results: bool
    as_before: tuple[Any, ...]
    is_list: bool
    is_section: bool


@functools.cache
def keys() -> dict[str, Key]:
    """All keys by dotted name, sections included, in the order of the schema."""
    schema = Config.model_json_schema()
    found: dict[str, Key] = {}
    _walk(schema, schema.get("$defs", {}), Config().model_dump(mode="json"), "", found)
    return found


def _walk(schema: dict[str, Any], defs: dict[str, Any], defaults: dict[str, Any], prefix: str, found: dict) -> None:
    for name, field in schema["properties"].items():
        section, item = _section(field, defs), _section(field.get("items", {}), defs)
        dotted = f"{prefix}{name}"
        found[dotted] = Key(
            name=dotted,
            allowed="a section" if section else "a list of sections" if item else _allowed(field),
            default="" if section else _default(defaults[name]) if name in defaults else "(needed)",
            description=(field.get("description") or (section or {}).get("description", "")).strip(),
            changes_results=bool(field.get(CHANGES_RESULTS)),
            as_before=tuple(field.get(AS_BEFORE, ())),
            is_list=_allowed(field).startswith("a list") if not section and not item else False,
            is_section=section is not None,
        )
        if section is not None:
            _walk(section, defs, defaults[name], f"{dotted}.", found)
        elif item is not None:
            inner = {name: field["default"] for name, field in item["properties"].items() if "default" in field}
            _walk(item, defs, inner, f"{dotted}[].", found)


def _section(field: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any] | None:
    reference = field.get("$ref", "").removeprefix("#/$defs/")
    return defs[reference] if reference else None


def _default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _allowed(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_allowed(option) for option in field["anyOf"])
    if "enum" in field:
        return "one of " + ", ".join(field["enum"])
    if "const" in field:
        return str(field["const"])
    match field.get("type"):
        case "integer":
            return "a whole number" + _range(field)
        case "number":
            return "a number" + _range(field)
        case "boolean":
            return "true or false"
        case "array":
            items = _allowed(field["items"])
            return (
                f"a list of {items.removeprefix('one of ')}" if items.startswith("one of ") else f"a list of {items}s"
            )
        case "null":
            return "null"
        case _:
            return "text"


def _range(field: dict[str, Any]) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if low is not None:
        return f" of at least {low:g}"
    return "" if high is None else f" of at most {high:g}"


def nearest(name: str) -> str | None:
    """The right name that `name` most likely stands for, or None: `slides.mp` and plain `mpp` both give `slides.mpp`."""
    names = list(keys())
    last = name.rpartition(".")[2].lower()
    same_end = [known for known in names if known.rpartition(".")[2] == last]
    if same_end:
        return difflib.get_close_matches(name, same_end, n=1, cutoff=0.0)[0]
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.75)
    if close:
        return close[0]
    ends = {known.rpartition(".")[2]: known for known in reversed(names)}
    close = difflib.get_close_matches(last, list(ends), n=1, cutoff=0.7)
    return ends[close[0]] if close else None


def json_schema() -> str:
    """The JSON Schema that editors use, as the text of configs/slidestream.schema.json."""
    schema = _without_titles(Config.model_json_schema())
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "slidestream configuration"}
    return json.dumps({**head, **schema}, indent=2, ensure_ascii=False) + "\n"


def _without_titles(schema: Any) -> Any:
    """Drops the titles that pydantic makes from names: editors would show them beside the description."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if isinstance(schema, dict):
        named = {"properties", "$defs"}  # below these, "title" would be a key of ours
        return {
            name: {key: _without_titles(value) for key, value in item.items()}
            if name in named
            else _without_titles(item)
            for name, item in schema.items()
            if name != "title"
        }
    return schema


def markdown_table() -> str:
    """The table of all keys for docs/configuration.md: one table a section."""
    lines: list[str] = []
    for key in keys().values():
        if key.is_section:
            lines += ["", f"### {key.name}", "", key.description, ""]
        if key.is_section or not lines:
            lines += ["| Key | Default | Takes | What it is for |", "|---|---|---|---|"]
        if not key.is_section:
            mark = " **Changes results.**" if key.changes_results else ""
            default = key.default.replace("|", "\\|")
            lines.append(f"| `{key.name}` | `{default}` | {key.allowed} | {key.description}{mark} |")
    return "\n".join(lines) + "\n"


def _write_generated(root: Path) -> None:
    """Write the JSON Schema, and the table between its marks in docs/configuration.md."""
    (root / SCHEMA_FILE).write_text(json_schema())
    page = root / "docs" / "configuration.md"
    before, _, rest = page.read_text().partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    page.write_text(f"{before}{TABLE_START}\n{markdown_table()}{TABLE_END}{after}")


if __name__ == "__main__":
    _write_generated(Path(__file__).resolve().parent.parent)
