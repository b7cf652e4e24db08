from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pipeline.outdir import hold, run_directory
from pipeline.overrides import ConfigError

MOST = 78  # bytes of a temporary folder's path: what a socket's may have, without /slidestream-xxxxxxxx/control


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, unlike those of pytest."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def folder_of(length: int, within: Path) -> Path:
    """A folder whose path has so many bytes."""
    folder = within / ("t" * (length - len(str(within)) - 1))
    folder.mkdir()
    return folder


def test_the_longest_temporary_folder_holds_the_sockets(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte less than what is refused."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder_of(MOST, short)))
    with run_directory(tmp_path) as run, zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(run.control)


def test_a_temporary_folder_with_too_long_a_path_is_refused(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of the variable that says it, with the most that would do; nothing is left there."""
    folder = folder_of(MOST + 1, short)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with (
        pytest.raises(ConfigError, match=rf"^TMPDIR={folder}: too long .* \({MOST} bytes at most\)"),
        run_directory(tmp_path),
    ):
        pass
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["heatmaps", "slides", "second/masks", "second"])
def test_what_lies_in_the_way_of_results_is_told_before_any_work(tmp_path: Path, name: str) -> None:
    """A file where a folder of results has to be; in an empty folder, nothing is."""
    folders = [tmp_path / "out", tmp_path / "out" / "second"]
    with hold(tmp_path / "out", folders):
        pass
    place = tmp_path / "out" / name
    place.parent.mkdir(exist_ok=True)
    place.touch()
    with (
        pytest.raises(ConfigError, match=rf"^--out {tmp_path}/out: {place} is no folder; move it away"),
        hold(tmp_path / "out", folders),
    ):
        pass
