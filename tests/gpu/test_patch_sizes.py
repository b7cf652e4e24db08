"""One model at two patch sizes at once on one GPU, from one engine with a profile for each.

Run like tests.gpu.test_runs.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from tests.end_to_end import runs
from tests.end_to_end.runs import Finished, command
from tests.engines.tiny import tiny_model
from tests.gpu.conftest import BATCH, FEW, NEVER_S, Lab, answers

pytestmark = pytest.mark.gpu

SIZES = (64, 96)


def prepared(lab: Lab) -> Path:
    """A network that takes any size, with its engine."""

    def make() -> Path:
        model = tiny_model(lab.folder / "free", free=True)
        said = command(
            "engine", "build", model, "--backend", "tensorrt", "--precision", "fp16", "--batch", str(BATCH),
            "--patch", ",".join(map(str, SIZES)), "--verify-on", lab.slide(), "--patches", "256",
            "--engines", lab.engines, limit_s=NEVER_S,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        return model

    return lab.once("free", make)


def at_once(lab: Lab) -> dict[int, Finished]:
    """Two runs that start together, one at each size."""

    def make() -> dict[int, Finished]:
        model = prepared(lab)
        started = {
            px: runs.start(
                [lab.slide()], lab.folder / f"free-{px}", model, *lab.sets("tensorrt", f"inference.patch_px={px}")
            )
            for px in SIZES
        }
        try:
            return {px: run.finish(NEVER_S) for px, run in started.items()}
        finally:
            for run in started.values():
                run.destroy()

    return lab.once("free at once", make)


def when(finished: Finished) -> tuple[datetime, datetime]:
    """From the first to the last line of its log."""
    times = [datetime.fromisoformat(entry["timestamp"]) for entry in finished.log]
    return min(times), max(times)


def test_both_ran_from_one_engine_at_once(lab: Lab):
    """In the same seconds, each on the profile of its size."""
    lab.need("tensorrt")
    found = at_once(lab)
    assert all(run.code == 0 for run in found.values()), [run.console for run in found.values()]
    small, wide = (when(found[px]) for px in SIZES)
    assert small[0] < wide[1] and wide[0] < small[1]
    assert len({run.record["gpus"][0]["engine"] for run in found.values()}) == 1
    assert "own_patch_px" not in found[64].record["model"] and found[96].record["model"]["own_patch_px"] == 64


@pytest.mark.parametrize("px", SIZES)
def test_each_gives_what_it_gives_alone(px: int, lab: Lab):
    """The same bytes as a run with the GPU to itself, and the probabilities of the CPU."""
    lab.need("tensorrt")
    slide = lab.slide().stem
    found = answers(at_once(lab)[px].out, slide)
    sets = lab.sets("tensorrt", f"inference.patch_px={px}")
    assert found.raw == answers(lab.run(lab.slide(), prepared(lab), *sets, key=f"free-alone-{px}").out, slide).raw
    on_cpu = lab.run(lab.slide(), prepared(lab), *FEW, f"inference.patch_px={px}", key=f"free-cpu-{px}")
    expected = answers(on_cpu.out, slide)
    assert (found.places == expected.places).all()
    assert abs(found.probabilities - expected.probabilities).max() <= 5e-3


def test_a_size_without_an_engine_is_refused_with_the_command(lab: Lab, start):
    """That builds one."""
    lab.need("tensorrt")
    model = prepared(lab)
    finished = start(
        [lab.slide()], lab.folder / "refused", model, *lab.sets("tensorrt", "inference.patch_px=128")
    ).finish()
    assert finished.code == 2
    assert "takes no patches of 128 px" in finished.complaint() and "--patch 128" in finished.complaint()
