"""`slidestream tune` as an operator types it: what it writes, what it refuses, and that it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline import cli
from pipeline.config import ConfigError, load_config
from pipeline.tune import Setting
from pipeline.tune_file import text, write
from pipeline.tune_measure import journal, storage
from slides.synthetic import SyntheticSlide, make_slide

SETTINGS = [
    Setting("reader.workers", 6, 4, "readers alone, patches/s by number: 4: 100, 6: 150"),
    Setting("slides.preads", 4, 4, "a read of 64 KiB takes 0.1 ms"),
]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which the command refuses."""
    assert cli.main(["tune", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in lines[0]
    return lines[0]


def test_file_keeps_the_operators_keys_and_says_why(tmp_path: Path) -> None:
    """Proposed numbers replace old ones, each under a comment with its figures; all other keys stay, the service's too."""
    own = {
        "model": "models/a model",
        "reader": {"workers": 4},
        "log": None,
        "service": {
            "watch": [{"path": "/mnt/a: b", "routes": ["tumour"], "patterns": ["*"]}],
            "routes": [{"name": "tumour", "out": "/srv/results"}],
        },
    }
    written = text(["head of the file"], own, SETTINGS)
    assert written.startswith("# head of the file\n")
    assert "  # 4 before; readers alone, patches/s by number: 4: 100, 6: 150\n  workers: 6\n" in written
    data = yaml.safe_load(written)
    assert data == {**own, "reader": {"workers": 6}, "slides": {"preads": 4}}
    write(tmp_path / "tuned.yaml", written)
    config = load_config(tmp_path / "tuned.yaml")
    assert config.reader.workers == 6 and config.service.watch[0].path == "/mnt/a: b"


def test_file_is_never_overwritten_nor_left_unusable(tmp_path: Path) -> None:
    """A file that is there stays as it is; one that would be refused is not left behind."""
    path = tmp_path / "tuned.yaml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write(path, "reader: {workers: 2}\n")
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="unknown key"):
        write(tmp_path / "other.yaml", "readers: {workers: 2}\n")
    assert not (tmp_path / "other.yaml").exists()


def test_nonsense_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times, files, routes, models and slides that cannot be: before anything is measured."""
    (tmp_path / "there.yaml").write_text("reader: {workers: 2}\n")
    (tmp_path / "empty").mkdir()
    routes = [{"name": name, "out": f"/srv/{name}", "model": f"/srv/models/{name}"} for name in ("a", "b")]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"service": {"routes": routes}}))
    assert "--minutes 0.01: takes 0.25 to 60" in refusal(capsys, "--minutes", "0.01")
    assert "--minutes nan" in refusal(capsys, "--minutes", "nan")
    assert "is there already" in refusal(capsys, "--write", str(tmp_path / "there.yaml"))
    assert "cannot be made there" in refusal(capsys, "--write", str(tmp_path / "nowhere" / "new.yaml"))
    assert "is no folder" in refusal(capsys, "--results", str(tmp_path / "nowhere"))
    assert "no such route" in refusal(capsys, "--route", "c", "--config", str(tmp_path / "two.yaml"))
    assert "name one with --route" in refusal(capsys, "--config", str(tmp_path / "two.yaml"))
    assert "give one of them" in refusal(
        capsys, "--route", "a", "--model", "models/demo-tumour", "--config", str(tmp_path / "two.yaml")
    )
    assert "no slides found" in refusal(capsys, str(tmp_path / "empty"))
    assert "does not exist" in refusal(capsys, str(tmp_path / "gone.svs"))
    assert "nothing to tune" in refusal(capsys, "--set", 'inference.engine="null"')
    assert "/nowhere" in refusal(capsys, "--model", "/nowhere")


def test_storage_and_journal_are_measured(tmp_path: Path) -> None:
    """Times and speeds of reads from a slide, and of a write that is on disk."""
    slide = tmp_path / "a.tif"
    make_slide(slide, SyntheticSlide(1500, 1200))
    found = storage([slide], 0.2)
    assert 0 < found.latency_ms < 1000 and found.mb_per_s > 0 and found.many_mb_per_s > 0
    (tmp_path / "results").mkdir()
    assert journal(tmp_path / "results") > 0 and not list((tmp_path / "results").iterdir())
    (tmp_path / "tiny.tif").write_bytes(b"x")
    with pytest.raises(ConfigError, match="too small"):
        storage([tmp_path / "tiny.tif"], 0.1)


@pytest.mark.long
def test_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine without a GPU, within the time it was given: figures of every part, and a file that is accepted."""
    slide = tmp_path / "slides" / "a.tif"
    slide.parent.mkdir()
    make_slide(slide, SyntheticSlide(3000, 2400))
    file = tmp_path / "tuned.yaml"
    words = ["tune", str(slide), "--minutes", "0.5", "--write", str(file), "--results", str(tmp_path), "--json"]
    assert cli.main(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["engines"][0]["patches_per_s"] > 0 and record["readers"]["1"] > 0 and record["journal_ms"] > 0
    assert record["whole"][0]["by"] == "auto" and record["whole"][0]["patches_per_s"] > 0
    config = load_config(file)
    proposed = {setting["key"]: setting["value"] for setting in record["settings"]}
    assert config.reader.workers == proposed["reader.workers"] and config.batcher.slots == proposed["batcher.slots"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slides", "tuned.yaml"], "nothing is left behind"


def test_slide_that_cannot_be_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no slide is refused before anything is measured; beside others it is left out."""
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"II*\0" + bytes(200_000))
    assert "bad.tif: is not a slide" in refusal(capsys, str(bad), "--no-progress")
