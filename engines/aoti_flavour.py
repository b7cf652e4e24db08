"""PyTorch as the flavour of the backend aoti: what runs a package needs no more of engines.aoti_build than this."""

from __future__ import annotations

import re

from engines.errors import EngineError
from engines.flavour import Flavour
from engines.torch_source import load_torch

FLAVOUR = "aoti"
INSTALL = "install slidestream[aoti]"
OLDEST = (2, 9)  # before it, traced networks cannot be compiled


def load_aoti() -> Flavour:
    """PyTorch as a flavour. Raises EngineError where there is none, or one that is too old."""
    try:
        torch = load_torch()
    except ImportError as error:
        raise EngineError(f"backend aoti wants PyTorch: {INSTALL}") from error
    version = str(torch.__version__)
    if _number(version) < OLDEST:
        raise EngineError(f"backend aoti wants PyTorch {'.'.join(map(str, OLDEST))} or later, here is {version}")
    return Flavour(FLAVOUR, version, torch)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
