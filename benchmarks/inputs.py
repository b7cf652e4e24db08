"""What the benchmarks run on: synthetic slides, made once and kept, and a model."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.table import ROOT
from slides.synthetic import SyntheticSlide, make_slide
from slides.truth import truth_paths

SEED = 1
DEMO_MODEL = ROOT / "models" / "demo-tumour"


def cache() -> Path:
    """Where slides are kept between benchmarks: SLIDESTREAM_BENCH, or a folder of this user's among temporary files."""
    given = os.environ.get("SLIDESTREAM_BENCH")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"slidestream-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def synthetic_slide(width: int, height: int, seed: int = SEED, mpp: float = 0.25) -> Path:
    """A synthetic slide of this size in pixels at `mpp` um/px, the same every time."""
    path = cache() / (f"{width}x{height}-{seed}.tif" if mpp == 0.25 else f"{width}x{height}-{seed}-{mpp:g}um.tif")
    # The slide is whole once its truth is beside it.
    if not all(part.exists() for part in (path, *truth_paths(path))):
        make_slide(path, SyntheticSlide(width=width, height=height, mpp=mpp, seed=seed))
    return path


def model_directory(given: Path | None, folder: Path) -> Path:
    """`given`, or the demonstration model, or, where that is not there, a tiny one made in `folder`."""
    if given is not None:
        return given
    if (DEMO_MODEL / "model.onnx").exists():
        return DEMO_MODEL
    return tiny(folder / "tiny-model")


def tiny(directory: Path, side: int = 224, spacing: float = 0.25) -> Path:
    """A network of one strided convolution in a model directory: it costs next to nothing, so it shows all the rest.

    `side` in pixels and `spacing` in um/px of its patches."""
    import json

    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    channels, kernel = 4, 8
    rng = np.random.default_rng(1)
    constants = {
        "w": rng.normal(0, 0.15, (channels, 3, kernel, kernel)),
        "m": rng.normal(0, 2, (channels, 2)),
        "b": np.zeros(2),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], strides=[kernel, kernel]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "m", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = {
        "spec_version": "1.0",
        "architecture": "tiny",
        "num_classes": 2,
        "class_names": ["normal", "tumour"],
        "patch_size_pixels": side,
        "spacing_um_px": spacing,
        "transform": [
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": [0.5] * 3, "std": [0.25] * 3}},
        ],
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    onnx.save(model, directory / "model.onnx")
    return directory
