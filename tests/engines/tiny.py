"""Builds tiny real models for tests: a WSInfer config.json beside a small ONNX network that runs in well under a
millisecond.

The network is Conv (8 x 8, stride 8, 4 channels) -> Relu -> global mean -> Gemm, with fixed pseudo-random weights: the
logits depend on every pixel, and on the order of channels, rows and columns, so a swapped axis changes the answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MEAN = (0.70, 0.55, 0.70)
STD = (0.20, 0.25, 0.20)
KERNEL = 8
HIDDEN = 4


def weights(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Convolution (4, 3, 8, 8) and its bias (4,), Gemm (4, outputs) and its bias (outputs,), all float32; always the
    same.
    """
    rng = np.random.default_rng(20260101)
    conv = rng.normal(0.0, 0.15, (HIDDEN, 3, KERNEL, KERNEL)).astype(np.float32)
    conv_bias = rng.normal(0.0, 0.5, HIDDEN).astype(np.float32)
    gemm = rng.normal(0.0, 2.0, (HIDDEN, 16)).astype(np.float32)[:, :outputs].copy()
    gemm_bias = rng.normal(0.0, 0.5, 16).astype(np.float32)[:outputs].copy()
    return conv, conv_bias, gemm, gemm_bias


def tiny_config(
    *,
    classes: Sequence[str] = ("normal", "tumour"),
    patch_px: int = 64,
    spacing: float = 0.5,
    resize: int | None = None,
) -> dict:
    """The config.json of `tiny_model`, to be bent by tests of bad configurations."""
    transform: list[dict] = [{"name": "Resize", "arguments": {"size": resize}}] if resize else []
    transform += [{"name": "ToTensor"}, {"name": "Normalize", "arguments": {"mean": list(MEAN), "std": list(STD)}}]
    return {
        "spec_version": "1.0",
        "architecture": "tiny",
        "num_classes": len(classes),
        "patch_size_pixels": patch_px,
        "spacing_um_px": spacing,
        "class_names": list(classes),
        "transform": transform,
    }


def tiny_model(
    directory: str | Path,
    *,
    classes: Sequence[str] = ("normal", "tumour"),
    patch_px: int = 64,
    spacing: float = 0.5,
    resize: int | None = None,
    kind: str = "linear",
    free: bool = False,
) -> Path:
    """Writes a model directory and returns it. `classes`: 1 to 15 names; `patch_px` (or `resize`, where given) at least
    8 px.

    kind: "linear" (works), "nan" (every logit is NaN), "broken" (model.onnx is cut off in the middle), "wrong_classes"
    (one class more than config.json says), "flat" (a Gemm over all places: one size only, whatever `free` says).
    free: height and width of the input are names, not numbers.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if kind not in ("linear", "nan", "broken", "wrong_classes", "flat"):
        raise ValueError(f"tiny_model: unknown kind {kind!r}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(classes=classes, patch_px=patch_px, spacing=spacing, resize=resize)
    (directory / "config.json").write_text(json.dumps(config, indent=1))

    outputs = len(classes) + (kind == "wrong_classes")
    conv, conv_bias, gemm, gemm_bias = weights(outputs)
    if kind == "nan":
        gemm_bias = np.full_like(gemm_bias, np.nan)
    side = resize or patch_px
    if kind == "flat":
        gemm = np.repeat(gemm, (side // KERNEL) ** 2, axis=0) / np.float32((side // KERNEL) ** 2)
    sides = ("height", "width") if free else (side, side)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "conv", "conv_bias"], ["c"], strides=[KERNEL, KERNEL]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Identity" if kind == "flat" else "GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "gemm", "gemm_bias"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *sides])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [
            numpy_helper.from_array(value, name)
            for name, value in (("conv", conv), ("conv_bias", conv_bias), ("gemm", gemm), ("gemm_bias", gemm_bias))
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = proto.SerializeToString()
    onnx.checker.check_model(proto)
    (directory / "model.onnx").write_bytes(data[: len(data) // 2] if kind == "broken" else data)
    return directory


def logits(images: np.ndarray, outputs: int) -> np.ndarray:
    """The network in plain numpy, float64: images (n, 3, H, W) already normalised -> logits (n, outputs)."""
    conv, conv_bias, gemm, gemm_bias = (w.astype(np.float64) for w in weights(outputs))
    n, _, height, width = images.shape
    rows, columns = height // KERNEL, width // KERNEL
    blocks = images[:, :, : rows * KERNEL, : columns * KERNEL].reshape(n, 3, rows, KERNEL, columns, KERNEL)
    hidden = np.einsum("ncykxl,hckl->nhyx", blocks, conv) + conv_bias[None, :, None, None]
    return np.maximum(hidden, 0.0).mean(axis=(2, 3)) @ gemm + gemm_bias


def softmax(values: np.ndarray) -> np.ndarray:
    """Softmax over axis 1, or the sigmoid where there is one column."""
    if values.shape[1] == 1:
        return 1.0 / (1.0 + np.exp(-values))
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def expected(patches: np.ndarray, classes: int = 2) -> np.ndarray:
    """What `tiny_model(kind="linear", resize=None)` must answer for uint8 (n, P, P, 3) patches: float64 (n, classes),
    without ONNX.
    """
    images = (patches.astype(np.float64) / 255.0 - np.array(MEAN)) / np.array(STD)
    return softmax(logits(images.transpose(0, 3, 1, 2), classes))
