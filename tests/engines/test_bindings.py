"""Every attribute of TensorRT that the adapter touches exists: in full TensorRT's bindings, and in the flavour installed.

The attributes are read off the sources (tests.engines.bindings), so that a new one is checked without being listed.
"""

from __future__ import annotations

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


@pytest.mark.parametrize("name", ["FP16", "INT8"])
def test_no_switch_of_precision_is_used(name: str) -> None:
    """They are gone from TensorRT 11; precision lies in the graph."""
    assert ("BuilderFlag", name) not in touched()
