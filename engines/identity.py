"""What an engine is an engine of: everything that, were it different, would make another engine.

TensorRT itself tells a wrong engine only by failing to load it, and two builds of the same differ in every byte. So the
identity is made of what went in, is written beside the engine, and is compared, value by value, before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

from engines.errors import EngineError, one_line
from engines.flavour import Flavour
from engines.gpu import Gpu
from engines.recipe import AOTI_RECIPE, HALF_RECIPE, BuildOptions, Profile

FORMAT = 1
AMPERE = "8.0 and later"
_KEY_SIGNS = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """Its fields hold only what JSON holds."""

    model: str
    """sha256 of the model directory (engines.model.Model.sha256)."""
    graph: str
    """sha256 of the folded graph, before any change of precision."""
    precision: str
    recipe: str
    """How the precision was made: "", "fp16-2", or that and the quantiser's."""
    calibration: str
    """sha256 of the calibration patches, empty where there are none."""
    classes: int
    profiles: list[dict[str, int]]
    options: dict[str, Any]
    flavour: str
    flavour_version: str
    target: str
    """The GPUs that it is for, in words: see `target`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def backend(self) -> str:
        """Who runs it: "aoti", or "tensorrt" for both flavours of TensorRT."""
        return self.flavour if self.flavour == "aoti" else "tensorrt"

    @property
    def key(self) -> str:
        """16 hexadecimal digits over all of it."""
        text = json.dumps({"format": FORMAT, **self.to_dict()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_SIGNS]

    @classmethod
    def from_dict(cls, raw: Any) -> Identity:
        """Raises ValueError where a field is missing or there is one too many: another release wrote it."""
        names = {field.name for field in fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            raise ValueError("its identity has other fields than this release's")
        return cls(**raw)


def identity(
    *,
    model: str,
    graph: str,
    precision: str,
    quantiser: str = "",
    calibration: str = "",
    classes: int,
    profiles: Sequence[Profile],
    options: BuildOptions,
    flavour: Flavour,
    gpu: Gpu | None,
) -> Identity:
    """The identity of an engine yet to be built. `gpu` may be None only where the flavour builds without one."""
    recipes = {"fp32": "", "fp16": HALF_RECIPE, "int8": f"{HALF_RECIPE}+{quantiser}"}
    return Identity(
        model=model,
        graph=graph,
        precision=precision,
        recipe=recipes[precision],
        calibration=calibration,
        classes=classes,
        profiles=[profile.to_dict() for profile in profiles],
        options=options.to_dict(),
        flavour=flavour.name,
        flavour_version=flavour.version,
        target=target(flavour, options, gpu),
    )


def target(flavour: Flavour, options: BuildOptions, gpu: Gpu | None) -> str:
    """The GPUs that an engine is for. Raises EngineError where that needs a GPU and there is none."""
    if flavour.portable:
        return ", ".join(options.compute_capabilities) or AMPERE
    if options.hardware == "AMPERE_PLUS":
        return AMPERE
    if gpu is None:
        raise EngineError(f"{flavour.name} builds for the GPU at hand, and there is none")
    return gpu.compute_capability if options.hardware == "SAME_COMPUTE_CAPABILITY" else str(gpu)


def suited(options: BuildOptions, flavour: Flavour, gpu: Gpu | None) -> BuildOptions:
    """Options with which the engine will run on the GPU at hand, where no other is named.

    Of itself TensorRT for RTX builds for Ampere and later; an older GPU, Turing, has to be asked for.
    """
    if not flavour.portable or options.compute_capabilities or gpu is None:
        return options
    own = gpu.compute_capability
    old = own in flavour.compute_capabilities and _number(own) < _number(AMPERE.split()[0])
    return replace(options, compute_capabilities=(own,)) if old else options


def serves(engine: Identity, gpu: Gpu) -> bool:
    """Whether the engine's target includes `gpu`."""
    if engine.target == str(gpu):
        return True
    if engine.target.endswith(" and later"):
        return _number(gpu.compute_capability) >= _number(engine.target.split()[0])
    return gpu.compute_capability in engine.target.split(", ")


class Release(Protocol):
    """A flavour by name and version; engines.flavour.Flavour is one."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


def misfits(engine: Identity, flavour: Release, gpu: Gpu) -> list[str]:
    """Why an engine cannot be loaded here, each with both values; empty where it can."""
    problems = []
    if engine.flavour != flavour.name:
        problems.append(f"built by {engine.flavour}, here is {flavour.name}")
    elif engine.flavour_version != flavour.version:
        problems.append(f"built by {engine.flavour} {engine.flavour_version}, here is {flavour.version}")
    if engine.backend == "aoti" and engine.recipe != AOTI_RECIPE:
        problems.append(f"made by the recipe {engine.recipe}, now it is {AOTI_RECIPE}")
    if not serves(engine, gpu):
        problems.append(f"built for {engine.target}, here is {gpu}")
    return problems


def differences(engine: Identity, wanted: Identity) -> list[str]:
    """ "what: that one's value, the wanted value" of every field that differs."""
    found, asked = engine.to_dict(), wanted.to_dict()
    return [
        f"{name}: it has {_short(found[name])}, wanted is {_short(asked[name])}"
        for name in found
        if found[name] != asked[name]
    ]


def _short(value: Any) -> str:
    if isinstance(value, str):
        return (value[:12] if len(value) == 64 else one_line(value, 80)) or "none"
    return one_line(json.dumps(value), 120)


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
