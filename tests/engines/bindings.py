"""Lets the Python bindings of full TensorRT be imported without its libraries, to see which attributes they have.

The bindings are a wheel of their own (tensorrt-cu13-bindings) and want three libraries that are not on PyPI. What they take
from them is listed in the bindings themselves, so empty functions of those names, and type descriptions where C++ wants
them, satisfy the loader. No object can be made this way, and in a process of its own only: a real TensorRT would find the
empty functions. `python -m tests.engines.bindings FOLDER` prints as JSON the attributes that are missing, or why it cannot
tell.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

BINDINGS = "tensorrt_bindings"
_LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


def full_tensorrt(folder: Path) -> ModuleType | str:
    """The bindings, or why they cannot be imported. `folder` takes the libraries that stand in."""
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
        (folder / "stub.c").write_text(source if index == 0 else "")
        target = folder / name
        command = [compiler, "-shared", "-fPIC", "-w", "-o", target, folder / "stub.c", f"-Wl,-soname,{name}"]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module(BINDINGS)


# Whatever is called so in these modules is an object of this class.
OBJECTS = {
    "build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "error": "ParserError",
        "shapes": "IOptimizationProfile",
        "measured": "ITimingCache",
    },
    "census.py": {"network": "INetworkDefinition", "layer": "ILayer", "output": "ITensor"},
    "tensorrt_engine.py": {
        "_engine": "ICudaEngine",
        "_runtime": "Runtime",
        "context": "IExecutionContext",
        "_context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "_kernels": "IRuntimeCache",
    },
    "flavour.py": {},
}
# Only touched where a capability, or a hasattr, says that they are there.
PROBED = {
    "ComputeCapability", "IRuntimeCache", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics", "HardwareCompatibilityLevel",
    "num_compute_capabilities", "set_compute_capability", "create_runtime_cache", "set_runtime_cache",
    "cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy", "get_engine_validity",
    "serialize", "deserialize", "create_runtime_config",
}  # fmt: skip


def touched() -> set[tuple[str, ...]]:
    """("MemoryPoolType", "WORKSPACE") for trt.MemoryPoolType.WORKSPACE, ("Builder", "create_network") for objects."""
    found: set[tuple[str, ...]] = set()
    folder = Path(__file__).resolve().parents[2] / "engines"
    for file, objects in OBJECTS.items():
        for node in ast.walk(ast.parse((folder / file).read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            receiver = node.value
            name = getattr(receiver, "id", None) or getattr(receiver, "attr", None)
            if name == "trt":
                found.add((node.attr,))
            elif name in objects:
                found.add((objects[name], node.attr))
            elif isinstance(receiver, ast.Attribute) and getattr(receiver.value, "id", "") == "trt":
                found.add((receiver.attr, node.attr))
    return found


def missing(trt: ModuleType) -> list[str]:
    lacking = []
    for path in sorted(touched()):
        if path[-1] in PROBED or path[0] in PROBED or path[-1].startswith("__"):
            continue
        place: object = trt
        for part in path:
            place = getattr(place, part, None)
            if place is None:
                lacking.append(".".join(path))
                break
    return lacking


if __name__ == "__main__":
    bindings = full_tensorrt(Path(sys.argv[1]))
    print(json.dumps(bindings if isinstance(bindings, str) else missing(bindings)))
