"""`slidestream engine`: what it does, what it says, and its exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from engines.cache import EngineCache, record_verification
from engines.errors import EngineError
from pipeline.config import ConfigError
from pipeline.engine_command import add_parser
from tests.engines.fake_gpu import GPU
from tests.engines.nets import SIDE, flavour, mixed
from tests.engines.test_cache import BUILT, RTX, make_identity


def engine(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["engine", *map(str, arguments)])
    return args.command(args)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> EngineCache:
    monkeypatch.setenv("SLIDESTREAM_ENGINES", str(tmp_path / "engines"))
    return EngineCache()


def test_without_a_verb_it_explains_itself(capsys) -> None:
    """Exit code 2, as for any command that says too little."""
    assert engine() == 2
    assert "build" in capsys.readouterr().out


def test_list_tells_what_there_is(cache: EngineCache, capsys) -> None:
    """For whom, how large its batches, whether it is right; and what cannot be used."""
    record_verification(
        cache.put("mine", make_identity(RTX), BUILT, GPU),
        GPU,
        {"passed": True, "loss": 0.001, "patches_per_s": 18000.0},
    )
    (cache.folder / "odd.engine").write_bytes(b"x")
    assert engine("list") == 0
    out = capsys.readouterr().out
    assert "tensorrt_rtx 1.4 for 8.0 and later; 224 px x 1-128" in out
    assert "right on Test GPU (9.0), loss 0.100%, 18,000 patches/s" in out
    assert "odd.engine" in out and "cannot be used: has no odd.json" in out
    assert engine("list", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_list_of_nothing_says_what_to_do(cache: EngineCache, capsys) -> None:
    """On standard error: standard output stays empty."""
    assert engine("list") == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "slidestream engine build" in captured.err


def test_inspect_prints_the_sidecar_and_finds_damage(cache: EngineCache, capsys) -> None:
    """By the beginning of its key."""
    entry = cache.put("mine", make_identity(), BUILT, GPU)
    assert engine("inspect", make_identity().key[:6]) == 0
    assert json.loads(capsys.readouterr().out)["identity"]["precision"] == "fp16"
    entry.plan.write_bytes(b"x" * 400)
    with pytest.raises(EngineError, match="damaged"):
        engine("inspect", entry.plan)
    entry.plan.write_bytes(b"x")
    assert engine("inspect", entry.plan) == 1


def test_a_name_that_fits_none_or_several_is_told(cache: EngineCache) -> None:
    """Never the first one that happens to fit."""
    cache.put("a", make_identity(), BUILT, GPU)
    cache.put("b", make_identity(precision="fp32"), BUILT, GPU)
    with pytest.raises(ConfigError, match="no engine in .* called 'zz'"):
        engine("inspect", "zz")
    with pytest.raises(ConfigError, match="2 engines"):
        engine("inspect", "")


def test_remove(cache: EngineCache, capsys) -> None:
    """By name, or all that are damaged; nothing named is a mistake."""
    entry = cache.put("a", make_identity(), BUILT, GPU)
    broken = cache.put("b", make_identity(precision="fp32"), BUILT, GPU)
    broken.plan.write_bytes(b"")
    assert engine("remove", "--damaged") == 0
    assert [found.plan for found in cache.entries()] == [entry.plan]
    assert engine("remove", entry.plan.name) == 0
    assert cache.entries() == [] and "MiB freed" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="name an engine"):
        engine("remove")


def test_build_and_build_again(cache: EngineCache, tmp_path: Path, capsys) -> None:
    """Built for real; the second time it is there already; its path is all that goes to standard output."""
    if not flavour().portable:
        pytest.skip("builds only where there is a GPU")
    model = mixed(tmp_path / "model")
    build = ("build", model, "--precision", "fp16", "--batch", "1/4/8", "--for", "8.6")
    assert engine(*build) == 0
    captured = capsys.readouterr()
    (entry,) = cache.entries()
    assert captured.out.strip() == str(entry.plan)
    assert "7 fp16" in captured.err and "not verified yet" in captured.err and "batches of 1 to 8" in captured.err
    assert entry.identity.target == "8.6" and entry.identity.profiles[0]["patch_px"] == SIDE
    assert engine(*build) == 0
    assert "is there already" in capsys.readouterr().err
    assert engine(*build, "--rebuild") == 0
    assert "built in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--precision", "auto"), "auto measures"),
        (("--precision", "fp16", "--batch", "4/2/8"), "--batch: profile"),
        (("--precision", "fp16", "--patch", "64,64"), "--patch: 64,64: sizes are numbers from 1, each named once"),
    ],
)
def test_what_cannot_be_built_is_told(cache: EngineCache, tmp_path: Path, arguments, words: str) -> None:
    """Before the long work begins."""
    flavour()
    with pytest.raises(ConfigError, match=words):
        engine("build", mixed(tmp_path / "model"), *arguments)
    assert cache.entries() == []


def test_int8_wants_tissue(cache: EngineCache, tmp_path: Path) -> None:
    """Calibration is not optional."""
    if not flavour().portable:
        pytest.skip("builds only where there is a GPU")
    with pytest.raises(EngineError, match="--calibrate"):
        engine("build", mixed(tmp_path / "model"), "--precision", "int8")


def test_verify_wants_the_engines_own_model(cache: EngineCache, tmp_path: Path) -> None:
    """Answers to another model's questions prove nothing; both hashes are named."""
    cache.put("a", make_identity(), BUILT, GPU)
    with pytest.raises(EngineError, match="is of the model aaaaaaaaaaaa, .* is "):
        engine("verify", make_identity().key, "--model", mixed(tmp_path / "model"), "--verify-on", tmp_path)
