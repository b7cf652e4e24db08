"""engines.import_model: networks of every kind become model directories that answer as the network itself does."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.check import check_model
from engines.errors import ModelError
from engines.import_model import BOUND, import_model, prepared, realistic_patches
from engines.model import load_model
from engines.torch_source import ONNX, kind_of
from tests.engines.tiny import expected, tiny_config, tiny_model, weights

SIDE = 64


@pytest.fixture(scope="module")
def torch():
    """PyTorch, which is in an extra; skips the test where it is absent."""
    found = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `import`)")
    logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)  # or pytest keeps what is for PyTorch's developers
    return found


def tiny_network(torch):
    """The network of tests.engines.tiny in PyTorch."""
    conv, conv_bias, gemm, gemm_bias = (torch.from_numpy(value) for value in weights(2))

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, conv.shape[0], conv.shape[2], conv.shape[2])
            self.head = torch.nn.Linear(*gemm.shape)
            with torch.no_grad():
                self.conv.weight.copy_(conv)
                self.conv.bias.copy_(conv_bias)
                self.head.weight.copy_(gemm.T)
                self.head.bias.copy_(gemm_bias)

        def forward(self, images):
            return self.head(torch.relu(self.conv(images)).mean((2, 3)))

    return Tiny().eval()


def wsinfer_folder(torch, folder: Path, network=None, **config) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny_config(**config)))
    side = config.get("resize") or config.get("patch_px", SIDE)
    torch.jit.save(
        torch.jit.trace(network or tiny_network(torch), torch.zeros(1, 3, side, side)), folder / "torchscript_model.pt"
    )
    return folder


def exported(torch, path: Path, network=None, *, free: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},) if free else None
    program = torch.export.export(
        network or tiny_network(torch), (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=shapes
    )
    torch.export.save(program, path)
    return path


def keys(**more) -> dict:
    config = tiny_config()
    del config["spec_version"]
    return {**config, **more}


def answers(directory: Path, patches: np.ndarray, tmp_path: Path) -> np.ndarray:
    from engines.check import prepare
    from engines.onnx_engine import open_session

    prepare(load_model(directory), tmp_path / "folded.onnx")
    return open_session(tmp_path / "folded.onnx", threads=1).run(None, {"patches": patches})[0]


def test_wsinfer_folder(torch, tmp_path):
    """A WSInfer folder becomes a model directory with config.json unchanged, the answers of plain numpy, and opset 17."""
    source = wsinfer_folder(torch, tmp_path / "source")
    found = import_model(source, tmp_path / "out")
    assert (found.kind, found.opset, found.source_file) == ("torchscript", 17, "torchscript_model.pt")
    assert (tmp_path / "out/config.json").read_bytes() == (source / "config.json").read_bytes()
    assert found.max_difference <= BOUND and found.patches == 8
    patches = realistic_patches(5, SIDE)
    assert np.abs(answers(tmp_path / "out", patches, tmp_path) - expected(patches)).max() < 1e-5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.onnx", "torchscript_model.pt"]


def test_scripted_module_with_resize(torch, tmp_path):
    """A scripted (not traced) module and a Resize are compared with Pillow's resizing, to the bound."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config(patch_px=100, resize=SIDE)))
    torch.jit.save(torch.jit.script(tiny_network(torch)), folder / "torchscript_model.pt")
    found = import_model(folder, tmp_path / "out", keep_source=False)
    assert found.max_difference <= BOUND
    assert not (tmp_path / "out/torchscript_model.pt").exists()


def test_exported_program(torch, tmp_path):
    """A torch.export program with the keys of config.json given becomes a model directory of opset 18."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra `import`)")
    found = import_model(exported(torch, tmp_path / "net.pt2"), tmp_path / "out", keys=keys())
    assert (found.kind, found.opset, found.source_file) == ("exported program", 18, "exported_model.pt2")
    patches = realistic_patches(3, SIDE)
    assert np.abs(answers(tmp_path / "out", patches, tmp_path) - expected(patches)).max() < 1e-5


def test_exported_program_with_a_fixed_batch(torch, tmp_path):
    """A program that was exported for one batch size is refused with the way out, and leaves nothing behind."""
    source = exported(torch, tmp_path / "net.pt2", free=False)
    with pytest.raises(ModelError, match="dynamic batch axis"):
        import_model(source, tmp_path / "out", keys=keys())
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


def inexpressible(torch):
    """A network that ONNX has no operator for."""

    class Gamma(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_network(torch)

        def forward(self, images):
            return self.inner(torch.lgamma(images.abs() + 1.0))

    return Gamma().eval()


def test_a_network_that_onnx_cannot_express(torch, tmp_path, capfd):
    """It is refused with the way out; with it, it is a model without ONNX that answers as its source does."""
    source = wsinfer_folder(torch, tmp_path / "source", inexpressible(torch))
    with pytest.raises(ModelError, match="cannot be exported to ONNX: .*lgamma.*; with --no-onnx"):
        import_model(source, tmp_path / "out")
    assert "lgamma" not in "".join(capfd.readouterr())  # which PyTorch would print with all the rest
    found = import_model(source, tmp_path / "out", export=False, keep_source=False)
    assert (found.kind, found.opset, found.source_file) == ("torchscript", 0, "torchscript_model.pt")
    assert found.max_difference <= BOUND
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "torchscript_model.pt"]
    check_model(found.model)


def test_without_onnx_the_network_is_proven_too(torch, tmp_path):
    """It runs, and gives as many classes as config.json says."""
    config = tiny_config(classes=("a", "b", "c"))
    source = wsinfer_folder(torch, tmp_path / "source")
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="num_classes says 3 classes, but torchscript_model.pt gives 2"):
        import_model(source, tmp_path / "out", export=False)
    assert not (tmp_path / "out").exists()


def test_without_onnx_another_patch_size_is_tried_too(torch, tmp_path):
    """A program that was exported for one size says so, with what to do."""
    found = import_model(exported(torch, tmp_path / "net.pt2"), tmp_path / "out", keys=keys(), export=False)
    with pytest.raises(ModelError, match="does not take patches of 128 px: .*use its own 64 px"):
        check_model(found.model.at(128))


def test_the_kind_of_a_network_is_told_by_its_contents(torch, tmp_path):
    """Not by its name."""
    found = import_model(exported(torch, tmp_path / "net.pt2"), tmp_path / "out", keys=keys(), export=False)
    (tmp_path / "out/exported_model.pt2").rename(tmp_path / "out/torchscript_model.pt")
    check_model(load_model(found.model.directory))


def test_onnx_without_onnx(tmp_path):
    """Makes no sense."""
    with pytest.raises(ModelError, match="leave out --no-onnx"):
        import_model(tiny_model(tmp_path / "model") / "model.onnx", tmp_path / "out", keys=keys(), export=False)


def test_training_mode(torch, tmp_path):
    """A program that was exported with its dropout at work is refused."""
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), tiny_network(torch)).train()
    source = exported(torch, tmp_path / "net.pt2", network)
    with pytest.raises(ModelError, match="training mode"):
        import_model(source, tmp_path / "out", keys=keys())


def test_pickles_are_refused(torch, tmp_path):
    """A file of torch.save, which could run code, is never loaded, and the message says how to save it."""
    torch.save(tiny_network(torch).state_dict(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match="could run any code.*torch.export.save"):
        import_model(tmp_path / "net.pt", tmp_path / "out", keys=keys())


def test_output_that_is_no_tensor(torch, tmp_path):
    """A network that gives two tensors is refused by name of what it gave."""

    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_network(torch)

        def forward(self, images):
            return self.inner(images), images

    source = wsinfer_folder(torch, tmp_path / "source", Pair().eval())
    with pytest.raises(ModelError, match="gives tuple, not one tensor"):
        import_model(source, tmp_path / "out")


def test_half_precision(torch, tmp_path):
    """A network in float16 keeps its precision, and is compared with the bound for it."""
    source = wsinfer_folder(torch, tmp_path / "source")
    torch.jit.save(torch.jit.script(tiny_network(torch).half()), source / "torchscript_model.pt")
    found = import_model(source, tmp_path / "out")
    assert 0 < found.max_difference <= found.bound == 5e-3


def test_too_few_classes(torch, tmp_path):
    """A config.json that names another number of classes is told of the directory that was to be made."""
    source = wsinfer_folder(torch, tmp_path / "source", classes=("a", "b", "c"))
    with pytest.raises(ModelError, match=r"out/.*3 classes.*2") as error:
        import_model(source, tmp_path / "out")
    assert ".part" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_onnx_file(tmp_path):
    """An ONNX file becomes a model directory without PyTorch."""
    source = tiny_model(tmp_path / "source")
    found = import_model(source / "model.onnx", tmp_path / "out", config=source / "config.json")
    assert (found.kind, found.opset, found.source_file) == (ONNX, 17, "")
    assert found.max_difference < 1e-6


def old_onnx(path: Path, *, batch: int | str, opset: int, reshape: bool = False) -> Path:
    """tiny_model's network with a Reshape that may have the batch fixed inside."""
    proto = onnx.load(str(tiny_model(path.parent / "tiny") / "model.onnx"))
    proto.opset_import[0].version = opset
    for value in (*proto.graph.input, *proto.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(batch, int):
            dim.dim_value = batch
        else:
            dim.dim_param = batch
    if reshape:
        flatten = next(node for node in proto.graph.node if node.op_type == "Flatten")
        proto.graph.initializer.append(numpy_helper.from_array(np.array([batch, 4]), "shape"))
        flatten.CopyFrom(helper.make_node("Reshape", ["p", "shape"], ["f"]))
    path.write_bytes(proto.SerializeToString())
    return path


def test_onnx_with_a_fixed_batch_and_an_old_opset(tmp_path):
    """An ONNX file with its batch fixed at its ends alone, of opset 11, gets a free axis and opset 17."""
    source = old_onnx(tmp_path / "net.onnx", batch=4, opset=11)
    found = import_model(source, tmp_path / "out", keys=keys())
    assert found.opset == 17 and found.max_difference < 1e-6
    graph = onnx.load(str(tmp_path / "out/model.onnx")).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_onnx_with_a_batch_fixed_inside(tmp_path):
    """An ONNX file whose inner Reshape has the batch fixed is refused, with one line."""
    source = old_onnx(tmp_path / "net.onnx", batch=2, opset=17, reshape=True)
    with pytest.raises(ModelError) as error:
        import_model(source, tmp_path / "out", keys=keys())
    assert "\n" not in str(error.value) and "batch axis fixed at 2, and inside too" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_export_that_differs(tmp_path, monkeypatch):
    """Answers that differ from the source's by more than the bound are refused with both numbers."""
    from engines import import_model as module

    monkeypatch.setattr(module, "prepared", lambda model, patches: prepared(model, patches)[:, ::-1].copy())
    source = tiny_model(tmp_path / "source")
    with pytest.raises(ModelError, match=r"other probabilities: by up to 0\.\d+, at most 0\.0001"):
        import_model(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("net.pt", b"hello", "neither TorchScript"),
        ("net.pt", b"\x80\x02ccollections", "could run any code"),
        ("net.onnx", b"hello", "cannot be read as ONNX"),
    ],
)
def test_what_is_no_network(tmp_path, name, content, problem):
    """Other files are refused by what they hold."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=problem):
        import_model(tmp_path / name, tmp_path / "out", keys=keys())


def test_without_configuration(tmp_path):
    """A file alone asks for the keys of config.json."""
    source = tiny_model(tmp_path / "source")
    with pytest.raises(ModelError, match="comes without config.json; give its keys"):
        import_model(source / "model.onnx", tmp_path / "out")


def test_a_directory_that_exists(tmp_path):
    """A directory that holds something is never written to."""
    source = tiny_model(tmp_path / "source")
    with pytest.raises(ModelError, match="exists already"):
        import_model(source, source)
    (tmp_path / "out").mkdir()
    import_model(source, tmp_path / "out")


def test_keys_win_over_the_file(tmp_path):
    """A key that is given replaces the file's, and the others stay, also those of other tools."""
    source = tiny_model(tmp_path / "source")
    config = {**tiny_config(), "other_tool": 1}
    (source / "config.json").write_text(json.dumps(config))
    found = import_model(source, tmp_path / "out", keys={"spacing_um_px": 0.25})
    assert found.model.spacing == 0.25
    assert json.loads((tmp_path / "out/config.json").read_text())["other_tool"] == 1


def test_patches_look_different(tmp_path):
    """The patches to compare on are fixed and differ from each other."""
    patches = realistic_patches(8, SIDE)
    assert np.array_equal(patches, realistic_patches(8, SIDE))
    assert len({patch.tobytes() for patch in patches}) == 8
    assert patches[3:].std() > 10


def test_kinds_are_told_by_content(torch, tmp_path):
    """A file's name does not matter: TorchScript and torch.export programs are told by what is in them."""
    folder = wsinfer_folder(torch, tmp_path / "source")
    (folder / "torchscript_model.pt").rename(tmp_path / "a.onnx.bin")
    assert kind_of(tmp_path / "a.onnx.bin") == "torchscript"
    exported(torch, tmp_path / "b.pt2").rename(tmp_path / "b.pth")
    assert kind_of(tmp_path / "b.pth") == "exported program"
