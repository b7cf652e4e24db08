"""The network: about 0.2 million weights and 33 million multiply-adds for a patch of 224 x 224 pixels.

It learns at half the patch's resolution (0.5 um/px), which is what most of the training images have. The exported
network takes whole patches: the mean over 2 x 2 pixels and the first 3 x 3 convolution with stride 2 are together one
6 x 6 convolution with stride 4, exactly, so no resizing is needed in front of it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

MEAN = (0.70, 0.56, 0.70)
STD = (0.20, 0.24, 0.18)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """x + pointwise(depthwise(x)), then ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = conv(width, width, groups=width)
        self.pointwise = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.pointwise(self.depthwise(x)))


class DemoTumour(nn.Module):
    """(N, 3, 112, 112) normalised RGB at 0.5 um/px -> (N, 2) logits, [normal, tumour]."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = conv(3, 24, stride=2)
        self.body = nn.Sequential(
            conv(24, 48, stride=2), Residual(48),
            conv(48, 96, stride=2), Residual(96), Residual(96),
            conv(96, 128, stride=2), Residual(128),
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(128, 2)

    def features(self, x: Tensor) -> Tensor:
        """(N, 128): what the last layer decides by."""
        return self.body(self.stem(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x)))


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Folds every (Conv2d, BatchNorm2d) pair of the Sequentials inside `module` into the convolution, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential) and len(child) >= 2 and isinstance(child[1], nn.BatchNorm2d):
            merged = nn.utils.fuse_conv_bn_eval(child[0], child[1])
            setattr(module, name, nn.Sequential(merged, *list(child)[2:]))
        else:
            fold_batchnorm(child)
    return module


def full_resolution(network: DemoTumour) -> DemoTumour:
    """A copy for (N, 3, 224, 224): equal, up to rounding, to `network` on means of 2 x 2 pixels."""
    copy = DemoTumour()
    copy.load_state_dict(network.state_dict())
    fold_batchnorm(copy.eval())
    small = copy.stem[0]
    large = nn.Conv2d(3, small.out_channels, 6, 4, 2)
    large.weight.data = small.weight.data.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    large.bias.data = small.bias.data.clone()
    copy.stem[0] = large
    return copy.eval()


def export(network: DemoTumour, path: Path) -> None:
    """Writes the ONNX file: input `input` float32 (N, 3, 224, 224) normalised, output `logits` float32 (N, 2)."""
    torch.onnx.export(
        full_resolution(network), (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False, opset_version=17,
        input_names=["input"], output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
