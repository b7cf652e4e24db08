from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import EngineError
from pipeline.cli import explained, main

ROOT = Path(__file__).resolve().parents[2]


def shell(redirected: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`slidestream WORD...` with its streams as the shell redirects them."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "pipeline.cli", *words],
        cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("redirected", ["2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_the_exit_code_is_the_same_where_nobody_hears_why(redirected: str) -> None:
    """Standard error is closed, or its disk full: with 1, it would say that a slide failed."""
    done = shell(redirected, "run", "/does/not/exist", "--out", "/does/not/matter")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_what_cannot_be_printed_is_no_success() -> None:
    """A list that did not arrive."""
    done = shell(">/dev/full", "engine", "list", "--engines", "/does/not/exist", "--json")
    assert done.returncode == 70 and "No space left" in done.stderr


def test_closed_streams_are_no_files(tmp_path: Path) -> None:
    """What is printed does not end in the next file that is opened."""
    file = tmp_path / "a.tif"
    done = shell("<&- >&- 2>&-", "make-slide", str(file), "--size", "512x512")
    assert done.returncode == 0
    assert file.read_bytes()[:2] == b"II" and b"tissue" not in (tmp_path / "a.truth.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "", "--out", "x"), "after run is empty"),
        (("run", "a.svs", "--out", ""), "after --out is empty"),
        (("run", "a.svs", "--out="), "after --out= is empty"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(words: tuple[str, ...], said: str, capsys) -> None:
    """`--out "$RESULTS"` without RESULTS would write into it."""
    assert main(list(words)) == 2
    assert said in capsys.readouterr().err


def test_results_do_not_go_into_the_folder_of_the_slides(tmp_path: Path, capsys) -> None:
    """It was said that there are no slides."""
    (tmp_path / "a.svs").touch()
    assert main(["run", str(tmp_path), "--out", f"{tmp_path}/."]) == 2
    assert "is the folder of the slides" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.svs"]


def test_a_slide_cannot_be_made_as_a_folder(tmp_path: Path, capsys) -> None:
    """Told before it is drawn."""
    assert main(["make-slide", str(tmp_path)]) == 2
    assert f"{tmp_path}: is a folder" in capsys.readouterr().err


def test_a_demo_needs_a_folder(tmp_path: Path, capsys) -> None:
    """A file of that name is a mistake of the command, no fault of the machine."""
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert f"--out {tmp_path / 'file'}: " in capsys.readouterr().err


@pytest.mark.parametrize(("fatal", "code"), [(True, 70), (False, 2)])
def test_a_gpu_that_is_lost_is_a_fault_of_the_machine(capsys, fatal: bool, code: int) -> None:
    """An engine that does not go with what was asked for is not."""

    def fails() -> int:
        raise EngineError("cudaErrorIllegalAddress", fatal=fatal)

    assert explained(fails) == code
    assert capsys.readouterr().err == "slidestream: cudaErrorIllegalAddress\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("top", "--every", "inf"), "--every inf: takes 0.2 to 3600"),
        (("top", "--every", "-1"), "--every -1: takes"),
        (("bench", "pipeline", "--seconds", "nan"), "--seconds more than 0 and at most 3600"),
        (("bench", "pipeline", "--slides", "999999999"), "--slides and --rounds must be 1 to 1000"),
    ],
)
def test_numbers_that_would_never_end(words: tuple[str, ...], said: str, capsys) -> None:
    """Refused before anything is made or waited for."""
    assert main(list(words)) == 2
    assert said in capsys.readouterr().err


def test_a_current_folder_that_is_gone(tmp_path: Path) -> None:
    """Told by name: the system itself says no more than that something does not exist."""
    run = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    command = ["/bin/sh", "-c", run, "sh", sys.executable, "-m", "pipeline.cli", "run", "slides", "--out", "results"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "slidestream: the current folder is gone; change to another one\n")
