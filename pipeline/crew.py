"""The worker processes of a run: how many of each kind, and where each may run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.config import Config
from pipeline.dispatch.board import INFERENCE
from pipeline.gpus import Device
from pipeline.worker import plan_variable

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Member:
    """One worker. `environment` is set for it; `cpus` ("0,1,16"), if given, are all it may run on, from its first page on."""

    kind: str
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    cpus: str = ""


def crew(config: Config, devices: Sequence[Device] = ()) -> list[Member]:
    """All workers but the batcher; `config` is resolved, `devices` are the GPUs of the run."""
    counts = {
        "aggregator": 1,
        "reader": config.reader.workers,
        "tissue": config.tissue.workers,
        "inference": config.inference.workers,
        "writer": config.writer.workers,
    }
    return [member(kind, i, devices) for kind, count in counts.items() for i in range(count)]


def starting_order(members: Iterable[Member]) -> tuple[list[Member], list[Member]]:
    """(those that start at once, those that need what is prepared meanwhile), each in the order of its start.

    Inference on a CPU waits for the folded model. On a GPU it needs nothing, and takes the longest of all to come up: it goes
    before the many readers, right after the first of `members`, the batcher that all others look for.
    """
    first, *rest = members
    waiting = [one for one in rest if one.kind == INFERENCE and VISIBLE not in one.environment]
    at_once = [one for one in rest if one not in waiting]
    return [first, *sorted(at_once, key=lambda one: one.kind != INFERENCE)], waiting


def member(kind: str, index: int, devices: Sequence[Device] = ()) -> Member:
    """The worker number `index` of its kind. Inference workers go round the GPUs, each on the cores nearest to its own."""
    name = f"{kind}-{index}"
    if kind != INFERENCE or not devices:
        return Member(kind, name)
    device = devices[index % len(devices)]
    # Set before the process starts: CUDA reads it once, and shows the process this GPU alone, as number 0.
    plans = {plan_variable(number): str(plan) for number, plan in enumerate(device.plans)}
    return Member(kind, name, {VISIBLE: device.visible, **plans}, device.cpus)
