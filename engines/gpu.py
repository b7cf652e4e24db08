"""What is known of a GPU: a record, without any library of NVIDIA's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as this process sees it."""

    name: str
    compute_capability: str
    """"9.0"."""
    uuid: str = ""
    memory_bytes: int = 0
    driver: str = ""
    """The driver's release, "580.159.04", or empty where the system does not tell."""
    cuda: str = ""
    """The newest CUDA that the driver serves, "13.0"."""
    pci: str = ""
    """Its place on the bus, "0000:1b:00.0", or empty where the driver does not tell."""

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
