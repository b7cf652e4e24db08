"""A model's PyTorch network in float32 on the CPU: the reference where there is no ONNX for ONNX Runtime.

Imports PyTorch, when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engines.model import Model
from engines.torch_source import load_network, load_torch, pytorch_source, quiet, runnable

Answer = Callable[[np.ndarray], np.ndarray]
"""Probabilities, float32 (n, classes), of patches, uint8 (n, P, P, 3)."""


def torch_reference(model: Model) -> Answer:
    """Raises ModelError: no PyTorch, or a network that it does not take. The answer raises whatever PyTorch raises."""
    network = load_network(*pytorch_source(model))
    from engines.aoti_graph import Folded, Prelude

    torch = load_torch()
    # As its author saved it, not as engines.aoti_graph rewrites it for an engine, which is to be compared with this.
    folded = Folded(Prelude(model, torch.float32), runnable(network).float(), len(model.classes))

    def answer(patches: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), quiet():
            return folded(torch.from_numpy(np.ascontiguousarray(patches))).numpy()

    return answer


def in_batches(answer: Answer, patches: np.ndarray, batch: int) -> np.ndarray:
    """`answer` to all patches, `batch` at a time."""
    return np.concatenate([answer(patches[first : first + batch]) for first in range(0, len(patches), batch)])
