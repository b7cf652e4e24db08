"""The configuration: a YAML file and `--set` overrides in, a checked and immutable `Config` out.

    config = load_config(Path("cpu.yaml"), ["reader.workers=4"])
    config = resolve(config, detect())       # no "auto" left

Raises ConfigError for everything that is wrong, always one line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.keys import Key, keys, nearest
from pipeline.overrides import ConfigError, Layer, dotted_name, merge, parse_set, read_file
from pipeline.schema import Config
from pipeline.sizing import memory_bound, resolve

__all__ = [
    "Config",
    "ConfigError",
    "load_config",
    "memory_bound",
    "model_directories",
    "model_directory",
    "resolve",
    "result_hash",
]

ROOT = Path(__file__).resolve().parent.parent
DEMONSTRATION_MODEL = ROOT / "models" / "demo-tumour"
_SHOWN_CHARS = 60


def load_config(file: Path | None = None, sets: Iterable[str] = ()) -> Config:
    """Defaults, then `file`, then each `key=value` of `sets` in order. Raises ConfigError."""
    layer = Layer({}, {}) if file is None else read_file(file)
    lists = frozenset(key.name for key in keys().values() if key.is_list)
    for text in sets:
        layer = merge(layer, parse_set(text, lists))
    data = _without_empty_sections(layer.data)
    try:
        # By way of JSON, where strict types mean what a person expects: a list is a tuple, 1 is a number, "1" is not.
        return Config.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise ConfigError(_problems(error, layer)) from error


def model_directories(config: Config) -> tuple[Path, ...]:
    """The model directories that the configuration names, or that of the demonstration model."""
    if config.model is None:
        return (DEMONSTRATION_MODEL,)
    named = (config.model,) if isinstance(config.model, str) else config.model
    return tuple(Path(name).expanduser() for name in named)


def model_directory(config: Config) -> Path:
    """The one model directory that the configuration names. Raises ConfigError where it names several."""
    found = model_directories(config)
    if len(found) > 1:
        raise ConfigError(f"model: {', '.join(map(str, found))}: this is done with one model at a time; name one")
    return found[0]


def result_hash(config: Config) -> str:
    """A hash over exactly the values that results depend on: a slide finished under another hash must be done again."""
    values = {
        key.name: value
        for key in keys().values()
        if key.changes_results and (value := _get(config, key.name)) not in key.as_before
    }
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _get(config: Config, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _without_empty_sections(data: dict[str, Any]) -> dict[str, Any]:
    """A section whose lines are all commented out is None in YAML; it means the defaults."""
    known = keys()
    return {name: value for name, value in data.items() if value is not None or not _is_section(known, name)}


def _is_section(known: dict[str, Key], name: str) -> bool:
    return name in known and known[name].is_section


def _problems(error: ValidationError, layer: Layer) -> str:
    """All problems in one line: each key once, unknown keys first, at most three."""
    messages: dict[str, str] = {}
    for problem in sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden"):
        unknown = problem["type"] == "extra_forbidden"
        name = _first_leaf(dotted_name(problem["loc"]), layer.data) if unknown else _known_prefix(problem["loc"])
        messages.setdefault(name, _message(name, problem, layer))
    shown = list(messages.values())[:3]
    more = len(messages) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _first_leaf(name: str, data: dict[str, Any]) -> str:
    """An unknown section goes by its first key: `slide.mpp` says more of what was meant than `slide`."""
    value = _given(name, data)
    while isinstance(value, dict) and value:
        first = next(iter(value))
        name, value = f"{name}.{first}", value[first]
    return name


def _known_prefix(location: tuple[int | str, ...]) -> str:
    """The key that a pydantic location lies in: the location goes on with list indexes and names of alternatives."""
    known = keys()
    for end in range(len(location), 0, -1):
        if _schema_name(name := dotted_name(location[:end])) in known:
            return name
    return ""


def _schema_name(name: str) -> str:
    """service.watch[0].path as the schema knows it: service.watch[].path."""
    return re.sub(r"\[\d+\]", "[]", name)


def _message(name: str, problem: Any, layer: Layer) -> str:
    place = layer.places.get(name)
    start = f"{place}: " if place else ""
    if problem["type"] == "extra_forbidden":
        guess = nearest(name)
        remedy = f"did you mean {guess}?" if guess else "docs/configuration.md lists all keys"
        return f"{start}unknown key {name}; {remedy}"
    known = keys().get(_schema_name(name))
    if problem["type"] == "value_error":
        within = known is None or known.is_section or known.allowed == "a list of sections"
        return f"{start}{name}{'.' if within else ': '}{problem['ctx']['error']}"
    if problem["type"] == "missing":
        return f"{name} is missing; it takes {known.allowed if known else 'text'}"
    value = _given(name, layer.data)
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= _SHOWN_CHARS else shown[: _SHOWN_CHARS - 1] + "…"
    allowed = known.allowed if known else "sections"
    # Of YAML, null (or nothing at all) is no text: an `engine:` left empty must not mean the engine of that name.
    quoted = '; as a text, null is written "null"' if value is None and "null" in allowed.split(", ") else ""
    return f"{start}{name} is {shown}, but takes {allowed}{quoted}"


def _given(name: str, data: Any) -> Any:
    for part in re.findall(r"[^.\[\]]+", name):
        if isinstance(data, list):
            data = data[int(part)] if part.isdecimal() and int(part) < len(data) else None
        else:
            data = data.get(part) if isinstance(data, dict) else None
    return data
