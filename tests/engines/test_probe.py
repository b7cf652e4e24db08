"""engines.probe: what GPUs and backends there are, asked in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engines import python_path
from engines.gpu import Gpu
from engines.probe import Installed, Probe, probe
from tests.conftest import ROOT
from tests.engines.fake_gpu import GPU


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs this code in place of engines.probe: a driver or a library that behaves like that."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "__init__.py").touch()
    monkeypatch.setattr(python_path, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)

    def put(code: str) -> None:
        (tmp_path / "engines" / "probe.py").write_text(code)

    return put


def test_on_this_machine_it_says_why_there_is_no_gpu_or_which_there_are() -> None:
    """The real thing, in a real process: never both GPUs and a problem, never neither."""
    found = probe(("tensorrt",))
    assert bool(found.gpus) != bool(found.problem)
    assert "\n" not in found.problem
    for gpu in found.gpus:
        assert gpu.name and gpu.compute_capability and gpu.memory_bytes


def test_gpus_that_are_hidden_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES counts, and an empty one hides all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = probe(())
    assert found.gpus == () and found.problem


def test_nothing_heavy_is_loaded_where_there_is_no_gpu() -> None:
    """Neither TensorRT nor PyTorch, nor ONNX Runtime: the answer comes at once."""
    code = (
        "import sys; from engines import probe; "
        "found = probe._look(['tensorrt', 'aoti']); "
        "heavy = [m for m in ('torch', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'onnx') if m in sys.modules]; "
        "print(bool(found['gpus']), heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False []"


def test_what_was_seen_comes_back_as_it_was(instead) -> None:
    """GPUs in their order with all that is known of them, flavours with their versions, and reasons."""
    answer = {
        "gpus": [GPU.to_dict(), {"name": "B", "compute_capability": "8.9"}],
        "flavours": [["tensorrt_rtx", "1.4"]],
        "problem": "",
        "reasons": {"aoti": "no PyTorch"},
    }
    instead(f"print('noise of a library')\nprint({json.dumps(json.dumps(answer))})")
    found = probe()
    assert found == Probe((GPU, Gpu("B", "8.9")), (Installed("tensorrt_rtx", "1.4"),), "", {"aoti": "no PyTorch"})
    assert found.flavour("tensorrt_rtx") == Installed("tensorrt_rtx", "1.4") and found.flavour("tensorrt") is None


def test_the_backends_asked_for_are_passed_on(instead) -> None:
    """As words of the command line."""
    instead(
        "import sys, json\nprint(json.dumps(dict(gpus=[], flavours=[], problem=' '.join(sys.argv[1:]), reasons={})))"
    )
    assert probe(("aoti",)).problem == "aoti"
    assert probe().problem == "tensorrt aoti"


def test_a_driver_that_hangs_is_a_problem_not_a_wait(instead) -> None:
    """The process is ended, and the answer says what happened."""
    instead("import time\ntime.sleep(600)")
    assert probe(timeout_s=0.5).problem == "the GPU's driver gave no answer in 0.5 s"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "(exit code -11)"),
        ("raise RuntimeError('libcuda is\\nbroken')", "(exit code 1): broken"),
        ("print('{')", "(exit code 0)"),
        ("print('{}')", "(exit code 0)"),
        ("print('null')", "(exit code 0)"),
        ('print(\'{"gpus": [{"nome": 1}], "flavours": [], "problem": "", "reasons": {}}\')', "(exit code 0)"),
        ("", "(exit code 0)"),
    ],
    ids=["crash", "exception", "cut", "empty", "null", "another release", "nothing"],
)
def test_whatever_goes_wrong_is_told_in_one_line(instead, code: str, said: str) -> None:
    """A library that crashes, or says nonsense, takes nobody with it."""
    instead(code)
    found = probe()
    assert found.gpus == () and found.problem.startswith("looking for GPUs failed") and said in found.problem
    assert "\n" not in found.problem


def test_bytes_that_are_no_text_are_told_too(instead) -> None:
    """A library may print anything before it dies."""
    instead("import os\nos.write(2, b'\\xff\\xfe broken')\nos._exit(3)")
    assert probe().problem.startswith("looking for GPUs failed (exit code 3)")
