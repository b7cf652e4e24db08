"""Reading what people write: YAML files with line numbers, and `--set key=value`. Knows nothing of what the keys mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 16
_SHOWN_CHARS = 60
MAX_NODES = 20_000  # aliases can make a short file enormous

_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class ConfigError(Exception):
    """A configuration that cannot be used. str() is one line that says where, what is wrong, and what would be right."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of values: plain data, and where each dotted key was written ("cpu.yaml, line 3", "--set")."""

    data: dict[str, Any]
    places: dict[str, str]


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates, and with numbers as people write them: in YAML 1.1, 1e-3 is text, 010 is 8, and 1:30 is 90."""


_NUMBERS = {
    "int": re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "float": re.compile(
        r"^(?:[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN))$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", *_NUMBERS)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list("-+.0123456789"))


def read_file(path: Path) -> Layer:
    """Read a YAML file into a layer. Raises ConfigError, naming file and line, for anything but plain unique keys."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than 1 MiB, so not a configuration")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, so not a configuration") from error
    return _parse(text, str(path))


def _parse(text: str, name: str) -> Layer:
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return Layer({}, {})
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{name}, line 1: a configuration is made of `section:` and `key: value` lines")
        places: dict[str, str] = {}
        data = _Builder(loader, name, places).build(node, ())
        return Layer(data, places)
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(error, name)) from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()


class _Builder:
    """Turns YAML nodes into plain data and notes the line of each key."""

    def __init__(self, loader: _Loader, name: str, places: dict[str, str]) -> None:
        self.loader, self.name, self.places = loader, name, places
        self.nodes = 0

    def build(self, node: yaml.Node, keys: tuple[str, ...]) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(keys) > MAX_DEPTH:
            raise ConfigError(f"{self._at(node)}: nested too deeply or too long for a configuration")
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"{self._at(node)}: the tag {node.tag} has no place in a configuration")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*keys, f"[{i}]")) for i, item in enumerate(node.value)]
        try:
            value = self.loader.construct_object(node)
        except ValueError as error:  # a tag that does not fit its text, such as `!!int a`
            raise ConfigError(f"{self._at(node)}: {node.value[:_SHOWN_CHARS]!r} is not what its tag says") from error
        if isinstance(value, str) and not _is_text(value):
            raise ConfigError(f"{self._at(node)}: {value[:_SHOWN_CHARS]!r} holds a character that no name may have")
        return value

    def _mapping(self, node: yaml.MappingNode, keys: tuple[str, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self._at(key_node)}: a key must be a plain word")
            key = key_node.value
            dotted = dotted_name((*keys, key))
            if key in data:
                raise ConfigError(f"{self._at(key_node)}: {dotted} is given twice; first at {self.places[dotted]}")
            self.places[dotted] = self._at(key_node)
            data[key] = self.build(value_node, (*keys, key))
        return data

    def _at(self, node: yaml.Node) -> str:
        return f"{self.name}, line {node.start_mark.line + 1}"


def _is_text(value: str) -> bool:
    """Whether it can be a path or a name: no NUL, and no half characters, which stand for bytes that are not UTF-8."""
    return "\0" not in value and not any("\ud800" <= sign <= "\udfff" for sign in value)


def dotted_name(keys: Iterable[str | int]) -> str:
    """A key within sections and lists as one name: ("service", "watch", "[0]", "path") is service.watch[0].path."""
    name = ""
    for key in keys:
        part = f"[{key}]" if isinstance(key, int) else key
        name += part if not name or part.startswith("[") else f".{part}"
    return name


def _yaml_problem(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    place = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark is not None else name
    return f"{place}: not valid YAML: {' '.join(str(problem).split())}"


def parse_set(text: str, lists: frozenset[str] = frozenset()) -> Layer:
    """One `--set a.b=value` as a layer; the value is YAML. Keys in `lists` also take `one,two` for `[one, two]`."""
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not key or not all(re.fullmatch(r"[A-Za-z0-9_\-]+", part) for part in key.split(".")):
        raise ConfigError(f"--set {text}: write it as key=value, for example --set slides.mpp=0.5")
    value = value.strip()
    if not _is_text(value):
        raise ConfigError(f"--set {key}: {value[:_SHOWN_CHARS]!r} is not UTF-8")
    if key in lists and not value.startswith("["):
        parsed: Any = [item.strip() for item in value.split(",") if item.strip()]
    else:
        parsed = _value(value, f"--set {text}")
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    places = {".".join(key.split(".")[: end + 1]): "--set" for end in range(key.count(".") + 1)}
    return Layer(parsed, places)


def _value(text: str, name: str) -> Any:
    """Lists, sections and quoted text as in a file; anything else as one plain word, so that `*` or `#` need no quotes."""
    loader = _Loader(text if text.startswith(("[", "{", '"', "'")) else "")
    try:
        node = loader.get_single_node()
        if node is None:
            node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
            return "" if text == "" else loader.construct_object(node)
        return _Builder(loader, name, {}).build(node, ())
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(error, name)) from error
    finally:
        loader.dispose()


def merge(base: Layer, over: Layer) -> Layer:
    """`over` on top of `base`: sections are merged, everything else replaced."""
    return Layer(_merged(base.data, over.data), {**base.places, **over.places})


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
