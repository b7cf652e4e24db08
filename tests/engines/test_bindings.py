"""Every attribute of TensorRT that the adapter touches exists: in full TensorRT's bindings, and in the flavour installed.

The attributes are read off the sources, so that a new one is checked without being listed here.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

from tests.engines.nets import flavour
from tests.engines.stubs import full_tensorrt

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
    "serialize", "deserialize",
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


def test_the_sources_are_read() -> None:
    """The reading itself finds what is known to be used."""
    found = touched()
    assert {("Builder", "create_network"), ("MemoryPoolType", "WORKSPACE"), ("Runtime",)} <= found
    assert {("IExecutionContext", "execute_async_v3"), ("INetworkDefinition", "get_layer")} <= found
    assert len(found) > 40


def test_full_tensorrt_has_every_attribute(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the bindings of TensorRT 10 or 11 alone, without its libraries."""
    assert missing(full_tensorrt(tmp_path_factory.getbasetemp())) == []


def test_the_installed_flavour_has_every_attribute() -> None:
    """And those that are probed too, where it is tensorrt_rtx."""
    found = flavour()
    assert missing(found.trt) == []


@pytest.mark.parametrize("name", ["FP16", "INT8"])
def test_no_switch_of_precision_is_used(name: str) -> None:
    """They are gone from TensorRT 11; precision lies in the graph."""
    assert ("BuilderFlag", name) not in touched()
