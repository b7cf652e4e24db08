"""engines.onnx_engine behind engines.engine's interface."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import onnx
import pytest
from onnx import helper

from engines.engine import Context, Engine, open_engine
from engines.errors import EngineError
from engines.fold import fold, save_folded
from engines.model import load_model
from tests.engines import tiny
from tests.engines.tiny import tiny_model

SIDE = 64


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)


def folded_file(directory: Path, **options) -> Path:
    path = directory / "folded.onnx"
    save_folded(fold(load_model(tiny_model(directory / "model", **options))), path)
    return path


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folded_file(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def engine(folded: Path) -> Engine:
    return open_engine("onnx", folded, classes=2, patch_px=SIDE, threads=1, max_batch=32)


@pytest.fixture
def context(engine: Engine) -> Context:
    return engine.contexts(1)[0]


def test_a_batch_goes_through_a_context(context: Context) -> None:
    """idle -> submit -> consumed and done -> result -> idle, and the numbers are the network's."""
    assert not context.consumed()
    assert not context.done()
    assert not context.wait(0.0)
    patches = noise(7)
    context.submit(patches)
    assert context.wait(1.0)
    assert context.consumed()
    assert context.done()
    probabilities = context.result()
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (7, 2))
    np.testing.assert_allclose(probabilities, tiny.expected(patches), atol=2e-6)
    assert not context.done()


def test_several_contexts_do_not_mix(engine: Engine) -> None:
    """Each context gives the answer to its own batch, in whatever order they are asked."""
    contexts = engine.contexts(3)
    batches = [noise(n) for n in (1, 2, 3)]
    for one, batch in zip(contexts, batches, strict=True):
        one.submit(batch)
    for one, batch in reversed(list(zip(contexts, batches, strict=True))):
        np.testing.assert_allclose(one.result(), tiny.expected(batch), atol=2e-6)


def test_probabilities_do_not_hang_on_the_batch(context: Context, data_dir: Path) -> None:
    """The same real patch gives the same probabilities to 1e-6 in a batch of 1, 3, 8 or 32."""
    from PIL import Image

    files = sorted((data_dir / "patches" / "kather2016").glob("*.png"))[:32]
    patches = np.stack([np.asarray(Image.open(file).convert("RGB").crop((0, 0, SIDE, SIDE))) for file in files])
    answers = []
    for size in (1, 3, 8, 32):
        parts = []
        for start in range(0, len(patches), size):
            context.submit(patches[start : start + size])
            parts.append(context.result())
        answers.append(np.concatenate(parts))
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-6, rtol=0)


def test_probabilities_do_not_hang_on_threads(folded: Path, context: Context) -> None:
    """One thread or two give the same to 1e-6."""
    two = open_engine("onnx", folded, classes=2, patch_px=SIDE, threads=2, max_batch=32).contexts(1)[0]
    patches = noise(9)
    two.submit(patches)
    context.submit(patches)
    np.testing.assert_allclose(two.result(), context.result(), atol=1e-6, rtol=0)


def test_patches_may_lie_in_read_only_shared_memory(context: Context) -> None:
    """A view into a memfd, mapped read-only as inference workers map it, is taken as it is."""
    fd = os.memfd_create("slots")
    try:
        patches = noise(3)
        os.write(fd, b"\0" * 4096 + patches.tobytes())
        with mmap.mmap(fd, 4096 + patches.nbytes, prot=mmap.PROT_READ) as memory:
            view = np.frombuffer(memory, np.uint8, patches.nbytes, 4096).reshape(patches.shape)
            context.submit(view)
            np.testing.assert_allclose(context.result(), tiny.expected(patches), atol=2e-6)
            del view  # the mapping could not be closed if the context still held it
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "patches, said",
    [
        (np.zeros((1, SIDE, SIDE, 3), np.float32), "must be uint8"),
        (np.zeros((1, 3, SIDE, SIDE), np.uint8), "must be uint8"),
        (np.zeros((SIDE, SIDE, 3), np.uint8), "must be uint8"),
        (np.zeros((0, SIDE, SIDE, 3), np.uint8), "1 to 32"),
        (np.zeros((33, SIDE, SIDE, 3), np.uint8), "1 to 32"),
        (np.zeros((2, SIDE, SIDE * 2, 3), np.uint8)[:, :, ::2], "C-contiguous"),
    ],
)
def test_a_batch_that_breaks_the_contract_is_a_value_error(context: Context, patches: np.ndarray, said: str) -> None:
    """It is the caller's bug, and leaves the context idle."""
    with pytest.raises(ValueError, match=said):
        context.submit(patches)
    assert not context.done()
    context.submit(noise(1))
    assert context.result().shape == (1, 2)


def test_a_context_wants_its_order(context: Context) -> None:
    """No result without submit, no second submit before the result."""
    with pytest.raises(ValueError, match="idle"):
        context.result()
    context.submit(noise(1))
    with pytest.raises(ValueError, match="busy"):
        context.submit(noise(1))
    context.result()


def nan_for_dark(directory: Path) -> Path:
    """A folded model whose answer to a black patch is NaN: the square root of a negative mean."""
    model = tiny_model(directory / "model")
    proto = onnx.load(str(model / "model.onnx"))
    graph = proto.graph
    del graph.node[:], graph.initializer[:]
    graph.node.extend([
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Slice", ["root", "from", "to", "axis"], ["logits"]),
    ])
    for name, value in (("from", 0), ("to", 2), ("axis", 1)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.int64), name))
    (model / "model.onnx").write_bytes(proto.SerializeToString())
    path = directory / "folded.onnx"
    save_folded(fold(load_model(model)), path)
    return path


def test_nan_stays_in_its_rows(tmp_path: Path) -> None:
    """A patch that the network answers with NaN is seen as such, also in warming, and the other rows are right."""
    engine = open_engine("onnx", nan_for_dark(tmp_path), classes=2, patch_px=SIDE, threads=1, max_batch=16)
    context = engine.contexts(1)[0]
    patches = np.full((11, SIDE, SIDE, 3), 255, np.uint8)
    patches[[2, 9]] = 0
    context.submit(patches)
    finite = np.isfinite(context.result()).all(axis=1)
    assert np.flatnonzero(~finite).tolist() == [2, 9]


def test_a_failing_run_is_an_engine_error(tmp_path: Path) -> None:
    """A network that only takes batches of one fails its batch, not its worker."""
    model = tiny_model(tmp_path / "model")
    proto = onnx.load(str(model / "model.onnx"))
    proto.graph.node[3].CopyFrom(helper.make_node("Reshape", ["p", "one"], ["f"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 4], np.int64), "one"))
    (model / "model.onnx").write_bytes(proto.SerializeToString())
    path = tmp_path / "folded.onnx"
    save_folded(fold(load_model(model)), path)
    context = open_engine("onnx", path, classes=2, patch_px=SIDE, threads=1, max_batch=16).contexts(1)[0]
    context.submit(noise(3))
    with pytest.raises(EngineError, match="ONNX Runtime failed on rows 0 to 2") as caught:
        context.result()
    assert not caught.value.fatal
    assert "\n" not in str(caught.value)


def test_describe_says_what_ran_and_can_be_sent(engine: Engine) -> None:
    """msgpack-safe, with engine, version, provider, precision, threads and max_batch."""
    said = engine.describe()
    assert msgpack.unpackb(msgpack.packb(said)) == said
    assert (said["engine"], said["provider"], said["threads"]) == ("onnx", "CPUExecutionProvider", 1)
    assert {"version", "precision", "max_batch"} <= set(said)


def test_close_twice_is_once(engine: Engine, context: Context) -> None:
    """A closed engine refuses work, and closing it again does nothing."""
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        context.submit(noise(1))


@pytest.mark.parametrize(
    "kind, changes, said",
    [
        ("tensorflow", {}, "unknown engine 'tensorflow'; known: onnx"),
        ("onnx", {"threads": 0}, "must be at least 1"),
        ("onnx", {"classes": 3}, "not a folded model of 3 classes"),
        ("onnx", {"patch_px": 224}, "not a folded model for patches of 224 px"),
    ],
)
def test_an_engine_that_cannot_be_opened_says_why(folded: Path, kind: str, changes: dict, said: str) -> None:
    """Unknown kinds, absurd options, and a graph that is not the one promised."""
    options = {"classes": 2, "patch_px": SIDE, "threads": 1, "max_batch": 8} | changes
    with pytest.raises(EngineError, match=said):
        open_engine(kind, folded, **options)


def test_a_damaged_folded_file_is_an_engine_error(folded: Path, tmp_path: Path) -> None:
    """One line that names the file, nothing on stderr."""
    damaged = tmp_path / "folded.onnx"
    damaged.write_bytes(folded.read_bytes()[:-100])
    with pytest.raises(EngineError, match="folded.onnx: ONNX Runtime cannot load it"):
        open_engine("onnx", damaged, classes=2, patch_px=SIDE, threads=1, max_batch=8)


def test_a_worker_imports_no_more_than_it_needs(folded: Path) -> None:
    """An inference worker must not load onnx, and engine.py alone must not load ONNX Runtime."""
    code = (
        "import sys; import engines.engine, engines.model; assert 'onnxruntime' not in sys.modules;"
        f"engines.engine.open_engine('onnx', {str(folded)!r}, classes=2, patch_px=64, threads=1, max_batch=4);"
        "bad = {'onnx', 'google.protobuf', 'PIL', 'pydantic', 'scipy'} & set(sys.modules); assert not bad, bad"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
