"""The engine that computes nothing: it keeps the contract, so that a pipeline runs on it as on any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.engine import Context, open_engine


def context(classes: int = 4) -> Context:
    engine = open_engine("null", Path("nothing"), classes=classes, patch_px=8, threads=1, max_batch=3)
    assert {"engine", "version", "provider", "precision", "threads", "max_batch"} <= engine.describe().keys()
    (made,) = engine.contexts(1)
    return made


def test_every_class_is_as_likely() -> None:
    """Finite probabilities of the right shape that add up to 1, at once."""
    made = context()
    assert not made.done()
    made.submit(np.zeros((2, 8, 8, 3), np.uint8))
    assert made.consumed() and made.done() and made.wait(0)
    assert made.result().tolist() == [[0.25] * 4] * 2
    assert not made.done()


def test_breaches_of_the_contract_are_told() -> None:
    """As by any other engine: a batch too large or of another shape, a busy context, a result of nothing."""
    made = context()
    for shape in ((0, 8, 8, 3), (4, 8, 8, 3), (1, 8, 9, 3)):
        with pytest.raises(ValueError, match=r"patches|batch"):
            made.submit(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="submit first"):
        made.result()
    made.submit(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="busy"):
        made.submit(np.zeros((1, 8, 8, 3), np.uint8))
