"""`slidestream engine build`: backends, options, what is refused, and Ctrl-C."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from PIL import Image

from engines import backend as backend_module
from engines import cuda as cuda_module
from engines import flavour as flavour_module
from engines.aoti_flavour import FLAVOUR as AOTI
from engines.cache import EngineCache, Entry, record_verification
from engines.errors import EngineError, ModelError
from engines.gpu_engine import GpuEngine
from pipeline import engine_build, engine_trial
from pipeline.config import ConfigError
from pipeline.engine_command import add_parser
from pipeline.engine_trial import opened
from tests.engines.fake_gpu import GPU, FakeDevice, FakeNetwork
from tests.engines.nets import FREE, SIDE, convolutions, deep, flavour, folded, mixed, noise
from tests.engines.test_cache import BUILT, FULL, RTX, make_identity
from tests.engines.tiny import tiny_config

VERIFIED = {
    "passed": True, "reason": "", "bound": 0.005, "loss": 0.001, "patches": 300, "max_difference": 0.01,
    "mean_difference": 0.001, "flips": 0, "sizes": [{"patch_px": 224, "batch": 128, "context_mib": 70}],
}  # fmt: skip


def parsed(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["engine", "build", *map(str, arguments)])


def build(*arguments: object) -> int:
    args = parsed(*arguments)
    return args.command(args)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> EngineCache:
    monkeypatch.setenv("SLIDESTREAM_ENGINES", str(tmp_path / "engines"))
    return EngineCache()


@pytest.fixture
def gpu(monkeypatch) -> None:
    """As if there were one."""
    monkeypatch.setattr(cuda_module, "find_gpu", lambda device=0: GPU)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "aoti", "--for", "8.6"), "--for: aoti packages are for the GPU that they are built on"),
        (("--backend", "aoti", "--precision", "int8"), "int8: backend aoti builds fp16 and fp32"),
        (("--backend", "aoti", "--level", "5"), "--level: backend aoti has no such option"),
        (("--backend", "aoti", "--timing-iterations", "8"), "--timing-iterations: backend aoti has no"),
        (("--backend", "aoti", "--tf32"), "--tf32: backend aoti has no such option"),
        (("--backend", "aoti", "--patch", "32,64"), "--patch: packages of aoti are for one size"),
        (("--autotune",), "--autotune: backend tensorrt has no such option"),
        (("--backend", "auto", "--for", "8.6"), "--for: --backend auto measures"),
        (("--backend", "auto", "--precision", "fp16"), "--backend auto measures: it needs this machine's GPU"),
    ],
)
def test_options_that_do_not_go_together(cache: EngineCache, tmp_path: Path, arguments, words: str) -> None:
    """Told before anything is loaded or built."""
    with pytest.raises(ConfigError, match=words):
        build(mixed(tmp_path / "model"), *arguments)
    assert cache.entries() == []


def test_without_a_gpu_the_reason_is_told(cache: EngineCache, tmp_path: Path, monkeypatch) -> None:
    """Such as a package that is not installed, for every backend that needs one."""
    flavour()

    def lacks() -> Any:
        raise EngineError("cuda-python cannot be loaded")

    monkeypatch.setattr(cuda_module, "load_runtime", lacks)
    model = mixed(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"needs this machine's GPU \(cuda-python cannot be loaded\)"):
        build(model, "--backend", "auto", "--verify-on", tmp_path)
    with pytest.raises(ConfigError, match=r"--precision auto .*GPU \(cuda-python cannot be loaded\)"):
        build(model, "--verify-on", tmp_path)
    monkeypatch.setattr(flavour_module, "load_flavour", lambda name=None: FULL)
    with pytest.raises(EngineError, match=r"tensorrt builds on a GPU.*cuda-python cannot be loaded"):
        build(model, "--precision", "fp16")


def test_aoti_wants_the_pytorch_network(cache: EngineCache, tmp_path: Path) -> None:
    """A model of ONNX alone is refused with what to do, whether or not PyTorch is installed."""
    with pytest.raises(ModelError, match="holds ONNX alone.*slidestream model import"):
        build(mixed(tmp_path / "model"), "--backend", "aoti", "--precision", "fp16")


def test_tensorrt_wants_onnx(cache: EngineCache, tmp_path: Path) -> None:
    """A model of a PyTorch network alone is refused before any slide is looked at."""
    model = mixed(tmp_path / "model")
    (model / "model.onnx").rename(model / "torchscript_model.pt")
    with pytest.raises(ModelError, match=r"model\.onnx: no such file, torchscript_model\.pt alone"):
        build(model, "--backend", "tensorrt", "--precision", "int8", "--calibrate", str(tmp_path / "nowhere.svs"))


def test_aoti_wants_a_gpu(cache: EngineCache, tmp_path: Path, monkeypatch) -> None:
    """Its packages are for the GPU at hand."""
    monkeypatch.setattr(cuda_module, "find_gpu", lambda device=0: None)
    model = mixed(tmp_path / "model")
    with zipfile.ZipFile(model / "torchscript_model.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(EngineError, match="aoti builds for the GPU at hand, and there is none"):
        build(model, "--backend", "aoti", "--precision", "fp16")


def test_builder_options_are_in_the_identity(cache: EngineCache, tmp_path: Path) -> None:
    """What was not said is the builder's default."""
    if not flavour().portable:
        pytest.skip("builds only where there is a GPU")
    model = mixed(tmp_path / "model")
    assert build(model, "--precision", "fp32", "--level", 1, "--aux-streams", 0, "--workspace", 64) == 0
    (entry,) = cache.entries()
    options = entry.identity.options
    assert (options["optimization_level"], options["aux_streams"], options["workspace_mib"]) == (1, 0, 64)
    assert (options["timing_iterations"], options["tf32"]) == (4, False)


def test_builder_options_of_the_configuration(cache: EngineCache, tmp_path: Path) -> None:
    """They are a site's own; the command line goes before, also with a nought."""
    if not flavour().portable:
        pytest.skip("builds only where there is a GPU")
    config = tmp_path / "site.yaml"
    config.write_text("inference:\n  build:\n    level: 2\n    timing_iterations: 8\n    aux_streams: 1\n")
    command = ("--precision", "fp32", "--config", config, "--set", "inference.build.workspace_mib=64")
    assert build(mixed(tmp_path / "model"), *command, "--level", 0, "--aux-streams", 0) == 0
    (entry,) = cache.entries()
    names = ("optimization_level", "timing_iterations", "aux_streams", "workspace_mib")
    assert [entry.identity.options[name] for name in names] == [0, 8, 0, 64]


def test_several_patch_sizes(cache: EngineCache, tmp_path: Path) -> None:
    """Where the network takes any size; one that does not is refused before the build."""
    if not flavour().portable:
        pytest.skip("builds only where there is a GPU")
    options = ("--precision", "fp16", "--patch", "32,64", "--batch", "1/2/4", "--for", "8.6")
    assert build(convolutions(tmp_path / "any", FREE), *options) == 0
    (entry,) = cache.entries()
    assert [profile["patch_px"] for profile in entry.identity.profiles] == [32, 64]
    assert "32px-64px" in entry.plan.name
    with pytest.raises(ModelError, match="takes patches of one size"):
        build(convolutions(tmp_path / "one"), *options)


@pytest.mark.parametrize("how", [("--patch", "64"), ("--set", "inference.patch_px=64")])
def test_another_patch_size_alone(cache: EngineCache, tmp_path: Path, how: tuple[str, str]) -> None:
    """Of the model that is 32 px: as a run at that size asks for it, beside the engine of its own."""
    if not flavour().portable:
        pytest.skip("builds only where there is a GPU")
    model = convolutions(tmp_path / "any", FREE)
    options = ("--precision", "fp16", "--batch", "4", "--for", "8.6")
    assert build(model, *options) == 0 and build(model, *options, *how) == 0
    assert sorted(entry.identity.profiles[0]["patch_px"] for entry in cache.entries()) == [32, 64]
    with pytest.raises(ModelError, match="the network takes patches of one size, not 64 px too"):
        build(convolutions(tmp_path / "one"), *options, *how)


def labelled(folder: Path) -> Path:
    """Twenty pictures of each label."""
    for index, patch in enumerate(noise(40)):
        place = folder / ("class 0", "class 1")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patch).save(place / f"{index}.png")
    return folder


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_a_precision_is_chosen(
    cache: EngineCache, gpu: None, tmp_path: Path, capsys, monkeypatch, backend: str
) -> None:
    """Sampled, built by TensorRT, verified, timed, chosen: all for real but the GPU, on which ONNX Runtime computes."""
    if not flavour().portable:
        pytest.skip("builds only where there is a GPU")
    model = mixed(tmp_path / "model")
    session = ort.InferenceSession(folded(model).SerializeToString(), providers=["CPUExecutionProvider"])
    asked: list[int] = []

    def answering(entry: Entry, patch_px: int) -> GpuEngine:
        asked.append(patch_px)
        device = FakeDevice()
        network = FakeNetwork(device, lambda patches: session.run(None, {"patches": patches})[0], patch_px=patch_px)
        return GpuEngine("fake", device, network, classes=2, patch_px=patch_px, max_batch=8)

    monkeypatch.setattr(engine_trial, "opened", answering)
    command = ("--backend", backend, "--batch", "1/4/8", "--labelled", labelled(tmp_path / "labelled"))
    assert build(model, *command) == 0
    (entry,) = cache.entries()
    captured = capsys.readouterr()
    assert captured.out.strip() == str(entry.plan) and entry.identity.precision == "fp16" and asked == [SIDE]
    found = entry.verification(GPU)
    assert found["passed"] and found["labelled"] == 40 and found["auc"] is not None and found["patches_per_s"] > 0
    reasons = entry.record["choice"]["reasons"]
    assert any("int8: not tried" in reason for reason in reasons) and "chosen: " in reasons[-1]
    assert "batches of up to 8" in captured.err and "verified: loss" in captured.err
    # Without PyTorch, or because the model has no PyTorch network: either is told.
    assert backend != "auto" or any(reason.startswith("aoti: ") for reason in reasons)


def test_aoti_by_command(cache: EngineCache, tmp_path: Path, capsys, monkeypatch) -> None:
    """A model imported from PyTorch, compiled, verified, timed and chosen for real: for the processor instead of a GPU."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `import`)")
    from engines.aoti import open_aoti
    from engines.aoti_build import HOST
    from engines.import_model import import_model
    from tests.engines.host_device import HostDevice

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 2),
    )
    torch.jit.save(torch.jit.trace(network.eval(), torch.zeros(2, 3, SIDE, SIDE)), tmp_path / "net.pt")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(classes=("class 0", "class 1"), patch_px=SIDE)))
    model = import_model(tmp_path / "net.pt", tmp_path / "model", config=tmp_path / "config.json").model
    monkeypatch.setattr(cuda_module, "find_gpu", lambda device=0: HOST)

    def on_host(entry: Entry, patch_px: int) -> GpuEngine:
        options = {"classes": 2, "patch_px": patch_px, "max_batch": 4, "unverified": True}
        return open_aoti(entry.plan, on=HostDevice(), **options)

    monkeypatch.setattr(engine_trial, "opened", on_host)
    command = ("--backend", "aoti", "--batch", "1/4/4", "--labelled", labelled(tmp_path / "labelled"))
    assert build(model.directory, *command) == 0
    (entry,) = cache.entries()
    assert capsys.readouterr().out.strip() == str(entry.plan)
    assert (entry.identity.flavour, entry.identity.precision) == (AOTI, "fp16")
    assert entry.verification(HOST)["passed"] and entry.record["choice"]["reasons"][-1] == "chosen: fp16"


class Shelf:
    """Backends that put an engine into the cache, verified at some speed, instead of building one."""

    def __init__(self, cache: EngineCache, monkeypatch) -> None:
        self.cache = cache
        self.speeds: dict[str, float] = {}
        self.problems: dict[str, EngineError] = {}
        self.lacking: dict[str, str] = {}
        makers = {name: lambda job, name=name: self.make(name) for name in ("tensorrt", AOTI)}
        monkeypatch.setattr(engine_build, "_BUILDERS", makers)
        monkeypatch.setattr(backend_module, "installed", lambda: {name: self.lacking.get(name, "") for name in makers})

    def make(self, name: str) -> tuple[Entry, list[str]]:
        if problem := self.problems.get(name):
            raise problem
        entry = self.cache.put(name, make_identity(RTX, precision="fp16" if name == AOTI else "fp32"), BUILT, GPU)
        found: dict[str, Any] = {**VERIFIED, "patches_per_s": self.speeds[name]}
        return record_verification(entry, GPU, found), [f"tried on {name}"]


@pytest.fixture
def shelf(cache: EngineCache, gpu: None, monkeypatch) -> Shelf:
    return Shelf(cache, monkeypatch)


def auto(tmp_path: Path, *arguments: str) -> int:
    return build(mixed(tmp_path / "model"), "--backend", "auto", "--verify-on", tmp_path, *arguments)


def test_auto_takes_the_fastest(shelf: Shelf, tmp_path: Path, capsys) -> None:
    """Of all that is installed; why is printed, and kept in the sidecar with what each backend said before."""
    shelf.speeds = {"tensorrt": 18000.0, AOTI: 24000.0}
    assert auto(tmp_path) == 0
    captured = capsys.readouterr()
    assert Path(captured.out.strip()).name.startswith("aoti-")
    assert "18,000 patches/s" in captured.err and "24,000 patches/s" in captured.err
    assert "224 px, batches of up to 128: 70 MiB" in captured.err
    (chosen,) = [entry for entry in shelf.cache.entries() if "choice" in entry.record]
    reasons = chosen.record["choice"]["reasons"]
    assert reasons[0] == "tensorrt: tried on tensorrt" and reasons[-1].startswith("chosen: ")


def test_auto_goes_on_without_what_is_not_there(shelf: Shelf, tmp_path: Path, capsys) -> None:
    """A backend that is not installed, or cannot build this model, is told and left out."""
    shelf.speeds = {"tensorrt": 18000.0}
    shelf.problems = {AOTI: EngineError("holds ONNX alone")}
    assert auto(tmp_path) == 0
    assert "aoti: holds ONNX alone" in capsys.readouterr().err
    shelf.lacking = {"tensorrt": "TensorRT cannot be loaded"}
    with pytest.raises(EngineError, match="no engine could be built: tensorrt: TensorRT cannot .*aoti: holds ONNX"):
        auto(tmp_path)


def test_auto_leaves_aoti_out_for_int8(shelf: Shelf, tmp_path: Path, capsys) -> None:
    """Which it does not have."""
    shelf.speeds = {"tensorrt": 18000.0, AOTI: 24000.0}
    assert auto(tmp_path, "--precision", "int8") == 0
    assert Path(capsys.readouterr().out.strip()).name.startswith("tensorrt-")


def test_a_lost_gpu_ends_auto(shelf: Shelf, tmp_path: Path) -> None:
    """Nothing that is measured afterwards would mean anything."""
    shelf.problems = {"tensorrt": EngineError("cudaErrorIllegalAddress", fatal=True)}
    shelf.speeds = {AOTI: 24000.0}
    with pytest.raises(EngineError, match="IllegalAddress"):
        auto(tmp_path)


def test_an_engine_that_is_not_right_gives_no_path(shelf: Shelf, tmp_path: Path, capsys, monkeypatch) -> None:
    """Exit code 1, and nothing on standard output that a script could take for an engine."""
    entry = shelf.cache.put("mine", make_identity(RTX), BUILT, GPU)
    bad = {**VERIFIED, "passed": False, "loss": 0.1, "reason": "its loss is 10.000%, more than 0.500%"}
    monkeypatch.setattr(engine_build, "_BUILDERS", {"tensorrt": lambda job: (record_verification(entry, GPU, bad), [])})
    assert build(mixed(tmp_path / "model"), "--precision", "fp16", "--verify-on", tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "NOT RIGHT: loss 10.000%" in captured.err


@pytest.mark.parametrize("name", ["tensorrt", AOTI])
def test_engines_are_opened_by_the_backend_that_built_them(cache: EngineCache, tmp_path: Path, name: str) -> None:
    """Verification opens packages of AOTInductor too; here neither has a GPU, or is not even installed."""
    release = RTX if name == "tensorrt" else RTX.__class__(AOTI, "2.6", None)
    entry = cache.put("mine", make_identity(release), BUILT, GPU)
    with pytest.raises(
        EngineError, match="TensorRT|cuda-python|GPU" if name == "tensorrt" else "PyTorch|cuda-python|GPU"
    ):
        opened(entry, 224)


def test_ctrl_c_cancels_a_build(tmp_path: Path, root: Path) -> None:
    """A real process in a real build: one line, exit code 75, nothing in the cache, and no traceback."""
    if not flavour().portable:
        pytest.skip("builds only where there is a GPU")
    model, folder = deep(tmp_path / "model", 300), tmp_path / "engines"
    command = [sys.executable, "-m", "pipeline.cli", "engine", "build", model, "--precision", "fp32"]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    # A shell that runs the tests in its background has them ignore the signal, which a child would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*map(str, command), "--engines", str(folder)], stderr=subprocess.PIPE, text=True, cwd=root, env=environment
    )
    signal.signal(signal.SIGINT, before)
    try:
        for line in process.stderr:
            if line.startswith("profile"):  # the next thing is the builder
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, rest
    assert rest.splitlines()[-1] == "slidestream: the build was canceled; no engine was kept"
    assert "Traceback" not in rest and "built in" not in rest
    assert [path.name for path in folder.rglob("*")] == []
