"""The demonstration model that is shipped: its size, its shape, and the ranking that its card promises."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from models.train_demo import data, evaluate

REPOSITORY = Path(__file__).parents[2]
DIRECTORY = REPOSITORY / "models/demo-tumour"
SAMPLES = Path(os.environ.get("SLIDESTREAM_DATA", REPOSITORY.parent / "shared/data"))

needs_data = pytest.mark.skipif(
    not (SAMPLES / "patches/camelyon16").is_dir(), reason=f"no sample patches in {SAMPLES} (SLIDESTREAM_DATA)"
)


@pytest.fixture(scope="module")
def model() -> evaluate.Exported:
    return evaluate.Exported(DIRECTORY)


def test_is_small() -> None:
    """The model file stays below 2 MB, so that a clone of the repository stays small."""
    assert (DIRECTORY / "model.onnx").stat().st_size < 2_000_000
    assert not list(DIRECTORY.glob("*.data")), "weights must lie inside model.onnx"


def test_config_and_graph_agree() -> None:
    """config.json is a WSInfer 1.0 configuration, and the graph takes its patches and gives its classes."""
    config = json.loads((DIRECTORY / "config.json").read_text())
    assert config["spec_version"] == "1.0"
    assert config["num_classes"] == len(config["class_names"]) == 2
    assert config["class_names"][1] == "tumour"
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (data.PATCH_PX, data.SPACING_UM)
    graph = onnx.load(str(DIRECTORY / "model.onnx"))
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()
    assert given.type == wanted.type == "tensor(float)"
    assert isinstance(given.shape[0], str) and given.shape[1:] == [3, data.PATCH_PX, data.PATCH_PX]
    assert wanted.shape[1:] == [config["num_classes"]]


def test_only_plain_operators() -> None:
    """The graph keeps to operators that every engine has, and to an opset that older runtimes read."""
    graph = onnx.load(str(DIRECTORY / "model.onnx"))
    plain = {"Conv", "Relu", "Add", "ReduceMean", "GlobalAveragePool", "Flatten", "Gemm", "Constant"}
    assert {node.op_type for node in graph.graph.node} <= plain
    assert max(i.version for i in graph.opset_import) <= 18


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_patches_give_finite_probabilities(model: evaluate.Exported, value: int) -> None:
    """Black, grey and white patches give probabilities, never NaN."""
    got = model(np.full((3, data.PATCH_PX, data.PATCH_PX, 3), value, np.uint8))
    assert got.shape == (3,) and np.isfinite(got).all() and ((got >= 0) & (got <= 1)).all()


def test_glass_is_not_tumour(model: evaluate.Exported) -> None:
    """Empty glass is normal."""
    noise = np.random.default_rng(0).integers(-4, 5, (4, data.PATCH_PX, data.PATCH_PX, 3))
    assert (model((243 + noise).astype(np.uint8)) < 0.2).all()


def test_batch_does_not_matter(model: evaluate.Exported) -> None:
    """A patch gets the same probability alone and in a batch."""
    patches = np.random.default_rng(1).integers(0, 256, (7, data.PATCH_PX, data.PATCH_PX, 3), np.uint8)
    alone = np.concatenate([model(patches[i : i + 1]) for i in range(len(patches))])
    np.testing.assert_allclose(model(patches), alone, atol=1e-5)


@pytest.mark.data
@needs_data
def test_ranks_the_unseen_slide_as_the_card_says(model: evaluate.Exported) -> None:
    """On the slide that training never saw, tumour patches rank above normal ones with the AUC written in the card."""
    card = (DIRECTORY / "MODEL_CARD.md").read_text()
    stated = float(re.search(r"Held-out slide .*?AUC \*\*([\d.]+)\*\*", card, re.DOTALL).group(1))
    images = data.held_out(SAMPLES)
    truth = np.array([bool(i.tumour) for i in images])
    assert truth.sum() == 4 and (~truth).sum() == 22
    got = model(np.stack([data.centre_view(i) for i in images]))
    assert np.isfinite(got).all()
    assert evaluate.auc(got, truth) == pytest.approx(stated, abs=0.012)  # one of the 88 pairs, for rounding


def test_tells_synthetic_tissue_apart(model: evaluate.Exported) -> None:
    """Synthetic tumour ranks above synthetic normal tissue on seeds that training did not use: AUC 0.95 or more."""
    from models.train_demo.synthetic import plain_views

    patches, tumour = plain_views(60, np.random.default_rng(20_261_124))
    assert evaluate.auc(model(patches), tumour) >= 0.95


@pytest.mark.data
@needs_data
def test_the_unseen_slide_is_kept_out_of_training() -> None:
    """No image of the held-out slide is among those that training and choices are made from."""
    names = {i.name for i in data.load(SAMPLES)}
    assert names and not any(n.startswith(data.HELD_OUT_SLIDE) for n in names)
    assert {i.name.rsplit("_", 2)[0] for i in data.held_out(SAMPLES)} == {data.HELD_OUT_SLIDE}


def test_auc_counts_pairs() -> None:
    """AUC is the share of (positive, negative) pairs in the right order, ties counting half."""
    scores, positive = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert evaluate.auc(scores, positive) == pytest.approx(0.875)
    with pytest.raises(ValueError, match="both"):
        evaluate.auc(scores, np.ones(4, bool))
