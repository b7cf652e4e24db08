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
import mmap
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineError, ModelError, one_line

TENSORRT, AOTI, EAGER, COMPILED = "tensorrt", "aoti", "eager", "compile"
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
SLOT_PLACES = 8
LATENCIES = 200
_WARM_S = 0.3
_COMPILED_MODE = "reduce-overhead"  # kernels as by default, each batch replayed as a CUDA graph


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


# ------------------------------------------------------------ engines of ours


def drive(contexts: list, memory: np.ndarray, seconds: float) -> dict[str, float]:
    """The inference stage's loop with a reader that is never slow: patches/s, and milliseconds from submit to answer.

    `memory`: uint8 (places, batch, P, P, 3), submitted in turn.
    """
    idle, busy, place = list(contexts), deque(), 0
    latencies: list[float] = []
    rows = 0
    started = time.perf_counter()
    while True:
        now = time.perf_counter()
        if now - started >= seconds:
            break
        while idle:
            context = idle.pop()
            begun = time.perf_counter()
            context.submit(memory[place])
            busy.append((context, begun))
            place = (place + 1) % len(memory)
        busy[0][0].wait(0.002)
        for item in list(busy):
            context, begun = item
            if context.done():
                rows += len(context.result())
                latencies.append(time.perf_counter() - begun)
                busy.remove(item)
                idle.append(context)
    elapsed = time.perf_counter() - started
    for context, _ in busy:
        context.result()
    kept = np.array(latencies[len(latencies) // 10 :] or [0.0]) * 1e3
    return {
        "per_s": round(rows / elapsed, 1),
        "p50_ms": round(float(np.quantile(kept, 0.5)), 3),
        "p99_ms": round(float(np.quantile(kept, 0.99)), 3),
    }


def shared_slots(batch: int, patch_px: int, patches: np.ndarray, places: int = SLOT_PLACES) -> np.ndarray:
    """uint8 (places, batch, P, P, 3) in shared memory, filled with `patches` over and over."""
    shape = (places, batch, patch_px, patch_px, 3)
    fd = os.memfd_create("slots")
    os.posix_fallocate(fd, 0, int(np.prod(shape)))
    view = np.frombuffer(mmap.mmap(fd, int(np.prod(shape))), np.uint8).reshape(shape)
    os.close(fd)
    for number in range(places):
        view[number] = np.resize(np.roll(patches, -number, axis=0), shape[1:])
    return view


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
    small = min(facts["batches"]) if facts["variant"].startswith(ONNX) else 1  # other engines are built for one batch size
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

            say(latency={**_latency(one), "memory_mib": memory.mib()})
    except (EngineError, ModelError, OSError) as error:
        say(failed=f"batch 1: {one_line(error, 300)}")


def _latency(one: Callable[[], None]) -> dict[str, float]:
    taken = []
    for _ in range(LATENCIES + 20):
        began = time.perf_counter()
        one()
        taken.append(time.perf_counter() - began)
    kept = np.array(taken[20:]) * 1e3
    return {
        "p50_ms": round(float(np.quantile(kept, 0.5)), 3),
        "p99_ms": round(float(np.quantile(kept, 0.99)), 3),
    }


# ------------------------------------------------------------ PyTorch


def _device(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _synchronize(torch: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _network(facts: dict[str, Any], torch: Any) -> Any:
    """The network on the GPU (where there is one), in the variant's precision, channels last in float16."""
    if module := facts.get("module"):  # benchmarks.networks gives it as it was written
        from importlib import import_module

        name, argument = module
        network = import_module(name).load(argument)
    else:
        from engines.torch_source import find_source, load_network, runnable

        found = find_source(Path(facts["model"]))
        if found is None:
            raise EngineError("the model directory holds no PyTorch network")
        network = runnable(load_network(*found))
    network = network.to(_device(torch))
    if facts["variant"].endswith("fp16"):
        network = network.half().to(memory_format=torch.channels_last)
    for weight in network.parameters():
        weight.requires_grad_(False)
    return network


def _images(patches: np.ndarray, facts: dict[str, Any], torch: Any) -> Any:
    """Normalised images (n, 3, P, P) of the variant's type on the GPU."""
    mean, std = (torch.tensor(facts[name], device=_device(torch)).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    images = (torch.from_numpy(patches).to(_device(torch)).permute(0, 3, 1, 2).float() / 255 - mean) / std
    if facts["variant"].endswith("fp16"):
        return images.half().contiguous(memory_format=torch.channels_last)
    return images.contiguous()


def _torch(facts: dict[str, Any]) -> None:
    import torch

    from engines.cuda import find_gpu
    from engines.verify import compare

    compiled = facts["variant"].startswith(COMPILED)
    torch.backends.cudnn.benchmark = True  # as everyone does who looks for speed; shapes never change
    gpu = find_gpu()
    memory = Memory(gpu.uuid if gpu else "")
    patches = np.load(facts["patches"])
    reference = np.load(facts["reference"]) if Path(facts["reference"]).exists() else None  # told already
    network = _network(facts, torch)
    verified = False
    with torch.inference_mode():
        for batch in [*(facts["compile_batches"] if compiled else facts["batches"]), 1]:
            try:
                torch.cuda.empty_cache()  # what another batch has left, or it would count as this one's memory
                step = torch.compile(network, mode=_COMPILED_MODE, dynamic=False) if compiled else network
                images = _images(np.resize(patches, (batch, *patches.shape[1:])), facts, torch)
                began = time.perf_counter()
                for _ in range(5):
                    step(images)
                _synchronize(torch)
                torch.cuda.empty_cache()  # what trying algorithms took counts for nothing either
                say(built={"batch": batch, "seconds": round(time.perf_counter() - began, 1)})
                if facts["do"] == "prepare":
                    continue
                if batch == 1:

                    def one(step: Any = step, images: Any = images) -> None:
                        step(images)
                        _synchronize(torch)

                    say(latency={**_latency(one), "memory_mib": memory.mib()})
                else:
                    rate = _rate(lambda step=step, images=images: step(images), batch, facts["seconds"], torch)
                    say(point={"batch": batch, "contexts": None, "per_s": rate, "memory_mib": memory.mib()})
                if batch > 1 and not verified and reference is not None:
                    answers = [
                        torch.softmax(step(_full(patches[at : at + batch], batch, facts, torch)).float(), 1)
                        .cpu()
                        .numpy()
                        for at in range(0, len(patches), batch)
                    ]
                    found = compare(reference, np.concatenate(answers)[: len(patches)])
                    say(verified=found.to_dict(), shown=found.show())
                    verified = True
            except Exception as error:  # noqa: BLE001 (PyTorch raises whatever its parts raise; the next point may work)
                say(failed=f"batch {batch}: {one_line(error, 300)}")
            finally:
                step = images = None
                if compiled:
                    torch._dynamo.reset()


def _full(patches: np.ndarray, batch: int, facts: dict[str, Any], torch: Any) -> Any:
    return _images(np.resize(patches, (batch, *patches.shape[1:])), facts, torch)


def _rate(step: Callable[[], Any], batch: int, seconds: float, torch: Any) -> float:
    """Images/s, several steps between two looks at the clock."""
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(5):
            step()
        _synchronize(torch)
        count += 5
    return round(count * batch / elapsed, 1)


# ------------------------------------------------------------ memory


class Memory:
    """GPU memory of this process by NVML, or, where that does not tell by process, of the whole GPU."""

    def __init__(self, uuid: str) -> None:
        """`uuid`: of the GPU; without it, the first that CUDA_VISIBLE_DEVICES names by UUID, or the first there is."""
        self._nvml: Any = None
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        name = uuid or (visible if visible.startswith("GPU-") else "")
        try:
            import pynvml

            pynvml.nvmlInit()
            self._device = pynvml.nvmlDeviceGetHandleByUUID(name) if name else pynvml.nvmlDeviceGetHandleByIndex(0)
            self._nvml = pynvml
        except Exception:  # noqa: BLE001 (NVML's errors are classes made at run time)
            return

    def mib(self) -> int | None:
        """MiB now; None where nothing tells."""
        if self._nvml is None:
            return None
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._device):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return process.usedGpuMemory >> 20
        return self.total_mib()

    def total_mib(self) -> int | None:
        """MiB in use on the GPU, whoever has them."""
        return None if self._nvml is None else self._nvml.nvmlDeviceGetMemoryInfo(self._device).used >> 20


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
        _torch(facts)
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
