"""Builds, verifies and drives TensorRT engines through slidestream's own interface; prints a table, writes JSON.

    PYTHONPATH=. python benchmarks/gpu_smoke.py --out results.json

Needs a GPU, torch (for the networks), a TensorRT and cuda-python. Batches lie in slots of a memfd that the engine page-locks,
as in a run; the loop over contexts is the stage's.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import model_directory, network, patches_of_noise
from engines.build import build
from engines.cache import EngineCache, Entry, record_verification
from engines.cuda import Cuda, find_gpu
from engines.errors import EngineError
from engines.flavour import load_flavour
from engines.fold import fold, save_folded
from engines.gpu_engine import GpuEngine
from engines.identity import identity
from engines.model import load_model
from engines.onnx_engine import OnnxEngine
from engines.precision import KEPT, graph_sha256, to_half
from engines.recipe import BuildOptions, Profile
from engines.tensorrt_engine import open_tensorrt
from engines.verify import compare, run

SIDE = 224
SLOTS = 12
VERIFIED = 256


def slots(batch: int) -> np.ndarray:
    """Patches in a memfd: uint8 (SLOTS, batch, SIDE, SIDE, 3)."""
    shape = (SLOTS, batch, SIDE, SIDE, 3)
    fd = os.memfd_create("slots")
    os.posix_fallocate(fd, 0, int(np.prod(shape)))
    view = np.frombuffer(mmap.mmap(fd, int(np.prod(shape))), np.uint8).reshape(shape)
    view[:] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return view


def drive(engine: GpuEngine, contexts: list, memory: np.ndarray, seconds: float) -> dict[str, float]:
    """The stage's loop with a reader that is never slow: patches/s and batch latency from submit to answer."""
    idle, busy, place = list(contexts), deque(), 0
    latencies: list[float] = []
    slot_latencies: list[float] = []
    rows = 0
    started = time.monotonic()
    while (now := time.monotonic()) - started < seconds:
        while idle:
            context = idle.pop()
            context.submit(memory[place])
            busy.append([context, time.monotonic(), 0.0])
            place = (place + 1) % len(memory)
        busy[0][0].wait(0.002)
        for item in list(busy):
            context, begun, returned = item
            now = time.monotonic()
            if not returned and context.consumed():
                item[2] = now
                slot_latencies.append(now - begun)
            if context.done():
                rows += len(context.result())
                latencies.append(time.monotonic() - begun)
                busy.remove(item)
                idle.append(context)
    elapsed = time.monotonic() - started
    for context, _, _ in busy:
        context.result()
    skip = len(latencies) // 10
    quantile = lambda values, q: round(float(np.quantile(values[skip:] or [0.0], q)) * 1e3, 3)
    return {
        "patches_per_s": round(rows / elapsed, 1),
        "p50_ms": quantile(latencies, 0.5),
        "p99_ms": quantile(latencies, 0.99),
        "slot_returned_p50_ms": quantile(slot_latencies, 0.5),
    }


class Smoke:
    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.flavour = load_flavour()
        self.gpu = find_gpu()
        self.cache = EngineCache(folder / "engines")
        self.rows: list[dict[str, Any]] = []
        self.models: dict[str, tuple] = {}

    def model(self, name: str) -> tuple:
        if name not in self.models:
            started = time.monotonic()
            module = network(name, SIDE, "cuda")
            model = load_model(model_directory(name, self.folder / name, SIDE, module))
            folded = self.folder / f"{name}.onnx"
            save_folded(fold(model), folded)
            patches = patches_of_noise(VERIFIED, SIDE, 1).numpy()
            onnx_engine = OnnxEngine(folded, classes=2, patch_px=SIDE, threads=os.cpu_count() or 1, max_batch=64)
            reference = run(onnx_engine.contexts(1), patches, 64)
            self.models[name] = (model, patches, reference)
            self.tell(name=name, what="model and reference", seconds=round(time.monotonic() - started, 1))
        return self.models[name]

    def tell(self, **row: Any) -> None:
        self.rows.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)

    def engine(
        self, name: str, precision: str, batch: int, variant: str = "", kept=KEPT, options: BuildOptions | None = None
    ) -> Entry | None:
        """Builds one engine and verifies it."""
        model, patches, reference = self.model(name)
        options = options or BuildOptions()
        graph = fold(model)
        sha256 = graph_sha256(graph) + variant
        if precision == "fp16":
            graph = to_half(graph, kept_ops=kept)
        profiles = [Profile(SIDE, 1, batch, batch)]
        row: dict[str, Any] = {"network": name, "precision": precision, "batch": batch, "variant": variant}
        try:
            built = build(graph, precision, profiles, options, self.flavour)
            wanted = identity(
                model=model.sha256, graph=sha256, precision=precision, classes=2,
                profiles=profiles, options=options, flavour=self.flavour, gpu=self.gpu,
            )  # fmt: skip
            entry = self.cache.put(name, wanted, built, self.gpu)
            row |= {"build_s": round(built.seconds, 2), "plan_mib": len(built.plan) >> 20, "warnings": built.warnings}
            with self.opened(entry, batch) as engine:
                found = compare(reference, run(engine.contexts(1), patches, batch))
                row |= engine.describe() | engine.telemetry()
            entry = record_verification(entry, self.gpu, found.to_dict())
            row |= {"verified": found.show(), "context_mib": engine.network_context_mib}
        except EngineError as error:
            self.tell(**row, error=str(error))
            return None
        self.tell(**row)
        return entry

    def opened(self, entry: Entry, batch: int, **options: Any) -> Opened:
        return Opened(entry, batch, options)

    def table(
        self, name: str, precision: str, batch: int, contexts: tuple[int, ...], variant: str = "", **more
    ) -> None:
        entry = self.engine(name, precision, batch, variant, **more)
        if entry is None:
            return
        memory = slots(batch)
        for n in contexts:
            for graphs in (False, True) if n == contexts[-1] else (False,):
                with self.opened(entry, batch, cuda_graphs=graphs) as engine:
                    before = engine.device.free_bytes()
                    started = time.monotonic()
                    engine.attach(memory.reshape(-1))
                    registered = time.monotonic() - started
                    made = engine.contexts(n)
                    used = before - engine.device.free_bytes()
                    drive(engine, made, memory, 0.3)
                    numbers = drive(engine, made, memory, self.seconds)
                    self.tell(
                        network=name, precision=precision, batch=batch, variant=variant, contexts=n, graphs=graphs,
                        **numbers, contexts_mib=used >> 20, register_s=round(registered, 3), **engine.telemetry(),
                        load_s=engine.describe()["load_seconds"], warm_s=engine.describe()["warm_seconds"],
                    )  # fmt: skip


class Opened:
    """An engine for the length of a block."""

    def __init__(self, entry: Entry, batch: int, options: dict[str, Any]) -> None:
        self.engine = open_tensorrt(entry.plan, classes=2, patch_px=SIDE, max_batch=batch, unverified=True, **options)
        self.engine.network_context_mib = self.engine.network.context_bytes() >> 20

    def __enter__(self) -> GpuEngine:
        return self.engine

    def __exit__(self, *_: object) -> None:
        self.engine.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "gpu_smoke.json")
    parser.add_argument("--seconds", type=float, default=1.5, help="per line of the table")
    parser.add_argument("--quick", action="store_true", help="ResNet-50 in fp16 only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        smoke = Smoke(Path(folder), args.seconds)
        device = Cuda()
        smoke.tell(what="machine", **device.gpu.to_dict(), **smoke.flavour.describe(), cores=os.cpu_count())
        device.close()
        try:
            smoke.table("resnet50", "fp16", 64, (1, 2, 3, 4))
            if not args.quick:
                smoke.table("resnet50", "fp16", 128, (1, 2, 3, 4))
                smoke.table("vit_b_16", "fp16", 64, (1, 2, 3))
                half_softmax = KEPT - {"Softmax"}
                smoke.table("vit_b_16", "fp16", 64, (2,), "softmax in fp16", kept=half_softmax)
                light = frozenset({"Pow", "ReduceMean", "GlobalAveragePool"})
                smoke.table("vit_b_16", "fp16", 64, (2,), "softmax and norms in fp16", kept=light)
                smoke.table("resnet50", "fp16", 64, (3,), "all fp16", kept=frozenset())
                for capability in smoke.flavour.compute_capabilities[1:]:
                    options = BuildOptions(compute_capabilities=(capability,))
                    smoke.table("resnet50", "fp16", 64, (3,), f"for {capability}", options=options)
                smoke.table("vit_b_16", "fp16", 128, (1, 2))
                smoke.table("resnet50", "fp32", 64, (1, 2))
                smoke.table("densenet121", "fp16", 64, (1, 3))
        finally:
            args.out.write_text(json.dumps(smoke.rows, indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
