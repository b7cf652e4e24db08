"""Lets the Python bindings of full TensorRT be imported without its libraries, to see which attributes they have.

The bindings are a wheel of their own (tensorrt-cu13-bindings) and want three libraries that are not on PyPI. What they take
from them is listed in the bindings themselves, so empty functions of those names, and type descriptions where C++ wants
them, satisfy the loader. No object can be made this way.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

BINDINGS = "tensorrt_bindings"
_LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


@cache
def _load(folder: str) -> ModuleType | str:
    spec = importlib.util.find_spec(BINDINGS)
    if spec is None or not spec.submodule_search_locations:
        return "the bindings of full TensorRT are not installed (tensorrt-cu13-bindings)"
    tools = [shutil.which(name) for name in ("cc", "nm", "readelf")]
    if not all(tools):
        return "a C compiler and binutils are needed to stand in for TensorRT's libraries"
    compiler, nm, readelf = map(str, tools)
    library = Path(spec.submodule_search_locations[0]) / "tensorrt.so"
    needed = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
    names = [part.split("]")[0] for part in needed.split("[") if part.startswith(_LIBRARIES)]
    symbols = subprocess.run([nm, "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    lines = []
    for line in symbols.splitlines():
        symbol = line.split()[-1]
        if "@" in symbol or line.split()[0] == "w" or symbol.startswith(("Py", "_Py")):
            continue
        if symbol.startswith("_ZTI"):
            lines.append(f'struct info {symbol} = {{0, "{symbol[4:]}", 0}};')
        elif symbol.startswith("_ZTV"):
            lines.append(f"void *{symbol}[64];")
        else:
            lines.append(f"void *{symbol}(void) {{ return 0; }}")
    source = "struct info { void *table; const char *name; void *base; };\n" + "\n".join(lines) + "\n"
    for index, name in enumerate(sorted(names)):
        (Path(folder) / "stub.c").write_text(source if index == 0 else "")
        target = Path(folder) / name
        command = [compiler, "-shared", "-fPIC", "-w", "-o", target, Path(folder) / "stub.c", f"-Wl,-soname,{name}"]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module(BINDINGS)


def full_tensorrt(folder: Path) -> ModuleType:
    """The bindings; skips the test where they, or a compiler, are not there."""
    found = _load(str(folder))
    if isinstance(found, str):
        pytest.skip(found)
    return found
