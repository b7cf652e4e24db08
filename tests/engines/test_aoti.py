"""engines.aoti: PyTorch networks compiled ahead, on the processor here, with the cache and the proof of every engine."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `import`)")
# PyTorch traces every compilation for its developers, and pytest would keep and format all of it.
logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)

from engines import aoti_build, aoti_graph
from engines.aoti import AotiNetwork, open_aoti, translated
from engines.aoti_build import HOST, AotiMaker, pytorch_source
from engines.aoti_flavour import load_aoti
from engines.backend import fastest
from engines.cache import EngineCache, read_entry, record_verification
from engines.check import prepare
from engines.choose import Trial, check
from engines.cxx import found_by
from engines.errors import EngineError, ModelError
from engines.import_model import import_model, realistic_patches
from engines.model import load_model
from engines.onnx_engine import open_session
from tests.engines.host_device import HostDevice
from tests.engines.tiny import tiny_config, tiny_model

SIDE, BATCH = 40, 4


class Net(torch.nn.Module):
    """Convolutions with and without batch normalisation, one whose weights are shared, attention, a constant in the graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Conv2d(3, 8, 4, 4, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.shared = torch.nn.Conv2d(8, 8, 1)
        self.one, self.two = torch.nn.BatchNorm2d(8), torch.nn.BatchNorm2d(8)
        self.qkv = torch.nn.Linear(8, 24)
        self.head = torch.nn.Linear(8, 2)
        for part in (self.norm, self.one, self.two):
            torch.nn.init.uniform_(part.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)

    def forward(self, images):
        x = torch.relu(self.norm(self.first(images)))
        x = self.one(self.shared(x)) + self.two(self.shared(x))
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=3)
        x = (
            torch.nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
            + torch.arange(8, dtype=torch.float32) * 0.01
        )
        return self.head(x.mean(1)) * 3.0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model directories of Net by the kind of their source, with Resize 48 to 40 px."""
    folder = tmp_path_factory.mktemp("models")
    network = Net().eval()
    config = tiny_config(patch_px=48, resize=SIDE)
    (folder / "config.json").write_text(json.dumps(config))
    example = torch.zeros(2, 3, SIDE, SIDE)
    torch.jit.save(torch.jit.trace(network, example), folder / "net.pt")
    found = {"torchscript": import_model(folder / "net.pt", folder / "ts", config=folder / "config.json").model}
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        return found
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), folder / "net.pt2")
    model = import_model(folder / "net.pt2", folder / "ep", config=folder / "config.json").model
    return found | {"exported program": model}


@pytest.fixture(scope="module")
def built(models, tmp_path_factory):
    """An engine in fp32 for the processor, not verified yet."""
    maker = AotiMaker(EngineCache(tmp_path_factory.mktemp("engines")))
    return maker, maker.make(models["torchscript"], "fp32", BATCH, HOST)


def reference(model, patches: np.ndarray, folder: Path) -> np.ndarray:
    prepare(model, folder / "folded.onnx")
    return open_session(folder / "folded.onnx", threads=1).run(None, {"patches": patches})[0]


def copied(entry, folder: Path):
    """The same engine, unverified, in a folder where it can be changed."""
    for file in (entry.plan, entry.sidecar):
        (folder / file.name).write_bytes(file.read_bytes())
    return read_entry(folder / entry.plan.name)


def opened(entry, **options):
    return open_aoti(entry.plan, classes=2, patch_px=48, max_batch=BATCH, on=HostDevice(), **options)


@pytest.mark.parametrize("kind", ["torchscript", "exported program"])
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-5), ("fp16", 3e-3)])
def test_program(models, tmp_path, kind, precision, allowed):
    """The folded program answers as the folded ONNX graph does, in the precision asked for, whatever it came from."""
    if kind not in models:
        pytest.skip("onnxscript is not installed (the extra `import`)")
    model = models[kind]
    program = aoti_graph.folded_program(*pytorch_source(model), model, precision, 8, "cpu")
    patches = realistic_patches(8, 48)
    found = program.module()(torch.from_numpy(patches)).detach().numpy()
    assert np.abs(found - reference(model, patches, tmp_path)).max() < allowed
    census, resizing = aoti_graph.program_census(program)
    assert resizing.compute == {"fp32": 4}
    assert set(census.compute) == ({"fp32"} if precision == "fp32" else {"fp16", "fp32"})
    assert precision == "fp32" or census.compute["fp32"] == 4


def test_batch_norm_folding(models):
    """Batch normalisation goes into the convolution before it, but not where two share their weights."""
    model = models["torchscript"]
    graph = aoti_graph.network_graph(*pytorch_source(model), model)
    assert aoti_graph.fold_batch_norm(graph) == 1
    left = [node for node in graph.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
    assert len(left) == 2


def test_verified_engine_runs(models, built, tmp_path):
    """Built, refused before its verification, verified, and then run over several contexts with the reference's answers."""
    entry, model = copied(built[1], tmp_path), models["torchscript"]
    with pytest.raises(EngineError, match="never verified on CPU"):
        opened(entry)
    patches = realistic_patches(12, 48)
    expected = reference(model, patches, tmp_path)
    tried = check(entry, Trial(patches, expected, seconds=0.02), HOST, lambda e, px: opened(e, unverified=True))
    assert tried.verification.passed and tried.verification.max_difference < 1e-5 and tried.speed > 0
    engine = opened(tried.entry)
    try:
        one, two = engine.contexts(2)
        one.submit(patches[:4])
        two.submit(patches[4:7])
        assert np.abs(np.concatenate([one.result(), two.result()]) - expected[:7]).max() < 1e-5
        about = engine.describe()
        assert (about["engine"], about["precision"], about["max_batch"]) == ("aoti", "fp32", BATCH)
        json.dumps(about)
    finally:
        engine.close()


def test_a_second_build_finds_the_first(models, built):
    """What was built is not built again, and a changed option is another engine."""
    maker, entry = built
    assert maker.make(models["torchscript"], "fp32", BATCH, HOST).plan == entry.plan
    source = pytorch_source(models["torchscript"])[1]
    other = AotiMaker(maker.cache, autotune=True).identity(models["torchscript"], source, "fp32", BATCH, HOST)
    assert other.key != entry.identity.key


def test_what_is_asked_of_the_compiler_for_a_gpu(built):
    """No trial of the processor's instructions and no headers ahead; nothing that this PyTorch does not know."""
    maker, _ = built
    assert maker.configuration("cpu") == {}
    asked = maker.configuration("cuda")
    assert asked["cpp.vec_isa_ok"] is False
    with torch._inductor.config.patch(asked):  # raises for a name that there is not
        pass
    assert not aoti_build._has(torch._inductor.config, "cpp.no_such_key")
    assert AotiMaker(maker.cache, autotune=True).configuration("cuda")["max_autotune"] is True


def test_a_compiler_without_the_shared_libstdcxx(models, tmp_path, monkeypatch):
    """The package shares the process's C++ library nevertheless, so that a new process can load it; and it gives its answers."""
    real = shutil.which("g++") or pytest.skip("there is no g++")
    archive = Path(found_by(real)("libstdc++.a"))
    if not archive.is_absolute():
        pytest.skip("there is no libstdc++.a")
    only = tmp_path / "only"
    only.mkdir()
    (only / archive.name).symlink_to(archive)
    compiler = tmp_path / "g++"
    compiler.write_text(
        f"#!/bin/sh\ncase \"$*\" in -print-file-name=libstdc++.so) echo libstdc++.so; exit;; esac\nexec {real} \"$@\" -L{only}\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # nothing that another compiler linked
    maker = AotiMaker(EngineCache(tmp_path / "engines"))
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}):
        entry = maker.make(models["torchscript"], "fp32", BATCH, HOST)
    code = (
        "import sys, torch; network = torch._inductor.aoti_load_package(sys.argv[1], run_single_threaded=True); "
        f"print(network(torch.zeros({BATCH}, 48, 48, 3, dtype=torch.uint8)).shape)"
    )
    package = tmp_path / "network.pt2"
    package.symlink_to(entry.plan)
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"torch.Size([{BATCH}, 2])"


def test_without_a_compiler_a_build_says_so(models, tmp_path):
    """In one line, with what to do."""
    maker = AotiMaker(EngineCache(tmp_path))
    without = torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with without, pytest.raises(EngineError, match="needs a C\\+\\+ compiler: .*install g"):
        maker.make(models["torchscript"], "fp32", BATCH, HOST)


def test_a_long_build_is_not_silent(monkeypatch):
    """What it is doing, at once, and then how long it has been at it; never after its end."""
    said = []
    monkeypatch.setattr(aoti_build, "_EVERY_S", 0.02)
    with pytest.raises(ZeroDivisionError), aoti_build._patience(said.append, "compiling"):
        time.sleep(0.1)
        1 / 0  # noqa: B018 (whatever ends the build)
    count = len(said)
    assert said[0] == "compiling ..." and said[1].startswith("compiling: 0 s") and count >= 3
    time.sleep(0.05)
    assert len(said) == count


def test_sidecar(built):
    """The sidecar names the flavour, PyTorch's version, the processor, one shape, and what computes in what."""
    record = built[1].record
    identity = record["identity"]
    assert (identity["flavour"], identity["flavour_version"]) == ("aoti", torch.__version__)
    assert identity["target"] == str(HOST)
    assert identity["profiles"] == [{"patch_px": 48, "minimum": 1, "optimum": BATCH, "maximum": BATCH}]
    assert set(record["census"]["compute"]) == {"fp32"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"classes": 3}, "is of 2 classes, the model of 3"),
        ({"patch_px": 64}, "is of 48 px a patch, the model of 64"),
        ({"max_batch": 64}, "batches of up to 4, batcher.batch is 64"),
    ],
)
def test_misfits(built, options, problem):
    """An engine of something else is refused with both values."""
    wanted = {"classes": 2, "patch_px": 48, "max_batch": BATCH, **options}
    with pytest.raises(EngineError, match=problem):
        open_aoti(built[1].plan, unverified=True, on=HostDevice(), **wanted)


def test_another_version(built, tmp_path):
    """A package of another PyTorch is refused before it is loaded, naming both versions."""
    entry = copied(built[1], tmp_path)
    entry.record["identity"]["flavour_version"] = "2.0.0"
    entry.sidecar.write_text(json.dumps(entry.record))
    with pytest.raises(EngineError, match=f"built by aoti 2.0.0, here is {re.escape(torch.__version__)}"):
        opened(entry, unverified=True)


def test_damage(built, tmp_path):
    """One changed byte is found before PyTorch sees the package."""
    entry = copied(built[1], tmp_path)
    data = bytearray(entry.plan.read_bytes())
    data[len(data) // 2] ^= 1
    entry.plan.write_bytes(bytes(data))
    with pytest.raises(EngineError, match="is damaged"):
        opened(entry, unverified=True)


def test_onnx_alone(tmp_path):
    """A model directory without a PyTorch network is refused, and the message says what to do."""
    model = load_model(tiny_model(tmp_path / "model"))
    with pytest.raises(ModelError, match="holds ONNX alone; backend aoti needs the PyTorch source.*model import"):
        pytorch_source(model)


def test_int8(models, tmp_path):
    """INT8 is refused by name."""
    with pytest.raises(EngineError, match="fp16 and fp32, not int8"):
        AotiMaker(EngineCache(tmp_path)).make(models["torchscript"], "int8", BATCH, HOST)


def test_precision_is_chosen(models, built, tmp_path, monkeypatch):
    """The first precision that is right, with the reasons in its sidecar; where none is, that is the answer."""
    maker, entry = built
    monkeypatch.setattr(maker, "make", lambda model, precision, *rest, **_: copied(entry, tmp_path))
    patches = realistic_patches(12, 48)
    trial = Trial(patches, reference(models["torchscript"], patches, tmp_path), seconds=0.02)
    tried = (models["torchscript"], BATCH, HOST)
    best, reasons = maker.choose(*tried, trial, lambda e, px: opened(e, unverified=True))
    assert reasons[-1] == "chosen: fp16" and best.record["choice"]["reasons"] == reasons
    wrong = Trial(patches, 1.0 - trial.reference, seconds=0.02)
    with pytest.raises(EngineError, match="no engine is right: fp16: .*; fp32: "):
        maker.choose(*tried, wrong, lambda e, px: opened(e, unverified=True))


def test_a_precision_that_cannot_be_built_is_passed_over(models, built, tmp_path, monkeypatch):
    """With its reason; a GPU that is lost is no reason to go on."""
    maker, entry = built

    def make(model, precision, *rest, **_):
        if precision == "fp16":
            raise failure
        return copied(entry, tmp_path)

    monkeypatch.setattr(maker, "make", make)
    patches = realistic_patches(12, 48)
    trial = Trial(patches, reference(models["torchscript"], patches, tmp_path), seconds=0.02)
    tried = (models["torchscript"], BATCH, HOST, trial, lambda e, px: opened(e, unverified=True))
    failure = ModelError("network.pt", "cannot be made an engine of fp16")
    _, reasons = maker.choose(*tried)
    assert reasons[0].startswith("fp16: network.pt: cannot be made") and reasons[-1] == "chosen: fp32"
    failure = EngineError("cudaErrorIllegalAddress", fatal=True)
    with pytest.raises(EngineError, match="IllegalAddress"):
        maker.choose(*tried)


def test_lack_of_memory_for_the_package_says_how_much(built, monkeypatch):
    """What its weights need and what is free: another build would not help."""
    _, entry = built

    def full(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCpu", full)
    with pytest.raises(EngineError, match=r"out of memory: .* need some \d+ MiB of GPU memory, 8192 MiB are free"):
        opened(entry, unverified=True)


def test_fastest(built, tmp_path):
    """Of verified engines the fastest that is right is taken, and why is in its sidecar."""
    entry = record_verification(copied(built[1], tmp_path), HOST, {"passed": True, "patches_per_s": 5.0, "loss": 0.0})
    best, reasons = fastest([entry], HOST)
    assert best.record["choice"]["backend"] == "aoti" and "5 patches/s" in reasons[0]
    wrong = record_verification(entry, HOST, {"passed": False, "reason": "NaN", "loss": None})
    with pytest.raises(EngineError, match="no engine is right.*NaN"):
        fastest([wrong], HOST)


def test_errors_of_the_device():
    """Lack of memory leaves the process alive, an error of CUDA does not."""
    assert not translated(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "x").fatal
    assert translated(RuntimeError("CUDA error: an illegal memory access"), "x").fatal
    assert not translated(ValueError("shape"), "x").fatal


def test_views_are_not_copies(built):
    """A context's buffers are seen by PyTorch, not copied."""
    entry = built[1]
    network = AotiNetwork(entry, entry.identity, load_aoti(), BATCH, device=0, cuda_graphs=True)
    memory = np.zeros(6, np.float32)
    network.view(memory.ctypes.data, (2, 3), torch.float32)[1, 0] = 7.0
    assert memory[3] == 7.0 and not network.cuda_graphs


def test_nothing_is_left_in_the_temporary_folder(built, tmp_path, monkeypatch):
    """What was unpacked is gone once the contexts are warm, so a killed process leaves nothing; nor is anything elsewhere."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    maps = Path("/proc/self/maps")
    others = set(maps.read_text().splitlines())
    engine = opened(built[1], unverified=True)
    assert list(tmp_path.iterdir())
    code = [line for line in maps.read_text().splitlines() if ".wrapper.so" in line and line not in others]
    assert code and all(f"{tmp_path}/slidestream-" in line for line in code)
    engine.contexts(1)
    assert not list(tmp_path.iterdir())
    engine.close()


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"network/data/aotinductor/model/a.wrapper.so": b"no code"}, "cannot be loaded"),
        ({"network/data/aotinductor/model/a.cubin": b""}, "holds 0 compiled networks, not one; build it again"),
        (None, "cannot be loaded: File is not a zip file"),
    ],
)
def test_a_package_that_cannot_be_loaded_leaves_nothing(built, tmp_path, monkeypatch, files, problem):
    """One line, and an empty temporary folder."""
    entry = copied(built[1], tmp_path)
    if files is None:
        entry.plan.write_bytes(b"PK nonsense")
    else:
        with zipfile.ZipFile(entry.plan, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    monkeypatch.setattr("engines.cache.Entry.read_plan", lambda entry: b"")  # which would tell that it was changed
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with pytest.raises(EngineError, match=problem):
        AotiNetwork(entry, built[1].identity, load_aoti(), BATCH, device=0, cuda_graphs=False)
    assert not list(temporary.iterdir())


def test_a_pytorch_that_is_too_old_is_refused(monkeypatch):
    """With both versions; 2.10 is later than 2.9."""
    monkeypatch.setattr(torch, "__version__", "2.8.0+cu128")
    with pytest.raises(EngineError, match=r"wants PyTorch 2\.9 or later, here is 2\.8\.0\+cu128"):
        load_aoti()
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    assert load_aoti().version == "2.10.0"


def test_a_package_of_another_recipe_is_not_loaded(built, tmp_path):
    """It was compiled in a way that was found wanting."""
    entry = copied(built[1], tmp_path)
    record = json.loads(entry.sidecar.read_text())
    record["identity"]["recipe"] = "aoti-1"
    entry.sidecar.write_text(json.dumps(record))
    with pytest.raises(EngineError, match="made by the recipe aoti-1, now it is aoti-2; build it again"):
        opened(read_entry(entry.plan), unverified=True)


def test_a_package_is_loaded_without_pytorchs_compiler(built):
    """Importing that takes seconds, and it would try out the processor's vector instructions, which takes a minute."""
    script = """if True:
        import sys
        from tests.engines.test_aoti import opened, read_entry
        before = set(sys.modules)
        opened(read_entry(__import__("pathlib").Path(sys.argv[1])), unverified=True).contexts(1)
        print(*(name for name in set(sys.modules) - before if "_inductor" in name or "_dynamo" in name))
    """
    told = subprocess.run([sys.executable, "-c", script, built[1].plan], capture_output=True, text=True, check=True)
    assert not told.stdout.split()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
def test_on_a_gpu(models, tmp_path):
    """On a GPU: FP16, built and verified, two contexts with a CUDA graph each, batches of any size, right answers."""
    from engines.cuda import Cuda

    device, model = Cuda(), models["torchscript"]
    gpu = device.gpu
    device.close()
    patches = realistic_patches(12, 48)
    expected = reference(model, patches, tmp_path)

    def on_gpu(entry, **options):
        return open_aoti(entry.plan, classes=2, patch_px=48, max_batch=BATCH, **options)

    entry = AotiMaker(EngineCache(tmp_path / "engines")).make(model, "fp16", BATCH, gpu)
    tried = check(entry, Trial(patches, expected, seconds=0.1), gpu, lambda e, px: on_gpu(e, unverified=True))
    assert tried.verification.passed and tried.verification.max_difference < 3e-3
    engine = on_gpu(tried.entry)
    try:
        one, two = engine.contexts(2)
        for start in (0, 3, 5):
            one.submit(patches[start : start + 4])
            two.submit(patches[start + 4 : start + 6])
            found = np.concatenate([one.result(), two.result()])
            assert np.abs(found - expected[start : start + 6]).max() < 3e-3
        assert engine.describe()["cuda_graphs"]
    finally:
        engine.close()
