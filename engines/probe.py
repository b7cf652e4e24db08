"""What GPUs and backends there are, asked in a process of its own: a driver that hangs, or a library that crashes, takes
nobody with it, and who only wants to know need not load TensorRT or PyTorch.

    python -m engines.probe tensorrt aoti        one line of JSON
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError, one_line
from engines.gpu import Gpu
from engines.python_path import python_path

if TYPE_CHECKING:
    from engines.identity import Release

PROBE_S = 120.0  # a cold file system may need a minute for PyTorch
BACKENDS = ("tensorrt", "aoti")


@dataclass(frozen=True, slots=True)
class Installed:
    """A flavour that can be used here (engines.identity.Release)."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Probe:
    """GPUs in CUDA's order (CUDA_VISIBLE_DEVICES counts), and the flavours of the backends.

    `problem` says why there is no GPU, `reasons` per backend why it cannot be used.
    """

    gpus: tuple[Gpu, ...] = ()
    flavours: tuple[Installed, ...] = ()
    problem: str = ""
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Probe:
        flavours = tuple(Installed(name, version) for name, version in raw["flavours"])
        return cls(tuple(Gpu(**gpu) for gpu in raw["gpus"]), flavours, raw["problem"], raw["reasons"])

    def flavour(self, name: str) -> Installed | None:
        return next((flavour for flavour in self.flavours if flavour.name == name), None)


def probe(backends: tuple[str, ...] = BACKENDS, timeout_s: float = PROBE_S) -> Probe:
    """Asks; what goes wrong is in `problem`."""
    command = [sys.executable, "-m", "engines.probe", *backends]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": python_path()},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe(problem=f"the GPU's driver gave no answer in {timeout_s:g} s")
    try:
        return Probe.from_dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, KeyError, TypeError):
        words = done.stderr.strip().splitlines()
        return Probe(
            problem=f"looking for GPUs failed (exit code {done.returncode}): {one_line(words[-1] if words else '')}"
        )


def _look(backends: list[str]) -> dict[str, Any]:
    from engines.cuda import NO_GPU, gpu_count, read_gpu

    gpus, problem = [], ""
    flavours: list[tuple[str, str]] = []
    reasons: dict[str, str] = {}
    try:
        gpus = [read_gpu(device).to_dict() for device in range(gpu_count())]
        problem = "" if gpus else NO_GPU
    except EngineError as error:
        problem = str(error)
    if gpus:
        for backend in backends:
            try:
                flavours += [(flavour.name, flavour.version) for flavour in _flavours(backend)]
            except EngineError as error:
                reasons[backend] = str(error)
    return {"gpus": gpus, "flavours": flavours, "problem": problem, "reasons": reasons}


def _flavours(backend: str) -> list[Release]:
    """All flavours of a backend that are there. Raises EngineError: none."""
    if backend == "aoti":
        return [_torch()]
    from engines.flavour import FLAVOURS, load_flavour

    found: list[Release] = []
    for name in FLAVOURS:
        with contextlib.suppress(EngineError):
            found.append(load_flavour(name))
    return found or [load_flavour()]  # the latter raises, with all the reasons


def _torch() -> Installed:
    """PyTorch's version from its own file: importing it takes ten seconds where its files are not cached."""
    spec = importlib.util.find_spec("torch")
    try:
        text = (Path(spec.origin).parent / "version.py").read_text() if spec and spec.origin else ""
    except OSError:
        text = ""
    found = re.search(r"^__version__ = ['\"]([^'\"]+)", text, re.MULTILINE)
    if found is None:
        raise EngineError("PyTorch is not installed; install slidestream[aoti]")
    return Installed("aoti", found.group(1))


if __name__ == "__main__":
    print(json.dumps(_look(sys.argv[1:])))
