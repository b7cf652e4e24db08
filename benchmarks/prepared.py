"""A network with an engine that was verified on this GPU, ready for a run: what the GPU benchmarks begin with.

    python -m benchmarks.prepared resnet50 tensorrt 64 FOLDER

FOLDER/resnet50 is the model directory (benchmarks.networks), FOLDER/engines the folder of engines. Verified on noise, as the
networks have random weights. Where the engine is "onnx" there is nothing to be built.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import table
from benchmarks.inputs import DEMO_MODEL

TIMEOUT_S = 300
DEMO = "demo"
NAMES = "resnet50, densenet121, vit_b_16, demo (the demonstration model), or a model directory"


@dataclass(frozen=True, slots=True)
class Ready:
    """A model directory, and for a GPU the folder of engines and the engine in it (a plan)."""

    name: str
    kind: str
    model: Path
    engines: Path | None = None
    plan: Path | None = None

    def sets(self, batch: int) -> list[str]:
        """KEY=VALUE for slidestream run."""
        if self.plan is None:
            return [f"batcher.batch={batch}"]
        words = [f"inference.engine={self.kind}", "inference.precision=fp16", f"inference.engines={self.engines}"]
        return [*words, f"batcher.batch={batch}"]


def ready(name: str, kind: str, batch: int, folder: Path) -> Ready:
    """Makes what is not there yet, in a process of its own. RuntimeError with its last words where that fails.

    `name`: of benchmarks.networks, or "demo", the demonstration model, or a model directory.
    """
    model = DEMO_MODEL if name == DEMO else Path(name) if Path(name).is_dir() else folder / name
    if kind == "onnx" and model.is_dir():
        return Ready(model.name, kind, model)
    done = table.run(table.python("-m", "benchmarks.prepared", name, kind, str(batch), str(folder)), TIMEOUT_S)
    plan = next((line for line in reversed(done.output.splitlines()) if line.endswith(".engine")), "")
    engines = folder / f"engines-{batch}"  # of one batch size each, as a run takes the fastest of those that fit
    return Ready(model.name, kind, model, *((engines, Path(plan)) if plan else ()))


def _make(name: str, kind: str, batch: int, folder: Path) -> str:
    model = folder / name
    if not (model / "calibration.npy").exists():
        table.run(table.python("-m", "benchmarks.networks", name, str(model)), TIMEOUT_S)
    return str(model) if kind == "onnx" else str(_engine(model, kind, batch, folder / f"engines-{batch}"))


def _engine(directory: Path, kind: str, batch: int, folder: Path) -> Path:
    from engines.cache import EngineCache
    from engines.check import prepare
    from engines.choose import Trial, check
    from engines.cuda import find_gpu
    from engines.engine import open_engine
    from engines.make import Maker, Order
    from engines.model import load_model
    from engines.recipe import BuildOptions, Profile
    from engines.verify import run
    from pipeline.engine_trial import opened
    from pipeline.machine import detect

    model, gpu, cache = load_model(directory), find_gpu(), EngineCache(folder)
    if gpu is None:
        raise SystemExit("no GPU can be used here")
    patches = np.load(directory / "patches.npy")
    answers = directory / "patches.reference.npy"
    if not answers.exists():
        folded = directory / "folded.onnx"
        prepare(model, folded)
        shape = {"classes": len(model.classes), "patch_px": model.patch_px}
        reference = open_engine("onnx", folded, **shape, threads=detect().cores, max_batch=32)
        np.save(answers, run(reference.contexts(1), patches, 32))
        reference.close()
    if kind == "aoti":
        from engines.aoti_build import AotiMaker

        entry = AotiMaker(cache).make(model, "fp16", batch, gpu)
    else:
        from engines.flavour import load_flavour

        profiles = (Profile(model.patch_px, batch, batch, batch),)
        entry = Maker(cache).make(Order(model, "fp16", profiles, BuildOptions(), load_flavour(), gpu))
    trial = Trial(patches, np.load(answers), contexts=3)
    tried = check(entry, trial, gpu, opened)
    print(f"{tried.verification.show()}; {tried.speed:,.0f} patches/s", file=sys.stderr)
    if not tried.verification.passed:
        raise SystemExit(f"{entry.plan.name} is not right: {tried.verification.show()}")
    return entry.plan.absolute()


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.prepared", description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("kind", choices=("tensorrt", "aoti", "onnx"))
    parser.add_argument("batch", type=int)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(_make(arguments.name, arguments.kind, arguments.batch, arguments.folder))
