"""A network as its author saved it: what kind of file it is, told by its contents, and how PyTorch loads it.

Nothing is unpickled: a file of `torch.save` can run any code when it is loaded, so it is refused with the way out.
Networks go through here as `torch.nn.Module`s from float images (N, 3, height, width) to logits (N, classes), on the CPU.
Imports PyTorch only where a network is loaded; it is in no default installation.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.errors import ModelError, one_line
from engines.model import CONFIG, EXPORTED_FILE, GRAPH, TORCHSCRIPT_FILE, Model

TORCHSCRIPT = "torchscript"
EXPORTED = "exported program"
ONNX = "ONNX"
# In this order they are looked for in a model directory.
SOURCES = {TORCHSCRIPT: TORCHSCRIPT_FILE, EXPORTED: EXPORTED_FILE}
INSTALL = "install slidestream[import]"
_SAVE = "save it with torch.export.save(torch.export.export(network, ...), 'network.pt2'): see docs/models.md"


def load_torch() -> ModuleType:
    """PyTorch. Raises ModuleNotFoundError or another ImportError where it is not installed."""
    with quiet():
        import torch
    return torch


def kind_of(path: Path) -> str:
    """TORCHSCRIPT, EXPORTED or ONNX, by the file's contents. Raises ModelError: none of them, or unreadable."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                begins = file.read(2)
            # An ONNX file is a protobuf whose first field is its IR version; an old pickle begins with 0x80.
            if begins[:1] == b"\x08" or path.suffix.lower() == ".onnx":
                return ONNX
            if begins[:1] == b"\x80":
                raise ModelError(path, "is a pickle, which could run any code", _SAVE)
            raise ModelError(path, "is neither TorchScript, nor a torch.export program, nor ONNX")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror or error})") from error
    except zipfile.BadZipFile as error:
        raise ModelError(path, f"is a damaged archive: {one_line(error, 80)}", "copy or save it again") from error
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return TORCHSCRIPT
    if any(name.startswith("data/aotinductor/") for name in inner):
        problem = "is a compiled AOTInductor package, of which no network can be made"
        raise ModelError(path, problem, "give the program that it was compiled from")
    if any(name.startswith("models/") for name in inner) or "serialized_exported_program.json" in names:
        return EXPORTED
    if "data.pkl" in inner:
        raise ModelError(path, "is a pickled module or its weights alone, which could run any code", _SAVE)
    raise ModelError(path, "is an archive, but neither TorchScript nor a torch.export program")


def find_source(directory: Path) -> tuple[str, Path] | None:
    """(kind, file) of the PyTorch network that a model directory holds, or None."""
    for kind, name in SOURCES.items():
        if (directory / name).is_file():
            return kind, directory / name
    return None


def pytorch_source(model: Model) -> tuple[str, Path]:
    """(kind, file) of the PyTorch network in a model directory. Raises ModelError where it has only ONNX."""
    found = find_source(model.directory)
    if found is None:
        names = " or ".join(SOURCES.values())
        remedy = "make the directory with slidestream model import from the PyTorch network, or use --backend tensorrt"
        raise ModelError(model.directory, f"holds ONNX alone; backend aoti needs the PyTorch source ({names})", remedy)
    return kind_of(found[1]), found[1]


def describe_missing(directory: Path) -> str:
    """What a directory should have held, for messages."""
    names = ", ".join((*SOURCES.values(), GRAPH))
    return f"holds {CONFIG}, but no network ({names})" if (directory / CONFIG).is_file() else f"holds no {CONFIG}"


def load_network(kind: str, path: Path) -> Any:
    """The network of TORCHSCRIPT as a ScriptModule in inference mode, of EXPORTED as an ExportedProgram, on the CPU.

    Raises ModelError: no PyTorch, or a file that it does not take.
    """
    try:
        torch = load_torch()
    except ImportError as error:
        raise ModelError(path, f"wants PyTorch, which cannot be loaded ({one_line(error, 80)})", INSTALL) from error
    try:
        with quiet():
            if kind == TORCHSCRIPT:
                return torch.jit.load(str(path), map_location="cpu").eval()
            return torch.export.load(str(path))
    except Exception as error:  # PyTorch raises whatever its parts raise
        newer = "it may have been saved by a newer PyTorch"
        raise ModelError(path, f"cannot be loaded by PyTorch {torch.__version__}: {reason(error)}", newer) from error


def runnable(network: Any) -> Any:
    """What can be called on images: the ScriptModule itself, or the module of an ExportedProgram."""
    return network.module() if hasattr(network, "graph_signature") else network


def image_dtype(network: Any) -> Any:
    """The dtype of images that a network takes: that of its first floating weight, float32 where it has none."""
    torch = load_torch()
    for value in network.state_dict.values() if hasattr(network, "graph_signature") else network.state_dict().values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.dtype
    return torch.float32


def reason(error: BaseException) -> str:
    """What PyTorch said, without its tracebacks of TorchScript and without advice for its own developers."""
    if type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        return reason(error.__cause__)  # the exporter itself only says at which step it was
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # An error inside TorchScript ends with the line that matters; others begin with it.
    telling = [line for line in lines if line.startswith(("RuntimeError:", "ValueError:", "IndexError:"))]
    return one_line((telling or lines or [type(error).__name__])[0], 200)


@contextmanager
def quiet() -> Iterator[None]:
    """PyTorch's warnings, which are for its own developers, are not shown."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
