"""engines.check: a model is proven before a pipeline starts on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.check import check_model, prepare, probe_patches
from engines.errors import ModelError
from engines.model import load_model
from tests.engines.tiny import tiny_model


def rewritten(directory: Path, change) -> Path:
    tiny_model(directory)
    proto = onnx.load(str(directory / "model.onnx"))
    change(proto.graph)
    (directory / "model.onnx").write_bytes(proto.SerializeToString())
    return directory


@pytest.mark.parametrize("names", [("tumour",), ("normal", "tumour"), ("a", "b", "c")])
def test_a_good_model_passes(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Whatever its number of classes, and with a Resize."""
    check_model(load_model(tiny_model(tmp_path, classes=names, patch_px=50, resize=40)))


def test_prepare_leaves_one_proven_file(tmp_path: Path) -> None:
    """The folded graph, and nothing else."""
    folded = tmp_path / "run" / "folded.onnx"
    folded.parent.mkdir()
    prepare(load_model(tiny_model(tmp_path / "model")), folded)
    assert [path.name for path in folded.parent.iterdir()] == ["folded.onnx"]


@pytest.mark.parametrize(
    "kind, said",
    [
        ("nan", "model.onnx: output is NaN or infinite on ordinary patches"),
        ("broken", "model.onnx: is not a readable ONNX file"),
        ("wrong_classes", "config.json: num_classes says 2 classes, but model.onnx gives 3"),
    ],
)
def test_a_bad_model_is_refused_and_leaves_nothing(tmp_path: Path, kind: str, said: str) -> None:
    """One line, and no folded file that a worker could load."""
    folded = tmp_path / "folded.onnx"
    with pytest.raises(ModelError, match=said):
        prepare(load_model(tiny_model(tmp_path / "model", kind=kind)), folded)
    assert not folded.exists()


@pytest.mark.parametrize("kind, free, said", [
    ("linear", False, r"input input is \(batch, 3, 64, 64\): the network takes patches of one size, not 96 px too"),
    ("flat", True, "does not take patches of 96 px: "),
])  # fmt: skip
def test_a_network_of_one_size_is_refused_at_another(tmp_path: Path, kind: str, free: bool, said: str) -> None:
    """Whether it says so or a first batch shows it; what to do is told."""
    model = load_model(tiny_model(tmp_path, kind=kind, free=free))
    check_model(model)
    with pytest.raises(ModelError, match=rf"{said}.*; use its own 64 px \(inference.patch_px=auto\), or export it") as caught:
        check_model(model.at(96))
    assert "\n" not in str(caught.value)


def test_a_network_of_any_size_passes_at_another(tmp_path: Path) -> None:
    """Also behind a Resize, which goes along."""
    check_model(load_model(tiny_model(tmp_path / "plain", free=True)).at(96))
    check_model(load_model(tiny_model(tmp_path / "resized", patch_px=50, resize=40, free=True)).at(75))


def unknown_op(graph: onnx.GraphProto) -> None:
    graph.node[1].op_type = "ReluOfTheFuture"


def free_output(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.ClearField("shape")


def three_classes_unsaid(graph: onnx.GraphProto) -> None:
    free_output(graph)
    for tensor in graph.initializer:
        if tensor.name.startswith("gemm"):
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate([value, value[..., :1]], axis=-1), tensor.name))


def no_flatten(graph: onnx.GraphProto) -> None:
    free_output(graph)
    del graph.node[3:]
    graph.node[2].output[0] = "logits"


def batch_of_one(graph: onnx.GraphProto) -> None:
    graph.node[3].CopyFrom(helper.make_node("Reshape", ["p", "one"], ["f"]))
    graph.initializer.append(numpy_helper.from_array(np.array([1, 4], np.int64), "one"))


def batch_statistics(graph: onnx.GraphProto) -> None:
    graph.node[3].CopyFrom(helper.make_node("Flatten", ["p2"], ["f"]))
    graph.node.insert(3, helper.make_node("Sub", ["p", "m"], ["p2"]))
    graph.node.insert(3, helper.make_node("ReduceMean", ["p"], ["m"], axes=[0], keepdims=1))


@pytest.mark.parametrize(
    "change, said",
    [
        (unknown_op, "model.onnx: ONNX Runtime cannot load it: .*ReluOfTheFuture"),
        (three_classes_unsaid, "config.json: num_classes says 2 classes, but model.onnx gives 3"),
        (no_flatten, r"model.onnx: output must be logits \(1, 2\) for 1 patches, is \(1, 4, 1, 1\)"),
        (batch_of_one, "model.onnx: fails on a batch of 3: .*dynamic batch axis"),
        (batch_statistics, "model.onnx: a patch gets another probability alone than in a batch"),
    ],
)
def test_what_only_running_shows_is_found_by_running(tmp_path: Path, change, said: str, capfd) -> None:
    """Unknown operators, unsaid shapes, a batch that is fixed inside, normalisation over the batch."""
    with pytest.raises(ModelError, match=said) as caught:
        check_model(load_model(rewritten(tmp_path / "model", change)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A missing folder, as a full disk would be, is a ModelError."""
    with pytest.raises(ModelError, match="nowhere/folded.onnx: the folded model cannot be written"):
        prepare(load_model(tiny_model(tmp_path / "model")), tmp_path / "nowhere" / "folded.onnx")


def test_the_probes_are_always_the_same() -> None:
    """Fixed patches: a model that passed once passes again."""
    patches = probe_patches(32)
    assert (patches.dtype, patches.shape) == (np.uint8, (3, 32, 32, 3))
    np.testing.assert_array_equal(patches, probe_patches(32))
    assert len({patch.tobytes() for patch in patches}) == 3
