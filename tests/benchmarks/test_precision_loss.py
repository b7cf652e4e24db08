"""benchmarks.precision_loss: what is rounded, which patches are measured, and what the table says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks import precision_loss
from benchmarks.inputs import DEMO_MODEL
from engines.fold import INPUT

SIDE = 32


def half_graph() -> onnx.ModelProto:
    """Patches (n, 1, 1, 1) times 1000 and times 0.001, in float16; and the first product as it is."""
    nodes = [
        helper.make_node("Cast", [INPUT], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["x", "large"], ["product"]),
        helper.make_node("Mul", ["product", "small"], ["y"]),
        helper.make_node("Concat", ["product", "y"], ["both"], axis=3),
        helper.make_node("Cast", ["both"], ["out"], to=TensorProto.FLOAT),
    ]
    weights = [
        numpy_helper.from_array(np.array(value, np.float16), name) for name, value in (("large", 1001), ("small", 1e-3))
    ]
    one = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", 1, 1, 1])
    two = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 1, 1, 2])
    graph = helper.make_graph(nodes, "half", [one], [two], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_every_result_is_rounded_to_float16_and_overflows_as_it_would() -> None:
    """Products have 11 bits, and what is beyond 65504 is infinite for the next node, too."""
    patches = np.array([3, 200], np.uint8).reshape(2, 1, 1, 1)
    found = precision_loss.answers(precision_loss.rounded(half_graph()), patches).reshape(2, 2)
    product = np.float16(3) * np.float16(1001)
    assert float(product) == 3004  # 3003 is not among float16's numbers
    np.testing.assert_array_equal(found[0], [product, product * np.float16(1e-3)])
    assert np.isinf(found[1]).all()


def test_halves_share_no_patch_and_leave_none_out() -> None:
    """What is measured was not calibrated with; both halves have both labels."""
    truth = np.array([1] * 5 + [0] * 9)
    parts = precision_loss.halves(truth, seed=3)
    assert len(parts) == 2
    for calibrate, measure in parts:
        assert sorted([*calibrate, *measure]) == list(range(14))
        assert set(truth[calibrate]) == set(truth[measure]) == {0, 1}
    assert not np.array_equal(parts[0][0], precision_loss.halves(truth, seed=4)[0][0])


def test_the_interval_is_of_the_loss() -> None:
    """Equal scores lose nothing; scores without meaning lose what the interval holds, the same each time."""
    truth = np.arange(60) % 2 > 0
    good = truth + np.linspace(0, 0.5, 60)
    noise = np.random.default_rng(1).random(60)
    assert precision_loss.interval(good, good, truth, seed=0) == (0.0, 0.0)
    low, high = precision_loss.interval(good, noise, truth, seed=0)
    assert 0.2 < low < 0.5 < high < 0.8
    assert (low, high) == precision_loss.interval(good, noise, truth, seed=0)


def test_the_table_of_the_demonstration_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each recipe has its row; float32 loses nothing, the others differ, and the columns agree with one another."""
    if not (DEMO_MODEL / "model.onnx").exists():
        pytest.skip("the demonstration model is not there")
    rng = np.random.default_rng(5)
    for label, colour in (("tumour", (120, 70, 150)), ("other", (225, 150, 190))):
        (tmp_path / label).mkdir()
        for number in range(4):
            spread = rng.integers(-60, 60, (SIDE, SIDE, 1))
            pixels = np.clip(np.array(colour) + spread + rng.integers(-9, 9, (SIDE, SIDE, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / label / f"{number}.png")
    assert precision_loss.main(["--labelled", str(tmp_path), "--positive", "tumour", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    rows = {row["recipe"]: row for row in record["rows"]}
    assert {"fp32", "fp16 weights alone", "fp16", "int8"} <= rows.keys()
    assert record["figures"] == {"positive": 4, "calibrated_with": "4 and 4"}
    exact = rows["fp32"]
    assert (exact["mean difference"], exact["largest"], exact["flips"], exact["AUC lost"]) == (0, 0, 0, 0)
    for name, row in rows.items():
        assert row["AUC lost"] == pytest.approx(exact["AUC"] - row["AUC"])
        assert row["from"] <= row["AUC lost"] <= row["to"] and row["patches"] == 8
        assert name == "fp32" or 0 < row["mean difference"] <= row["largest"] < 0.5
    assert rows["fp16"]["mean difference"] < 5e-3


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there ends with code 2 and names it."""
    assert precision_loss.main(["--labelled", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
