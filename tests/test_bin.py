"""bin/slidestream and bin/test: found from anywhere, with the interpreter that they were told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SLIDESTREAM_PYTHON": sys.executable, **env}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


SIDE_BY_SIDE = ["--numprocesses", "auto", "--maxprocesses", "8", "--dist", "loadfile"]


@pytest.fixture
def spy(tmp_path: Path) -> Path:
    """An interpreter that only tells how it was called."""
    script = tmp_path / "spy python"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$PYTHONSAFEPATH" "$@"\n')
    script.chmod(0o755)
    return script


def test_runs_the_command_line_from_any_folder(root: Path, tmp_path: Path):
    """`slidestream --help` works from another folder, also one that holds modules with our names."""
    for name in ("pipeline.py", "slides.py", "results.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')\n")
    done = run(root / "bin/slidestream", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout and "check" in done.stdout


def test_works_through_a_symbolic_link(root: Path, tmp_path: Path, spy: Path):
    """A link in ~/bin, also a link to a link, finds the repository."""
    (tmp_path / "one").symlink_to(root / "bin/slidestream")
    (tmp_path / "two").symlink_to("one")
    done = run(tmp_path / "two", "check", cwd=tmp_path, SLIDESTREAM_PYTHON=str(spy))
    assert done.stdout.splitlines() == [str(root), "1", "-m", "pipeline.cli", "check"]


def test_passes_arguments_unchanged(root: Path, tmp_path: Path, spy: Path):
    """Blanks, quotes, stars and empty words in arguments arrive as they were."""
    words = ["run", "a b", "*", "", "--set", 'x="y z"', "--"]
    done = run(root / "bin/slidestream", *words, cwd=tmp_path, SLIDESTREAM_PYTHON=str(spy))
    assert done.stdout.splitlines()[4:] == words


def test_relative_interpreter(root: Path, tmp_path: Path, spy: Path):
    """SLIDESTREAM_PYTHON may be relative to the folder of the caller, for bin/test too, which works elsewhere."""
    done = run(root / "bin/test", "-k", "nothing", cwd=tmp_path, SLIDESTREAM_PYTHON=f"./{spy.name}")
    assert done.stdout.splitlines()[-2:] == ["-k", "nothing"]


def test_wrong_interpreter_is_one_clear_line(root: Path, tmp_path: Path):
    """An interpreter that does not exist is named, with exit code 2."""
    done = run(root / "bin/slidestream", "check", cwd=tmp_path, SLIDESTREAM_PYTHON="/no/such/python")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "/no/such/python" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["-m", "pytest", *SIDE_BY_SIDE, "-m", "not long and not gpu"]),
        (["--long"], ["-m", "pytest", "-m", "not gpu"]),
        (["tests/a.py", "-x"], ["-m", "pytest", "-m", "not long and not gpu", "tests/a.py", "-x"]),
        (["-m", "gpu"], ["-m", "pytest", "-m", "gpu"]),
    ],
)
def test_selection_of_tests(root: Path, tmp_path: Path, spy: Path, words: list[str], expected: list[str]):
    """bin/test leaves out long and GPU tests, and has files side by side; --long adds the long ones, one after the other; a
    selection of the caller's own wins."""
    done = run(root / "bin/test", *words, cwd=tmp_path, SLIDESTREAM_PYTHON=str(spy))
    assert done.stdout.splitlines()[-len(expected) :] == expected


def test_no_python_new_enough(root: Path, tmp_path: Path):
    """Where only an old Python is found, the package to install is named, and nothing is left behind."""
    copy, tools = tmp_path / "repository", tmp_path / "tools"
    (copy / "bin").mkdir(parents=True)
    tools.mkdir()
    for name in ("bin/slidestream", "bin/environment.sh", "pyproject.toml"):
        (copy / name).write_bytes((root / name).read_bytes())
    (copy / "bin/slidestream").chmod(0o755)
    for name in ("bash", "env", "readlink", "flock"):
        found = next(Path(folder) / name for folder in ("/usr/bin", "/bin") if (Path(folder) / name).exists())
        (tools / name).symlink_to(found)
    (tools / "python3").write_text("#!/usr/bin/env bash\nexit 1\n")
    (tools / "python3").chmod(0o755)
    done = run(copy / "bin/slidestream", cwd=tmp_path, SLIDESTREAM_PYTHON="", PATH=str(tools))
    assert done.returncode == 2
    assert "sudo apt install python3 python3-venv" in done.stderr
    assert not (copy / ".venv").exists()


def test_goes_on_without_optional_packages(root: Path, tmp_path: Path):
    """Where pip finds no TensorRT and no Playwright, a line each says what that means, and the set-up is complete all the same."""
    copy = tmp_path / "repository"
    for name in ("bin/environment.sh", "pyproject.toml"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((root / name).read_bytes())
    interpreter = copy / ".venv/bin/python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(
        f"""#!/bin/sh
case "$*" in
    -*pip*install*--only-binary*) echo "ERROR: No matching distribution found for $(head -1)"; exit 1 ;;
    -*pip*) exit 0 ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
    )
    interpreter.chmod(0o755)
    script = f'root="{copy}"; . "$root/bin/environment.sh"; slidestream_python test; echo "$python"'
    done = run("bash", "-euc", script, cwd=tmp_path, SLIDESTREAM_PYTHON="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(interpreter) and (copy / ".venv/ready-test").exists()
    engines, browser = [line for line in done.stderr.splitlines() if "going on without" in line]
    assert "their tests will skip: No matching distribution found for tensorrt-rtx" in engines
    assert "tests in a browser will skip: No matching distribution found for playwright" in browser


def test_the_soak_passes_its_arguments(root: Path, tmp_path: Path, spy: Path):
    """`bin/soak` is the benchmark of that name, from any folder."""
    done = run(root / "bin/soak", "--slides", "5", cwd=tmp_path, SLIDESTREAM_PYTHON=str(spy))
    assert done.stdout.splitlines()[2:] == ["-m", "benchmarks.soak", "--slides", "5"]
