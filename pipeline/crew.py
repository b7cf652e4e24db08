"""The worker processes of a run: how many of each kind, and where each may run."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config import Config


@dataclass(frozen=True, slots=True)
class Member:
    """One worker. `environment` is set for it; `cpus` ("0-7,16"), if given, are all it may run on, from its first page on."""

    kind: str
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    cpus: str = ""


def crew(config: Config) -> list[Member]:
    """All workers but the batcher; `config` is resolved."""
    counts = {
        "aggregator": 1,
        "reader": config.reader.workers,
        "tissue": config.tissue.workers,
        "inference": config.inference.workers,
        "writer": config.writer.workers,
    }
    return [Member(kind, f"{kind}-{i}") for kind, count in counts.items() for i in range(count)]
