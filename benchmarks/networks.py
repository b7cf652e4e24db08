"""The networks that benchmarks run: ResNet-50, DenseNet-121 and ViT-B/16 for two classes, with fixed pseudo-random weights.

Written out here because their speed, which hangs on shapes and operators alone, is all that is wanted of them: no download,
and nothing but torch. Layers and sizes are those of the papers: He et al., arXiv:1512.03385 (the stride in the 3 x 3
convolution, as everyone runs it); Huang et al., arXiv:1608.06993; Dosovitskiy et al., arXiv:2010.11929.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]
WEIGHTS = "weights.pt"


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        out = width * 4
        self.inner = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = stride == 1 and channels == out
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x) + self.skip(x))


def resnet50(classes: int) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(depth):
            layers.append(Bottleneck(channels, width, stride if index == 0 else 1))
            channels = width * 4
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class DenseLayer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 32, 3, 1, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.inner(x)], 1)


def densenet121(classes: int) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for block, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(DenseLayer(channels))
            channels += 32
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if block < 3:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[2]
        qkv = self.qkv(x).reshape(-1, x.shape[1], 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.out(mixed.transpose(1, 2).reshape(-1, x.shape[1], width))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class VisionTransformer(nn.Module):
    def __init__(self, classes: int, side: int = 224, width: int = 768, depth: int = 12, heads: int = 12):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (side // 16) ** 2 + 1, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])


NETWORKS = {"resnet50": resnet50, "densenet121": densenet121, "vit_b_16": VisionTransformer}


def network(name: str, side: int = 224, device: str = "cpu") -> nn.Module:
    """A network in eval mode whose two classes both occur: its head is aimed at what differs between patches of noise."""
    torch.manual_seed(20260101)
    module = NETWORKS[name](2).to(device)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        # Running means and variances of noise, or activations would grow from layer to layer.
        patches = patches_of_noise(32, side).to(device)
        images = (patches.permute(0, 3, 1, 2).float() / 255 - _rgb(MEAN, device)) / _rgb(STD, device)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
        module.train()
        module(images)
        module.eval()
        _aim(module, images)
    return module


def _aim(module: nn.Module, images: torch.Tensor) -> None:
    """Points the head along what differs most between patches. A head of random weights would mostly see what is the same
    in all of them, and its small differences would be made of rounding errors.
    """
    head = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    features: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    module(images)
    hook.remove()
    mean = features[0].mean(0)
    _, sizes, directions = torch.linalg.svd(features[0] - mean, full_matrices=False)
    direction = directions[0] * (0.75 * len(images) ** 0.5 / sizes[0])
    head.weight.copy_(torch.stack([-direction, direction]))
    head.bias.copy_(-head.weight @ mean)


def patches_of_noise(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """uint8 (count, side, side, 3): noise of several coarsenesses and tints, so that no two patches look alike."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty((count, side, side, 3), dtype=torch.uint8)
    for index in range(count):
        cells = 2 ** (1 + index % 6)
        coarse = torch.rand((1, 3, cells, cells), generator=generator)
        fine = torch.rand((1, 3, side, side), generator=generator)
        tint = torch.rand((1, 3, 1, 1), generator=generator)
        image = nn.functional.interpolate(coarse, (side, side), mode="bilinear") * 0.5 + fine * 0.2 + tint * 0.3
        out[index] = (image[0].permute(1, 2, 0) * 255).to(torch.uint8)
    return out


def model_directory(name: str, folder: Path, side: int = 224, module: nn.Module | None = None) -> Path:
    """Writes a model directory (config.json, model.onnx) of a network and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    module = (module or network(name, side)).cpu().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, side, side),),
            str(folder / "model.onnx"),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    config = {
        "spec_version": "1.0",
        "architecture": name,
        "num_classes": 2,
        "patch_size_pixels": side,
        "spacing_um_px": 0.5,
        "class_names": ["normal", "tumour"],
        "transform": [{"name": "ToTensor"}, {"name": "Normalize", "arguments": {"mean": MEAN, "std": STD}}],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def write(name: str, folder: Path, side: int = 224, verified: int = 256, calibrated: int = 128) -> None:
    """A model directory with all that benchmarks want of a network: the graph, a torch.export program, weights (for `load`),
    and, for PyTorch's DataLoader, `loader/` with TorchScript; `patches.npy` and `calibration.npy` of noise beside it."""
    module = network(name, side, "cuda" if torch.cuda.is_available() else "cpu").cpu().eval()
    model_directory(name, folder, side, module)
    torch.save(module.state_dict(), folder / WEIGHTS)
    images = torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        torch.export.save(torch.export.export(module, (images,), dynamic_shapes=free), folder / "exported_model.pt2")
        loader = folder / "loader"
        loader.mkdir(exist_ok=True)
        for file in ("config.json", "model.onnx"):
            (loader / file).unlink(missing_ok=True)
            (loader / file).hardlink_to(folder / file)
        torch.jit.trace(module, images, check_trace=False).save(str(loader / "torchscript_model.pt"))
    np.save(folder / "patches.npy", patches_of_noise(verified, side, 5).numpy())
    np.save(folder / "calibration.npy", patches_of_noise(calibrated, side, 2).numpy())


def load(folder: str) -> nn.Module:
    """The network that `write` put there."""
    architecture = json.loads((Path(folder) / "config.json").read_text())["architecture"]
    module = NETWORKS[architecture](2)
    module.load_state_dict(torch.load(Path(folder) / WEIGHTS, weights_only=True))
    return module.eval()


def _rgb(values: list[float], device: str) -> torch.Tensor:
    return torch.tensor(values, device=device).reshape(1, 3, 1, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.networks", description=write.__doc__)
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.name, arguments.folder)
