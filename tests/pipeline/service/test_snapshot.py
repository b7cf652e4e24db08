"""One look at the service: through JSON and back, and what is made of the ledger and the supervisor's answer."""

from __future__ import annotations

import json

import pytest

from pipeline.service.figures import Figures, quantile
from pipeline.service.ledger import Ledger, folder_key
from pipeline.service.lifecycle import State, Urgency
from pipeline.service.reasons import Kind
from pipeline.service.recent import Recent, Sample
from pipeline.service.sampler import Sampler, Unanswered, sample, snapshot
from pipeline.service.snapshot import Snapshot
from tests.pipeline.service import ledgers, looks


@pytest.fixture
def ledger(tmp_path):
    """A ledger with a stat and two routine slides."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.deliver(ledgers.delivery("A", urgency=Urgency.STAT, deadline=160.0), 100.0)
        ledger.deliver(ledgers.delivery("B"), 110.0)
        ledger.deliver(ledgers.delivery("C"), 120.0)
        yield ledger


@pytest.fixture
def figures(ledger, tmp_path):
    figures = Figures.open(tmp_path / "ledger.sqlite")
    yield figures
    figures.close()


def test_through_json_and_back():
    """A look that went through JSON is the same look."""
    look = looks.snapshot()
    assert Snapshot.from_dict(json.loads(json.dumps(look.to_dict()))) == look


def test_ledger_in_figures(ledger, figures):
    """States and classes, ages, turnaround, kinds of failure."""
    first = ledger.started(1, 130.0)
    ledger.finished(1, first.attempts, State.COMPLETE, {}, 150.0)
    second = ledger.started(2, 151.0)
    ledger.fail(2, second.attempts, Kind.BAD_SLIDE, "broken", 152.0)
    facts = figures.facts(200.0)
    assert facts.slides["complete"] == {"stat": 1, "routine": 0}
    assert facts.slides["quarantined"] == {"stat": 0, "routine": 1}
    assert facts.finished["complete"]["stat"] == 1
    assert facts.failures == {kind: int(kind is Kind.BAD_SLIDE) for kind in Kind}
    assert facts.failing == {"bad_slide": 1}
    assert facts.oldest_s == {"stat": 0.0, "routine": 80.0}
    assert facts.turnaround["stat"].p50_s == 50.0
    assert facts.backlog == 1 and facts.workable
    assert facts.last_result == 150.0


def test_history_is_counted_once(ledger, figures):
    """A second look adds only what came since."""
    for number in (1, 2):
        ledger.finished(number, ledger.started(number, 130.0).attempts, State.COMPLETE, {}, 140.0)
        facts = figures.facts(200.0)
    assert facts.finished["complete"] == {"stat": 1, "routine": 1}


def test_another_class_is_not_a_finish(ledger, figures):
    """Making a slide urgent leaves a line in its history that is no change of state."""
    ledger.prioritise(2, Urgency.STAT, None, 130.0)
    assert sum(sum(counts.values()) for counts in figures.facts(200.0).finished.values()) == 0


def test_deadlines_at_risk(ledger, figures):
    """A slide is at risk once its alarm was raised, and when its deadline is over."""
    assert figures.facts(150.0).risks == ()
    ledger.alarm(1, "too slow", 155.0)
    risks = figures.facts(156.0).risks
    assert [(risk.slide, risk.urgency, risk.left_s) for risk in risks] == [(1, "stat", 4.0)]
    ledger.cancel(1, 157.0)
    assert figures.facts(170.0).risks == ()


def test_held_folder_is_not_workable(ledger, figures):
    """What lies in a held folder is backlog, but nothing can be done about it."""
    ledger.hold(folder_key("/scans"), Kind.SHARE_GONE, "gone", 130.0)
    facts = figures.facts(140.0)
    assert facts.backlog == 3 and not facts.workable and facts.held == {"share_gone": 1}


def test_events_that_wait_for_a_sink(ledger, figures):
    """A sink's backlog are the events that it has not confirmed."""
    ledger.add_sink("webhook")
    ledger.cancel(1, 130.0)
    ledger.cancel(2, 130.0)
    assert figures.facts(140.0).unsent == {"webhook": 2}


def test_quantiles_by_rank():
    """The smallest value that so large a share does not exceed."""
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0], 0.99) == 1.0
    assert quantile(list(range(1, 101)), 0.99) == 99


def test_speed_of_the_last_minute():
    """Older looks are forgotten, but one of a minute ago is kept to compare with."""
    recent = Recent()
    for second in range(0, 200, 10):
        recent.add(Sample(float(second), 100 if second < 100 else 100 + 6 * (second - 100)))
    assert recent.patches_per_s() == 6.0


def test_many_looks_a_second_take_no_memory():
    """Askers cannot push out the look that speed is measured against."""
    recent = Recent()
    for step in range(5000):
        recent.add(Sample(step * 0.001, step))
    assert len(recent._samples) <= 10
    assert recent.patches_per_s() == pytest.approx(1000, rel=0.01)


def test_progress_is_more_than_ever():
    """Counts that fall with a dead batcher and come back are no progress."""
    recent = Recent()
    for second, patches in enumerate([100, 50, 100, 101, 101]):
        recent.add(Sample(float(second), patches))
    assert recent.progress_at == 3.0


def test_counters_never_fall():
    """A batcher that was replaced has to read the journals first; meanwhile its lower counts are not passed on."""
    recent = Recent()
    assert [recent.highest("inferred", count) for count in (10, 4, 9, 12)] == [10, 10, 10, 12]


def test_gpu_busy_survives_a_new_worker():
    """A worker that was replaced counts from its own start, not below zero."""
    recent = Recent()
    recent.add(Sample(0.0, 0, gpus={"inference-0": {"seconds": 100.0, "busy_seconds": 90.0, "batches": 50}}))
    recent.add(Sample(10.0, 0, gpus={"inference-0": {"seconds": 4.0, "busy_seconds": 1.0, "batches": 2}}))
    assert recent.gpu_busy("inference-0") == 0.25


def test_put_together(ledger, figures):
    """The supervisor's counters, its GPUs and the ledger in one look."""
    recent = Recent()
    recent.add(sample(looks.answer(100), 10.0))
    run = looks.answer(150, telemetry={"inference-0": {"seconds": 20.0, "busy_seconds": 12.0, "batches": 9}})
    recent.add(sample(run, 20.0))
    look = snapshot(figures.facts(200.0), run, recent, 200.0, 25.0, version="1")
    assert look.answers and look.ledger and look.patches_per_s == 5.0
    assert look.gpus[0].name == "NVIDIA H100" and look.gpus[0].busy == pytest.approx(0.7)
    assert look.last_result_age_s == 5.0
    assert look.workers("reader") == 1 and look.backlog == 3


def test_silent_supervisor_leaves_the_ledger(ledger, tmp_path):
    """Without an answer there is still what the ledger says, and why there is no more."""

    def ask(question, patience):
        raise Unanswered("no answer within 2 s")

    sampler = Sampler(tmp_path / "ledger.sqlite", ask)
    look = sampler.look()
    sampler.close()
    assert not look.answers and look.problem == "no answer within 2 s"
    assert look.ledger and look.backlog == 3


def test_missing_ledger_is_said(tmp_path):
    """Without a ledger there is still the supervisor's answer; when it comes, it is opened."""
    sampler = Sampler(tmp_path / "ledger.sqlite", lambda question, patience: {"run": looks.answer()})
    look = sampler.look()
    assert look.answers and not look.ledger and "no ledger is there" in look.problem
    Ledger(tmp_path / "ledger.sqlite").close()
    assert sampler.look().ledger
    sampler.close()
