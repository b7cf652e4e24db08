"""Whether the service lives, is ready and comes on."""

from __future__ import annotations

from dataclasses import replace

from pipeline.service.health import live, progressing, ready
from tests.pipeline.service import looks

WELL = looks.snapshot(held={}, lost={}, troubles={})


def test_well():
    """A service that answers, has all its stages and results is live, ready and progressing, without notes."""
    for verdict in (live(WELL), ready(WELL), progressing(WELL, 300.0)):
        assert verdict.good and not verdict.reasons and not verdict.notes


def test_silent_supervisor_is_nothing_of_all():
    """Without an answer it is not live, and so neither ready nor progressing; the reason is that of the silence."""
    silent = replace(WELL, answers=False, problem="no answer within 2 s")
    for verdict in (live(silent), ready(silent), progressing(silent, 300.0)):
        assert verdict.reasons == ("no answer within 2 s",)


def test_not_ready_without_inference():
    """One kind of process that is missing altogether is named."""
    stages = tuple(replace(s, workers=0) if s.kind == "inference" else s for s in WELL.stages)
    assert ready(replace(WELL, stages=stages)).reasons == ("no process is ready of: inference",)


def test_not_ready_while_draining():
    """A service on its way out takes no more slides."""
    assert not ready(replace(WELL, draining=True)).good


def test_not_ready_without_ledger():
    """Without its ledger it can take nothing in."""
    assert not ready(replace(WELL, ledger=False)).good


def test_lost_worker_and_held_folder_are_notes():
    """The service goes on, but somebody should know."""
    verdict = ready(looks.snapshot())
    assert verdict.good
    assert verdict.notes == (
        "inference-1 was given up: killed by SIGKILL",
        "held for disk_full: 1",
        "results disks nearly full: 2",
    )


def test_backlog_without_results_is_a_failure():
    """Work that could be done, and nothing out for longer than allowed."""
    stuck = replace(WELL, last_result=WELL.time - 400.0, workable_s=500.0)
    assert progressing(stuck, 300.0).reasons == ("9 slides are unfinished and nothing has come out for 6:40",)
    assert progressing(stuck, 401.0).good


def test_a_slide_for_an_idle_service_is_no_failure():
    """The last result may be a week old: what counts is for how long there has been work."""
    assert progressing(replace(WELL, last_result=WELL.time - 600_000.0, workable_s=20.0), 300.0).good


def test_never_a_result_is_a_failure_too():
    """A service that never had a result fails when its work has waited for too long."""
    assert not progressing(replace(WELL, last_result=None, workable_s=301.0), 300.0).good


def test_held_work_is_no_failure():
    """With the share gone nothing can be done, which is a note."""
    verdict = progressing(replace(WELL, workable=False, workable_s=0.0, last_result=0.0), 300.0)
    assert verdict.good and len(verdict.notes) == 1


def test_degraded_is_a_note_and_no_lack_of_readiness():
    """A results disk nearly full, a lane that does not come up: somebody should know, the service goes on."""
    verdict = ready(looks.snapshot(lost={}, held={}, troubles={"disk_low": 2, "lane_down": 1, "worker_lost": 1}))
    assert verdict.good
    assert verdict.notes == ("results disks nearly full: 2", "lanes of routes that do not come up: 1")
