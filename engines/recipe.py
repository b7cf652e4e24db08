"""How an engine is to be built: precision, profiles, the builder's options. Records only; nothing is imported for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PRECISIONS = ("fp32", "fp16", "int8")
# How a graph becomes float16 (engines.precision). Raise it when the same graph would be converted otherwise.
HALF_RECIPE = "fp16-2"
# How a network becomes an AOTInductor package. Raise it when the same network would be compiled otherwise: runs take no
# package of another recipe.
AOTI_RECIPE = "aoti-2"


@dataclass(frozen=True, slots=True)
class Profile:
    """The batches of one patch size that an engine must take. The optimum is the one that kernels are chosen for."""

    patch_px: int
    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ValueError(f"profile: 1 <= min <= opt <= max, not {self.minimum}/{self.optimum}/{self.maximum}")

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        return (batch, self.patch_px, self.patch_px, 3)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How hard the builder tries, and what for. All of it is part of an engine's identity."""

    optimization_level: int = 3
    """0 (first kernel that runs) to 5 (every kernel compared)."""
    timing_iterations: int = 4
    """Runs that are averaged when kernels are compared; more gives steadier builds."""
    aux_streams: int | None = None
    """Streams beside the context's own; 0 is leaner with several contexts, None leaves it to TensorRT."""
    workspace_mib: int | None = None
    """Scratch memory a kernel may take; None is all of the GPU."""
    tf32: bool = False
    """float32 products in TF32: faster, 10 bits of mantissa. Off, because fp32 is what others are compared with."""
    compute_capabilities: tuple[str, ...] = ()
    """Build for these ("8.6", ...) instead of all that the flavour serves (tensorrt_rtx)."""
    hardware: str = ""
    """Build for several GPUs: AMPERE_PLUS or SAME_COMPUTE_CAPABILITY (tensorrt)."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "compute_capabilities": list(self.compute_capabilities)}
