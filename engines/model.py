"""A model directory: WSInfer's `config.json` (spec_version 1.0, accepted unchanged) beside `model.onnx`, or beside a PyTorch
network alone, where ONNX cannot express it: that is for the backend aoti.

Source of the format: `schemas/model-config.schema.json` of SBU-BMI/wsinfer-zoo. Keys that the schema does not have are
left alone (other tools put theirs there), but an unknown transform, or an unknown argument of one, is refused: ignoring
it would change the probabilities in silence.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.errors import ModelError, one_line

CONFIG = "config.json"
GRAPH = "model.onnx"
TORCHSCRIPT_FILE, EXPORTED_FILE = "torchscript_model.pt", "exported_model.pt2"  # the former is WSInfer's name
SPEC_VERSION = "1.0"
MAX_PX = 8192
SPACINGS = (0.01, 1000.0)  # from beyond any lens to a slide in a patch
LARGEST = 1e6  # of mean and std: what float32 and a network can use
MAX_CONFIG_BYTES = 16 << 20
MAX_CLASS_NAME = 64
CLASS_NAME_SIGNS = " _-.+()%"
_HOW = "see docs/models.md"


@dataclass(frozen=True, slots=True)
class Transform:
    """Resize (optional), ToTensor (x / 255), Normalize (optional: mean 0, std 1), in this order."""

    resize: tuple[int, int] | None
    """(height, width) in pixels, None where the network takes the patch as it is."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Model:
    """What `config.json` says, checked. The network itself is read by engines.fold."""

    directory: Path
    name: str
    """The directory's own name."""
    sha256: str
    """Over config.json and the network (model.onnx and its external data; else the PyTorch file): names and contents."""
    architecture: str
    patch_px: int
    """Side of a patch in pixels, as the slide is read."""
    own_px: int
    """The side that config.json names. `patch_px` is another one where that is asked for: see `at`."""
    spacing: float
    """Micrometres per pixel of a patch."""
    classes: tuple[str, ...]
    transform: Transform
    network: str = GRAPH
    """The name of its file: model.onnx, or that of the PyTorch network where there is no ONNX."""

    @property
    def has_onnx(self) -> bool:
        return self.network == GRAPH

    @property
    def network_path(self) -> Path:
        return self.directory / self.network

    @property
    def onnx_path(self) -> Path:
        return self.directory / GRAPH

    @property
    def config_path(self) -> Path:
        return self.directory / CONFIG

    @property
    def input_hw(self) -> tuple[int, int]:
        """(height, width) in pixels that the network itself sees."""
        return self.transform.resize or (self.patch_px, self.patch_px)

    def require_onnx(self) -> None:
        """Raises ModelError where there is a PyTorch network alone: ONNX Runtime and TensorRT have no use for that."""
        if not self.has_onnx:
            raise ModelError(
                self.onnx_path,
                f"no such file, {self.network} alone",
                "make a model directory with slidestream model import; a network that ONNX cannot express is for the backend "
                f"aoti alone, on a GPU: {_HOW}",
            )

    @property
    def at_other_size(self) -> bool:
        """Whether it is used at another patch size than its own."""
        return self.patch_px != self.own_px

    def at(self, patch_px: int) -> Model:
        """This model for patches of that side, at its own spacing.

        Resize goes along in proportion, so that the network sees the magnification that it was made for. Whether the network
        takes the size is not known here: engines.check tries it. Raises ModelError where Resize would end between two pixels.
        """
        resize = self.transform.resize
        if resize is not None:
            step = math.lcm(*(self.patch_px // math.gcd(self.patch_px, side) for side in resize))
            if patch_px % step:
                raise ModelError(
                    self.config_path,
                    f"transform Resize brings {self.patch_px} px to {resize[0]} x {resize[1]}, and {patch_px} px to no whole number",
                    f"take a multiple of {step} px, or the model's own {self.own_px} (inference.patch_px=auto)",
                )
            resize = resize[0] * patch_px // self.patch_px, resize[1] * patch_px // self.patch_px
        return replace(self, patch_px=patch_px, transform=replace(self.transform, resize=resize))

    def describe(self) -> dict[str, Any]:
        """For results and logs: name, sha256, architecture, classes, patch_px, spacing (JSON- and msgpack-safe); own_patch_px
        where it is used at another patch size than its own.
        """
        own = {"own_patch_px": self.own_px} if self.at_other_size else {}
        return {
            "name": self.name,
            "sha256": self.sha256,
            "architecture": self.architecture,
            "classes": list(self.classes),
            "patch_px": self.patch_px,
            "spacing": self.spacing,
            **own,
        }


def load_model(directory: str | Path) -> Model:
    """Reads and checks a model directory; the network is hashed, not parsed. Raises ModelError."""
    directory = Path(directory)
    try:
        directory = directory.resolve(strict=True)
    except OSError as error:
        raise ModelError(directory, f"no such model directory ({error.strerror})", f"{_HOW}") from error
    if not directory.is_dir():
        raise ModelError(directory, "is not a directory", f"give the directory that holds {CONFIG} and the network")
    config_path = directory / CONFIG
    raw = _read_config(config_path)
    config = parse_config(raw, config_path)
    found = [name for name in (GRAPH, TORCHSCRIPT_FILE, EXPORTED_FILE) if (directory / name).is_file()]
    if not found:
        raise ModelError(directory / GRAPH, "no such file", _HOW)
    network = found[0]
    try:
        sha256 = _hash(directory, network)
    except OSError as error:
        raise ModelError(error.filename or directory / network, f"cannot be read ({error.strerror})") from error
    return Model(
        directory=directory, name=directory.name, sha256=sha256, own_px=config["patch_px"], network=network, **config
    )


def _read_config(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device read for ever
            raise ModelError(path, "is not a file", _HOW)
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise ModelError(path, f"is larger than {MAX_CONFIG_BYTES >> 20} MiB, so no model configuration")
        return json.loads(raw)
    except FileNotFoundError as error:
        raise ModelError(path, "no such file", _HOW) from error
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ModelError(path, "is not text in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ModelError(path, f"is not valid JSON: line {error.lineno}: {error.msg}") from error
    except ValueError as error:  # a number of more than 4300 digits
        raise ModelError(path, f"is not usable JSON: {error}") from error
    except RecursionError as error:
        raise ModelError(path, "is not a model configuration: nested too deeply") from error


def parse_config(raw: Any, path: Path) -> dict[str, Any]:
    """The checked contents of a parsed config.json: architecture, patch_px, spacing, classes, transform.

    `path` is for the messages alone. Raises ModelError naming the key.
    """
    if not isinstance(raw, Mapping):
        raise ModelError(path, f"must be a JSON object, not {_kind(raw)}", _HOW)

    def key(name: str) -> Any:
        if name not in raw:
            raise ModelError(path, f"key {name} is missing", _HOW)
        return raw[name]

    version = key("spec_version")
    if version != SPEC_VERSION:
        raise ModelError(path, f"spec_version is {one_line(repr(version), 40)}; this release reads {SPEC_VERSION!r}")
    architecture = key("architecture")
    if not isinstance(architecture, str):
        raise ModelError(path, f"architecture must be a text, not {_kind(architecture)}")
    count = _integer(key("num_classes"), "num_classes", path, 1, 10_000)
    patch_px = _integer(key("patch_size_pixels"), "patch_size_pixels", path, 1, MAX_PX)
    spacing = _number(key("spacing_um_px"), "spacing_um_px", path)
    if not SPACINGS[0] <= spacing <= SPACINGS[1]:
        low, high = SPACINGS
        raise ModelError(path, f"spacing_um_px must be {low:g} to {high:g} (micrometres per pixel), not {spacing:g}")
    classes = _classes(key("class_names"), count, path)
    transform = _transform(key("transform"), path)
    return {
        "architecture": architecture,
        "patch_px": patch_px,
        "spacing": spacing,
        "classes": classes,
        "transform": transform,
    }


def _classes(value: Any, count: int, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ModelError(path, "class_names must be a list of texts")
    if len(value) != count:
        raise ModelError(path, f"num_classes is {count}, but class_names has {len(value)} names")
    seen: dict[str, str] = {}
    for name in value:
        bad = sorted({sign for sign in name if not (sign.isalnum() or sign in CLASS_NAME_SIGNS)})
        if not name or name != name.strip() or name.startswith(".") or len(name) > MAX_CLASS_NAME or bad:
            why = f"holds {' '.join(map(repr, bad))}" if bad else f"must be 1 to {MAX_CLASS_NAME} signs, not begin with"
            why += "" if bad else " '.', and have no space at its ends"
            raise ModelError(
                path,
                f"class_names: {one_line(repr(name), 60)} {why}",
                f"it becomes a column of the results: use letters, digits and {CLASS_NAME_SIGNS.strip()!r}",
            )
        other = seen.setdefault(name.casefold(), name)
        if other is not name or value.count(name) > 1:
            raise ModelError(path, f"class_names: {other!r} and {name!r} are one name where case does not count")
    return tuple(value)


def _transform(value: Any, path: Path) -> Transform:
    if not isinstance(value, list):
        raise ModelError(path, f"transform must be a list, not {_kind(value)}")
    order = ("Resize", "ToTensor", "Normalize")
    resize: tuple[int, int] | None = None
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    names: list[str] = []
    for index, step in enumerate(value):
        where = f"transform[{index}]"
        name = step.get("name") if isinstance(step, Mapping) else None
        if not isinstance(name, str):
            raise ModelError(path, f'{where} must be an object with a "name"')
        if name not in order:
            raise ModelError(path, f"{where}: unknown transform {one_line(name, 60)!r}; known: {', '.join(order)}")
        arguments = step.get("arguments") or {}
        if not isinstance(arguments, Mapping):
            raise ModelError(path, f"{where} ({name}): arguments must be an object, not {_kind(arguments)}")
        wanted = {"Resize": {"size"}, "ToTensor": set(), "Normalize": {"mean", "std"}}[name]
        for argument in sorted(wanted ^ set(arguments)):
            problem = "is missing" if argument in wanted else "is unknown"
            raise ModelError(path, f"{where} ({name}): argument {one_line(argument, 60)!r} {problem}")
        if name == "Resize":
            resize = _size(arguments["size"], f"{where} (Resize): size", path)
        elif name == "Normalize":
            mean = _triple(arguments["mean"], f"{where} (Normalize): mean", path)
            std = _triple(arguments["std"], f"{where} (Normalize): std", path)
            if min(std) < 1 / LARGEST:
                raise ModelError(path, f"{where} (Normalize): std must be {1 / LARGEST:g} or more, not {list(std)}")
            if max(map(abs, (*mean, *std))) > LARGEST:
                raise ModelError(
                    path, f"{where} (Normalize): mean and std must be {LARGEST:g} or less, for values from 0 to 1"
                )
        names.append(name)
    if "ToTensor" not in names or names != [name for name in order if name in names]:
        raise ModelError(
            path,
            f"transform is {', '.join(names) or 'empty'}",
            "it must be ToTensor, with at most one Resize before it and at most one Normalize after it",
        )
    return Transform(resize=resize, mean=mean, std=std)


def _size(value: Any, what: str, path: Path) -> tuple[int, int]:
    # torchvision takes one number as the shorter side; patches are square, so it is both.
    sides = value if isinstance(value, list) else [value]
    if len(sides) not in (1, 2):
        raise ModelError(path, f"{what} must be a number or [height, width], not {len(sides)} numbers")
    numbers = [_integer(side, what, path, 1, MAX_PX) for side in sides]
    return numbers[0], numbers[-1]


def _triple(value: Any, what: str, path: Path) -> tuple[float, float, float]:
    if not isinstance(value, list) or len(value) != 3:
        raise ModelError(path, f"{what} must be three numbers (red, green, blue)")
    first, second, third = (_number(number, what, path) for number in value)
    return first, second, third


def _integer(value: Any, what: str, path: Path, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = one_line(repr(value), 40)
        raise ModelError(path, f"{what} must be a whole number from {low} to {high}, not {shown}")
    return value


def _number(value: Any, what: str, path: Path) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # a whole number beyond what a float holds
        number = math.inf
    if not math.isfinite(number):
        raise ModelError(path, f"{what} must be a number, not {one_line(repr(value), 40)}")
    return number


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _hash(directory: Path, network: str) -> str:
    digest = hashlib.sha256()
    files = [directory / CONFIG, directory / network, *(_external(directory) if network == GRAPH else [])]
    for path in files:
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(directory).as_posix()}\0{inner}\n".encode())
    return digest.hexdigest()


def _external(directory: Path) -> list[Path]:
    """The files below `directory` whose names occur in model.onnx: external data is referred to by its relative path.

    Found so rather than by parsing, because onnx is a heavy import for the many processes that only want the hash. A
    name that occurs by chance adds a file to the hash: harmless.
    """
    names = sorted(
        path.relative_to(directory)
        for path in directory.rglob("*")
        if path.is_file() and path.name not in (CONFIG, GRAPH) and not path.name.startswith(".")
    )
    graph = directory / GRAPH
    if not names or not graph.stat().st_size:
        return []
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return [directory / name for name in names if view.find(name.as_posix().encode()) >= 0]
