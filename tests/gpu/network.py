"""A small convolutional network as its author would bring it: a model directory with its PyTorch source, or ONNX alone."""

from __future__ import annotations

import json
from pathlib import Path

from engines.torch_source import load_torch
from tests.engines.tiny import tiny_config, tiny_model

SEED = 6  # with which both classes are frequent on synthetic tissue
CHANNELS = 16
CONTRAST = 30.0  # of the logits, so that most patches are far from the border between the classes


def model_directory(folder: Path, name: str, patch_px: int) -> Path:
    """Below `folder`; without PyTorch it is the network of the other tests, which aoti has no use for."""
    try:
        torch = load_torch()
    except ImportError:
        return tiny_model(folder / name, patch_px=patch_px)
    from engines.import_model import import_model

    (folder / f"{name}.json").write_text(json.dumps(tiny_config(patch_px=patch_px)))
    traced = torch.jit.trace(network(torch), torch.zeros(2, 3, patch_px, patch_px))
    torch.jit.save(traced, folder / f"{name}.pt")
    return import_model(folder / f"{name}.pt", folder / name, config=folder / f"{name}.json").model.directory


def network(torch):
    """Two convolutions with batch normalisation and residual, the mean over the patch, two classes."""
    torch.manual_seed(SEED)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, CHANNELS, 8, 4)
            self.norm = torch.nn.BatchNorm2d(CHANNELS)
            self.body = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
            self.head = torch.nn.Linear(CHANNELS, 2)

        def forward(self, images):
            x = torch.relu(self.norm(self.stem(images)))
            x = x + torch.relu(self.body(x))
            return CONTRAST * self.head(x.mean((2, 3)))

    return Net().eval()
