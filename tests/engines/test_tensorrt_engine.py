"""engines.tensorrt_engine on a TensorRT of a few classes and a GPU of arrays; and, marked gpu, for real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import notices, tensorrt_engine
from engines.build import build
from engines.cache import EngineCache, Entry, record_verification
from engines.cuda import find_gpu
from engines.errors import EngineError
from engines.flavour import Flavour
from engines.fold import save_folded
from engines.gpu_engine import GpuEngine
from engines.identity import identity
from engines.onnx_engine import OnnxEngine
from engines.precision import graph_sha256, to_half
from engines.recipe import BuildOptions, Profile
from engines.tensorrt_engine import open_tensorrt
from engines.verify import compare, run
from tests.engines.fake_gpu import GPU, OTHER_GPU, FakeDevice
from tests.engines.nets import SIDE, flavour, folded, mixed, noise
from tests.engines.test_cache import BUILT, FULL, RTX
from tests.engines.test_flavour import fake

BATCH = 4


class FakeTrt:
    """What TensorRT does at run time, on a FakeDevice: an engine whose answer is (1 - mean, mean) of a patch."""

    def __init__(self, device: FakeDevice, *, rtx: bool) -> None:
        self.device, self.rtx = device, rtx
        self.loads = self.contexts = True
        self.refusals: list[str] = []  # errors, one batch each
        self.says: list[str] = []  # warnings, one with each batch
        self.validity = 2
        self.log: list[tuple[Any, ...]] = []
        self.module = fake(rtx=rtx)
        world = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                world.logger = logger

            def deserialize_cuda_engine(self, data: bytes) -> Any:
                world.log.append(("load", len(data)))
                return FakeEngine(world) if world.loads else None

            def get_engine_validity(self, data: bytes) -> Any:
                return SimpleNamespace(name="INVALID"), world.validity

        self.module.Runtime = Runtime
        self.module.ILogger = type("ILogger", (), {"Severity": SimpleNamespace(
            INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4
        ), "__init__": lambda self: None})  # fmt: skip
        self.module.EngineInvalidityDiagnostics = SimpleNamespace(
            __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
        )
        self.module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(NONE="none")
        self.module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")


class FakeKernels:
    def __init__(self) -> None:
        self.data = b""

    def deserialize(self, data: bytes) -> bool:
        self.data = data
        return data == b"kernels"

    def serialize(self) -> bytes:
        return b"kernels"


class FakeEngine:
    def __init__(self, world: FakeTrt) -> None:
        self.world = world

    device_memory_size_v2 = 1000  # of the largest profile, which is what a context takes

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 250

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(kernels=None)
        if self.world.rtx:
            config.dynamic_shapes_kernel_specialization_strategy = config.cuda_graph_strategy = "default"
            config.create_runtime_cache = FakeKernels
            config.set_runtime_cache = lambda kernels: setattr(config, "kernels", kernels)
        self.world.config = config
        return config

    def create_execution_context(self, config: Any = None) -> Any:
        return FakeContext(self.world) if self.world.contexts else None


class FakeContext:
    def __init__(self, world: FakeTrt) -> None:
        self.world, self.addresses, self.rows = world, {}, 0

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.world.log.append(("profile", profile))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.world.log.append(("shape", shape[0]))
        self.rows = shape[0]
        return shape[0] <= BATCH and shape[1:] == (SIDE, SIDE, 3)

    def execute_async_v3(self, stream: int) -> bool:
        device, rows, world = self.world.device, self.rows, self.world
        if world.says:
            world.logger.log(2, world.says.pop(0))
        if world.refusals:
            world.logger.log(1, world.refusals.pop(0))
            return False

        def compute() -> None:
            pixels = device.blocks[self.addresses["patches"]][: rows * SIDE * SIDE * 3].reshape(rows, -1)
            mean = (pixels.mean(axis=1) / 255.0).astype(np.float32)
            out = np.stack([1 - mean, mean], axis=1)
            device.blocks[self.addresses["probabilities"]][: out.nbytes] = out.reshape(-1).view(np.uint8)

        device.enqueue(stream, compute)
        return True


@pytest.fixture
def world(monkeypatch) -> FakeTrt:
    return install(monkeypatch, rtx=True)


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str, str]]]:
    """What engines say meanwhile."""
    said: list[tuple[str, str, str]] = []
    notices.listen(lambda *words: said.append(words))
    yield said
    notices.listen(None)


def install(monkeypatch, *, rtx: bool) -> FakeTrt:
    device = FakeDevice()
    found = FakeTrt(device, rtx=rtx)
    real = RTX if rtx else FULL
    monkeypatch.setattr(tensorrt_engine, "Cuda", lambda index: device)
    monkeypatch.setattr(tensorrt_engine, "load_flavour", lambda name: Flavour(real.name, real.version, found.module))
    return found


def put(tmp_path: Path, *, rtx: bool = True, verified: bool | None = True, profiles=None, **changes) -> Entry:
    wanted = identity(
        **{
            "model": "a" * 64, "graph": "b" * 64, "precision": "fp16", "classes": 2,
            "profiles": profiles or [Profile(SIDE, 1, BATCH, BATCH)], "options": BuildOptions(),
            "flavour": RTX if rtx else FULL, "gpu": GPU, **changes,
        }
    )  # fmt: skip
    entry = EngineCache(tmp_path).put("m", wanted, BUILT, GPU)
    if verified is None:
        return entry
    return record_verification(entry, GPU, {"passed": verified, "reason": "" if verified else "its loss is 9 %"})


def opened(entry: Entry, **changes) -> GpuEngine:
    return open_tensorrt(entry.plan, **{"classes": 2, "patch_px": SIDE, "max_batch": BATCH, **changes})


@pytest.mark.parametrize("rtx", [True, False])
def test_an_engine_answers(tmp_path: Path, monkeypatch, rtx: bool) -> None:
    """The same adapter drives both flavours, with what each of them has."""
    install(monkeypatch, rtx=rtx)
    engine = opened(put(tmp_path, rtx=rtx))
    patches = noise(10)
    found = run(engine.contexts(2), patches, BATCH)
    np.testing.assert_allclose(found[:, 1], patches.reshape(10, -1).mean(axis=1) / 255, rtol=1e-5)
    said = engine.describe()
    assert (said["engine"], said["precision"]) == (RTX.name if rtx else FULL.name, "fp16")
    engine.close()


def test_a_shape_is_set_only_when_it_changes(tmp_path: Path, world: FakeTrt) -> None:
    """Setting it again would cost the host time on every batch."""
    engine = opened(put(tmp_path))
    context = engine.contexts(1)[0]
    for rows in (1, 2, BATCH):
        context.submit(noise(rows))
        context.result()
    assert [entry for entry in world.log if entry[0] == "shape"] == [("shape", BATCH)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flavour": replace(RTX, version="1.5")}, r"built by tensorrt_rtx 1\.5, here is 1\.4"),
        ({"options": BuildOptions(compute_capabilities=("8.6",))}, r"built for 8\.6, here is Test GPU \(9\.0\)"),
        ({"classes": 3}, "gives 3 classes, the model has 2"),
        ({"profiles": [Profile(64, 1, 4, 4)]}, "takes patches of 64 px, the model has 32"),
        ({"profiles": [Profile(SIDE, 1, 2, 2)]}, r"takes batches of up to 2, batcher\.batch is 4"),
    ],
)
def test_a_misfit_is_told_before_anything_is_loaded(tmp_path: Path, world: FakeTrt, changes: dict, words: str) -> None:
    """Both values, and what to do."""
    with pytest.raises(EngineError, match=words + ".*build"):
        opened(put(tmp_path, **changes))
    assert world.log == []


def test_what_was_not_verified_is_not_used(tmp_path: Path, world: FakeTrt) -> None:
    """Nor what failed, nor what was verified on another kind of GPU."""
    with pytest.raises(EngineError, match=r"was never verified on Test GPU \(9\.0\); run slidestream engine verify"):
        opened(put(tmp_path, verified=None))
    with pytest.raises(EngineError, match="failed its verification.*9 %"):
        opened(put(tmp_path, verified=False))
    entry = put(tmp_path, verified=None)
    record_verification(entry, OTHER_GPU, {"passed": True})
    with pytest.raises(EngineError, match="never verified"):
        opened(entry)
    assert world.log == []
    opened(entry, unverified=True).close()


def test_a_damaged_plan_is_not_loaded(tmp_path: Path, world: FakeTrt) -> None:
    """One byte that changed."""
    entry = put(tmp_path)
    entry.plan.write_bytes(b"x" + BUILT.plan[1:])
    with pytest.raises(EngineError, match="damaged"):
        opened(entry)
    entry.plan.unlink()
    with pytest.raises(EngineError, match="cannot be read|gone"):
        opened(entry)
    assert world.log == []


def test_a_plan_that_does_not_load_is_an_error(tmp_path: Path, world: FakeTrt) -> None:
    """TensorRT gives None; the reason is what its logger and its validity say."""
    world.loads = False
    with pytest.raises(EngineError, match=r"cannot be loaded.*invalid: UNSUPPORTED_CC"):
        opened(put(tmp_path))


@pytest.mark.parametrize(
    ("validity", "remedy"),
    [(1, "build it again"), (2, "take a release of TensorRT that serves this GPU"), (4, "update NVIDIA's driver")],
)
def test_what_to_do_hangs_on_why_it_does_not_load(tmp_path: Path, world: FakeTrt, validity: int, remedy: str) -> None:
    """Building again does not help where the GPU or the driver is the reason."""
    world.loads, world.validity = False, validity
    with pytest.raises(EngineError, match=remedy) as caught:
        opened(put(tmp_path))
    assert ("build it again" in str(caught.value)) == (remedy == "build it again")


def test_a_plan_that_does_not_fit_into_memory_says_so(tmp_path: Path, world: FakeTrt) -> None:
    """What it needs and what is free, and nothing of building it again."""
    world.loads = False
    world.device._memory = len(BUILT.plan) - 1
    with pytest.raises(EngineError, match=r"need some \d+ MiB of GPU memory, 0 MiB are free") as caught:
        opened(put(tmp_path))
    assert "build it again" not in str(caught.value)


def test_a_tensorrt_that_does_not_start_is_an_error(tmp_path: Path, world: FakeTrt, monkeypatch) -> None:
    """Its bindings raise TypeError where there is no driver, or one that is too old."""

    def nothing(logger: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(world.module, "Runtime", nothing)
    with pytest.raises(EngineError, match="TensorRT does not start: pybind11.*driver"):
        opened(put(tmp_path))


def test_warnings_are_told_as_they_come_each_once(tmp_path: Path, world: FakeTrt, heard: list) -> None:
    """To whoever listens to the engines of this process."""
    world.says = ["slow kernel", "slow kernel", "another"]
    engine = opened(put(tmp_path))
    run(engine.contexts(1), noise(3 * BATCH), BATCH)
    assert heard == [("warning", "TensorRT warns", "slow kernel"), ("warning", "TensorRT warns", "another")]


def test_a_batch_that_fails_tells_its_own_reason(tmp_path: Path, world: FakeTrt) -> None:
    """Not that of one that failed before it."""
    context = opened(put(tmp_path)).contexts(1)[0]
    world.refusals = ["the first reason", "the second reason"]
    for words in ("the first reason", "the second reason"):
        context.submit(noise(1))
        with pytest.raises(EngineError, match=words):
            context.result()


def test_gpus_of_one_compute_capability_keep_kernels_of_their_own(tmp_path: Path, world: FakeTrt) -> None:
    """TensorRT takes no kernels of another kind of GPU, and two that share a folder must not write over each other's."""
    entry = put(tmp_path)
    other = replace(GPU, name="Test GPU, the larger one")
    assert entry.kernels(other) != entry.kernels(GPU) and entry.kernels(other).parent == entry.plan.parent
    entry.kernels(other).write_bytes(b"kernels of the larger one")
    opened(entry).contexts(1)
    assert entry.kernels(other).read_bytes() == b"kernels of the larger one"
    EngineCache(tmp_path).remove(entry)
    assert not list(tmp_path.glob("*.kernels"))


def test_a_context_that_is_not_made_is_an_error(tmp_path: Path, world: FakeTrt) -> None:
    """Mostly for want of memory: what to do is proposed."""
    engine = opened(put(tmp_path))
    world.contexts = False
    with pytest.raises(EngineError, match="context 1 of 2 does not start: no execution context.*try a smaller batch"):
        engine.contexts(2)


def test_compiled_kernels_are_kept_for_the_next_start(tmp_path: Path, world: FakeTrt) -> None:
    """Written once all shapes have run; read by the next process; written again only if they are new."""
    entry = put(tmp_path)
    opened(entry).contexts(1)
    kernels = entry.kernels(GPU)
    assert kernels.read_bytes() == b"kernels"
    kernels.chmod(0o444)
    before = kernels.stat().st_mtime_ns
    opened(entry).contexts(1)
    assert world.config.kernels.data == b"kernels" and kernels.stat().st_mtime_ns == before


def test_an_engine_for_one_number_of_rows_pads_to_it(tmp_path: Path, world: FakeTrt) -> None:
    """Whatever the batch: one row, or fewer than were asked for."""
    engine = opened(put(tmp_path, profiles=[Profile(SIDE, BATCH, BATCH, BATCH)]), max_batch=2, shapes=(1, 2))
    context = engine.contexts(1)[0]
    for rows in (1, 2, BATCH):
        patches = noise(rows)
        context.submit(patches)
        np.testing.assert_allclose(context.result()[:, 1], patches.reshape(rows, -1).mean(axis=1) / 255, rtol=1e-5)
    assert {entry for entry in world.log if entry[0] == "shape"} == {("shape", BATCH)}


def test_kernels_of_something_else_are_replaced(tmp_path: Path, world: FakeTrt) -> None:
    """A file that TensorRT does not take is no error."""
    entry = put(tmp_path)
    entry.kernels(GPU).write_bytes(b"garbage")
    opened(entry).contexts(1)
    assert entry.kernels(GPU).read_bytes() == b"kernels"


def test_kernels_are_compiled_before_the_first_batch(tmp_path: Path, world: FakeTrt) -> None:
    """Not in the background, which would change speed and last bits in mid-run; CUDA graphs only where asked for."""
    opened(put(tmp_path))
    assert world.config.dynamic_shapes_kernel_specialization_strategy == "none"
    assert world.config.cuda_graph_strategy == "default"
    opened(put(tmp_path), cuda_graphs=True)
    assert world.config.cuda_graph_strategy == "whole"


def test_a_context_counts_as_the_largest_profile(tmp_path: Path, world: FakeTrt) -> None:
    """TensorRT allocates that for every context, whichever profile it is set to."""
    engine = opened(put(tmp_path, profiles=[Profile(SIDE, 1, BATCH, BATCH), Profile(64, 1, 64, 64)]))
    world.device._memory = 3 * (BATCH * (SIDE * SIDE * 3 + 8) + 1000) - 1
    with pytest.raises(EngineError, match="contexts=2 would fit"):
        engine.contexts(3)


@pytest.mark.parametrize("rtx", [True, False])
def test_cuda_graphs_that_are_not_to_be_had_are_told(tmp_path: Path, monkeypatch, heard: list, rtx: bool) -> None:
    """Full TensorRT makes none by itself; what ran is in the record of the run."""
    install(monkeypatch, rtx=rtx)
    engine = opened(put(tmp_path, rtx=rtx), cuda_graphs=True)
    assert engine.describe()["cuda_graphs"] is rtx
    assert [event for _, event, _ in heard] == ([] if rtx else ["batches run without CUDA graphs"])


def test_the_profile_of_the_patch_size_is_used(tmp_path: Path, world: FakeTrt) -> None:
    """An engine may have several."""
    engine = opened(put(tmp_path, profiles=[Profile(64, 1, 4, 4), Profile(SIDE, 1, BATCH, BATCH)]))
    engine.contexts(1)
    assert ("profile", 1) in world.log


def test_an_engine_of_which_nothing_is_known_is_refused(tmp_path: Path, world: FakeTrt) -> None:
    """A plan without its sidecar."""
    (tmp_path / "a.engine").write_bytes(b"x")
    with pytest.raises(EngineError, match="has no a.json beside it"):
        open_tensorrt(tmp_path / "a.engine", classes=2, patch_px=SIDE, max_batch=BATCH)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu(tmp_path: Path, precision: str) -> None:
    """Built, loaded and run for real: ONNX Runtime's answers, from memory that is page-locked and from other memory."""
    gpu, real = find_gpu(), flavour()
    if gpu is None:
        pytest.skip("no GPU")
    graph = folded(mixed(tmp_path / "m"))
    save_folded(graph, tmp_path / "folded.onnx")
    reference = OnnxEngine(tmp_path / "folded.onnx", classes=2, patch_px=SIDE, threads=1, max_batch=64)
    patches = noise(256)
    expected = run(reference.contexts(1), patches, 64)
    profiles, options = [Profile(SIDE, 1, 16, 16)], BuildOptions()
    wanted = identity(
        model="a" * 64, graph=graph_sha256(graph), precision=precision, classes=2,
        profiles=profiles, options=options, flavour=real, gpu=gpu,
    )  # fmt: skip
    built = build(to_half(graph) if precision == "fp16" else graph, precision, profiles, options, real)
    entry = EngineCache(tmp_path / "e").put("m", wanted, built, gpu)
    for attached in (True, False):
        engine = open_tensorrt(entry.plan, classes=2, patch_px=SIDE, max_batch=16, unverified=True)
        if attached:
            engine.attach(patches.reshape(-1))
        found = compare(expected, run(engine.contexts(3), patches, 16))
        engine.close()
        assert found.passed, found.show()
