"""PyTorch as the flavour of the backend aoti: what runs a package needs no more of engines.aoti_build than this."""

from __future__ import annotations

from engines.errors import EngineError
from engines.flavour import Flavour
from engines.torch_source import load_torch

FLAVOUR = "aoti"
ARCHIVE = "network"
"""In a package all files are in a folder with the name that the package had when it was made."""
INSTALL = "install slidestream[aoti]"


def load_aoti() -> Flavour:
    """PyTorch as a flavour. Raises EngineError where there is none, or one without AOTInductor packages."""
    try:
        torch = load_torch()
    except ImportError as error:
        raise EngineError(f"backend aoti wants PyTorch: {INSTALL}") from error
    # torch._inductor itself would import PyTorch's whole compiler, which a run has no use for.
    if not hasattr(getattr(torch._C, "_aoti", None), "AOTIModelPackageLoader"):
        raise EngineError(f"backend aoti wants PyTorch 2.9 or later, here is {torch.__version__}")
    return Flavour(FLAVOUR, str(torch.__version__), torch)
