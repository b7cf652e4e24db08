"""The GPU engines there are, as one: which can be had here, how any of them is opened, and which is fastest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.aoti_flavour import FLAVOUR as AOTI
from engines.aoti_flavour import load_aoti
from engines.cache import Entry, read_entry, record_choice
from engines.errors import EngineError
from engines.flavour import load_flavour
from engines.gpu import Gpu
from engines.gpu_engine import GpuEngine


def installed() -> dict[str, str]:
    """Each backend with why it cannot be used here; empty where it can."""
    reasons = {}
    for name, load in (("tensorrt", load_flavour), (AOTI, load_aoti)):
        try:
            load()
            reasons[name] = ""
        except EngineError as error:
            reasons[name] = str(error)
    return reasons


def open_plan(
    plan: Path,
    *,
    classes: int,
    patch_px: int,
    max_batch: int,
    shapes: Sequence[int] = (),
    cuda_graphs: bool | None = None,
    device: int = 0,
    unverified: bool = False,
) -> GpuEngine:
    """Opens an engine of engines.cache by the backend that built it. Raises EngineError.

    `cuda_graphs` None leaves it to the backend: on for aoti, off for TensorRT. `shapes` is TensorRT's alone.
    """
    entry = read_entry(plan)
    if entry.identity is not None and entry.identity.backend == AOTI:
        from engines.aoti import open_aoti

        return open_aoti(
            plan,
            classes=classes,
            patch_px=patch_px,
            max_batch=max_batch,
            cuda_graphs=cuda_graphs is not False,
            device=device,
            unverified=unverified,
        )
    from engines.tensorrt_engine import open_tensorrt

    return open_tensorrt(
        plan,
        classes=classes,
        patch_px=patch_px,
        max_batch=max_batch,
        shapes=shapes,
        cuda_graphs=bool(cuda_graphs),
        device=device,
        unverified=unverified,
    )


def fastest(entries: Sequence[Entry], gpu: Gpu, *, before: Sequence[str] = ()) -> tuple[Entry, list[str]]:
    """Of engines that were verified on such a GPU, the fastest that is right; and the reasons, which its sidecar keeps.

    `before`: reasons so far, which go before. Raises EngineError: none is right.
    """
    right: list[tuple[float, Entry]] = []
    reasons = list(before)
    for entry in entries:
        found = entry.verification(gpu) or {}
        identity = entry.identity
        name = f"{identity.flavour} {identity.precision}" if identity else entry.plan.name
        if found.get("passed"):
            right.append((float(found.get("patches_per_s") or 0.0), entry))
            reasons.append(f"{name}: {right[-1][0]:,.0f} patches/s")
        else:
            reasons.append(f"{name}: {found.get('reason') or 'not verified'}")
    if not right:
        raise EngineError(f"no engine is right on {gpu}: {'; '.join(reasons) or 'none was built'}")
    _, best = max(right, key=lambda pair: pair[0])
    about = best.identity
    reasons.append(f"chosen: {about.flavour} {about.precision}" if about else "")
    choice = {"precision": about.precision if about else "?", "backend": about.flavour if about else "?"}
    return record_choice(best, {**choice, "reasons": reasons}), reasons
