"""The dispatcher's rules one by one; test_simulation.py has them all at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.dispatch.board import DispatchSettings
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.dispatch.schedule import GRACE
from pipeline.line import Line
from pipeline.wire import (
    Amend,
    Ask,
    Beat,
    Begin,
    Begun,
    Condemn,
    Consumed,
    Dead,
    Drain,
    Fill,
    Filled,
    Forget,
    Hello,
    Inferred,
    Journaled,
    Known,
    Living,
    Mask,
    Message,
    Open,
    Opened,
    Planned,
    Recall,
    Record,
    Refused,
    Run,
    SlideDone,
    Submit,
    Welcome,
    Who,
    Write,
    Written,
)
from slides.geometry import Geometry
from slides.plan import Plan

KINDS = ("reader", "tissue", "inference", "aggregator", "writer")
PATIENCE = 10.0


class Desk:
    """A dispatcher and the letters that it has written, by name of the worker."""

    def __init__(self, living: list | None = None, boot: int = 1, **changes: object):
        values = {
            "run": "run",
            "folder": "/nowhere",
            "batch": 4,
            "slots": 4,
            "overview_slots": 2,
            "reserved": 0,
            "shared": False,
            "delay_urgent_ms": 5.0,
            "delay_routine_ms": 200.0,
            "delay_hungry_ms": 7.0,
            "floor": 0.0,
            "ahead": 4,
            "window": 9,
            "classes": (1,),
            "patience": dict.fromkeys(KINDS, PATIENCE),
        }
        self.now = 0.0
        self.mind = Dispatcher(DispatchSettings(**{**values, **changes}), boot)
        self.letters: dict[str, list[Message]] = {}
        if living is not None:
            self.supervisor(Living("run", living))

    def _post(self) -> None:
        for (name, _), message in self.mind.letters():
            self.letters.setdefault(name, []).append(message)

    def supervisor(self, message: Message) -> None:
        self.mind.from_supervisor(message, self.now)
        self._post()

    def say(self, name: str, message: Message, generation: int = 1) -> None:
        self.mind.from_worker(name, generation, message, self.now)
        self._post()

    def hello(self, name: str, credit: int = 2, generation: int = 1, run: str = "run", kind: str = "") -> None:
        self.say(name, Hello(0, kind or name.split("-")[0], run, 1, credit, {}), generation)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.mind.tick(self.now)
        self._post()

    def sent(self, name: str, kind: type[Message]) -> list:
        """Messages of a kind to a worker since the last look."""
        letters = self.letters.get(name, [])
        found = [message for message in letters if type(message) is kind]
        self.letters[name] = [message for message in letters if type(message) is not kind]
        return found

    def planned(self, number: int, patches: int, urgent: bool = False) -> None:
        """A slide whose journal is there already; needs an aggregator."""
        grid = Geometry(4, 0.5, 0, 1.0, (4, 4), "none", 4, 4, 4, 4, patches, 1)
        plan = Plan(np.arange(patches, dtype=np.int32), np.zeros(patches, np.int32), np.ones(patches, np.float32))
        header = {"plan": plan.to_bytes(), "geometry": grid.to_dict(), "info": {}}
        self.supervisor(Submit(number, f"s{number}", f"/s{number}", {}, urgent, False, ""))
        self.say("aggregator-0", Known(number, header, bytes(patches)))

    def fill(self, name: str) -> Fill:
        (lease,) = self.sent(name, Fill)
        return lease

    def filled(self, name: str, lease: Fill, rows: int | None = None) -> None:
        whole = sum(len(segment[3]) // 8 for segment in lease.segments)
        self.say(name, Filled(lease.lease, whole if rows is None else rows, [], []))

    def inferred(self, name: str, lease: Run) -> None:
        self.say(name, Inferred(lease.lease, np.full((lease.count, 1), 0.5, np.float32).tobytes(), []))


def desk(*names: str, credit: int = 2, **changes: object) -> Desk:
    """A dispatcher with these workers and an aggregator."""
    made = Desk([], **changes)
    made.hello("aggregator-0", 0)
    for name in names:
        made.hello(name, credit)
    return made


def patches(lease: Fill) -> list[tuple[int, int]]:
    return [(s[0], x // 4) for s in lease.segments for x in np.frombuffer(s[3], "<i4").reshape(-1, 2)[:, 0].tolist()]


# ---------------------------------------------------------------- who works


def test_nothing_is_granted_before_the_supervisor_has_spoken() -> None:
    """Until then, any number of workers may be alive."""
    made = Desk()
    made.hello("aggregator-0", 0)
    made.hello("reader-0")
    made.planned(1, 4)
    assert made.sent("reader-0", Fill) == []
    made.supervisor(Living("run", [["reader-0", 1], ["aggregator-0", 1]]))
    assert len(made.sent("reader-0", Fill)) == 1


@pytest.mark.parametrize("end", ["hello", "dead", "next generation"])
def test_nothing_is_granted_while_a_living_worker_is_silent(end: str) -> None:
    """It may still be writing into a slot for the last batcher."""
    made = Desk([["reader-0", 1], ["reader-1", 1]])
    made.hello("aggregator-0", 0)
    made.hello("reader-0")
    made.planned(1, 4)
    assert made.sent("reader-0", Fill) == []
    made.say("reader-1", Beat())
    assert made.sent("reader-1", Who) == [Who(1)]
    if end == "hello":
        made.hello("reader-1")
    elif end == "dead":
        made.supervisor(Dead("reader-1", 1, "killed", False))
    else:
        made.hello("reader-1", generation=2)
        assert made.sent("reader-0", Fill) == []
        made.supervisor(Dead("reader-1", 1, "killed", False))
    assert len(made.sent("reader-0", Fill) + made.sent("reader-1", Fill)) == 1


def test_a_worker_that_does_not_answer_a_new_batcher_is_condemned() -> None:
    """Once in a while, not at every tick; and its Hello no longer counts."""
    made = Desk([["reader-0", 1]])
    for _ in range(15):
        made.tick(1.0)
    assert [c.name for c in made.sent("supervisor", Condemn)] == ["reader-0"]
    made.hello("reader-0")
    assert made.sent("reader-0", Welcome) == []


def test_a_hello_after_word_of_the_death_is_too_late() -> None:
    """Messages of the dead may arrive after word of their death: no lease goes to a ghost."""
    made = desk()
    made.supervisor(Dead("reader-0", 1, "killed", False))
    made.hello("reader-0")
    made.planned(1, 4)
    assert made.sent("reader-0", Fill) == [] and made.sent("reader-0", Welcome) == []
    made.hello("reader-0", generation=2)
    assert len(made.sent("reader-0", Fill)) == 1


def test_strangers_are_not_let_in() -> None:
    """Another run's worker, or one of an unknown kind, gets no Welcome."""
    made = desk()
    made.hello("reader-0", run="another")
    made.hello("oracle-0")
    assert made.sent("reader-0", Welcome) == made.sent("oracle-0", Welcome) == []
    made.tick(1.0)


def test_a_silent_worker_is_condemned_and_keeps_its_slot_until_it_is_dead() -> None:
    """A hanging process may still write: only word of its death sets the slot free."""
    made = desk("reader-0", credit=1, slots=1)
    made.planned(1, 4)
    lease = made.fill("reader-0")
    made.tick(PATIENCE - 1)
    made.hello("reader-1")
    made.tick(2.0)
    assert [c.name for c in made.sent("supervisor", Condemn) if c.name == "reader-0"] == ["reader-0"]
    assert made.sent("reader-1", Fill) == []
    made.supervisor(Dead("reader-0", 1, "killed", False))
    assert patches(made.fill("reader-1")) == patches(lease)


# ---------------------------------------------------------------- what comes first


def test_urgent_work_takes_the_reserved_slot_when_routine_has_no_room() -> None:
    """Routine's turn does not hold up urgent work while all slots that routine may use are taken."""
    made = desk("reader-0", credit=9, slots=3, reserved=1, floor=0.5)
    made.planned(1, 40)
    assert len(made.sent("reader-0", Fill)) == 2
    made.planned(2, 40, urgent=True)
    assert patches(made.fill("reader-0")) == [(2, p) for p in range(4)]


def test_an_urgent_slide_is_next_at_once() -> None:
    """The next slot that comes free is an urgent slide's, and runs before all that were ready."""
    made = desk("reader-0", slots=4)
    made.planned(1, 100)
    first, second = made.sent("reader-0", Fill)
    made.planned(2, 4, urgent=True)
    made.filled("reader-0", first)
    urgent = made.fill("reader-0")
    assert patches(urgent)[0][0] == 2 and urgent.max_delay_ms == 5.0
    made.filled("reader-0", second)
    made.filled("reader-0", urgent)
    made.hello("inference-0", 1)
    assert [run.slot for run in made.sent("inference-0", Run)] == [urgent.slot]


def test_urgent_work_does_not_wait_for_routine_suspects() -> None:
    """A routine batch that killed a reader is tried when routine's turn comes."""
    made = desk("reader-0", credit=1)
    made.planned(1, 4)
    assert patches(made.fill("reader-0"))[0][0] == 1
    made.supervisor(Dead("reader-0", 1, "SIGSEGV", True))
    made.planned(2, 4, urgent=True)
    made.hello("reader-0", 1, generation=2)
    assert patches(made.fill("reader-0"))[0][0] == 2


def test_a_slot_that_was_closed_early_returns_its_rest() -> None:
    """What was not read is read next."""
    made = desk("reader-0", credit=1, batch=4)
    made.planned(1, 6)
    made.filled("reader-0", made.fill("reader-0"), 1)
    assert patches(made.fill("reader-0")) == [(1, 1), (1, 2), (1, 3), (1, 4)]


# ---------------------------------------------------------------- suspects


def test_suspects_are_read_and_inferred_alone() -> None:
    """Nothing else is granted to a worker that tries a batch, and it must be idle at first."""
    made = desk("reader-0", credit=3)
    made.planned(1, 100)
    leases = made.sent("reader-0", Fill)
    assert len(leases) == 3
    made.supervisor(Dead("reader-0", 1, "SIGSEGV", True))
    made.hello("reader-0", 3, generation=2)
    made.hello("inference-0", 3)
    for lease in leases[::-1]:
        made.say("reader-0", Beat(), 2)
        trial = made.fill("reader-0")
        assert patches(trial) == patches(lease) and trial.max_delay_ms == float("inf")
        made.say("reader-0", Filled(trial.lease, 4, [], []), 2)
    runs = made.sent("inference-0", Run)
    assert [run.count for run in runs] == [4]
    made.inferred("inference-0", runs[0])
    assert len(made.sent("inference-0", Run)) == 1


def test_the_report_tells_of_trials_and_of_patches_found_guilty() -> None:
    """Wherever a suspect batch is: waiting, being read, ready, being run. The supervisor judges deaths by it."""
    made = desk("reader-0", "inference-0", credit=1)
    made.planned(1, 1)

    def told() -> tuple[int, int, int]:
        status = made.mind.report().status
        return status["suspects"], status["on_trial"], status["quarantined"]

    def killed(generation: int) -> None:
        made.filled("reader-0", made.fill("reader-0"))
        assert told()[:2] == (0, generation > 1)
        assert len(made.sent("inference-0", Run)) == 1
        made.supervisor(Dead("inference-0", generation, "SIGSEGV", True))

    killed(1)
    assert told() == (0, 1, 0)  # at the reader already
    made.hello("inference-0", 1, generation=2)
    killed(2)
    assert told() == (0, 1, 0)
    made.hello("inference-0", 1, generation=3)
    killed(3)
    assert told() == (0, 0, 1)


def test_a_kill_from_outside_costs_no_reading() -> None:
    """The pixels are still in the slot: the batch runs again, and the reader is not troubled."""
    made = desk("reader-0", "inference-0", credit=1)
    made.planned(1, 4)
    made.filled("reader-0", made.fill("reader-0"))
    (run,) = made.sent("inference-0", Run)
    made.supervisor(Dead("inference-0", 1, "SIGKILL", False))
    made.hello("inference-0", 1, generation=2)
    (again,) = made.sent("inference-0", Run)
    assert again.slot == run.slot and made.sent("reader-0", Fill) == []


def test_a_consumed_batch_is_read_again() -> None:
    """Its slot was given away: after the death of its worker its patches are pending once more."""
    made = desk("reader-0", "inference-0", credit=1)
    made.planned(1, 4)
    made.filled("reader-0", made.fill("reader-0"))
    (run,) = made.sent("inference-0", Run)
    made.say("inference-0", Consumed(run.lease))
    assert made.mind.report().status["slots"]["free"] == 4
    made.supervisor(Dead("inference-0", 1, "SIGKILL", False))
    assert patches(made.fill("reader-0")) == [(1, p) for p in range(4)]


def test_a_refused_batch_is_bisected() -> None:
    """An engine that says no is no death, but the guilty patch is found in the same way."""
    made = desk("reader-0", "inference-0", credit=1)
    made.planned(1, 4)
    for _ in range(20):
        for lease in made.sent("reader-0", Fill):
            made.filled("reader-0", lease)
            (run,) = made.sent("inference-0", Run)
            if (1, 2) in patches(lease):
                made.say("inference-0", Refused(run.lease, "no"))
            else:
                made.inferred("inference-0", run)
    records = made.sent("aggregator-0", Record)
    inferred = [p for record in records for p in np.frombuffer(record.patches, "<i4").tolist()]
    failed = [failure for record in records for failure in record.failures]
    assert sorted(inferred) == [0, 1, 3] and [patch for patch, _ in failed] == [2]
    assert "stopped the inference twice (no)" in failed[0][1]


def test_a_slide_that_killed_its_reader_gets_an_idle_one_although_there_is_much_to_read() -> None:
    """Readers are kept from other work until one is free to try it alone."""
    made = desk("reader-0", "reader-1")
    made.supervisor(Submit(1, "s1", "/s1", {}, False, False, ""))
    made.say("aggregator-0", Known(1, None, b""))
    assert len(made.sent("reader-0", Open)) == 1
    made.planned(2, 1000)
    first, second = made.sent("reader-1", Fill)
    made.supervisor(Dead("reader-0", 1, "SIGSEGV", True))
    assert made.sent("reader-1", Open) == []
    made.filled("reader-1", first)
    assert made.sent("reader-1", Fill) == made.sent("reader-1", Open) == []
    made.filled("reader-1", second)
    (lease,) = made.sent("reader-1", Open)
    assert made.sent("reader-1", Fill) == []
    made.say("reader-1", Refused(lease.lease, "not a slide"))
    assert len(made.sent("reader-1", Fill)) >= 1


def test_a_given_up_slide_outlives_the_death_of_a_writer() -> None:
    """The deaths of readers that it has caused do not count against writing that it failed."""
    made = desk("writer-0", credit=1)
    made.supervisor(Submit(1, "s1", "/s1", {}, False, False, ""))
    made.say("aggregator-0", Known(1, None, b""))
    for generation in (1, 2, 3):
        made.hello("reader-0", generation=generation)
        assert len(made.sent("reader-0", Open)) == 1
        made.supervisor(Dead("reader-0", generation, "SIGSEGV", True))
    for generation in (1, 2):
        (write,) = made.sent("writer-0", Write)
        assert write.problem == "opening it killed the reader twice (SIGSEGV)"
        made.supervisor(Dead("writer-0", generation, "SIGSEGV", True))
        assert made.sent("supervisor", SlideDone) == []
        made.hello("writer-0", 1, generation=generation + 1)
    (write,) = made.sent("writer-0", Write)
    made.say("writer-0", Written(write.lease, "failed", "", 0, 0, 0), 3)
    assert [done.state for done in made.sent("supervisor", SlideDone)] == ["failed"]


# ---------------------------------------------------------------- the aggregator and the end


def test_a_new_aggregator_is_asked_again_and_told_all() -> None:
    """Slides that waited for its answer ask anew; records under way are repeated after the slide's Begun."""
    made = desk("reader-0", "inference-0", credit=1)
    made.planned(1, 4)
    made.supervisor(Submit(2, "s2", "/s2", {}, False, False, ""))
    made.filled("reader-0", made.fill("reader-0"))
    made.inferred("inference-0", made.sent("inference-0", Run)[0])
    assert len(made.sent("aggregator-0", Record)) == 1
    made.sent("aggregator-0", Ask)
    made.supervisor(Dead("aggregator-0", 1, "killed", False))
    made.hello("aggregator-0", 0, generation=2)
    assert [ask.slide for ask in made.sent("aggregator-0", Ask)] == [2]
    assert [begin.slide for begin in made.sent("aggregator-0", Begin)] == [1]
    assert made.sent("aggregator-0", Record) == []
    made.say("aggregator-0", Begun(1), 2)
    assert len(made.sent("aggregator-0", Record)) == 1


def test_drained_means_on_disk() -> None:
    """Nothing new is read; what was read is inferred and acknowledged before the run may end."""
    made = desk("reader-0", "inference-0", credit=1)
    made.planned(1, 8)
    lease = made.fill("reader-0")
    made.supervisor(Drain())
    assert not made.mind.drained
    made.filled("reader-0", lease)
    assert made.sent("reader-0", Fill) == [] and not made.mind.drained
    made.inferred("inference-0", made.sent("inference-0", Run)[0])
    (record,) = made.sent("aggregator-0", Record)
    assert not made.mind.drained
    made.say("aggregator-0", Journaled([record.record]))
    assert made.mind.drained and made.mind.report().status["drained"]


def test_a_complete_slide_is_forgotten_and_a_failed_one_kept() -> None:
    """The journal of a slide with failures stays for a retry."""
    made = desk("writer-0", credit=1)
    for number, state in ((1, "complete"), (2, "failed")):
        made.planned(number, 0)
        (write,) = made.sent("writer-0", Write)
        made.say("writer-0", Written(write.lease, state, "", 0, 0, 0))
        assert [(f.slide, f.keep) for f in made.sent("aggregator-0", Forget)] == [(number, state != "complete")]


def test_nonsense_condemns_only_workers_of_ours() -> None:
    """A worker that sends what is not its to send is condemned; a stranger is told to introduce itself."""
    made = desk("reader-0")
    made.say("reader-0", Drain())
    made.say("reader-1", Planned(1, b"", {}))
    assert [c.name for c in made.sent("supervisor", Condemn)] == ["reader-0"]
    assert made.sent("reader-1", Who) == [Who(1)]


GRID = Geometry(4, 0.5, 0, 1.0, (4, 4), "none", 4, 4, 4, 4, 8, 1).to_dict()


@pytest.mark.parametrize(
    "message",
    [
        Opened(1, {}, {"step_x": 4}, 8, 8, "direct"),
        Opened(1, {}, GRID, 0, 8, "direct"),
        Opened(1, {}, {**GRID, "columns": "many"}, 8, 8, "direct"),
        Planned(1, b"no plan", {}),
        Filled(1, 4, [3], []),
        Filled(1, 4, [["row", "reason"]], []),
        Filled(1, 4, [], [[1, None]]),
        Inferred(1, b"", [[0]]),
        Journaled([None]),
        Journaled([[1]]),
        Known(1, {"plan": b""}, b""),
        Known(1, {"plan": b"SPL1", "geometry": GRID, "info": {}}, b""),
        Known(1, {"plan": b"", "geometry": 3, "info": {}}, b""),
        Written(1, "splendid", "", 0, 0, 0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_nonsense_within_a_message_is_its_senders_fault(message: Message) -> None:
    """Fields of the right type may hold anything: the sender is condemned, and the batcher goes on."""
    made = desk("reader-0", "inference-0")
    made.planned(7, 8)
    lease = made.sent("reader-0", Fill)[0]
    if hasattr(message, "lease"):
        message = dataclasses.replace(message, lease=lease.lease)
    made.say("reader-0", message)
    (condemned,) = made.sent("supervisor", Condemn)
    assert condemned.name == "reader-0" and "makes no sense" in condemned.reason
    made.supervisor(Dead("reader-0", 1, condemned.reason, False))
    made.hello("reader-1")
    assert patches(made.sent("reader-1", Fill)[0]) == patches(lease)


def test_known_states_must_be_those_of_the_plan() -> None:
    """A journal of another length than the plan is not gone on with."""
    made = desk("reader-0")
    header = {"plan": Plan(*(np.zeros(2, t) for t in (np.int32, np.int32, np.float32))).to_bytes(), "geometry": GRID}
    made.supervisor(Submit(1, "a", "/a", {}, False, False, ""))
    made.say("aggregator-0", Known(1, {**header, "info": {}}, bytes(3)))
    assert [c.name for c in made.sent("supervisor", Condemn)] == ["aggregator-0"]


def test_a_second_trial_goes_to_another_worker() -> None:
    """A reader that died with a batch, or its GPU, may be to blame: where there is another one, that one tries."""
    made = desk("reader-0", "reader-1", credit=1)
    made.planned(1, 1)
    (name,) = [name for name in ("reader-0", "reader-1") if made.sent(name, Fill)]
    other = {"reader-0": "reader-1", "reader-1": "reader-0"}[name]
    made.supervisor(Dead(name, 1, "bad", True))
    assert len(made.sent(other, Fill)) == 1
    made.hello(name, 1, generation=2)
    made.supervisor(Dead(other, 1, "bad", True))
    assert len(made.sent(name, Fill)) == 1  # there is nobody else
    made.hello(other, 1, generation=2)
    made.supervisor(Dead(name, 2, "bad", True))
    (record,) = made.sent("aggregator-0", Record)
    assert "quarantined" in record.failures[0][1]


def test_a_trial_waits_for_another_worker_that_is_busy() -> None:
    """It is not given back to the one that died with it only because that one is free first."""
    made = desk("reader-0", "reader-1", credit=1, slots=8)
    made.planned(1, 8)
    lease, _ = made.fill("reader-1"), made.fill("reader-0")
    made.supervisor(Dead("reader-0", 1, "bad", True))
    made.hello("reader-0", 1, generation=2)
    assert made.sent("reader-0", Fill) == []
    made.filled("reader-1", lease)
    assert len(made.sent("reader-1", Fill)) == 1


def test_a_slide_that_was_done_while_the_aggregator_was_dead_is_forgotten() -> None:
    """The next aggregator is told; but not of a slide that has come again since."""
    made = desk("writer-0", credit=2)
    for number in (1, 2):
        made.planned(number, 0)
    writes = made.sent("writer-0", Write)
    if len(writes) < 2:
        made.say("writer-0", Written(writes[0].lease, "complete", "", 0, 0, 0))
        writes += made.sent("writer-0", Write)
    made.sent("aggregator-0", Forget)
    made.supervisor(Dead("aggregator-0", 1, "killed", False))
    made.say("writer-0", Written(writes[-1].lease, "complete", "", 0, 0, 0))
    made.supervisor(Submit(3, "s1", "/s1", {}, False, False, ""))
    made.hello("aggregator-0", 0, generation=2)
    assert "s2" in [forget.id for forget in made.sent("aggregator-0", Forget)]
    assert "s1" not in [forget.id for forget in made.sent("aggregator-0", Forget)]


# ---------------------------------------------------------------- slides that are amended


def test_a_slide_that_becomes_urgent_is_next_at_once() -> None:
    """Its rows are the next to be read."""
    made = desk("reader-0", credit=2, slots=9, batch=4)
    made.planned(1, 8)
    made.planned(2, 100)
    made.planned(3, 100)
    for lease in made.sent("reader-0", Fill):
        made.filled("reader-0", lease)
    ready = made.sent("reader-0", Fill)
    assert {patches(lease)[0][0] for lease in ready} == {2}
    made.filled("reader-0", ready[0])
    made.supervisor(Amend(3, True, False))
    made.sent("reader-0", Fill)  # granted in the place of ready[0], before
    made.filled("reader-0", ready[1])
    lease = made.fill("reader-0")
    assert patches(lease)[0][0] == 3 and lease.max_delay_ms == 5.0


def test_what_lies_ready_of_a_slide_goes_first_when_it_becomes_urgent() -> None:
    """The batch closed last overtakes those that were closed before."""
    made = desk("reader-0", credit=1, slots=4)
    made.planned(1, 4)
    made.filled("reader-0", made.fill("reader-0"))
    made.planned(2, 4)
    last = made.fill("reader-0")
    made.filled("reader-0", last)
    made.supervisor(Amend(2, True, False))
    made.hello("inference-0", 1)
    assert [run.slot for run in made.sent("inference-0", Run)] == [last.slot]


def test_a_slide_may_become_routine_again() -> None:
    """Then others take their turns beside it."""
    made = desk("reader-0", credit=1, slots=9)
    made.planned(1, 100)
    made.planned(2, 100, urgent=True)
    assert [patches(lease)[0][0] for lease in made.sent("reader-0", Fill)] == [1, 2]
    made.supervisor(Amend(2, False, False))
    drawn = []
    for name in ("reader-1", "reader-2"):
        made.hello(name, 1)
        drawn.append(patches(made.fill(name))[0][0])
    assert sorted(drawn) == [1, 2]


def test_a_cancelled_slide_is_done_when_nothing_of_it_is_in_flight() -> None:
    """What is read is not inferred, what is inferred is not recorded, nothing more is read; its journal is removed."""
    made = desk("reader-0", "inference-0", credit=1, slots=9)
    made.planned(1, 100)
    made.filled("reader-0", made.fill("reader-0"))
    (run,) = made.sent("inference-0", Run)
    made.filled("reader-0", made.fill("reader-0"))
    lease = made.fill("reader-0")
    assert made.mind.report().status["slots"]["ready"] == 1
    made.supervisor(Amend(1, False, True))
    assert made.mind.report().status["slots"]["ready"] == 0
    made.inferred("inference-0", run)
    assert made.sent("aggregator-0", Record) == made.sent("supervisor", SlideDone) == []
    made.filled("reader-0", lease)
    assert [done.state for done in made.sent("supervisor", SlideDone)] == ["cancelled"]
    assert [forget.keep for forget in made.sent("aggregator-0", Forget)] == [False]
    assert made.sent("reader-0", Fill) == made.sent("inference-0", Run) == []
    assert made.mind.report().status["slots"]["free"] == 9


def test_rows_beside_those_of_a_cancelled_slide_are_inferred() -> None:
    """A batch of two slides runs; only the results of the one that is wanted are recorded."""
    made = desk("reader-0", "inference-0", credit=1)
    made.planned(1, 2)
    made.fill("reader-0")
    made.supervisor(Dead("reader-0", 1, "killed", False))
    made.planned(2, 2)
    made.hello("reader-0", 1, generation=2)
    lease = made.fill("reader-0")
    assert sorted(patches(lease)) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    made.say("reader-0", Filled(lease.lease, 4, [], []), 2)
    made.supervisor(Amend(1, False, True))
    made.inferred("inference-0", made.sent("inference-0", Run)[0])
    assert [record.slide for record in made.sent("aggregator-0", Record)] == [2]
    assert [done.slide for done in made.sent("supervisor", SlideDone)] == [1]


@pytest.mark.parametrize("stage", ["asking", "opening", "masking", "dead reader"])
def test_a_slide_may_be_cancelled_before_it_is_planned(stage: str) -> None:
    """Its place for the overview is free again as soon as nobody can write to it, and not before."""
    made = desk("reader-0", "tissue-0", credit=1, overview_slots=1)
    made.supervisor(Submit(1, "s1", "/s1", {}, False, False, ""))
    made.supervisor(Submit(2, "s2", "/s2", {}, False, False, ""))
    if stage == "asking":
        made.supervisor(Amend(1, False, True))
    made.say("aggregator-0", Known(1, None, b""))
    if stage != "asking":
        (lease,) = made.sent("reader-0", Open)
        made.say("aggregator-0", Known(2, None, b""))
        if stage == "masking":
            made.say("reader-0", Opened(lease.lease, {}, GRID, 8, 8, "direct"))
            (lease,) = made.sent("tissue-0", Mask)
        made.supervisor(Amend(1, False, True))
        assert made.sent("supervisor", SlideDone) == [] and made.sent("reader-0", Open) == []
    if stage == "opening":
        made.say("reader-0", Opened(lease.lease, {}, GRID, 8, 8, "direct"))
    elif stage == "masking":
        made.say("tissue-0", Planned(lease.lease, Plan(*(np.zeros(0, t) for t in "iif")).to_bytes(), {}))
    elif stage == "dead reader":
        made.supervisor(Dead("reader-0", 1, "SIGSEGV", True))
        made.hello("reader-0", 1, generation=2)
    else:
        made.say("aggregator-0", Known(2, None, b""))
    assert [(done.slide, done.state) for done in made.sent("supervisor", SlideDone)] == [(1, "cancelled")]
    assert [lease.slide for lease in made.sent("reader-0", Open)] == [2] and made.sent("tissue-0", Mask) == []


@pytest.mark.parametrize("writer", ["lives", "dies", "says no"])
def test_a_slide_is_cancelled_too_late_when_its_results_are_being_written(writer: str) -> None:
    """They stand; but where the writer has none, no other one is asked for them."""
    made = desk("writer-0", credit=1)
    made.planned(1, 0)
    (write,) = made.sent("writer-0", Write)
    made.supervisor(Amend(1, False, True))
    assert made.sent("supervisor", SlideDone) == []
    if writer == "lives":
        made.say("writer-0", Written(write.lease, "complete", "", 0, 0, 0))
    elif writer == "dies":
        made.supervisor(Dead("writer-0", 1, "SIGSEGV", True))
    else:
        made.say("writer-0", Refused(write.lease, "no"))
    state = "complete" if writer == "lives" else "cancelled"
    assert [done.state for done in made.sent("supervisor", SlideDone)] == [state]


def test_suspects_of_a_cancelled_slide_are_not_tried() -> None:
    """Nor are workers kept idle for them."""
    made = desk("reader-0", credit=1)
    made.planned(1, 4)
    made.fill("reader-0")
    made.supervisor(Dead("reader-0", 1, "SIGSEGV", True))
    assert made.mind.report().status["suspects"] == 1
    made.supervisor(Amend(1, False, True))
    assert made.mind.report().status["suspects"] == 0
    assert [done.state for done in made.sent("supervisor", SlideDone)] == ["cancelled"]


def test_what_is_not_there_cannot_be_amended() -> None:
    """Word that comes after the end of a slide, or twice, changes nothing; the same slide may be submitted again."""
    made = desk("reader-0", credit=1)
    made.supervisor(Amend(1, True, True))
    made.planned(1, 4)
    lease = made.fill("reader-0")
    for _ in range(2):
        made.supervisor(Amend(1, True, True))
    made.filled("reader-0", lease)
    made.supervisor(Amend(1, False, False))
    assert len(made.sent("supervisor", SlideDone)) == 1
    made.planned(2, 4)
    assert patches(made.fill("reader-0")) == [(2, p) for p in range(4)]


def test_a_cancelled_slide_ends_only_when_every_worker_has_spoken() -> None:
    """To a new batcher: one that has not may still be writing its results."""
    made = Desk([["writer-0", 1], ["aggregator-0", 1]])
    made.hello("aggregator-0", 0)
    made.planned(1, 4)
    made.supervisor(Amend(1, False, True))
    assert made.sent("supervisor", SlideDone) == []
    made.hello("writer-0", 1)
    assert [done.state for done in made.sent("supervisor", SlideDone)] == ["cancelled"]


def test_what_a_reader_gives_back_unread_is_read_later() -> None:
    """An urgent lease goes beyond the credit that routine ones take up; those come back, and their slots are free for it."""
    made = desk("reader-0", credit=2, slots=4)
    made.planned(1, 100)
    first, second = made.sent("reader-0", Fill)
    assert not first.prompt and not second.prompt
    made.planned(2, 100, urgent=True)
    urgent = made.fill("reader-0")
    assert urgent.prompt and patches(urgent)[0][0] == 2
    made.filled("reader-0", first, 1)
    made.filled("reader-0", second, 0)
    assert made.mind.report().status["slots"] == {"free": 1, "filling": 2, "ready": 1, "running": 0}
    assert [patches(lease)[0][0] for lease in made.sent("reader-0", Fill)] == [2]


def test_what_routine_is_owed_beside_urgent_work_is_prompt_too() -> None:
    """Else workers would always put it off."""
    made = desk("reader-0", credit=1, slots=200, floor=0.5)
    made.planned(1, 800)
    made.fill("reader-0")
    made.planned(2, 800, urgent=True)
    seen = set()
    for _ in range(40):
        for lease in made.sent("reader-0", Fill):
            seen.add((patches(lease)[0][0], lease.prompt))
            made.filled("reader-0", lease)
    assert seen == {(1, True), (2, True)}


def test_routine_work_is_left_alone_where_an_urgent_slide_needs_the_cores() -> None:
    """In whatever stage it is: readers are called back, what is ready stays so; and all goes on when it is done."""
    made = desk("reader-0", "writer-0", credit=1, slots=9, shared=True)
    made.planned(1, 100)
    made.filled("reader-0", made.fill("reader-0"))
    lease = made.fill("reader-0")
    made.planned(2, 4, urgent=True)
    assert made.sent("reader-0", Recall) == [Recall()]
    urgent = made.fill("reader-0")
    made.filled("reader-0", lease, 1)
    made.hello("inference-0", 1)
    assert made.sent("inference-0", Run) == [] and made.mind.report().status["slots"]["ready"] == 2
    made.filled("reader-0", urgent)
    assert made.sent("reader-0", Fill) == []
    made.inferred("inference-0", made.sent("inference-0", Run)[0])
    (record,) = made.sent("aggregator-0", Record)
    made.say("aggregator-0", Journaled([record.record]))
    (write,) = made.sent("writer-0", Write)
    assert made.sent("reader-0", Fill) == made.sent("inference-0", Run) == []
    made.say("writer-0", Written(write.lease, "complete", "", 4, 4, 0))
    assert len(made.sent("reader-0", Fill)) == len(made.sent("inference-0", Run)) == 1


def test_an_urgent_slide_that_does_not_get_on_holds_nobody_up() -> None:
    """A reader that hangs in it keeps the other one idle for two seconds, not until it is found out."""
    made = desk("reader-0", "reader-1", credit=1, slots=9, shared=True)
    made.planned(2, 4, urgent=True)
    made.planned(1, 100)
    assert sum(len(made.sent(name, Fill)) for name in ("reader-0", "reader-1")) == 1
    made.tick(1.9)
    assert made.sent("reader-0", Fill) == made.sent("reader-1", Fill) == []
    made.tick(0.2)
    assert sum(len(made.sent(name, Fill)) for name in ("reader-0", "reader-1")) == 1


def test_the_last_idle_writer_is_kept_for_an_urgent_slide() -> None:
    """That is being read; after each of them, one routine slide may be written."""
    made = desk("writer-0", credit=1)
    made.planned(2, 4, urgent=True)
    made.planned(1, 0)
    assert made.sent("writer-0", Write) == []
    made.hello("writer-1", 1)
    (write,) = made.sent("writer-0", Write) + made.sent("writer-1", Write)
    assert write.slide == 1
    made.planned(3, 0)
    made.planned(4, 0, urgent=True)
    writes = made.sent("writer-0", Write) + made.sent("writer-1", Write)
    assert [write.slide for write in writes] == [4]
    for name in ("writer-0", "writer-1"):
        made.say(name, Written(writes[0].lease, "complete", "", 0, 0, 0))
    assert [write.slide for write in made.sent("writer-0", Write) + made.sent("writer-1", Write)] == [3]


@pytest.mark.parametrize(("shared", "floor"), [(True, 0.1), (False, 0.1), (True, 0.3)])
def test_routine_keeps_its_floor_beside_urgent_work_that_never_ends(shared: bool, floor: float) -> None:
    """Of the rows that are inferred, not only of those that are read: no worker puts them off."""
    made = desk("reader-0", "reader-1", "inference-0", credit=2, slots=8, reserved=1, shared=shared, floor=floor)
    made.planned(1, 4000)
    made.planned(2, 4000, urgent=True)
    lines = {name: Line() for name in ("reader-0", "reader-1", "inference-0")}
    slots, rows = {}, {1: 0, 2: 0}
    while sum(rows.values()) < 3000:
        for name, line in lines.items():
            for message in made.sent(name, Fill) + made.sent(name, Run) + made.sent(name, Recall):
                line.put(message)
        name = next(name for name in sorted(lines, key=lambda n: (n.startswith("r"), n)) if len(lines[name]))
        lease = lines[name].take()
        if lease.prompt and name != "inference-0":
            for back in lines[name].recall(Fill):
                made.filled(name, back, 0)
        if isinstance(lease, Fill):
            slots[lease.slot] = lease.segments[0][0]
            made.filled(name, lease)
        elif isinstance(lease, Run):
            rows[slots[lease.slot]] += lease.count
            made.inferred(name, lease)
        for record in made.sent("aggregator-0", Record):
            made.say("aggregator-0", Journaled([record.record]))
    assert rows[1] >= floor * sum(rows.values()) - 4 * (GRACE + 8)
    assert rows[1] <= floor * sum(rows.values()) + 4 * 8


def test_routine_slides_are_opened_beside_urgent_work_only_where_nothing_else_is_left_of_them() -> None:
    """Opening takes a core too; but routine must have rows to be read, to get its floor."""
    made = desk("reader-0", "reader-1", credit=2, slots=9, shared=True, overview_slots=3)
    made.planned(2, 1000, urgent=True)
    made.planned(1, 6)
    for number in (3, 4):
        made.supervisor(Submit(number, f"s{number}", f"/s{number}", {}, False, False, ""))
        made.say("aggregator-0", Known(number, None, b""))
    assert made.sent("reader-0", Open) == made.sent("reader-1", Open) == []
    made.supervisor(Amend(1, False, True))
    made.filled("reader-0", made.sent("reader-0", Fill)[0])
    assert len(made.sent("reader-0", Open) + made.sent("reader-1", Open)) >= 1


def test_the_last_of_several_places_for_overviews_is_kept_for_urgent_slides() -> None:
    """So that none waits until a routine one is masked."""
    made = desk("reader-0", credit=9, reserved=1, overview_slots=3)
    for number, urgent in ((1, False), (2, False), (3, False), (4, True)):
        made.supervisor(Submit(number, f"s{number}", f"/s{number}", {}, urgent, False, ""))
    for number in (1, 2, 3):
        made.say("aggregator-0", Known(number, None, b""))
    assert [lease.slide for lease in made.sent("reader-0", Open)] == [1, 2]
    made.say("aggregator-0", Known(4, None, b""))
    assert [lease.slide for lease in made.sent("reader-0", Open)] == [4]


def test_a_drained_run_writes_what_is_done_beside_an_urgent_slide_that_is_not() -> None:
    """No writer is kept for a slide of which nothing more is read."""
    made = desk("writer-0", credit=1)
    made.planned(2, 4, urgent=True)
    made.planned(1, 0)
    made.supervisor(Drain())
    assert [write.slide for write in made.sent("writer-0", Write)] == [1] and not made.mind.drained
