"""A PyTorch network as AOTInductor should get it: preprocessing folded in, batch normalisation folded away, float16.

    patches uint8 (B, P, P, 3) -> [Resize] -> scale, shift -> the network -> softmax | sigmoid -> float32 (B, C)

The batch B is fixed: one shape makes the fastest kernels and lets a CUDA graph hold them, and contexts pad to it anyway
(engines.gpu_engine). Resize, scale and shift are those of engines.fold, in float32 and to the bit; they end in channels-last
images, as pixels lie in a slot, so nothing is transposed. In float16, weights and everything that makes a tensor are
float16; PyTorch's own softmax, normalisation and matrix kernels sum in float32 inside.

Imports PyTorch; so others import this module only where they work on a network.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

from engines.census import Census
from engines.errors import ModelError
from engines.fold import LOW, resize_matrix, split_weights
from engines.model import Model
from engines.torch_source import TORCHSCRIPT, load_network, quiet, reason

aten = torch.ops.aten
_COMPUTE = ("conv", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product")
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, aten.convolution.default, aten._convolution.default)


class Prelude(nn.Module):
    """uint8 (B, P, P, 3) to images of `dtype` (B, 3, height, width), channels last. Its constants stay float32."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        mean, std = np.array(model.transform.mean), np.array(model.transform.std)
        self._constant("scale", (1.0 / (255.0 * std)).reshape(1, 3, 1, 1))
        self._constant("shift", (-mean / std).reshape(1, 3, 1, 1))
        height, width = model.input_hw
        self.axes = [
            name for name, side in (("width", width), ("height", height)) if side != model.patch_px
        ]  # in Pillow's order
        for name, side in (("width", width), ("height", height)):
            if name in self.axes:
                for part, half in zip(("high", "low"), split_weights(resize_matrix(model.patch_px, side)), strict=True):
                    self._constant(f"{name}_{part}", half.T if name == "width" else half)

    def _constant(self, name: str, value: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value, np.float32)))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        pixels = patches.permute(0, 3, 1, 2).to(torch.float32)
        for axis in self.axes:
            high, low = getattr(self, f"{axis}_high"), getattr(self, f"{axis}_low")
            parts = [pixels @ high, pixels @ low] if axis == "width" else [high @ pixels, low @ pixels]
            pixels = torch.floor(parts[0] + torch.floor(parts[1]) * (1.0 / LOW) + 0.5)
        images = (pixels * self.scale + self.shift).to(self.dtype)
        return images.contiguous(memory_format=torch.channels_last)


class Folded(nn.Module):
    """Patches to probabilities."""

    def __init__(self, prelude: Prelude, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.prelude, self.network, self.classes = prelude, network, classes

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        logits = self.network(self.prelude(patches)).to(torch.float32)
        return torch.sigmoid(logits) if self.classes == 1 else torch.softmax(logits, 1)


def folded_program(kind: str, path: Any, model: Model, precision: str, batch: int, device: str) -> Any:
    """The ExportedProgram of the folded network for exactly `batch` patches on `device`. Raises ModelError."""
    dtype = torch.float16 if precision == "fp16" else torch.float32
    network = network_graph(kind, path, model)
    try:
        with quiet(), torch.no_grad():
            fold_batch_norm(network)
            change(network, dtype, device)
            module = Folded(Prelude(model, dtype), network, len(model.classes)).to(device)
            patches = torch.zeros((batch, model.patch_px, model.patch_px, 3), dtype=torch.uint8, device=device)
            program = torch.export.export(module, (patches,))
    except Exception as error:  # PyTorch raises whatever its parts raise
        raise ModelError(path, f"cannot be made an engine of {precision}: {reason(error)}") from error
    answer = next(node for node in program.graph.nodes if node.op == "output").args[0][0].meta["val"]
    if tuple(answer.shape) != (batch, len(model.classes)):
        problem = f"gives {tuple(answer.shape)} for {batch} patches, {model.config_path.name} makes it "
        raise ModelError(path, problem + f"({batch}, {len(model.classes)})", "see docs/models.md")
    return program


def network_graph(kind: str, path: Any, model: Model) -> torch.fx.GraphModule:
    """The network alone, in float32 on the CPU, as a graph of PyTorch's operators. Raises ModelError."""
    network = load_network(kind, path)
    try:
        with quiet():
            if kind == TORCHSCRIPT:
                from torch._export.converter import TS2EPConverter

                network = TS2EPConverter(network.float(), (torch.zeros(2, 3, *model.input_hw),)).convert()
            try:
                module = network.module(check_guards=False)
            except TypeError:  # PyTorch before 2.9
                module = network.module()
    except Exception as error:  # as above
        remedy = "export it from its own code with torch.export.export, and import that"
        raise ModelError(path, f"cannot be made a torch.export program: {reason(error)}", remedy) from error
    return module.float()


def fold_batch_norm(module: torch.fx.GraphModule) -> int:
    """Puts each batch normalisation that follows a convolution into its weights; how many there were.

    Weights that two convolutions share are left alone.
    """
    uses = Counter(node.args[1].target for node in module.graph.nodes if _is_convolution(node))
    folded = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.batch_norm.default:
            continue
        source, *parts = node.args[:5]
        training = node.args[5]
        good = _is_convolution(source) and len(source.users) == 1 and uses[source.args[1].target] == 1
        transposed = good and source.target in (_CONVOLUTIONS[2:]) and source.args[6]
        if training or not good or transposed or any(part is None or part.op != "get_attr" for part in parts):
            continue
        scale, shift, mean, variance = (_attribute(module, part.target) for part in parts)
        weight = _attribute(module, source.args[1].target)
        has_bias = len(source.args) > 2 and source.args[2] is not None
        bias = _attribute(module, source.args[2].target) if has_bias else torch.zeros_like(mean)
        factor = scale.double() / torch.sqrt(variance.double() + node.args[7])
        name = f"folded_{folded}"
        new_weight = (weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
        new_bias = ((bias.double() - mean.double()) * factor + shift.double()).to(weight.dtype)
        module.register_parameter(f"{name}_weight", nn.Parameter(new_weight, requires_grad=False))
        module.register_parameter(f"{name}_bias", nn.Parameter(new_bias, requires_grad=False))
        with module.graph.inserting_before(source):
            inputs = [module.graph.get_attr(f"{name}_{part}") for part in ("weight", "bias")]
        source.args = (source.args[0], *inputs, *source.args[3:])
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        folded += 1
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return folded


def change(module: torch.fx.GraphModule, dtype: torch.dtype, device: str) -> None:
    """Weights, constants, and whatever in the graph makes float32 or names a device, as `dtype` on `device`."""

    def swap(value: Any) -> Any:
        if value is torch.float32:
            return dtype
        return torch.device(device) if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, swap)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, swap)
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            holder = module.get_submodule(owner)
            value = getattr(holder, name)
            # Weights and buffers are converted below; constants of a program are plain attributes.
            if isinstance(value, torch.Tensor) and name not in holder._parameters and name not in holder._buffers:
                setattr(holder, name, value.to(device, dtype if value.is_floating_point() else value.dtype))
    module.recompile()
    module.to(device=device, dtype=dtype)
    for name, weight in module.named_parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def program_census(program: Any) -> tuple[Census, Census]:
    """(what the program computes, how much of it is Resize in float32)."""
    layers: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    resizing: Counter[str] = Counter()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            continue
        name = _NAMES.get(value.dtype, str(value.dtype).removeprefix("torch."))
        layers[name] += 1
        operator = str(getattr(node.target, "__name__", node.target)).partition(".")[0].lstrip("_")
        if operator.startswith(_COMPUTE):
            compute[name] += 1
            if any("prelude" in str(frame) for frame in (node.meta.get("nn_module_stack") or {}).values()):
                resizing[name] += 1
    return Census(dict(sorted(layers.items())), dict(sorted(compute.items()))), Census({}, dict(resizing))


def _is_convolution(node: Any) -> bool:
    return (
        isinstance(node, torch.fx.Node)
        and node.target in _CONVOLUTIONS
        and node.args[1].op == "get_attr"
        and (len(node.args) < 3 or node.args[2] is None or node.args[2].op == "get_attr")
    )


def _attribute(module: nn.Module, target: str) -> torch.Tensor:
    owner, _, name = target.rpartition(".")
    return getattr(module.get_submodule(owner), name)
