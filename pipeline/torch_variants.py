"""A network by PyTorch itself, eager or by torch.compile, to set beside our engines (pipeline.engine_variants).

The figures are for images that lie on the GPU already, normalised, and answers that stay there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineError, one_line
from pipeline.bare_loop import latency
from pipeline.gpu_memory import Memory

EAGER, COMPILED = "eager", "compile"
_COMPILED_MODE = "reduce-overhead"  # kernels as by default, each batch replayed as a CUDA graph


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


def measure(facts: dict[str, Any], say: Callable[..., None]) -> None:
    """Builds (facts["do"] is "prepare") or measures one variant, and says each figure as soon as it is known."""
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

                    say(latency={**latency(one), "memory_mib": memory.mib()})
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
