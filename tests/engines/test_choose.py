"""engines.make and engines.choose: from a model to an engine, and which precision it gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines import make as make_module
from engines.build import Built
from engines.cache import EngineCache, Entry, read_entry
from engines.calibration import Patches
from engines.census import Census
from engines.choose import Trial, check, choose, measure
from engines.errors import DeadlyError, EngineError
from engines.gpu_engine import GpuEngine
from engines.make import Maker, Order
from engines.model import load_model
from engines.quantize import PRODUCTS
from engines.recipe import BuildOptions, Profile
from tests.engines.fake_gpu import GPU, FakeDevice, FakeNetwork
from tests.engines.nets import FREE, SIDE, convolutions, mixed, noise
from tests.engines.test_cache import RTX

BATCH = 8


def truth(patches: np.ndarray) -> np.ndarray:
    """Never nearly undecided, so that small errors flip nothing."""
    mean = patches.reshape(len(patches), -1).mean(axis=1) / 255.0
    mean = np.where(mean > 0.5, 0.6, 0.2) + 0.2 * mean
    return np.stack([1.0 - mean, mean], axis=1)


class World:
    """Builds nothing; engines answer with an error of their precision, and take their time."""

    def __init__(self, tmp_path: Path, monkeypatch, *, errors: dict[str, float], slow: dict[str, int] | None = None):
        self.built: list[tuple[str, int]] = []
        self.lines: list[str] = []
        self.errors, self.slow = errors, slow or {}
        self.refused: dict[tuple[str, bool], str] = {}
        monkeypatch.setattr(make_module, "build", self.build)
        self.cache = EngineCache(tmp_path / "engines")
        self.maker = Maker(self.cache, tell=self.lines.append)
        model = load_model(mixed(tmp_path / "model"))
        calibration = Patches(noise(12), np.arange(12) % 2, ("a", "b"), 0)
        self.order = Order(model, "auto", (Profile(SIDE, 1, 4, BATCH),), BuildOptions(), RTX, None, calibration)
        patches = noise(300)
        self.trial = Trial(patches, truth(patches).astype(np.float32), seconds=0.02, contexts=1)

    def build(self, graph, precision, profiles, options, flavour, **_) -> Built:
        quantised = sum(node.op_type == "QuantizeLinear" for node in graph.graph.node)
        convolutions = any(node.op_type == "Conv" and "int8" in node.input[1] for node in graph.graph.node)
        self.built.append((precision, quantised))
        if problem := self.refused.get((precision, convolutions)):
            raise EngineError(problem)
        return Built(f"{precision} {quantised}".encode(), Census({}, {}), (), 0.1)

    def opened(self, entry: Entry, patch_px: int) -> GpuEngine:
        precision = entry.identity.precision
        device = FakeDevice()

        def function(patches: np.ndarray) -> np.ndarray:
            for _ in range(self.slow.get(precision, 0)):
                truth(patches)
            out = truth(patches)
            out[:, 0] += self.errors[precision]
            out[:, 1] -= self.errors[precision]
            return out

        network = FakeNetwork(device, function, patch_px=patch_px)
        return GpuEngine("fake", device, network, classes=2, patch_px=patch_px, max_batch=BATCH)

    def choose(self) -> tuple[Entry, list[str]]:
        return choose(self.maker, self.order, self.trial, GPU, self.opened)


def world(tmp_path: Path, monkeypatch, **errors: float) -> World:
    return World(tmp_path, monkeypatch, errors=errors, slow={"fp32": 400, "fp16": 150})


def test_fp16_is_taken_where_it_loses_little(tmp_path: Path, monkeypatch) -> None:
    """fp32 is not even built; int8 that loses too much is measured and not taken."""
    w = world(tmp_path, monkeypatch, fp16=0.001, int8=0.02)
    entry, reasons = w.choose()
    assert entry.identity.precision == "fp16"
    assert [precision for precision, _ in w.built] == ["fp16", "int8"]
    assert reasons[-1] == "chosen: fp16" and any("int8: loss 2" in line for line in reasons)
    assert entry.record["choice"]["measured"]["int8"]["loss"] == pytest.approx(0.02, rel=0.2)
    assert entry.verification(GPU)["passed"] and entry.verification(GPU)["patches_per_s"] > 0


def test_int8_is_taken_where_it_is_as_good_and_faster(tmp_path: Path, monkeypatch) -> None:
    """Within the bound, and it beats fp16 on this GPU."""
    entry, _ = world(tmp_path, monkeypatch, fp16=0.001, int8=0.003).choose()
    assert entry.identity.precision == "int8"


def test_int8_that_is_not_faster_is_not_taken(tmp_path: Path, monkeypatch) -> None:
    """As often with transformers."""
    w = World(tmp_path, monkeypatch, errors={"fp16": 0.001, "int8": 0.001}, slow={"int8": 300})
    entry, reasons = w.choose()
    assert entry.identity.precision == "fp16"
    assert any("not faster than fp16" in line for line in reasons)


def test_fp32_is_the_way_out(tmp_path: Path, monkeypatch) -> None:
    """fp16 that overflows, or loses too much, is refused and stays marked as not right."""
    for bad in (0.02, np.nan):
        w = world(tmp_path / str(bad), monkeypatch, fp16=bad, fp32=0.0, int8=0.02)
        entry, _ = w.choose()
        assert entry.identity.precision == "fp32"
        (fp16,) = [e for e in w.cache.entries() if e.identity.precision == "fp16"]
        assert fp16.verification(GPU)["passed"] is False


def test_no_engine_that_is_right_is_an_error(tmp_path: Path, monkeypatch) -> None:
    """Never the least bad one."""
    with pytest.raises(EngineError, match="no engine is right.*fp16.*fp32"):
        world(tmp_path, monkeypatch, fp16=0.1, fp32=0.1).choose()


def test_without_tissue_int8_is_not_tried(tmp_path: Path, monkeypatch) -> None:
    """And it is said."""
    w = world(tmp_path, monkeypatch, fp16=0.0)
    w.order = replace(w.order, calibration=None)
    _, reasons = w.choose()
    assert any("wants tissue to calibrate" in line for line in reasons)
    with pytest.raises(EngineError, match="--calibrate"):
        w.maker.make(replace(w.order, precision="int8"))


def test_int8_without_convolutions_where_the_builder_has_none(tmp_path: Path, monkeypatch) -> None:
    """A flavour that refuses quantised convolutions gets the matrix products alone, under another identity."""
    w = world(tmp_path, monkeypatch, fp16=0.001, int8=0.001)
    w.refused[("int8", True)] = "Myelin: CHECK(dtype == ...) failed"
    entry, _ = w.choose()
    assert entry.identity.precision == "int8" and entry.identity.recipe.endswith("(Conv1x1,Gemm,MatMul)")
    assert [count for precision, count in w.built if precision == "int8"] == [2, 1]
    assert any("Myelin" in line for line in w.lines)


def test_a_second_build_is_quick(tmp_path: Path, monkeypatch) -> None:
    """The engine is there already; a rebuild knows the calibration."""
    w = world(tmp_path, monkeypatch, int8=0.0)
    order = replace(w.order, precision="int8")
    first = w.maker.make(order)
    calls: list[int] = []
    monkeypatch.setattr(make_module, "calibrate", lambda *a, **k: calls.append(1))
    assert w.maker.make(order).plan == first.plan and len(w.built) == 1
    w.maker.make(order, rebuild=True)
    assert len(w.built) == 2 and not calls
    assert w.maker.find(order).plan == first.plan


def test_a_damaged_engine_is_built_again(tmp_path: Path, monkeypatch) -> None:
    """And it is said what was wrong with it."""
    w = world(tmp_path, monkeypatch, fp16=0.0)
    order = replace(w.order, precision="fp16")
    first = w.maker.make(order)
    first.plan.write_bytes(b"")
    assert "has 0 bytes" in str(w.maker.find(order))
    assert not w.maker.make(order).problem
    assert any("has 0 bytes" in line for line in w.lines)


def test_what_is_found_instead_is_told(tmp_path: Path, monkeypatch) -> None:
    """No such engine: the nearest one of the model, and how it differs."""
    w = world(tmp_path, monkeypatch, fp16=0.0)
    order = replace(w.order, precision="fp16")
    w.maker.make(order)
    other = replace(order, profiles=(Profile(SIDE, 1, 4, 16),))
    assert "profiles: it has" in str(w.maker.find(other))


def test_the_calibration_is_in_the_sidecar(tmp_path: Path, monkeypatch) -> None:
    """Its hash and its shortcomings: 12 patches are few."""
    w = world(tmp_path, monkeypatch, int8=0.0)
    record = w.maker.make(replace(w.order, precision="int8")).record
    assert record["calibration"]["sha256"] == w.order.calibration.sha256 == record["identity"]["calibration"]
    assert "only 12 patches" in record["calibration"]["warnings"][0]


def test_int8_of_convolutions_alone_has_no_way_round(tmp_path: Path, monkeypatch) -> None:
    """Where nothing else can be quantised, that is the answer."""
    w = world(tmp_path, monkeypatch, int8=0.0)
    model = load_model(convolutions(tmp_path / "other"))
    w.refused[("int8", True)] = "Myelin failed"
    with pytest.raises(EngineError, match="no wide MatMul or Gemm"):
        w.maker.make_int8(replace(w.order, model=model, precision="int8"))
    with pytest.raises(EngineError, match="no wide MatMul or Gemm"):
        w.maker.make_int8(replace(w.order, model=model, precision="int8", quantised=PRODUCTS))


def test_the_engine_is_for_the_gpu_at_hand(tmp_path: Path, monkeypatch) -> None:
    """Also where the builder would leave it out: its identity and the builder are told the same."""
    w = world(tmp_path, monkeypatch, fp16=0.0)
    told = []
    monkeypatch.setattr(
        make_module, "build", lambda *words, **_: told.append(words[3]) or Built(b"plan", Census({}, {}), (), 0.1)
    )
    turing = replace(GPU, compute_capability="7.5")
    entry = w.maker.make(replace(w.order, precision="fp16", gpu=turing))
    assert entry.identity.target == "7.5" and told[0].compute_capabilities == ("7.5",)


def test_gpus_that_cannot_be_built_for_are_told_before_anything_is_done(tmp_path: Path, monkeypatch) -> None:
    """Calibrating takes minutes, and another recipe of int8 would not help either."""
    w = world(tmp_path, monkeypatch, int8=0.0)
    order = replace(w.order, precision="int8", options=BuildOptions(compute_capabilities=("3.5",)))
    with pytest.raises(EngineError, match=r"cannot build for compute capability 3\.5; it can: 7\.5, 12\.0"):
        w.maker.make_int8(order)
    assert w.lines == [] and w.built == []


def test_a_gpu_that_is_lost_ends_the_search_for_a_recipe(tmp_path: Path, monkeypatch) -> None:
    """Nothing more can be tried on it."""
    w = world(tmp_path, monkeypatch, int8=0.0)

    def lost(*_, **__):
        raise EngineError("cudaErrorIllegalAddress", fatal=True)

    monkeypatch.setattr(make_module, "build", lost)
    with pytest.raises(EngineError, match="IllegalAddress"):
        w.maker.make_int8(replace(w.order, precision="int8"))
    assert not any("trying again" in line for line in w.lines)


def test_an_engine_that_kills_its_process_is_wrong_from_then_on(tmp_path: Path, monkeypatch) -> None:
    """Whatever was found before; one that cannot be tried at the moment stays what it was."""
    w = world(tmp_path, monkeypatch, fp16=0.0)
    entry = check(w.maker.make(replace(w.order, precision="fp16")), w.trial, GPU, w.opened).entry

    def lacking(*_):
        raise EngineError("out of memory")

    def deadly(*_):
        raise DeadlyError("it dies (segmentation fault)")

    with pytest.raises(EngineError, match="out of memory"):
        check(entry, w.trial, GPU, lacking)
    assert read_entry(entry.plan).verification(GPU)["passed"]
    with pytest.raises(DeadlyError):
        check(entry, w.trial, GPU, deadly)
    found = read_entry(entry.plan).verification(GPU)
    assert not found["passed"] and found["reason"] == "it dies (segmentation fault)"


def test_an_engine_is_tried_at_every_patch_size(tmp_path: Path, monkeypatch) -> None:
    """The worst counts and says at which size; the speed is that of the first; a size that nobody tries is refused."""
    w = world(tmp_path, monkeypatch, fp16=0.001)
    model = load_model(convolutions(tmp_path / "any", FREE))
    profiles = (Profile(SIDE, 1, 4, BATCH), Profile(64, 1, 2, 4))
    entry = w.maker.make(replace(w.order, model=model, precision="fp16", profiles=profiles))
    with pytest.raises(EngineError, match="nothing to verify it with at 64 px"):
        check(entry, w.trial, GPU, w.opened)
    large = np.random.default_rng(1).integers(0, 256, (300, 64, 64, 3), np.uint8)
    good = replace(w.trial, patches=large, reference=truth(large).astype(np.float32))
    tried = check(entry, replace(w.trial, others=(good,)), GPU, w.opened)
    sizes = tried.entry.verification(GPU)["sizes"]
    assert tried.verification.passed and [(s["patch_px"], s["batch"]) for s in sizes] == [(SIDE, BATCH), (64, 4)]
    assert tried.speed == sizes[0]["patches_per_s"] > 0
    bad = replace(good, reference=1 - good.reference)
    tried = check(entry, replace(w.trial, others=(bad,)), GPU, w.opened)
    assert not tried.verification.passed and tried.verification.reason.startswith("64 px: its loss is")
    assert tried.entry.verification(GPU)["passed"] is False


def test_speed_is_of_full_batches_over_all_contexts() -> None:
    """Patches/s of a fake that computes at once: positive, and every batch was full."""
    device = FakeDevice()
    network = FakeNetwork(device, truth, patch_px=SIDE)
    engine = GpuEngine("fake", device, network, classes=2, patch_px=SIDE, max_batch=BATCH)
    assert measure(engine, noise(5), BATCH, 2, 0.02) > 0
    assert engine.rows == engine.batches * BATCH
