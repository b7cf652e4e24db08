"""engines.verify: what passes and what does not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engines.verify import MIN_PATCHES, auc, compare, decide, run
from tests.engines.fake_gpu import FakeDevice
from tests.engines.test_gpu_engine import answer, make, noise

RNG = np.random.default_rng(3)


def probabilities(n: int = MIN_PATCHES, classes: int = 2) -> np.ndarray:
    values = RNG.random((n, classes)).astype(np.float32) + 0.01
    return values / values.sum(axis=1, keepdims=True)


def test_equal_answers_pass() -> None:
    """No difference, no flips, no loss."""
    reference = probabilities()
    found = compare(reference, reference.copy())
    assert found.passed and found.loss == 0.0 and found.flips == 0 and not found.reason


def test_a_nan_never_passes() -> None:
    """One NaN in one row, however wide the bound; the record stays JSON."""
    reference = probabilities()
    for value in (np.nan, np.inf):
        answers = reference.copy()
        answers[7, 1] = value
        found = compare(reference, answers, bound=10.0)
        assert not found.passed and found.loss is None and "1 of 256" in found.reason
        json.dumps(found.to_dict(), allow_nan=False)


def test_the_mean_difference_is_a_loss() -> None:
    """0.6 % everywhere is more than 0.5 %, 0.4 % is not."""
    reference = np.tile(np.array([[0.2, 0.8]], np.float32), (MIN_PATCHES, 1))
    shift = np.array([[1, -1]], np.float32)
    assert not compare(reference, reference + 0.006 * shift).passed
    found = compare(reference, reference + 0.004 * shift)
    assert found.passed and found.max_difference == pytest.approx(0.004, rel=1e-3)


def test_classes_that_change_are_a_loss() -> None:
    """Two flips of 256 are more than 0.5 %, one is not, although the probabilities hardly move."""
    reference = np.tile(np.array([[0.4999, 0.5001]], np.float32), (MIN_PATCHES, 1))
    answers = reference.copy()
    answers[0] = answers[0, ::-1]
    assert compare(reference, answers).passed
    answers[1] = answers[1, ::-1]
    found = compare(reference, answers)
    assert not found.passed and found.flips == 2


def test_labels_bring_the_auc() -> None:
    """An engine that is close on average and orders the labelled patches worse loses by its AUC."""
    labels = np.array([0, 1] * 10 + [-1] * 236)
    score = np.where(labels == 1, 0.70, 0.699).astype(np.float32)
    reference = np.stack([1 - score, score], axis=1)
    worse = np.where(labels == 1, 0.699, 0.70).astype(np.float32)
    found = compare(reference, np.stack([1 - worse, worse], axis=1), labels=labels)
    assert (found.auc_reference, found.auc, found.labelled) == (1.0, 0.0, 20)
    assert found.loss == 1.0 and not found.passed
    assert "AUC 0.0000 for 1.0000 on 20 labelled patches" in found.show()


def test_a_better_auc_is_no_loss() -> None:
    """A loss is what is lost."""
    labels = np.array([0, 1] * 128)
    score = np.where(labels == 1, 0.7, 0.70001).astype(np.float32)
    reference = np.stack([1 - score, score], axis=1)
    better = np.where(labels == 1, 0.7001, 0.7).astype(np.float32)
    assert compare(reference, np.stack([1 - better, better], axis=1), labels=labels).passed


def test_few_patches_pass_with_a_warning() -> None:
    """Fewer than 256 prove less."""
    reference = probabilities(10)
    found = compare(reference, reference)
    assert found.passed and "only 10 patches" in found.reason


def test_answers_of_another_shape_are_a_bug() -> None:
    """Not a loss."""
    with pytest.raises(ValueError, match="shape"):
        compare(probabilities(), probabilities(classes=3))
    broken = probabilities()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="reference itself"):
        compare(broken, probabilities())


def test_one_class_is_decided_at_one_half() -> None:
    """A sigmoid has one column."""
    assert decide(np.array([[0.4], [0.6]])).tolist() == [0, 1]
    assert decide(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([0.1, 0.2], [1, 1], None),
    ],
)
def test_auc(scores: list[float], truth: list[int], expected: float | None) -> None:
    """By hand; ties count half; one class alone has none."""
    assert auc(np.array(scores), np.array(truth) > 0) == expected


def test_run_uses_all_contexts_and_keeps_the_order() -> None:
    """Ten patches in batches of four over two contexts."""
    engine = make(FakeDevice())
    patches = noise(10)
    np.testing.assert_allclose(run(engine.contexts(2), patches, 4), answer(patches), rtol=1e-6)
    assert engine.batches == 3
