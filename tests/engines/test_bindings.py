"""Every attribute of TensorRT that the adapter touches exists: in full TensorRT's bindings, and in the flavour installed.

The attributes are read off the sources (tests.engines.bindings), so that a new one is checked without being listed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.bindings import missing, touched
from tests.engines.nets import flavour


def test_the_sources_are_read() -> None:
    """The reading itself finds what is known to be used."""
    found = touched()
    assert {("Builder", "create_network"), ("MemoryPoolType", "WORKSPACE"), ("Runtime",)} <= found
    assert {("IExecutionContext", "execute_async_v3"), ("INetworkDefinition", "get_layer")} <= found
    assert len(found) > 40


def test_full_tensorrt_has_every_attribute(tmp_path: Path, root: Path) -> None:
    """With the bindings of TensorRT 10 or 11 alone, without its libraries."""
    command = [sys.executable, "-m", "tests.engines.bindings", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=120).stdout
    found = json.loads(out)
    if isinstance(found, str):
        pytest.skip(found)
    assert found == []


def test_the_installed_flavour_has_every_attribute() -> None:
    """And those that are probed too, where it is tensorrt_rtx."""
    found = flavour()
    assert missing(found.trt) == []


def cuda_names(root: Path) -> set[str]:
    """What engines.cuda touches of cuda.bindings.runtime: attributes of it, and functions that are called by their names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((root / "engines" / "cuda.py").read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("runtime", "self._runtime"):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call":
            found.add(ast.literal_eval(node.args[0]))
    return found


def test_cuda_python_has_every_name(root: Path) -> None:
    """cuda-python 12 or 13, whichever is installed; without a driver its functions answer with an error and one value."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    names = cuda_names(root)
    assert {"cudaHostRegister", "cudaEventElapsedTime", "cudaHostAllocPortable"} <= names and len(names) > 25
    assert [name for name in sorted(names) if not hasattr(runtime, name)] == []
    error, name = runtime.cudaGetErrorName(runtime.cudaError_t.cudaErrorNotReady)
    assert error == runtime.cudaError_t.cudaSuccess and name == b"cudaErrorNotReady"
    assert isinstance(runtime.cudaDeviceProp().uuid.bytes, bytes)


@pytest.mark.parametrize("name", ["FP16", "INT8"])
def test_no_switch_of_precision_is_used(name: str) -> None:
    """They are gone from TensorRT 11; precision lies in the graph."""
    assert ("BuilderFlag", name) not in touched()
