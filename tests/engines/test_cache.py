"""engines.cache and engines.identity: engines on disk, and everything that can be wrong with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engines.build import Built
from engines.cache import EngineCache, default_folder, read_entry, record_choice, record_verification
from engines.census import Census
from engines.errors import EngineError
from engines.flavour import Flavour
from engines.gpu import Gpu
from engines.identity import AMPERE, Identity, differences, identity, misfits, serves, suited
from engines.recipe import BuildOptions, Profile
from tests.engines.fake_gpu import GPU, OTHER_GPU
from tests.engines.test_flavour import fake

BUILT = Built(b"plan" * 100, Census({"fp16": 3}, {"fp16": 2}), ("a warning",), 1.25)
FULL = Flavour("tensorrt", "11.4", fake(rtx=False))
RTX = Flavour("tensorrt_rtx", "1.4", fake(rtx=True))


def make_identity(flavour: Flavour = FULL, gpu: Gpu | None = GPU, **changes) -> Identity:
    values = {
        "model": "a" * 64,
        "graph": "b" * 64,
        "precision": "fp16",
        "classes": 2,
        "profiles": [Profile(224, 1, 64, 128)],
        "options": BuildOptions(),
    }
    return identity(flavour=flavour, gpu=gpu, **{**values, **changes})


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_an_engine_is_found_again(cache: EngineCache) -> None:
    """By its identity; its sidecar says what went in and what came out."""
    wanted = make_identity()
    entry = cache.put("my model", wanted, BUILT, GPU, {"calibration": {"patches": 500}})
    found = cache.find(make_identity())
    assert found == entry and not found.problem
    assert found.read_plan() == BUILT.plan
    record = json.loads(entry.sidecar.read_text())
    assert record["identity"] == wanted.to_dict() and record["key"] == wanted.key
    assert record["census"]["compute"] == {"fp16": 2}
    assert record["build"]["warnings"] == ["a warning"] and record["build"]["gpu"]["driver"] == "580.1"
    assert record["calibration"] == {"patches": 500}
    assert record["plan"]["size"] == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "c" * 64},
        {"graph": "c" * 64},
        {"precision": "fp32"},
        {"precision": "int8", "quantiser": "int8-1", "calibration": "d" * 64},
        {"classes": 3},
        {"profiles": [Profile(224, 1, 64, 64)]},
        {"profiles": [Profile(256, 1, 64, 128)]},
        {"options": BuildOptions(optimization_level=5)},
        {"options": BuildOptions(tf32=True)},
        {"flavour": replace(FULL, version="11.5")},
        {"flavour": RTX},
        {"gpu": OTHER_GPU},
    ],
    ids=str,
)
def test_everything_that_matters_is_part_of_the_key(cache: EngineCache, changes: dict) -> None:
    """Each change alone gives another key, so another engine, and why_not names what differs."""
    cache.put("m", make_identity(), BUILT, GPU)
    other = make_identity(**changes)
    assert other.key != make_identity().key
    assert cache.find(other) is None
    assert cache.why_not(other)


def test_two_calibrations_are_two_engines() -> None:
    """And two recipes of quantising."""
    one = make_identity(precision="int8", quantiser="int8-1", calibration="d" * 64)
    assert one.key != make_identity(precision="int8", quantiser="int8-1", calibration="e" * 64).key
    assert one.key != make_identity(precision="int8", quantiser="int8-2", calibration="d" * 64).key


def test_what_differs_is_told_with_both_values(cache: EngineCache) -> None:
    """Another version of TensorRT."""
    cache.put("m", make_identity(), BUILT, GPU)
    text = cache.why_not(make_identity(replace(FULL, version="11.5")))
    assert "flavour_version: it has 11.4, wanted is 11.5" in text
    assert "no engine of this model in fp16" in cache.why_not(make_identity(model="c" * 64))


def test_misfits_name_both_sides() -> None:
    """Before anything is loaded: flavour, version, GPU."""
    engine = make_identity()
    assert misfits(engine, FULL, GPU) == []
    assert misfits(engine, RTX, GPU)[0] == "built by tensorrt, here is tensorrt_rtx"
    assert misfits(engine, replace(FULL, version="11.5"), GPU) == ["built by tensorrt 11.4, here is 11.5"]
    assert misfits(engine, FULL, OTHER_GPU) == ["built for Test GPU (9.0), here is Other GPU (8.6)"]


@pytest.mark.parametrize(
    ("flavour", "options", "target", "here", "there"),
    [
        (RTX, BuildOptions(), AMPERE, True, True),
        (RTX, BuildOptions(compute_capabilities=("7.5", "8.6")), "7.5, 8.6", False, True),
        (FULL, BuildOptions(), "Test GPU (9.0)", True, False),
        (FULL, BuildOptions(hardware="AMPERE_PLUS"), "8.0 and later", True, True),
        (FULL, BuildOptions(hardware="SAME_COMPUTE_CAPABILITY"), "9.0", True, False),
    ],
)
def test_targets(flavour: Flavour, options: BuildOptions, target: str, here: bool, there: bool) -> None:
    """Which GPUs an engine serves follows from what it was built for."""
    engine = make_identity(flavour, options=options)
    assert engine.target == target
    assert (serves(engine, GPU), serves(engine, OTHER_GPU)) == (here, there)


def test_a_target_without_a_gpu_is_refused_where_the_builder_needs_one() -> None:
    """tensorrt compiles for the GPU that is there."""
    with pytest.raises(EngineError, match="builds for the GPU at hand, and there is none"):
        make_identity(FULL, None)
    assert make_identity(RTX, None).target == AMPERE


def test_a_gpu_before_ampere_is_asked_for() -> None:
    """TensorRT for RTX does not build for Turing of itself; other GPUs, and GPUs that are named, change nothing."""
    turing = replace(GPU, name="Tesla T4", compute_capability="7.5")
    assert not serves(make_identity(RTX, options=BuildOptions()), turing)
    options = suited(BuildOptions(), RTX, turing)
    assert options.compute_capabilities == ("7.5",)
    assert serves(make_identity(RTX, options=options), turing)
    volta = replace(GPU, name="Tesla V100", compute_capability="7.0")  # which the flavour does not know at all
    named = BuildOptions(compute_capabilities=("12.0",))
    for asked, flavour, gpu in (
        (BuildOptions(), RTX, GPU), (BuildOptions(), RTX, volta), (BuildOptions(), RTX, None),
        (named, RTX, turing), (BuildOptions(), FULL, turing),
    ):  # fmt: skip
        assert suited(asked, flavour, gpu) == asked


def test_damage_is_found(cache: EngineCache) -> None:
    """A plan cut short shows at once, one flipped bit when it is read, and neither is loaded."""
    entry = cache.put("m", make_identity(), BUILT, GPU)
    data = bytearray(entry.plan.read_bytes())
    entry.plan.write_bytes(data[:-1])
    cut = read_entry(entry.plan)
    assert "399 bytes, was built with 400" in cut.problem
    with pytest.raises(EngineError, match="build it again"):
        cut.read_plan()
    data[7] ^= 1
    entry.plan.write_bytes(data)
    flipped = read_entry(entry.plan)
    assert not flipped.problem
    with pytest.raises(EngineError, match="is damaged: its sha256"):
        flipped.read_plan()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 99}',
        '{"format": 1, "identity": {}}',
        '{"format": 1, "identity": 3, "plan": 4}',
        "\x80",
    ],
)
def test_a_damaged_sidecar_is_told(cache: EngineCache, text: str) -> None:
    """Whatever is in it: the engine is listed, cannot be used, and is not found."""
    entry = cache.put("m", make_identity(), BUILT, GPU)
    entry.sidecar.write_bytes(text.encode("latin-1"))
    (found,) = cache.entries()
    assert "damaged" in found.problem and found.identity is None
    assert cache.find(make_identity()) is None
    with pytest.raises(EngineError):
        found.read_plan()


def test_an_engine_without_its_sidecar_does_not_exist(cache: EngineCache) -> None:
    """It is written last: a build that died left a plan of which nothing is known."""
    entry = cache.put("m", make_identity(), BUILT, GPU)
    entry.sidecar.unlink()
    (found,) = cache.entries()
    assert "has no" in found.problem and cache.find(make_identity()) is None
    with pytest.raises(EngineError):
        record_verification(found, GPU, {})


def test_verifications_are_kept_by_gpu(cache: EngineCache) -> None:
    """An engine may be right on one kind of GPU and not have been tried on another."""
    entry = cache.put("m", make_identity(RTX), BUILT, None)
    entry = record_verification(entry, GPU, {"passed": True, "loss": 0.001})
    entry = record_choice(entry, {"precision": "fp16"})
    entry = record_verification(entry, OTHER_GPU, {"passed": False})
    found = cache.find(make_identity(RTX))
    assert found.verification(GPU) == {"passed": True, "loss": 0.001}
    assert found.verification(OTHER_GPU) == {"passed": False}
    assert found.verification(Gpu("Third", "7.5")) is None
    assert found.record["choice"] == {"precision": "fp16"}


def test_a_rebuild_forgets_what_was_known(cache: EngineCache) -> None:
    """Verifications and compiled kernels belong to the plan that they were made with."""
    entry = record_verification(cache.put("m", make_identity(), BUILT, GPU), GPU, {"passed": True})
    entry.kernels(GPU).write_bytes(b"kernels")
    again = cache.put("m", make_identity(), replace(BUILT, plan=b"other"), GPU)
    assert again.verification(GPU) is None and not entry.kernels(GPU).exists()
    assert again.read_plan() == b"other"


def test_removing_leaves_nothing(cache: EngineCache) -> None:
    """Plan, sidecar, kernels, locks; the engine beside it stays."""
    entry = cache.put("m", make_identity(), BUILT, GPU)
    entry.kernels(GPU).write_bytes(b"kernels")
    other = cache.put("m", make_identity(precision="fp32"), BUILT, GPU)
    assert cache.remove(entry) >= 400
    assert [found.plan for found in cache.entries()] == [other.plan]
    assert not [path for path in cache.folder.iterdir() if path.name.startswith(entry.plan.stem)]


def test_a_name_of_any_signs_makes_a_file(cache: EngineCache) -> None:
    """Model directories are called what people call them."""
    entry = cache.put("müller/v1.0 *final*", make_identity(), BUILT, GPU)
    assert entry.plan.parent == cache.folder and cache.find(make_identity()) == entry


def test_no_half_written_file_stays(cache: EngineCache, monkeypatch) -> None:
    """A disk that is full leaves no engine and no temporary file."""
    import engines.files

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engines.files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cache.put("m", make_identity(), BUILT, GPU)
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".lock"]


def test_an_identity_of_another_release_is_refused() -> None:
    """Fields that are missing, or unknown ones, mean that the comparison would not be of everything."""
    raw = make_identity().to_dict()
    assert Identity.from_dict(raw) == make_identity()
    for bad in ({**raw, "more": 1}, {k: v for k, v in raw.items() if k != "graph"}, None):
        with pytest.raises(ValueError, match="other fields"):
            Identity.from_dict(bad)
    assert differences(make_identity(), make_identity()) == []


def test_the_folder_follows_the_environment(monkeypatch, tmp_path: Path) -> None:
    """$SLIDESTREAM_ENGINES before $XDG_CACHE_HOME."""
    monkeypatch.delenv("SLIDESTREAM_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "slidestream" / "engines"
    monkeypatch.setenv("SLIDESTREAM_ENGINES", str(tmp_path / "e"))
    assert EngineCache().folder == tmp_path / "e"
    assert EngineCache().entries() == []
