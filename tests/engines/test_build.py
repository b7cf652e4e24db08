"""engines.build and engines.census with a real TensorRT, which needs no GPU to parse and to build (tensorrt_rtx)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from onnx import helper

from engines import build as build_module
from engines.build import BuildCanceled, build
from engines.census import Census, check_census
from engines.errors import EngineError
from engines.flavour import Flavour
from engines.precision import to_half
from engines.quantize import PRODUCTS, QUANTISABLE, WITHOUT_CONVOLUTIONS, calibrate, quantise
from engines.recipe import BuildOptions, Profile
from tests.engines.nets import FREE, SIDE, convolutions, dense, flavour, folded, mixed, noise, products, transformer

PROFILE = [Profile(SIDE, 1, 4, 8)]


@pytest.fixture(scope="module")
def trt() -> Flavour:
    found = flavour()
    if not found.portable:
        pytest.skip(f"{found.name} builds only where there is a GPU")
    return found


def test_fp32(trt: Flavour, tmp_path: Path) -> None:
    """A float32 graph is built, and everything that computes does so in float32."""
    built = build(folded(mixed(tmp_path)), "fp32", PROFILE, BuildOptions(), trt)
    assert built.census.compute == {"fp32": 7}
    assert len(built.plan) > 1000 and built.seconds > 0


def test_one_batch_size(trt: Flavour, tmp_path: Path) -> None:
    """Where there is one batch size alone, it is the network's shape, and nothing of the plan depends on it any more."""
    built = build(folded(mixed(tmp_path)), "fp32", [Profile(SIDE, 8, 8, 8)], BuildOptions(), trt)
    assert built.census.compute == {"fp32": 7}
    assert len(built.plan) > 1000


def test_fp16(trt: Flavour, tmp_path: Path) -> None:
    """The converted graph is built, and the parsed network computes in float16 as the graph says."""
    built = build(to_half(folded(mixed(tmp_path))), "fp16", PROFILE, BuildOptions(), trt)
    assert built.census.compute == {"fp16": 7}
    assert built.census.layers["fp32"] > 0  # Softmax and the like


@pytest.mark.parametrize(
    ("network", "operators", "expected"),
    [
        (convolutions, QUANTISABLE, {"fp16": 2, "int8": 1}),
        (products, QUANTISABLE, {"fp16": 2, "int8": 2}),
        (dense, QUANTISABLE, {"fp16": 2, "int8": 6}),
        (dense, WITHOUT_CONVOLUTIONS, {"fp16": 5, "int8": 3}),
        (transformer, QUANTISABLE, {"fp16": 4, "int8": 6}),
        (transformer, PRODUCTS, {"fp16": 4, "int8": 6}),
        (mixed, WITHOUT_CONVOLUTIONS, {"fp16": 5, "int8": 2}),
    ],
)
def test_int8(trt: Flavour, tmp_path: Path, network, operators, expected) -> None:
    """Q and DQ reach the network, in front of every convolution and product that the graph quantises."""
    proto = folded(network(tmp_path))
    ranges = calibrate(proto, noise(8), tmp_path, threads=1)
    graph = to_half(quantise(proto, ranges, operators))
    try:
        built = build(graph, "int8", PROFILE, BuildOptions(), trt)
    except EngineError as error:
        if "Myelin" in str(error) or "Cuda Runtime" in str(error):
            pytest.skip(f"{trt.name} {trt.version} does not build int8 without a GPU: {error}")
        raise
    assert built.census.compute == expected


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_silent_fallback_is_refused(trt: Flavour, tmp_path: Path, precision: str) -> None:
    """A graph that was not converted gives a float32 network: told, and not built."""
    with pytest.raises(EngineError, match=f"precision {precision}.*7 fp32"):
        build(folded(mixed(tmp_path)), precision, PROFILE, BuildOptions(), trt)


def test_half_where_float32_was_asked_for_is_refused(trt: Flavour, tmp_path: Path) -> None:
    """fp32 is what others are compared with."""
    with pytest.raises(EngineError, match="fp32 was asked for.*7 fp16"):
        build(to_half(folded(mixed(tmp_path))), "fp32", PROFILE, BuildOptions(), trt)


def test_what_the_parser_refuses_names_the_node(trt: Flavour, tmp_path: Path) -> None:
    """An operator that TensorRT does not have is told by its name."""
    proto = folded(convolutions(tmp_path))
    proto.graph.node.insert(3, helper.make_node("NoSuchThing", ["nowhere"], ["elsewhere"], name="odd one", domain="x"))
    proto.opset_import.append(helper.make_opsetid("x", 1))
    with pytest.raises(EngineError, match="cannot take the network: .*(NoSuchThing|odd one)"):
        build(proto, "fp32", PROFILE, BuildOptions(), trt)


def test_progress_is_told_in_order(trt: Flavour, tmp_path: Path) -> None:
    """From nothing to all steps of the outermost phase."""
    steps: list[tuple[str, int, int]] = []
    build(folded(convolutions(tmp_path)), "fp32", PROFILE, BuildOptions(), trt, progress=lambda *s: steps.append(s))
    assert len({phase for phase, _, _ in steps}) == 1
    done = [done for _, done, _ in steps]
    assert done == sorted(done) and done[0] == 0 and done[-1] == steps[-1][2] > 0


def test_a_build_can_be_canceled(trt: Flavour, tmp_path: Path) -> None:
    """The builder stops at its next step, and says so rather than failing."""
    cancel = threading.Event()
    with pytest.raises(BuildCanceled):
        build(
            folded(convolutions(tmp_path)), "fp32", PROFILE, BuildOptions(), trt,
            progress=lambda phase, done, total: cancel.set(), cancel=cancel,
        )  # fmt: skip


def test_ctrl_c_stops_the_builder_before_it_goes_on(trt: Flavour, tmp_path: Path, monkeypatch) -> None:
    """KeyboardInterrupt reaches the caller, and the builder's thread has ended by then."""
    calls: list[int] = []

    def interrupted(futures, timeout):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(folded(mixed(tmp_path)), "fp32", PROFILE, BuildOptions(), trt)
    assert calls == [1]
    assert not any(thread.name.startswith("tensorrt-build") for thread in threading.enumerate())


def test_several_profiles_of_one_size_are_taken(trt: Flavour, tmp_path: Path) -> None:
    """A small and a large batch may each have kernels of their own."""
    profiles = [Profile(SIDE, 1, 1, 1), Profile(SIDE, 1, 8, 16)]
    assert build(folded(convolutions(tmp_path)), "fp32", profiles, BuildOptions(), trt).plan


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_network_of_any_size_has_a_profile_for_each(trt: Flavour, tmp_path: Path, precision: str) -> None:
    """One engine for patches of several sizes, each with batches of its own."""
    graph = folded(convolutions(tmp_path, FREE), any_size=True)
    if precision == "int8":
        graph = quantise(graph, calibrate(graph, noise(8), tmp_path, threads=1))
    graph = graph if precision == "fp32" else to_half(graph)
    profiles = [Profile(SIDE, 1, 4, 8), Profile(2 * SIDE, 1, 2, 4)]
    try:
        built = build(graph, precision, profiles, BuildOptions(), trt)
    except EngineError as error:
        if precision == "int8" and "Myelin" in str(error):
            pytest.skip(f"{trt.name} {trt.version} does not build int8 without a GPU: {error}")
        raise
    expected = {"fp32": {"fp32": 3}, "fp16": {"fp16": 3}, "int8": {"fp16": 2, "int8": 1}}
    assert built.census.compute == expected[precision] and len(built.plan) > 1000


def test_a_profile_of_another_size_is_refused(trt: Flavour, tmp_path: Path) -> None:
    """TensorRT itself would take it, and fail later with another reason."""
    with pytest.raises(EngineError, match=r"takes \(-1, 32, 32, 3\), not patches of 64 px"):
        build(folded(convolutions(tmp_path)), "fp32", [Profile(64, 1, 4, 8)], BuildOptions(), trt)


@pytest.mark.parametrize("numbers", [(0, 1, 2), (2, 1, 4), (1, 8, 4)])
def test_a_profile_out_of_order_is_refused(numbers: tuple[int, int, int]) -> None:
    """1 <= min <= opt <= max."""
    with pytest.raises(ValueError, match="min <= opt <= max"):
        Profile(SIDE, *numbers)


def test_engines_for_other_gpus(trt: Flavour, tmp_path: Path) -> None:
    """For compute capabilities that are named; one that the flavour does not know is told with those it does."""
    proto = folded(convolutions(tmp_path))
    assert build(proto, "fp32", PROFILE, BuildOptions(compute_capabilities=("8.6", "8.9")), trt).plan
    with pytest.raises(EngineError, match=r"cannot build for compute capability 3\.5; it can: .*8\.6"):
        build(proto, "fp32", PROFILE, BuildOptions(compute_capabilities=("3.5",)), trt)
    with pytest.raises(EngineError, match="unknown hardware compatibility"):
        build(proto, "fp32", PROFILE, BuildOptions(hardware="SAME_COMPUTE_CAPABILITY"), trt)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    """Before anything is loaded."""
    with pytest.raises(EngineError, match="unknown precision 'int4'; known: fp32, fp16, int8"):
        build(folded(convolutions(tmp_path)), "int4", PROFILE, BuildOptions(), None)  # type: ignore[arg-type]


def test_int8_that_is_not_quantised_in_the_network_is_refused() -> None:
    """The parser dropping Q and DQ would give a plain fp16 engine under the name of int8."""
    asked = Census({}, {"fp16": 1, "int8": 2})
    check_census(Census({}, {"fp16": 1, "int8": 2}), asked, "int8")
    for found in ({"fp16": 3}, {"fp16": 2, "int8": 1}, {"fp16": 1, "fp32": 2}):
        with pytest.raises(EngineError, match="int8 fell back: the graph asks for .*1 fp16, 2 int8; the network has"):
            check_census(Census({}, found), asked, "int8")


def test_one_layer_that_fell_back_is_enough_to_refuse() -> None:
    """One more float32 product than the graph asks for."""
    asked = Census({}, {"fp16": 2, "fp32": 1})
    check_census(Census({}, {"fp16": 2, "fp32": 1}), asked, "fp16")
    with pytest.raises(EngineError, match="fell back"):
        check_census(Census({}, {"fp16": 1, "fp32": 2}), asked, "fp16")


def test_a_network_in_which_nothing_computes_as_asked_is_refused() -> None:
    """Although it is what its graph says: fp16 of a graph that was never converted."""
    with pytest.raises(EngineError, match="nothing computes in fp16"):
        check_census(Census({}, {"fp32": 2}), Census({}, {"fp32": 2}), "fp16")


class Timings:
    """What tensorrt's timing cache does, on sets of words: a damaged one is none, one of another GPU is not taken."""

    def __init__(self, words: set[str]) -> None:
        self.words = words

    def serialize(self) -> bytes:
        return " ".join(sorted(self.words)).encode()

    def combine(self, other: Timings, ignore_mismatch: bool) -> bool:
        self.words |= other.words
        return ignore_mismatch


class TimingConfig:
    def __init__(self) -> None:
        self.kept: Timings | None = None

    def create_timing_cache(self, data: bytes) -> Timings | None:
        return None if b"damaged" in data else Timings(set(data.decode().split()))

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        if cache is None:
            raise TypeError("incompatible function arguments")
        self.kept = self.kept if "foreign" in cache.words else cache
        return "foreign" not in cache.words

    def get_timing_cache(self) -> Timings | None:
        return self.kept


@pytest.mark.parametrize("before", [None, "ours", "damaged", "foreign"])
@pytest.mark.parametrize("meanwhile", [None, "theirs", "damaged"])
def test_timings_are_kept_whatever_lay_there(tmp_path: Path, before: str | None, meanwhile: str | None) -> None:
    """What was measured, what was good of earlier builds, and what another build wrote in the meantime."""
    path, config = tmp_path / "folder" / "timing.cache", TimingConfig()
    if before is not None:
        path.parent.mkdir()
        path.write_text(before)
    with build_module._timing_cache(config, path):
        config.kept.words.add("measured")
        if meanwhile is not None:
            path.write_text(meanwhile)
    kept = {"measured"} | ({"ours"} if before == "ours" else set()) | ({"theirs"} if meanwhile == "theirs" else set())
    assert set(path.read_text().split()) == kept
