"""What everybody writes: PyTorch's DataLoader over OpenSlide's read_region, and the network behind it.

    echo '{"slide": ..., "model": ..., "folded": ..., "batch": ..., ...}' | python -m pipeline.bench_loader

The same patches and the same network as a run, one worker process a core. Where the model directory holds TorchScript
(torchscript_model.pt) that is the network, on the GPU in half precision if there is one; else it is the folded model on
ONNX Runtime, and the DataLoader feeds that. Prints one JSON object; "skipped" says why there is no figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TORCHSCRIPT = "torchscript_model.pt"
_WARM = 4  # batches


def loader_alone(facts: dict[str, Any]) -> dict[str, Any]:
    """Figures of the DataLoader, measured in a process of its own: `patches_per_s` and `network`, or `skipped`."""
    try:
        import importlib.util

        if importlib.util.find_spec("torch") is None:
            return {"skipped": "PyTorch is not installed"}
    except (ImportError, ValueError):
        return {"skipped": "PyTorch is not installed"}
    command = [sys.executable, "-m", "pipeline.bench_loader"]
    done = subprocess.run(command, input=json.dumps(facts), capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        last = done.stderr.strip().splitlines()
        return {"skipped": f"the DataLoader failed: {last[-1] if last else done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


class Patches:
    """A map-style dataset: patch `i`, read by OpenSlide and resized, as uint8 (P, P, 3) or normalised float32 (3, P, P)."""

    def __init__(
        self, path: str, grid: Any, xy: np.ndarray, normalise: Callable[[np.ndarray], np.ndarray] | None
    ) -> None:
        self._path = path
        self._grid = grid
        self._xy = xy
        self._normalise = normalise
        self._slide: Any = None

    def __len__(self) -> int:
        return len(self._xy)

    def __getitem__(self, index: int) -> np.ndarray:
        import openslide

        from slides.geometry import resample

        if self._slide is None:  # in the worker: a handle cannot be shared
            self._slide = openslide.OpenSlide(self._path)
        place = tuple(int(v) for v in self._xy[index])
        region = self._slide.read_region(place, self._grid.level, self._grid.region_px).convert("RGB")
        patch = np.empty((self._grid.patch_px, self._grid.patch_px, 3), np.uint8)
        resample(np.asarray(region), self._grid.patch_px, patch)
        return patch if self._normalise is None else self._normalise(patch)


class Normalise:
    """ToTensor and Normalize of a model's transform."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._mean = np.float32(mean)
        self._std = np.float32(std)

    def __call__(self, patch: np.ndarray) -> np.ndarray:
        return ((patch.astype(np.float32) / 255 - self._mean) / self._std).transpose(2, 0, 1)


def _network(facts: dict[str, Any], torch: Any) -> tuple[str, Callable[[Any], Any], bool]:
    """Its name, what takes a batch, and whether it takes floats."""
    script = Path(facts["model"]) / TORCHSCRIPT
    if script.exists():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = torch.jit.load(script, map_location=device).eval()
        if device == "cuda":
            network = network.half()

        def infer(batch: Any) -> Any:
            with torch.inference_mode():
                batch = batch.to(device, non_blocking=True)
                return torch.softmax(network(batch.half() if device == "cuda" else batch).float(), 1).cpu()

        return f"TorchScript on {device}", infer, True
    from engines.onnx_engine import INPUT, open_session

    session = open_session(Path(facts["folded"]), facts["cores"])
    return "the folded model on ONNX Runtime", lambda batch: session.run(None, {INPUT: batch.numpy()}), False


def _work(facts: dict[str, Any]) -> dict[str, Any]:
    import torch
    from torch.utils.data import DataLoader

    from engines.model import load_model
    from slides.geometry import Geometry

    model = load_model(Path(facts["model"]))
    name, infer, floats = _network(facts, torch)
    normalise = Normalise(model.transform.mean, model.transform.std) if floats else None
    xy = np.array(facts["xy"], np.int64)
    patches = Patches(facts["slide"], Geometry.from_dict(facts["geometry"]), xy, normalise)
    loader = DataLoader(patches, facts["batch"], num_workers=facts["cores"], pin_memory=torch.cuda.is_available())
    done, began, warm = 0, 0.0, max(1, min(_WARM, len(loader) - 1))
    for number, batch in enumerate(loader):
        infer(batch)
        if number == warm - 1:  # workers have started, the network is warm (TorchScript compiles at the second batch)
            began = time.perf_counter()
        elif began:
            done += len(batch)
    seconds = time.perf_counter() - began
    return {
        "patches_per_s": done / seconds if done else None,
        "network": name,
        "workers": facts["cores"],
        "patches": done,
    }


if __name__ == "__main__":
    print(json.dumps(_work(json.load(sys.stdin))))
