"""Two models at once on one GPU, in one process: each one's answers are those of a run with it alone.

Run like tests.gpu.test_runs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.runs import Finished
from tests.gpu.conftest import Lab, answers
from tests.gpu.test_runs import assert_same_bytes

pytestmark = pytest.mark.gpu


def swapped(lab: Lab) -> Path:
    """The small network under another name, with the names of its classes exchanged: another model, with engines of its own."""

    def make() -> Path:
        directory = lab.folder / "swapped"
        shutil.copytree(lab.model(), directory)
        path = directory / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "class_names": config["class_names"][::-1]}))
        return directory

    return lab.once("swapped", make)


def together(lab: Lab, engine: str) -> Finished:
    lab.prepare(engine)
    lab.build(swapped(lab), lab.slide(), engine)
    return lab.run(lab.slide(), [lab.model(), swapped(lab)], *lab.sets(engine), key=f"both-{engine}")


@pytest.mark.parametrize("engine", ["tensorrt", "aoti"])
def test_each_gives_what_it_gives_alone(engine: str, lab: Lab):
    """The same bytes; with classes exchanged, the other way round."""
    lab.need(engine)
    finished, slide = together(lab, engine), lab.slide().stem
    alone = answers(lab.on_gpu(engine).out, slide)
    first, second = (answers(finished.out / model.name, slide) for model in (lab.model(), swapped(lab)))
    assert_same_bytes(first, alone, engine)
    assert (second.places == alone.places).all()
    assert abs(second.probabilities - alone.probabilities).max() <= (0 if engine == "tensorrt" else 5e-3)
    assert second.raw != alone.raw  # the names of its columns


@pytest.mark.parametrize("engine", ["tensorrt", "aoti"])
def test_both_ran_beside_each_other(engine: str, lab: Lab):
    """One process with an engine of each, both fed straight from the shared memory, which is page-locked once."""
    lab.need(engine)
    finished = together(lab, engine)
    record = finished.record
    names = [lab.model().name, swapped(lab).name]
    assert [model["name"] for model in record["models"]] == names
    assert len(record["gpus"][0]["engines"]) == 2
    (ran,) = record["engines"].values()
    assert list(ran["models"]) == names and all(about["contexts"] == 3 for about in ran["models"].values())
    assert all(ran[f"{name}: batch_ms_p50"] > 0 for name in names) and ran["batches"] > 0
    assert not [entry for entry in finished.log if "copied twice" in entry["event"]]
