"""Builds, verifies and drives AOTInductor engines through slidestream's own interface, against torch.compile in the same run;
prints a table, writes JSON.

    PYTHONPATH=. python benchmarks/aoti_smoke.py --out results.json

Needs a GPU with a C++ compiler, PyTorch 2.6 or later with CUDA, onnx, and cuda-python. torch.compile gets float16 images
that lie on the GPU already, channels last; "bare" is the engine's program alone, uint8 patches on the GPU to probabilities,
replayed as a CUDA graph; "contexts" are batches from slots of a memfd that the engine page-locks, as in a run, copies included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_smoke import SIDE, VERIFIED, drive, slots
from benchmarks.networks import MEAN, STD, model_directory, network, patches_of_noise
from engines.aoti import open_aoti
from engines.aoti_build import AotiMaker
from engines.cache import EngineCache, Entry, record_verification
from engines.cuda import Cuda
from engines.errors import EngineError, ModelError, one_line
from engines.gpu import Gpu
from engines.model import Model, load_model
from engines.torch_source import SOURCES
from engines.verify import compare, run


def timed(step: Callable[[], Any], batch: int, seconds: float) -> float:
    """Images/s of `step`, many at a time between two looks at the clock."""
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        for _ in range(10):
            step()
        torch.cuda.synchronize()
        count += 10
    return round(count * batch / (time.monotonic() - started), 1)


class Smoke:
    def __init__(self, folder: Path, seconds: float, autotune: bool) -> None:
        self.folder, self.seconds = folder, seconds
        self.rows: list[dict[str, Any]] = []
        self.maker = AotiMaker(EngineCache(folder / "engines"), autotune=autotune, tell=lambda line: print("   ", line))

    def tell(self, **row: Any) -> None:
        self.rows.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)

    def model(self, name: str) -> tuple[Model, Any]:
        """A model directory with its torch.export program, and the network itself on the GPU."""
        started = time.monotonic()
        net = network(name, SIDE, "cuda").cpu()
        directory = model_directory(name, self.folder / name, SIDE, net)
        free = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        program = torch.export.export(net, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=free)
        torch.export.save(program, directory / SOURCES["exported program"])
        self.tell(network=name, what="model", seconds=round(time.monotonic() - started, 1))
        return load_model(directory), net.cuda()

    def compiled(self, name: str, net: Any, batch: int, mode: str) -> None:
        """torch.compile, and with mode "eager" PyTorch as it is."""
        half = net.half().to(memory_format=torch.channels_last)
        images = torch.randn(batch, 3, SIDE, SIDE, device="cuda").half().to(memory_format=torch.channels_last)
        step = half if mode == "eager" else torch.compile(half, mode=mode, dynamic=False)
        started = time.monotonic()
        row = {
            "network": name,
            "batch": batch,
            "what": f"torch.compile {mode}" if mode != "eager" else mode,
        }
        try:
            with torch.inference_mode():
                step(images)
                torch.cuda.synchronize()
                first = round(time.monotonic() - started, 1)
                self.tell(**row, patches_per_s=timed(lambda: step(images), batch, self.seconds), first_s=first)
        except Exception as error:  # noqa: BLE001 (a line that is missing is better than no table)
            self.tell(**row, error=one_line(error))
        finally:
            torch._dynamo.reset()

    def reference(self, net: Any) -> tuple[np.ndarray, np.ndarray]:
        """Patches, and the network's probabilities by PyTorch in float32 (no TF32)."""
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        patches = patches_of_noise(VERIFIED, SIDE, seed=5)
        mean, std = (torch.tensor(values, device="cuda").reshape(1, 3, 1, 1) for values in (MEAN, STD))
        answers = []
        with torch.inference_mode():
            for part in patches.split(32):
                images = (part.cuda().permute(0, 3, 1, 2).float() / 255 - mean) / std
                answers.append(torch.softmax(net.float()(images), 1).cpu().numpy())
        return patches.numpy(), np.concatenate(answers)

    def engine(self, name: str, model: Model, batch: int, gpu: Gpu, precision: str, truth: tuple) -> Entry | None:
        row: dict[str, Any] = {"network": name, "batch": batch, "what": f"aoti {precision}"}
        patches, expected = truth
        started = time.monotonic()
        try:
            entry = self.maker.make(model, precision, batch, gpu)
            built = round(time.monotonic() - started, 1)
            engine = open_aoti(entry.plan, classes=2, patch_px=SIDE, max_batch=batch, unverified=True)
            try:
                found = compare(expected, run(engine.contexts(1), patches, batch))
                about = engine.describe()
            finally:
                engine.close()
        except (EngineError, ModelError) as error:
            self.tell(**row, error=str(error))
            return None
        entry = record_verification(entry, gpu, found.to_dict())
        size = entry.record["plan"]["size"] >> 20
        self.tell(**row, build_s=built, plan_mib=size, verified=found.show(), passed=found.passed, **about)
        return entry

    def bare(self, name: str, entry: Entry, batch: int) -> None:
        """The program alone, as a CUDA graph on buffers that stay."""
        engine = open_aoti(entry.plan, classes=2, patch_px=SIDE, max_batch=batch, unverified=True)
        try:
            context = engine.contexts(1)[0]
            stream = context._stream
            # Enqueued by the engine's own execution, without copies.
            rate = timed(lambda: context._execution.enqueue(batch, stream), batch, self.seconds)
            graphs = engine.describe()["cuda_graphs"]
            self.tell(network=name, batch=batch, what="aoti bare", patches_per_s=rate, graphs=graphs)
        except EngineError as error:
            self.tell(network=name, batch=batch, what="aoti bare", error=str(error))
        finally:
            engine.close()

    def contexts(self, name: str, entry: Entry, batch: int, counts: tuple[int, ...]) -> None:
        memory = slots(batch)
        for n in counts:
            for graphs in (True, False) if n == counts[-1] else (True,):
                row: dict[str, Any] = {"network": name, "batch": batch, "what": f"aoti {n} contexts", "graphs": graphs}
                engine = open_aoti(
                    entry.plan, classes=2, patch_px=SIDE, max_batch=batch, cuda_graphs=graphs, unverified=True
                )
                try:
                    before = engine.device.free_bytes()
                    engine.attach(memory.reshape(-1))
                    made = engine.contexts(n)
                    used = before - engine.device.free_bytes()
                    drive(engine, made, memory, 0.3)
                    numbers = drive(engine, made, memory, self.seconds)
                    about = engine.describe()
                    row |= numbers | engine.telemetry() | {"contexts_mib": used >> 20, "captured": about["cuda_graphs"]}
                    row |= {"load_s": about["load_seconds"], "warm_s": about["warm_seconds"]}
                except EngineError as error:
                    row["error"] = str(error)
                finally:
                    engine.close()
                self.tell(**row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "aoti_smoke.json")
    parser.add_argument("--seconds", type=float, default=1.5, help="per line of the table (default %(default)s)")
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vit_b_16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--contexts", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["eager", "default", "reduce-overhead"],
        help="of PyTorch to compare with: eager, and torch.compile's (default: %(default)s)",
    )
    parser.add_argument("--autotune", action="store_true", help="build the engine with max_autotune")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    device = Cuda()
    gpu = device.gpu
    device.close()
    with tempfile.TemporaryDirectory() as folder:
        smoke = Smoke(Path(folder), args.seconds, args.autotune)
        about = {**gpu.to_dict(), "torch": torch.__version__, "cores": os.cpu_count(), "autotune": args.autotune}
        smoke.tell(what="machine", **about)
        try:
            for name in args.networks:
                model, net = smoke.model(name)
                truth = smoke.reference(net)
                for batch in args.batches:
                    for mode in args.modes:
                        smoke.compiled(name, net, batch, mode)
                    entry = smoke.engine(name, model, batch, gpu, "fp16", truth)
                    if entry is not None:
                        smoke.bare(name, entry, batch)
                        smoke.contexts(name, entry, batch, tuple(args.contexts))
                    args.out.write_text(json.dumps(smoke.rows, indent=1, default=str))
        finally:
            args.out.write_text(json.dumps(smoke.rows, indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
