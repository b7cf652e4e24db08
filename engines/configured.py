"""From a configuration to an engine, whichever kind it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.engine import Engine, open_engine


def open_configured(
    inference: dict[str, Any], *, folded: Path, plan: Path | None, classes: int, patch_px: int, max_batch: int
) -> Engine:
    """Opens what a resolved configuration's `inference` section asks for: `folded` on the CPU, or `plan`, an engine of
    engines.cache, on this process's first GPU. Raises EngineError.
    """
    if plan is None:
        return open_engine(
            inference["engine"],
            folded,
            classes=classes,
            patch_px=patch_px,
            threads=inference["threads"],
            max_batch=max_batch,
        )
    # imported here, because a process on the CPU should not pay for it
    from engines.backend import open_plan

    return open_plan(
        plan, classes=classes, patch_px=patch_px, max_batch=max_batch, cuda_graphs=inference["cuda_graphs"]
    )
