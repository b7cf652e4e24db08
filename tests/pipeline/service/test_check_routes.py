"""What `slidestream check` says of a service: one line for each problem of a route or folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from engines.probe import Probe
from pipeline import cli
from pipeline.config import load_config
from pipeline.machine import MIB, Machine
from pipeline.service.check_routes import check_service
from tests.pipeline.test_gpus import found as gpu_there

MACHINE = Machine(4, 16 * 1024 * MIB)


def no_gpu(backends: tuple[str, ...]) -> Probe:
    raise AssertionError("nothing asks for a GPU")


def lines(folder: Path, machine: Machine = MACHINE, top: dict | None = None, **service: object) -> list[str]:
    """What is said of a configuration whose only route and folder are good, but for `service`."""
    (folder / "in").mkdir(exist_ok=True)
    values = {
        "watch": [{"path": str(folder / "in"), "routes": ["tumour"]}],
        "routes": [{"name": "tumour", "out": str(folder / "out")}],
        **service,
    }
    file = folder / "service.yaml"
    file.write_text(yaml.safe_dump({**(top or {}), "service": values}))
    return [" ".join(found) for found in check_service(load_config(file), machine, no_gpu)]


def test_a_good_service_has_a_line_for_each_route_and_folder(tmp_path: Path) -> None:
    """With the model, the engine, and where results go."""
    found = lines(tmp_path)
    assert [line.split()[0] for line in found] == ["ok", "ok"]
    assert "tumour: demo-tumour by onnx on the CPU" in found[0] and str(tmp_path / "out") in found[0]
    assert not (tmp_path / "out").exists(), "a check changes nothing"


def test_each_problem_of_each_route_has_its_line(tmp_path: Path) -> None:
    """A model that is not there, one that is another than wanted, results that cannot be written: none hides the next."""
    (tmp_path / "file").write_text("")
    routes = [
        {"name": "tumour", "out": str(tmp_path / "out")},
        {"name": "gone", "out": str(tmp_path / "b"), "model": "/nowhere"},
        {"name": "other", "out": str(tmp_path / "c"), "sha256": "0" * 64},
        {"name": "blocked", "out": str(tmp_path / "file" / "d")},
    ]
    text = "\n".join(lines(tmp_path, routes=routes))
    assert "FAIL route gone: /nowhere" in text
    assert "FAIL route other:" in text and "is another model" in text
    assert "FAIL route blocked:" in text and "is not a folder" in text
    assert "warn routes gone: no watched folder names it" in text


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    """A share may come later, so that is a warning."""
    found = lines(tmp_path, watch=[{"path": str(tmp_path / "later"), "routes": ["tumour"]}])
    assert any(line.startswith("warn watch") and "is not there yet" in line for line in found)
    assert any("no slide can come" in line for line in lines(tmp_path, watch=[]))


def test_lanes_that_do_not_fit_together(tmp_path: Path) -> None:
    """Each would fit, both do not."""
    routes = [{"name": name, "out": str(tmp_path / name)} for name in ("tumour", "second")]
    found = lines(
        tmp_path, Machine(4, 1024 * MIB), {"reader": {"workers": 2}, "inference": {"workers": 1}}, routes=routes
    )
    assert any(line.startswith("FAIL routes all lanes together") for line in found)


def test_the_command_says_it_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`slidestream check --config FILE` of a service: lines of routes among the others, exit code 2 with a FAIL."""
    lines(tmp_path, routes=[{"name": "tumour", "out": str(tmp_path / "out"), "model": "/nowhere"}])
    assert cli.main(["check", "--config", str(tmp_path / "service.yaml")]) == 2
    assert "FAIL  route        tumour: /nowhere" in capsys.readouterr().out


def test_a_missing_engine_is_not_built_by_a_service(tmp_path: Path) -> None:
    """`inference.missing: build` or not: it is refused with the command that builds it, as a lane has no slides to prove it on."""
    file = tmp_path / "service.yaml"
    inference = {"engine": "tensorrt", "missing": "build", "engines": str(tmp_path / "engines")}
    routes = [{"name": "tumour", "out": str(tmp_path / "out")}]
    file.write_text(yaml.safe_dump({"inference": inference, "service": {"routes": routes}}))
    found = [" ".join(line) for line in check_service(load_config(file), MACHINE, lambda _: gpu_there())]
    assert any(line.startswith("FAIL route tumour:") and "slidestream engine build" in line for line in found)


def test_a_spool_that_cannot_take_an_event_is_told(tmp_path: Path) -> None:
    """Else it would be a warning for each event, in the night."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "spool"):
        (found,) = [line for line in lines(tmp_path, spool={"path": str(path)}) if line.startswith("FAIL")]
        assert found.startswith(f"FAIL spool {tmp_path / 'file'} is not a folder") and "service.spool.path" in found
    assert not any(line.startswith("FAIL") for line in lines(tmp_path, spool={"path": str(tmp_path / "spool")}))
