"""`slidestream model import`, from words to a model directory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from engines.errors import ModelError
from engines.model import load_model
from pipeline.config import ConfigError
from pipeline.model_command import add_parser
from tests.engines.tiny import MEAN, STD, tiny_model


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["model", *words])
    return args.command(args)


def options() -> list[str]:
    text = ["--classes", "normal", "tumour", "--patch-px", "64", "--spacing", "0.5"]
    return [*text, "--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]


def test_flags_make_the_configuration(tmp_path: Path, capsys):
    """The flags alone make the same configuration as the file, and the command says how well the export answers."""
    source = tiny_model(tmp_path / "source")
    code = run("import", str(source / "model.onnx"), "--out", str(tmp_path / "out"), *options())
    assert code == 0
    made, given = load_model(tmp_path / "out"), load_model(source)
    assert (made.classes, made.patch_px, made.spacing) == (given.classes, given.patch_px, given.spacing)
    assert made.transform == given.transform
    said = capsys.readouterr().out
    assert "2 classes (normal, tumour), 64 px at 0.5 µm/px" in said and "(allowed: 0.0001)" in said


def test_flags_change_a_file(tmp_path: Path):
    """Beside a config.json, a flag changes its key alone."""
    source = tiny_model(tmp_path / "source")
    run("import", str(source), "--out", str(tmp_path / "out"), "--spacing", "0.25")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {**json.loads((source / "config.json").read_text()), "spacing_um_px": 0.25}


def test_a_missing_key_is_named(tmp_path: Path):
    """Where a flag is missing, the message names the key of config.json."""
    source = tiny_model(tmp_path / "source")
    with pytest.raises(ModelError, match="the options given: key patch_size_pixels is missing"):
        run("import", str(source / "model.onnx"), "--out", str(tmp_path / "out"), "--classes", "a", "b")


def test_mean_without_std(tmp_path: Path):
    """--mean without --std is refused."""
    with pytest.raises(ConfigError, match="give both or neither"):
        run("import", str(tmp_path), "--out", str(tmp_path / "out"), "--mean", "0,0,0")
