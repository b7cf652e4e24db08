"""One way to run a network on a GPU, built and measured in a process of its own: what `slidestream bench engine` starts.

    python -m pipeline.engine_variants '{"do": "measure", "variant": "tensorrt fp16", "model": ..., ...}'

Prints one JSON object a line, as soon as it is known: `build`, `verified`, a `point` for each batch and number of contexts,
`latency`, or `failed` with the reason, after which other points may follow. The memory of a point is what the process has on
the GPU while it runs, as NVIDIA's management library tells it (CUDA's own context and loaded code included).

PyTorch's own figures are for images that lie on the GPU already, normalised, and answers that stay there. Those of engines are
for uint8 patches in page-locked shared memory, copied, normalised, and with the answers copied back: as in a run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineError, ModelError, one_line
from pipeline import torch_variants
from pipeline.bare_loop import drive, latency, shared_slots
from pipeline.gpu_memory import Memory
from pipeline.torch_variants import COMPILED, EAGER

TENSORRT, AOTI = "tensorrt", "aoti"
VARIANTS = (
    f"{EAGER} fp32",
    f"{EAGER} fp16",
    f"{COMPILED} fp16",
    f"{TENSORRT} fp32",
    f"{TENSORRT} fp16",
    f"{TENSORRT} int8",
    f"{AOTI} fp16",
)
REFERENCE = "reference"
ONNX = "onnx"
ON_CPU = f"{ONNX} fp32"
_WARM_S = 0.3


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


# ------------------------------------------------------------ engines of ours


def _entry(facts: dict[str, Any], batch: int) -> Any:
    """The engine in the cache, built where it is not there, and the GPU; None for what is not kept."""
    from engines.cache import EngineCache
    from engines.cuda import find_gpu
    from engines.model import load_model

    backend, precision = facts["variant"].split()
    if backend == ONNX:
        return None, None
    model, cache, gpu = load_model(Path(facts["model"])), EngineCache(Path(facts["engines"])), find_gpu()
    if gpu is None:
        raise EngineError("no GPU can be used here")
    if backend == AOTI:
        from engines.aoti_build import AotiMaker

        return AotiMaker(cache, tell=_whisper).make(model, precision, batch, gpu), gpu
    from engines.calibration import Patches
    from engines.flavour import load_flavour
    from engines.make import Maker, Order
    from engines.recipe import BuildOptions, Profile

    calibration = None
    if precision == "int8":
        pixels = np.load(facts["calibration"], mmap_mode="r")
        calibration = Patches(np.asarray(pixels), np.zeros(len(pixels), np.int64), ("benchmark",), 0)
    profile = Profile(model.patch_px, batch, batch, batch)
    order = Order(model, precision, (profile,), BuildOptions(), load_flavour(), gpu, calibration)
    maker = Maker(cache, threads=facts["threads"], tell=_whisper)
    return (maker.make_int8 if precision == "int8" else maker.make)(order), gpu


def _whisper(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _on_cpu(facts: dict[str, Any], batch: int) -> Iterator[Any]:
    import tempfile

    from engines.check import prepare
    from engines.engine import open_engine
    from engines.model import load_model

    with tempfile.TemporaryDirectory(prefix="slidestream-") as folder:
        folded = Path(folder) / "folded.onnx"
        prepare(load_model(Path(facts["model"])), folded)
        shape = {"classes": facts["classes"], "patch_px": facts["patch_px"]}
        engine = open_engine(ONNX, folded, **shape, threads=facts["threads"], max_batch=batch)
        try:
            yield engine
        finally:
            engine.close()


@contextmanager
def _opened(entry: Any, facts: dict[str, Any], batch: int, shapes: tuple[int, ...] = ()) -> Iterator[Any]:
    if entry is None:
        with _on_cpu(facts, batch) as engine:
            yield engine
        return
    from engines.backend import open_plan

    engine = open_plan(
        entry.plan,
        classes=facts["classes"],
        patch_px=facts["patch_px"],
        max_batch=batch,
        shapes=shapes,
        unverified=True,
    )
    try:
        yield engine
    finally:
        engine.close()


def _engine(facts: dict[str, Any]) -> None:
    from engines.verify import compare, run

    patches = np.load(facts["patches"])
    reference = np.load(facts["reference"]) if Path(facts["reference"]).exists() else None  # told already
    labels = np.load(facts["labels"]) if facts.get("labels") else None
    memory: Memory | None = None
    verified = False
    small = (
        min(facts["batches"]) if facts["variant"].startswith(ONNX) else 1
    )  # other engines are built for one batch size
    for batch in facts["batches"]:
        try:
            entry, gpu = _entry(facts, batch)
            memory = memory or Memory(gpu.uuid if gpu else "")
            slots = shared_slots(batch, facts["patch_px"], patches)
            for count in facts["contexts"]:
                with _opened(entry, facts, batch) as engine:
                    engine.attach(slots.reshape(-1))
                    contexts = engine.contexts(count)
                    if not verified and reference is not None:
                        found = compare(reference, run(contexts, patches, batch), labels=labels)
                        say(verified=found.to_dict(), shown=found.show())
                        verified = True
                    drive(contexts, slots, _WARM_S)
                    numbers = drive(contexts, slots, facts["seconds"])
                    say(point={"batch": batch, "contexts": count, **numbers, "memory_mib": memory.mib()})
        except (EngineError, ModelError, MemoryError, OSError) as error:
            say(failed=f"batch {batch}: {one_line(error, 300)}")
            if getattr(error, "fatal", False):
                return
    try:
        entry, gpu = _entry(facts, small)
        memory = memory or Memory(gpu.uuid if gpu else "")
        with _opened(entry, facts, small, (1,)) as engine:
            slots = shared_slots(1, facts["patch_px"], patches)
            engine.attach(slots.reshape(-1))
            context = engine.contexts(1)[0]

            def one() -> None:
                context.submit(slots[0])
                context.result()

            say(latency={**latency(one), "memory_mib": memory.mib()})
    except (EngineError, ModelError, OSError) as error:
        say(failed=f"batch 1: {one_line(error, 300)}")


def _reference(facts: dict[str, Any]) -> None:
    """Answers of ONNX Runtime in float32, or of PyTorch where there is no ONNX, kept beside the patches."""
    from engines.model import load_model
    from engines.verify import run

    if Path(facts["reference"]).exists():
        return
    model = load_model(Path(facts["model"]))
    if not model.has_onnx:
        from engines.torch_reference import in_batches, torch_reference

        np.save(facts["reference"], in_batches(torch_reference(model), np.load(facts["patches"]), 32))
        return
    with _on_cpu(facts, 32) as engine:
        np.save(facts["reference"], run(engine.contexts(1), np.load(facts["patches"]), 32))


def _kernels(entry: Any, facts: dict[str, Any], batch: int) -> None:
    """Runs each shape once where the engine compiles its kernels as it runs, and keeps them: seconds to be had side by side."""
    if entry is not None and facts["variant"].startswith(TENSORRT):
        with _opened(entry, facts, batch) as engine:
            engine.contexts(1)
        if batch == min(facts["batches"]):
            with _opened(entry, facts, batch, (1,)) as engine:
                engine.contexts(1)


def _work(facts: dict[str, Any]) -> None:
    backend = facts["variant"].split()[0]
    if backend == REFERENCE:
        _reference(facts)
    elif backend in (EAGER, COMPILED):
        torch_variants.measure(facts, say)
    elif facts["do"] == "prepare":
        began = time.perf_counter()
        for batch in facts["prepare"]:
            try:
                entry, _ = _entry(facts, batch)
                _kernels(entry, facts, batch)
                say(built={"batch": batch, "seconds": round(time.perf_counter() - began, 1), "plan": entry.plan.name})
            except (EngineError, ModelError, OSError) as error:
                say(failed=f"batch {batch}: {one_line(error, 300)}")
            began = time.perf_counter()
    else:
        _engine(facts)


if __name__ == "__main__":
    try:
        _work(json.loads(sys.argv[1]))
    except (EngineError, ModelError, OSError, ImportError) as problem:
        say(failed=one_line(problem, 300))
        sys.exit(1)
