from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.service.ledger import Ledger, folder_key, results_key
from pipeline.service.lifecycle import ALLOWED, AT_REST, UNFINISHED, NotAllowed, State, Urgency
from pipeline.service.migrations import LedgerError
from pipeline.service.reasons import Kind
from pipeline.service.records import Filter
from pipeline.service.view import View
from tests.pipeline.service.ledgers import delivery

DONE = {"planned": 10, "inferred": 10, "failed": 0}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as made:
        yield made


def one(ledger: Ledger, now: float = 10.0, **more: object) -> int:
    return ledger.deliver(delivery(**more), now)[0].id


def told(ledger: Ledger, sink: str = "none yet") -> list[str]:
    return [event.event for event in ledger.unsent(sink)]


def test_every_state_is_reached_and_left_as_drawn() -> None:
    """Each state has its changes, each but the first is entered by some, and at rest or not is decided for all."""
    assert set(ALLOWED) == set(State)
    assert set().union(*ALLOWED.values()) == set(State) - {State.WAITING}
    assert AT_REST | UNFINISHED | {State.WAITING} == set(State)


def test_a_slide_goes_through_its_life(ledger: Ledger) -> None:
    """Delivered, started, first result, finished: state, times, result, history and events are all there."""
    number = one(ledger)
    slide = ledger.started(number, 11.0)
    assert ledger.first_result(number, slide.attempts, 12.0)
    assert not ledger.first_result(number, slide.attempts, 13.0)
    assert ledger.finished(number, slide.attempts, State.COMPLETE, DONE, 14.0)
    slide = ledger.slide(number)
    assert (slide.seen, slide.delivered, slide.started, slide.first_result, slide.finished) == (1, 10, 11, 12, 14)
    assert slide.state is State.COMPLETE
    assert slide.result == DONE
    assert [(step.time, step.new) for step in ledger.history(number)] == [
        (10, State.QUEUED),
        (11, State.RUNNING),
        (14, State.COMPLETE),
    ]
    assert told(ledger) == ["slide.delivered", "slide.complete"]


def test_the_same_content_is_one_slide_with_two_names(ledger: Ledger) -> None:
    """Also when it is finished: it is not done twice, and both names are recorded."""
    number = one(ledger)
    ledger.finished(number, ledger.started(number, 11.0).attempts, State.COMPLETE, DONE, 12.0)
    assert one(ledger, 13.0, name="copy", content="S1") == number
    assert [name.path for name in ledger.names(number)] == [b"/scans/S1.svs", b"/scans/copy.svs"]
    assert ledger.slide(number).state is State.COMPLETE
    assert ledger.next_due(99.0) == []


def test_the_second_delivery_may_make_a_slide_urgent_but_not_less(ledger: Ledger) -> None:
    """Class and deadline are the more urgent ones of all deliveries."""
    number = one(ledger)
    one(ledger, name="copy", content="S1", urgency=Urgency.STAT, deadline=70.0)
    one(ledger, name="third", content="S1", urgency=Urgency.ROUTINE, deadline=90.0)
    slide = ledger.slide(number)
    assert (slide.urgency, slide.deadline) == (Urgency.STAT, 70.0)


def test_each_route_has_a_row_of_its_own(ledger: Ledger) -> None:
    """Two models on one slide succeed and fail by themselves; a route that comes later is added."""
    first, second = ledger.deliver(delivery(routes=("tumour", "mitosis")), 10.0)
    ledger.finished(first.id, ledger.started(first.id, 11.0).attempts, State.COMPLETE, DONE, 12.0)
    assert [slide.id for slide in ledger.next_due(12.0, 5)] == [second.id]
    again = ledger.deliver(delivery(name="copy", content="S1", routes=("tumour", "stroma")), 13.0)
    assert again[0].id == first.id
    assert [slide.route for slide in ledger.named("S1")] == ["tumour", "mitosis"]
    assert again[1].name == "copy"


@pytest.mark.parametrize("other", ["s1", "S1"])
def test_names_that_some_file_system_takes_for_one_are_made_two(ledger: Ledger, other: str) -> None:
    """Two slides of one name, or of two that differ by case, never write to the same results."""
    ledger.deliver(delivery("S1", content="a"), 1.0)
    slide = ledger.deliver(delivery(other, content="b", path=b"/scans/other/s1.svs"), 2.0)[0]
    assert slide.name == f"{other}~{slide.fingerprint[:8]}"


def test_a_name_that_was_taken_on_purpose_is_passed_over(ledger: Ledger) -> None:
    """Someone may have named a file as we would have named another."""
    mark = delivery("b").fingerprint[:8]
    for number, name in enumerate(("S1", f"S1~{mark}", f"S1~{mark}-2")):
        ledger.deliver(delivery(name, content=f"other {number}"), 1.0)
    assert ledger.deliver(delivery("S1", content="b", path=b"/x/S1.svs"), 2.0)[0].name == f"S1~{mark}-3"


def test_composed_and_decomposed_names_are_made_two(ledger: Ledger) -> None:
    """As one file system normalises Unicode and the other does not."""
    ledger.deliver(delivery("Grün", content="a"), 1.0)
    slide = ledger.deliver(delivery("Gru\u0308n", content="b"), 2.0)[0]
    assert "~" in slide.name


def test_stat_comes_first_then_the_deadline_then_first_come(ledger: Ledger) -> None:
    """In the order in which they are to be started."""
    order = [
        one(ledger, name="r2", seen=2.0),
        one(ledger, name="r1", seen=1.0),
        one(ledger, name="s2", urgency=Urgency.STAT, deadline=90.0),
        one(ledger, name="s1", urgency=Urgency.STAT, deadline=80.0),
    ]
    assert [slide.id for slide in ledger.next_due(10.0, 9)] == [order[3], order[2], order[1], order[0]]


def test_what_may_pass_is_tried_again_after_growing_pauses_then_quarantined(ledger: Ledger) -> None:
    """Six failures of reading; each try is due only when its pause is over."""
    number, now = one(ledger), 10.0
    for failure in range(1, 7):
        slide = ledger.fail(number, ledger.started(number, now).attempts, Kind.READ_ERROR, "Input/output error", now)
        if failure < 6:
            assert ledger.next_due(slide.due - 0.1) == []
            assert ledger.next_wake() == slide.due
            now = slide.due
            assert [due.id for due in ledger.next_due(now)] == [number]
    assert (slide.state, slide.kind, slide.failures) == (State.QUARANTINED, Kind.READ_ERROR, 6)
    assert told(ledger).count("slide.retry") == 5
    assert ledger.unsent("none")[-1].body["remedy"] == "check the share and its disks, then retry"


def test_success_makes_a_slide_fresh(ledger: Ledger) -> None:
    """Failures before it do not count against a later try."""
    number = one(ledger)
    slide = ledger.fail(number, ledger.started(number, 10.0).attempts, Kind.READ_ERROR, "EIO", 10.0)
    ledger.finished(number, ledger.started(number, slide.due).attempts, State.PARTIAL, DONE, 20.0)
    assert ledger.slide(number).failures == 0
    assert ledger.retry(number, 21.0).state is State.QUEUED


def test_a_share_that_is_gone_holds_its_folder_and_costs_no_attempt(ledger: Ledger) -> None:
    """Other folders go on; when it is back, its slides are due at once."""
    number, other = one(ledger), one(ledger, name="S2", path=b"/more/S2.svs", folder="/more")
    waiting = one(ledger, name="S3")
    slide = ledger.fail(number, ledger.started(number, 10.0).attempts, Kind.SHARE_GONE, "Stale file handle", 10.0)
    assert slide.failures == 0
    assert [hold.key for hold in ledger.holds()] == [folder_key("/scans")]
    assert [due.id for due in ledger.next_due(12.0, 9)] == [other]
    assert ledger.release(folder_key("/scans"), 12.0)
    assert {due.id for due in ledger.next_due(12.0, 9)} == {number, other, waiting}
    assert told(ledger)[-1] == "intake.released"


def test_a_full_disk_holds_the_results_of_a_route_until_a_slide_comes_through(ledger: Ledger) -> None:
    """After the pause one may try; a success lifts the hold, and the other slides are due."""
    numbers = [one(ledger, name=name) for name in ("S1", "S2")]
    for number in numbers:
        slide = ledger.fail(number, ledger.started(number, 10.0).attempts, Kind.DISK_FULL, "No space left", 10.0)
    assert ledger.next_due(11.0) == []
    assert [hold.key for hold in ledger.holds()] == [results_key("tumour")]
    first = ledger.next_due(slide.due, 9)[0]
    ledger.finished(first.id, ledger.started(first.id, slide.due).attempts, State.COMPLETE, DONE, slide.due)
    assert ledger.holds() == []


def test_a_hold_until_its_release_is_not_cut_short(ledger: Ledger) -> None:
    """A folder that the intake found gone stays held, whatever its slides report."""
    number = one(ledger)
    slide = ledger.started(number, 10.0)
    assert ledger.hold(folder_key("/scans"), Kind.SHARE_GONE, "is not mounted", 10.0)
    ledger.fail(number, slide.attempts, Kind.SHARE_GONE, "Stale file handle", 10.0)
    assert ledger.next_due(9999.0) == []


def test_a_slide_is_read_by_the_name_whose_folder_is_there(ledger: Ledger) -> None:
    """Delivered to two shares, one of them gone, it is read from the other."""
    number = one(ledger, name="copy", content="S1", path=b"/more/S1.svs", folder="/more")
    one(ledger)
    assert ledger.slide(number).path == b"/scans/S1.svs"
    ledger.hold(folder_key("/scans"), Kind.SHARE_GONE, "is not mounted", 10.0)
    assert ledger.next_due(11.0)[0].path == b"/more/S1.svs"


def test_an_attempt_that_is_over_changes_nothing(ledger: Ledger) -> None:
    """What a cancelled or an earlier attempt still says is refused."""
    number = one(ledger)
    attempt = ledger.started(number, 10.0).attempts
    ledger.cancel(number, 11.0)
    assert not ledger.finished(number, attempt, State.COMPLETE, DONE, 12.0)
    assert ledger.fail(number, attempt, Kind.CRASH, "late", 12.0) is None
    ledger.retry(number, 13.0)
    ledger.started(number, 14.0)
    assert not ledger.finished(number, attempt, State.COMPLETE, DONE, 15.0)
    assert ledger.slide(number).state is State.RUNNING


def test_what_ran_at_the_end_is_queued_at_the_next_start(tmp_path: Path) -> None:
    """It is counted as an interruption, not as a failure."""
    with Ledger(tmp_path / "l") as ledger:
        number = one(ledger)
        ledger.started(number, 10.0)
    with Ledger(tmp_path / "l") as ledger:
        assert [slide.id for slide in ledger.recover(20.0)] == [number]
        slide = ledger.slide(number)
        assert (slide.state, slide.failures, slide.interruptions) == (State.QUEUED, 0, 1)


def test_the_operator_cannot_do_what_makes_no_sense(ledger: Ledger) -> None:
    """A sentence says why; the slide stays as it is."""
    number = one(ledger)
    with pytest.raises(NotAllowed, match="is queued"):
        ledger.retry(number, 1.0)
    ledger.finished(number, ledger.started(number, 2.0).attempts, State.COMPLETE, DONE, 3.0)
    with pytest.raises(NotAllowed, match="is complete"):
        ledger.cancel(number, 4.0)
    with pytest.raises(NotAllowed, match="is complete"):
        ledger.prioritise(number, Urgency.STAT, None, 4.0)
    with pytest.raises(KeyError, match="no slide has the id 99"):
        ledger.cancel(99, 4.0)
    assert ledger.slide(number).state is State.COMPLETE


def test_prioritise_lets_a_slide_overtake(ledger: Ledger) -> None:
    """And stands in its history, with who did it."""
    one(ledger)
    number = one(ledger, name="S2")
    ledger.prioritise(number, Urgency.STAT, 60.0, 11.0)
    assert ledger.next_due(12.0)[0].id == number
    assert ledger.history(number)[-1].by == "operator"


def test_a_removed_file_that_waits_is_quarantined_and_comes_back(ledger: Ledger) -> None:
    """Delivered again, the slide is queued; while another name is there, nothing happens at all."""
    number = one(ledger)
    one(ledger, name="copy", content="S1")
    ledger.withdrawn(b"/scans/copy.svs", 11.0)
    assert ledger.slide(number).state is State.QUEUED
    ledger.withdrawn(b"/scans/S1.svs", 12.0)
    assert (ledger.slide(number).state, ledger.slide(number).kind) == (State.QUARANTINED, Kind.VANISHED)
    with pytest.raises(NotAllowed, match="deliver it again"):
        ledger.retry(number, 13.0)
    one(ledger, 14.0)
    assert ledger.slide(number).state is State.QUEUED


def test_a_broken_slide_is_not_tried_again_for_its_second_copy(ledger: Ledger) -> None:
    """The same bytes are as broken; what the operator cancelled stays cancelled, too."""
    bad = one(ledger, problem=Kind.BAD_SLIDE, reason="is not a slide")
    assert one(ledger, name="copy", content="S1") == bad
    assert ledger.slide(bad).state is State.QUARANTINED
    other = one(ledger, name="S2")
    ledger.cancel(other, 11.0)
    one(ledger, name="copy2", content="S2")
    assert ledger.slide(other).state is State.CANCELLED


def test_a_path_with_new_content_is_a_new_slide(ledger: Ledger) -> None:
    """The old one, if it has not been read, cannot be any more."""
    old, new = one(ledger), one(ledger, 11.0, content="another scan")
    assert old != new
    assert ledger.slide(old).kind is Kind.VANISHED
    assert ledger.slide(new).name.startswith("S1~")
    assert ledger.there("/scans") == {b"/scans/S1.svs": "1"}


def test_a_slide_that_is_replaced_while_it_is_read_has_no_result(ledger: Ledger) -> None:
    """Its pixels would be of two slides; one that is only removed, or has another name, is read to its end."""
    number = one(ledger)
    attempt = ledger.started(number, 11.0).attempts
    one(ledger, 12.0, content="another scan")
    assert ledger.slide(number).state is State.QUARANTINED
    assert not ledger.finished(number, attempt, State.COMPLETE, DONE, 13.0)
    removed = one(ledger, 14.0, name="S2")
    attempt = ledger.started(removed, 15.0).attempts
    ledger.withdrawn(b"/scans/S2.svs", 16.0)
    assert ledger.finished(removed, attempt, State.COMPLETE, DONE, 17.0)


def test_a_renamed_file_is_the_same_slide(ledger: Ledger) -> None:
    """It is read by its new name; an arrival keeps the time when it was first seen."""
    number = one(ledger)
    ledger.renamed(b"/scans/S1.svs", b"/scans/T1.svs", 11.0)
    assert ledger.slide(number).path == b"/scans/T1.svs"
    assert ledger.slide(number).state is State.QUEUED
    ledger.waiting(b"/scans/a.svs", "/scans", Urgency.ROUTINE, 3.0, 100, "still growing", 4.0)
    ledger.renamed(b"/scans/a.svs", b"/scans/b.svs", 5.0)
    assert [(arrival.path, arrival.seen) for arrival in ledger.arrivals()] == [(b"/scans/b.svs", 3.0)]


def test_arrivals_are_counted_and_leave_when_taken(ledger: Ledger) -> None:
    """One that is stuck raises its event once."""
    path = b"/scans/S1.svs"
    ledger.waiting(path, "/scans", Urgency.STAT, 1.0, 100, "still growing", 2.0)
    assert ledger.counts()[State.WAITING] == {Urgency.STAT: 1, Urgency.ROUTINE: 0}
    assert ledger.stuck(path, "may not be read", 3.0)
    assert not ledger.stuck(path, "may not be read", 4.0)
    one(ledger)
    assert ledger.arrivals() == []
    assert told(ledger) == ["arrival.stuck", "slide.delivered"]


def test_a_deadline_at_risk_raises_one_alarm(ledger: Ledger) -> None:
    """And none for what is finished in time."""
    number = one(ledger, deadline=70.0)
    assert ledger.at_risk(70.0) == []
    assert [slide.id for slide in ledger.at_risk(71.0)] == [number]
    assert ledger.alarm(number, "60 slides before it", 60.0)
    assert not ledger.alarm(number, "60 slides before it", 61.0)
    assert ledger.at_risk(71.0) == []
    assert told(ledger).count("slide.deadline_at_risk") == 1


def test_rows_are_filtered_and_paged(ledger: Ledger) -> None:
    """Newest first; the count is that of all pages."""
    numbers = [one(ledger, name=f"Case {i}/Slide") for i in range(7)]
    one(ledger, name="other", urgency=Urgency.STAT, path=b"/more/x.svs", folder="/more")
    which = Filter(states=(State.QUEUED,), urgency=Urgency.ROUTINE, route="tumour", folder="/scans", text="SLIDE")
    first = ledger.rows(which, limit=4)
    rest = ledger.rows(which, limit=4, before=first[-1].id)
    assert [slide.id for slide in first + rest] == numbers[::-1]
    assert ledger.count(which) == 7
    assert ledger.count(Filter(since=11.0)) == 0
    assert ledger.count(Filter(text="100 %_' OR 1")) == 0


def test_sinks_get_every_event_in_order_from_where_they_stopped(ledger: Ledger) -> None:
    """A new sink is spared the past; old events go when all have them, or when nobody wants them any more."""
    one(ledger)
    ledger.add_sink("spool")
    ledger.add_sink("webhook")
    numbers = [one(ledger, name=f"S{i}") for i in range(2, 5)]
    events = ledger.unsent("spool")
    assert [event.slide for event in events] == numbers
    ledger.sent("spool", events[1].id)
    ledger.add_sink("spool")
    assert [event.id for event in ledger.unsent("spool")] == [events[2].id]
    assert ledger.forget_events(before=99.0, unsent_before=0.0) == 1
    ledger.sent("webhook", events[0].id)
    assert ledger.forget_events(before=99.0, unsent_before=0.0) == 1
    assert ledger.forget_events(before=99.0, unsent_before=99.0) == 2
    ledger.add_sink("late")
    one(ledger, name="S9")
    assert len(ledger.unsent("late")) == 1


def test_a_batch_is_kept_whole_or_not_at_all(ledger: Ledger) -> None:
    """An error in the middle takes back what came before it."""
    with pytest.raises(KeyError), ledger.batch():
        one(ledger)
        ledger.cancel(99, 1.0)
    assert ledger.count(Filter()) == 0
    assert told(ledger) == []


def test_odd_names_are_kept_to_the_byte(ledger: Ledger) -> None:
    """Newlines, and bytes that are no UTF-8, in paths; events hold them escaped."""
    path = b"/scans/a\nb\xff.svs"
    number = one(ledger, name="a\nb\\xff", path=path)
    assert ledger.slide(number).path == path
    assert ledger.unsent("x")[0].body["path"] == "/scans/a\nb\\xff.svs"


def test_readers_look_on_while_the_service_writes(tmp_path: Path) -> None:
    """Each answer is of a committed state; a reader cannot change anything."""
    with Ledger(tmp_path / "l") as ledger:
        view = View.open(tmp_path / "l")
        with ledger.batch():
            one(ledger)
            assert view.count(Filter()) == 0
        assert view.count(Filter()) == 1
        with pytest.raises(Exception, match="readonly"):
            view._connection.execute("DELETE FROM slides")
        view.close()
    view = View.open(tmp_path / "l")
    assert view.count(Filter()) == 1
    view.close()


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    """By process id."""
    with Ledger(tmp_path / "l"), pytest.raises(LedgerError, match=r"another service writes it \(process \d+\)"):
        Ledger(tmp_path / "l")


def test_the_ledger_is_private_and_synced_at_every_commit(tmp_path: Path) -> None:
    """Only its user may open it; synchronous is FULL (2), the log is a WAL, foreign keys hold."""
    with Ledger(tmp_path / "l") as ledger:
        run = ledger._connection.execute
        values = [run(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode", "foreign_keys")]
        assert values == [2, "wal", 1]
        one(ledger)
        assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


def test_a_full_disk_changes_nothing_and_says_so(ledger: Ledger) -> None:
    """The ledger goes on when there is room again."""
    one(ledger)
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match="free some space"), ledger.batch():
        for i in range(2000):
            one(ledger, name=f"T{i}")
    assert ledger.count(Filter()) == 1
    ledger._connection.execute("PRAGMA max_page_count = 100000")
    assert one(ledger, name="S2")


def test_a_slide_whose_lane_ended_is_queued_again_without_a_failure(tmp_path: Path) -> None:
    """Only its own attempt counts: word of one that is over changes nothing."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        (slide,) = ledger.deliver(delivery(), 1.0)
        attempt = ledger.started(slide.id, 2.0).attempts
        assert not ledger.interrupted(slide.id, attempt - 1, "its lane ended", 3.0)
        assert ledger.interrupted(slide.id, attempt, "its lane ended", 3.0)
        assert not ledger.interrupted(slide.id, attempt, "its lane ended", 3.0)
        slide = ledger.slide(slide.id)
        assert (slide.state, slide.failures, slide.interruptions) == (State.QUEUED, 0, 1)


def test_what_is_due_is_asked_for_one_route(tmp_path: Path) -> None:
    """A lane is offered its own slides only."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.deliver(delivery("a", routes=("tumour", "other")), 1.0)
        assert [slide.route for slide in ledger.next_due(2.0, 9, "other")] == ["other"]
        assert len(ledger.next_due(2.0, 9)) == 2


def test_events_do_not_wait_for_receivers_that_are_configured_no_more(tmp_path: Path) -> None:
    """They are forgotten with their place."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_sink("webhook")
        ledger.add_sink("spool")
        ledger.deliver(delivery(), 1.0)
        ledger.keep_sinks(["spool"])
        ledger.sent("spool", 99)
        assert ledger.forget_events(10.0, 0.0) == 1
        ledger.keep_sinks([])
