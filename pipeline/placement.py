"""Where the models of a run compute: each finds its engines by itself (pipeline.gpus), then all go on the same GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from engines.model import GRAPH, Model
from engines.probe import Probe
from pipeline.config import Config, ConfigError, result_hash
from pipeline.gpus import ON_GPUS, Placement, place


def place_all(
    config: Config,
    models: Sequence[Model],
    probe: Callable[[tuple[str, ...]], Probe],
    build: Callable[[Config, Model], None] | None = None,
) -> Placement:
    """GPUs, and for each an engine of every model. `build`, where given, makes an engine that is missing.

    Raises ConfigError: no GPU or no engine where one was asked for, naming what to do.
    """
    look = cache(probe)  # it starts a process

    def builder(model: Model) -> Callable[[Config], None] | None:
        return None if build is None else lambda wanted: build(wanted, model)

    placement = together(config, [place(config, model, look, builder(model)) for model in models])
    if config.inference.engine in ON_GPUS and not placement.devices:
        for model in models:
            if not model.has_onnx:
                raise ConfigError(
                    f"inference.fallback: {model.directory} has no {GRAPH} for the CPU, and another model has no GPU or no "
                    "engine (slidestream check --set inference.fallback=none says why)"
                )
    return placement


def together(config: Config, placements: Sequence[Placement]) -> Placement:
    """The placement of all models from each one's own. All are on the CPU where one has to be (inference.fallback)."""
    first = placements[0]
    if len(placements) == 1:
        return first
    on_cpu = next((found for found in placements if not found.devices), None)
    if on_cpu is not None:
        return on_cpu
    inferences = [found.config.inference for found in placements]
    engines = {inference.engine for inference in inferences}
    precisions = {inference.precision for inference in inferences}
    inference = config.inference.model_copy(
        update={
            "engine": engines.pop() if len(engines) == 1 else "gpu",
            "precision": precisions.pop() if len(precisions) == 1 else "auto",
        }
    )
    devices = tuple(
        replace(device, others=tuple(found.devices[number].plan for found in placements[1:]))
        for number, device in enumerate(first.devices)
    )
    batches = [found.batch for found in placements if found.batch is not None]
    notices = tuple(dict.fromkeys(notice for found in placements for notice in found.notices))
    return Placement(
        config.model_copy(update={"inference": inference}),
        devices,
        min(batches, default=None),
        notices,
        tuple(inferences),
    )


def result_hashes(config: Config, placement: Placement, models: Sequence[Model]) -> list[str]:
    """pipeline.config.result_hash for each model: with the engine, precision and size that it was given. `config` is resolved."""
    hashes = []
    for number, model in enumerate(models):
        # A model's own size is the same whether it was named or not.
        update: dict[str, object] = {} if model.at_other_size else {"patch_px": "auto"}
        if placement.inferences:
            own = placement.inferences[number]
            update |= {"engine": own.engine, "precision": own.precision}
        mine = config.inference.model_copy(update=update)
        hashes.append(result_hash(config.model_copy(update={"inference": mine})))
    return hashes
