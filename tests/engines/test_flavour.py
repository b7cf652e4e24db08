"""engines.flavour: which TensorRT there is, and what it can do."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from engines import flavour as module
from engines.errors import EngineError
from engines.flavour import Flavour, Told, load_flavour, messages
from tests.engines.nets import flavour


def fake(*, rtx: bool) -> ModuleType:
    """The few attributes that capabilities are found by."""
    trt = ModuleType("trt")
    trt.__version__ = "1.2" if rtx else "11.4"
    trt.Builder = trt.Runtime = type("Runtime", (), {"get_engine_validity": None} if rtx else {})
    trt.IBuilderConfig = type("IBuilderConfig", (), {"create_timing_cache": None})
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1) if rtx else SimpleNamespace()
    if rtx:
        trt.ComputeCapability = SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM75": 2, "SM120": 3})
        trt.IRuntimeCache = object
    trt.HardwareCompatibilityLevel = SimpleNamespace(__members__={"NONE": 0, "AMPERE_PLUS": 1})
    return trt


@pytest.fixture
def installed(monkeypatch):
    """Says what each module's import gives: a module, or why not."""

    def install(**modules: ModuleType | str) -> None:
        monkeypatch.setattr(module, "_module", lambda name: modules.get(name, "not installed"))

    return install


def test_capabilities_are_found_by_attributes() -> None:
    """A portable flavour has no timing cache and no levels of compatibility, whatever its interface pretends."""
    rtx, full = Flavour("tensorrt_rtx", "1.2", fake(rtx=True)), Flavour("tensorrt", "11.4", fake(rtx=False))
    assert (rtx.portable, rtx.timing_cache, rtx.hardware_compatibility) == (True, False, ())
    assert rtx.compute_capabilities == ("7.5", "12.0")
    assert (rtx.runtime_cache, rtx.engine_validity, rtx.strong_typing_flag) == (True, True, 2)
    assert (full.portable, full.timing_cache, full.hardware_compatibility) == (False, True, ("AMPERE_PLUS",))
    assert full.compute_capabilities == ()
    assert (full.runtime_cache, full.engine_validity, full.strong_typing_flag) == (False, False, 0)


def test_tensorrt_comes_before_tensorrt_rtx(installed) -> None:
    """Where both are there, the one for data centres; the other by its name."""
    installed(tensorrt=fake(rtx=False), tensorrt_rtx=fake(rtx=True))
    assert load_flavour().name == "tensorrt"
    assert load_flavour("tensorrt_rtx").name == "tensorrt_rtx"


def test_the_bindings_alone_will_do(installed) -> None:
    """The wheels of tensorrt_rtx without its metapackage."""
    installed(tensorrt_rtx_bindings=fake(rtx=True))
    assert load_flavour().name == "tensorrt_rtx"


def test_none_is_told_with_the_reason_of_each(installed) -> None:
    """What was looked for, why it does not load, and what to do."""
    installed(tensorrt="libnvinfer.so.11: cannot open shared object file")
    with pytest.raises(
        EngineError, match=r"tensorrt: libnvinfer.*tensorrt_rtx: not installed.*slidestream\[tensorrt\]"
    ):
        load_flavour()
    with pytest.raises(EngineError, match="unknown TensorRT flavour 'trt'"):
        load_flavour("trt")


def test_a_sink_hears_what_is_said_within_its_block() -> None:
    """The one logger of the process passes on to the innermost sink; afterwards nobody listens."""
    found = flavour()
    outer, inner = Told(), Told()
    logger = found.logger()
    severity = found.trt.ILogger.Severity
    with messages(outer):
        with messages(inner):
            logger.log(severity.WARNING, "a warning\nin two lines")
            logger.log(severity.WARNING, "a warning\nin two lines")
            logger.log(severity.INFO, "not kept")
        logger.log(severity.ERROR, "an error")
    logger.log(severity.ERROR, "unheard")
    assert (inner.warnings, inner.errors) == (["a warning in two lines"], [])
    assert (outer.warnings, outer.errors) == ([], ["an error"])
    assert outer.problem("nothing") == "an error" and inner.problem("nothing") == "nothing"


def test_there_is_one_logger() -> None:
    """TensorRT ignores a second one."""
    found = flavour()
    assert found.logger() is load_flavour(found.name).logger()


def test_the_cpu_path_loads_none_of_it() -> None:
    """ONNX Runtime's engine, a model and the interface import neither TensorRT nor CUDA nor onnx."""
    code = (
        "import sys; import engines.engine, engines.onnx_engine, engines.model, engines.errors; "
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings', "
        "'cuda', 'onnx', 'torch')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("module", ["engines.backend", "engines.tensorrt_engine", "engines.aoti", "stages.inference"])
def test_a_gpu_worker_loads_no_onnx(module: str) -> None:
    """The engine's process has no use for the graph: a plan is all it reads, and a start is to be quick."""
    code = (
        f"import sys; import {module}; "
        "print([m for m in sys.modules if m.split('.')[0] in ('onnx', 'onnxruntime', 'structlog', 'pydantic')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
