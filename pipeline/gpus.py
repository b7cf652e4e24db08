"""Which GPUs a run uses, with which engines: from the configuration, what the machine has, and the folder of engines.

The decisions are pure functions of what was found (engines.probe) and of the sidecars of the engines; nothing of NVIDIA's
is loaded here.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.cache import EngineCache, Entry
from engines.gpu import Gpu
from engines.identity import misfits
from engines.model import Model
from engines.probe import BACKENDS, Probe
from engines.python_path import python_path
from pipeline.config import Config, ConfigError
from pipeline.schema import Inference
from slides.discover import Found

ON_GPUS = (*BACKENDS, "gpu")
_VERIFY_SLIDES = 8  # of a run, that a missing engine is verified on
_DEVICES = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU with the engine for it. `cpus` are the cores nearest to it ("0,1,2"), empty where that limits nothing; `index`
    is its number among those that this process may use; `others` are the engines of the run's other models, in order.
    """

    gpu: Gpu
    plan: Path
    cpus: str = ""
    index: int = 0
    others: tuple[Path, ...] = ()

    @property
    def plans(self) -> tuple[Path, ...]:
        """The engines of all models, in their order."""
        return (self.plan, *self.others)

    @property
    def visible(self) -> str:
        """What CUDA_VISIBLE_DEVICES must be for a process to see this GPU alone."""
        return visible(self.gpu, self.index)

    def to_dict(self) -> dict[str, Any]:
        engine = {"engine": self.plan.name} if not self.others else {"engines": [plan.name for plan in self.plans]}
        return {**self.gpu.to_dict(), **engine, "cpus": self.cpus}


@dataclass(frozen=True, slots=True)
class Placement:
    """What `place` decided. `config` names one engine and one precision; without devices the run is on the CPU.

    Of several models (pipeline.placement) it names what they have in common, and `inferences` what each was given.
    """

    config: Config
    devices: tuple[Device, ...] = ()
    batch: int | None = None
    """Rows that suit the engines best; None on a CPU."""
    notices: tuple[str, ...] = field(default=())
    inferences: tuple[Inference, ...] = ()


class Missing(ConfigError):
    """There is a GPU, but no engine that fits it. `gpu`: the first that lacks one."""

    def __init__(self, text: str, gpu: Gpu) -> None:
        super().__init__(text)
        self.gpu = gpu


def place(
    config: Config,
    model: Model,
    probe: Callable[[tuple[str, ...]], Probe],
    build: Callable[[Config], None] | None = None,
) -> Placement:
    """GPUs and engines for a run. `build`, where given, makes the engine that is missing: for each kind of GPU that lacks one,
    it gets the configuration with one such GPU as `inference.devices`, named as CUDA_VISIBLE_DEVICES wants it.

    Raises ConfigError: no GPU or no engine where one was asked for, naming what to do.
    """
    inference = config.inference
    if inference.engine not in ON_GPUS:
        return Placement(config)
    found = probe(BACKENDS if inference.engine == "gpu" else (inference.engine,))
    try:
        gpus = choose_gpus(inference.devices, found)
        tried: set[str] = set()
        while True:
            try:
                return _placed(config, model, found, gpus)
            except Missing as lack:
                if inference.missing != "build" or build is None or str(lack.gpu) in tried:
                    raise
                lacking = lack.gpu
            tried.add(str(lacking))
            alone = inference.model_copy(update={"devices": (visible(lacking, found.gpus.index(lacking)),)})
            build(config.model_copy(update={"inference": alone}))
    except ConfigError as error:
        if inference.fallback != "cpu" or not model.has_onnx:  # without ONNX there is nothing for the CPU
            raise
        on_cpu = inference.model_copy(update={"engine": "onnx", "precision": "auto"})
        notice = f"NO GPU IS USED: {error}. Going on with the CPU (inference.fallback=cpu), many times slower"
        return Placement(config.model_copy(update={"inference": on_cpu}), notices=(notice,))


def visible(gpu: Gpu, index: int) -> str:
    """What CUDA_VISIBLE_DEVICES must be to see this GPU alone; `index`: among those that this process may use.

    A part of a GPU (MIG) has another name there than the one that CUDA tells of it, so it stays what it was called before.
    """
    if gpu.uuid and " MIG " not in gpu.name:
        return gpu.uuid
    outer = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return outer.split(",")[index].strip() if outer else str(index)


def choose_gpus(devices: str | Sequence[int | str], found: Probe) -> list[Gpu]:
    """The GPUs that the configuration names, in its order. Raises ConfigError."""
    if not found.gpus:
        raise ConfigError(
            f"inference.engine asks for a GPU, but {found.problem}; use inference.engine=onnx for the CPU"
        )
    if devices == "all":
        return list(found.gpus)
    chosen: list[Gpu] = []
    for device in devices:
        if isinstance(device, int):
            fits = [found.gpus[device]] if 0 <= device < len(found.gpus) else []
        else:
            fits = [gpu for i, gpu in enumerate(found.gpus) if _is_called(gpu, i, device)]
        if len(fits) != 1:
            there = ", ".join(f"{i}: {gpu.name} {gpu.uuid}" for i, gpu in enumerate(found.gpus))
            problem = "no such GPU" if not fits else "several GPUs begin so"
            raise ConfigError(f"inference.devices: {device}: {problem}; there are {there}")
        if fits[0] in chosen:
            raise ConfigError(f"inference.devices: {device}: this GPU is named twice")
        chosen += fits
    return chosen


def _is_called(gpu: Gpu, index: int, beginning: str) -> bool:
    """Whether that is the beginning of its UUID, or, of a part of a GPU, of the name that CUDA_VISIBLE_DEVICES has for it."""
    given = visible(gpu, index)
    names = (gpu.uuid, given if given.startswith("MIG-") else "")
    return bool(beginning) and any(name.startswith(beginning) for name in names)


def _placed(config: Config, model: Model, found: Probe, gpus: Sequence[Gpu]) -> Placement:
    inference = config.inference
    cache = EngineCache(Path(inference.engines).expanduser() if inference.engines else None)
    entries = [entry for entry in cache.entries() if entry.identity is None or entry.identity.model == model.sha256]
    reasons: list[str] = []
    lacking: list[Gpu] = []
    able: list[dict[Gpu, Entry]] = []
    # One precision for the whole run: a probability must not depend on which GPU the patch met.
    for precision in precisions(inference.precision, entries):
        wish = Wish(
            inference.engine, precision, model, None if config.batcher.batch == "auto" else config.batcher.batch
        )
        chosen = {}
        # With "auto" it is no reproach to an engine that it is of another precision: its turn comes.
        tried = [
            e for e in entries if inference.precision != "auto" or not e.identity or e.identity.precision == precision
        ]
        for gpu in gpus:
            entry, why = choose_engine(tried, gpu, found, wish)
            if entry is None:
                reasons += [f"for {gpu}: {reason}" for reason in why]
                lacking.append(gpu)
                break
            chosen[gpu] = entry
        else:
            able.append(chosen)
    if able:
        fastest = max(able, key=lambda chosen: sum(_speed(entry, gpu, model) for gpu, entry in chosen.items()))
        return _placement(config, model, fastest, found)
    unloadable = [] if reasons or found.flavours else list(found.reasons.values())
    told = "; ".join(dict.fromkeys(reasons or unloadable)) or "none has been built"
    raise Missing(
        f"{cache.folder}: no engine of {model.name} can be used: {told}; build one: {build_command(config, model)}",
        # In the precision that comes furthest, where there are several.
        max(lacking, key=gpus.index),
    )


@dataclass(frozen=True, slots=True)
class Wish:
    """What an engine must be. `batch`: rows that it must take, None where that is left to it."""

    engine: str
    precision: str
    model: Model
    batch: int | None


def precisions(wanted: str, entries: Sequence[Entry]) -> list[str]:
    """The precisions to try; for "auto" all that there are."""
    if wanted != "auto":
        return [wanted]
    return sorted({entry.identity.precision for entry in entries if entry.identity is not None}) or ["fp16"]


def choose_engine(entries: Sequence[Entry], gpu: Gpu, found: Probe, wish: Wish) -> tuple[Entry | None, list[str]]:
    """The fastest engine that may be loaded on `gpu`, or None with why each of the others cannot be."""
    able, reasons = [], []
    for entry in entries:
        problem = _unfit(entry, gpu, found, wish)
        if problem:
            reasons.append(f"{entry.plan.name} {problem}")
        else:
            able.append(entry)
    return (max(able, key=lambda entry: _speed(entry, gpu, wish.model)) if able else None), reasons


def _unfit(entry: Entry, gpu: Gpu, found: Probe, wish: Wish) -> str:
    """Why an engine is not for this GPU and wish; empty where it is."""
    identity = entry.identity
    if entry.problem or identity is None:
        return entry.problem
    if wish.engine not in ("gpu", identity.backend):
        return f"is of the backend {identity.backend}"
    if identity.precision != wish.precision:
        return f"is {identity.precision}"
    flavour = found.flavour(identity.flavour)
    if flavour is None:
        return f"wants {identity.flavour}, which is not installed"
    if problems := misfits(identity, flavour, gpu):
        return "was " + "; ".join(problems)
    profile = _profile(entry, wish.model)
    if profile is None:
        return f"takes no patches of {wish.model.patch_px} px"
    if wish.batch is not None and profile["maximum"] < wish.batch:
        return f"takes batches of up to {profile['maximum']}, batcher.batch is {wish.batch}"
    verified = entry.verification(gpu)
    if verified is None:
        return "was never verified there (slidestream engine verify)"
    return "" if verified.get("passed") else f"was found wrong there: {verified.get('reason')}"


def _placement(config: Config, model: Model, chosen: dict[Gpu, Entry], found: Probe) -> Placement:
    entries = list(chosen.values())
    backends = {entry.identity.backend for entry in entries if entry.identity}
    # GPUs of different kinds may have engines of both backends; then the name says no more than "gpu".
    engine = backends.pop() if len(backends) == 1 else config.inference.engine
    precision = entries[0].identity.precision if entries[0].identity else "auto"
    inference = config.inference.model_copy(update={"engine": engine, "precision": precision})
    batch = min(profile["optimum"] for e in entries if (profile := _profile(e, model)))
    devices = tuple(
        Device(gpu, entry.plan.absolute(), near(gpu), found.gpus.index(gpu)) for gpu, entry in chosen.items()
    )
    return Placement(config.model_copy(update={"inference": inference}), devices, batch)


def _profile(entry: Entry, model: Model) -> dict[str, int] | None:
    profiles = entry.identity.profiles if entry.identity else []
    return next((profile for profile in profiles if profile["patch_px"] == model.patch_px), None)


def _speed(entry: Entry, gpu: Gpu, model: Model) -> float:
    """Patches/s at the model's patch size, where the engine takes several."""
    found: dict[str, Any] = entry.verification(gpu) or {}
    own = next((size for size in found.get("sizes", ()) if size["patch_px"] == model.patch_px), found)
    return float(own.get("patches_per_s") or 0.0)


def build_command(config: Config, model: Model) -> str:
    """What a person types to make the engine that is missing."""
    return f"slidestream {shlex.join(_build_words(config, model))} {_tissue(config, 'SLIDE_OR_FOLDER')}"


def _build_words(config: Config, model: Model) -> list[str]:
    inference = config.inference
    backend = "auto" if inference.engine == "gpu" else inference.engine
    words = ["engine", "build", str(model.directory), "--backend", backend, "--precision", inference.precision]
    if model.at_other_size:
        words += ["--patch", str(model.patch_px)]
    if inference.engines:
        words += ["--engines", inference.engines]
    for name, value in inference.build.model_dump(exclude_defaults=True).items():
        words += ["--set", f"inference.build.{name}={value}"]
    return words


def _tissue(config: Config, slides: str) -> str:
    return f"--calibrate {slides}" if config.inference.precision == "int8" else f"--verify-on {slides}"


def near(gpu: Gpu, allowed: set[int] | None = None, devices: Path = _DEVICES) -> str:
    """The cores of the GPU's NUMA node that this process may use, as "0,1,8"; empty where these are all."""
    allowed = os.sched_getaffinity(0) if allowed is None else allowed
    try:
        text = (devices / gpu.pci / "local_cpulist").read_text().strip() if gpu.pci else ""
    except OSError:
        return ""
    cores = cpu_list(text) & allowed
    return "" if not cores or cores == allowed else ",".join(map(str, sorted(cores)))


def cpu_list(text: str) -> set[int]:
    """The kernel's "0-3,8" as numbers; nothing where it is something else."""
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return set()
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def build_engine(config: Config, model: Model, slides: Sequence[Found]) -> None:
    """Runs `slidestream engine build` for the engine that is missing, verified on some of these slides, on the GPU that
    `inference.devices` names (see `place`).

    Raises ConfigError where it fails; what it says goes to standard error.
    """
    chosen = shlex.join(str(found.path) for found in spread(slides))
    words = [sys.executable, "-m", "pipeline.cli", *_build_words(config, model), *shlex.split(_tissue(config, chosen))]
    where = {"CUDA_VISIBLE_DEVICES": str(config.inference.devices[0])} if config.inference.devices != "all" else {}
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": python_path(), **where}, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise ConfigError(f"no engine fits and none could be built (exit code {done.returncode}, see above)")


def spread(slides: Sequence[Found], most: int = _VERIFY_SLIDES) -> Sequence[Found]:
    """At most so many, from the whole length of the list."""
    return slides if len(slides) <= most else [slides[i * len(slides) // most] for i in range(most)]
