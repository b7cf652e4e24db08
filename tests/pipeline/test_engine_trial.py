"""pipeline.engine_trial: what an engine is tried on, and the reference's answers to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from engines.aoti_flavour import FLAVOUR as AOTI
from engines.cache import EngineCache
from engines.errors import EngineError
from engines.model import load_model
from pipeline import engine_trial
from pipeline.config import load_config
from pipeline.engine_trial import TrialMaker
from tests.engines import tiny
from tests.engines.test_cache import BUILT, GPU, make_identity
from tests.engines.tiny import tiny_model
from tests.pipeline.test_engine_build import parsed


@pytest.mark.data
def test_a_trial_at_every_patch_size(tmp_path: Path, data_dir: Path) -> None:
    """Tissue and labelled pictures at each size, the model's own first, with the reference's answers at that size."""
    directory = tiny_model(tmp_path / "model", patch_px=64)
    proto = onnx.load(str(directory / "model.onnx"))
    for place, name in ((2, "height"), (3, "width")):
        proto.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    onnx.save(proto, str(directory / "model.onnx"))
    for name, grey in (("normal", 200), ("tumour", 60)):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        Image.new("RGB", (80, 80), (grey, grey, grey)).save(tmp_path / "labelled" / name / "one.png")
    args = parsed("--patches", 12, "--labelled", tmp_path / "labelled", "--bound", 0.01)
    maker = TrialMaker(load_model(directory), load_config(), args, 1, lambda line: None)
    first = maker.trial([data_dir / "slides" / "CMU-1-Small-Region.svs"], (32, 64))
    (second,) = first.others
    for trial, side in ((first, 64), (second, 32)):
        assert trial.patches.shape == (14, side, side, 3) and trial.bound == 0.01
        assert trial.labels.tolist() == [-1] * 12 + [0, 1]
        np.testing.assert_allclose(trial.reference, tiny.expected(trial.patches), atol=1e-5)


def test_a_package_that_no_new_process_can_run_is_not_tried(tmp_path: Path, monkeypatch) -> None:
    """The building process has loaded what a run has not; TensorRT's engines come up alike in both."""
    asked: list[Path] = []

    def prove(plan: Path, **shape: int) -> None:
        asked.append(plan)
        raise EngineError(f"{plan}: is not ready")

    monkeypatch.setattr(engine_trial, "prove", prove)
    monkeypatch.setattr(engine_trial, "open_plan", lambda plan, **options: plan)
    cache = EngineCache(tmp_path)
    package = cache.put("model", replace(make_identity(), flavour=AOTI), BUILT, GPU)
    with pytest.raises(EngineError, match="is not ready"):
        engine_trial.opened(package, 224)
    plan = cache.put("model", make_identity(), BUILT, GPU)
    assert engine_trial.opened(plan, 224) == plan.plan
    assert asked == [package.plan]
