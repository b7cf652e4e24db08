"""A lane as the service knows it: what it is given, what its end means, how it is added up with others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.service.config import Route
from pipeline.service.lanes import ALONE_AFTER, MORE, STAT_MOST, Lane
from pipeline.service.lanewire import Told
from pipeline.service.lifecycle import State, Urgency
from pipeline.service.reasons import Kind
from pipeline.service.recent import Recent
from pipeline.service.report import lines, run_values, slides_line

FULL = "/out: No space left on device; nothing is lost, free some space and run again"


def lane(name: str = "tumour") -> Lane:
    made = Lane(Route(name=name, out=f"/results/{name}"))
    made.began(SimpleNamespace(sentence="", pid=1))
    made.up = True
    return made


def end(one: Lane, code: int, words: str = "", now: float = 100.0):
    one.words = words
    made = one.ended(code, False, now)
    one.jobs = {}
    return made


def again(one: Lane) -> None:
    one.began(SimpleNamespace(sentence="", pid=1))
    one.up = True


def due(*urgencies: Urgency) -> list:
    return [SimpleNamespace(id=number, urgency=urgency) for number, urgency in enumerate(urgencies)]


def stage(kind: str, workers: int, busy: float) -> dict:
    return {"kind": kind, "workers": workers, "busy": busy, "waiting_input": 1.0, "waiting_room": 0.0, "restarts": 1}


class TestChoose:
    """Which slides a lane is given."""

    def test_all_stat_slides_and_a_few_routine_ones(self) -> None:
        """What is not given stays in the ledger, where its order can change."""
        one = lane()
        one.ahead = 2
        chosen = one.choose(due(*[Urgency.STAT] * 10, *[Urgency.ROUTINE] * 20))
        assert [slide.urgency for slide in chosen] == [Urgency.STAT] * 10 + [Urgency.ROUTINE] * (2 * 2 + MORE)

    def test_stat_slides_are_bounded_too_and_do_not_take_the_place_of_routine(self) -> None:
        """Memory is bounded whatever comes."""
        one = lane()
        one.jobs = {(number, 1): Urgency.STAT for number in range(STAT_MOST)}
        assert [s.urgency for s in one.choose(due(Urgency.STAT, Urgency.ROUTINE))] == [Urgency.ROUTINE]

    def test_after_faults_one_at_a_time(self) -> None:
        """So that the one that is at fault is found."""
        one = lane()
        one.faults = ALONE_AFTER
        assert len(one.choose(due(Urgency.STAT, Urgency.ROUTINE))) == 1
        one.jobs = {(1, 1): Urgency.STAT}
        assert one.choose(due(Urgency.STAT)) == []


class TestEnd:
    """What the end of a lane means."""

    def test_killed_from_outside_it_is_nobodys_fault(self) -> None:
        """It is started again at once, however often."""
        one = lane()
        for _ in range(5):
            assert end(one, -9).kind is None
            assert one.start_at - 100.0 < 1.0 and one.faults == 0
            again(one)

    def test_faults_are_followed_by_growing_pauses_and_then_by_a_hold(self) -> None:
        """Which health and metrics show; a slide that comes through ends the row."""
        one, pauses, kinds = lane(), [], []
        for _ in range(5):
            kinds.append(end(one, 70, "reader-0 died 6 times in a row").kind)
            pauses.append(one.start_at - 100.0)
            again(one)
        assert pauses == sorted(pauses) and pauses[0] < 1 < pauses[-1]
        assert kinds == [None, None, None, Kind.INTERNAL, Kind.INTERNAL]
        one.did_well()
        assert one.faults == 0 and one.problem == ""

    def test_the_slide_that_is_alone_at_a_fault_is_at_fault(self) -> None:
        """Not the ones that were there with others."""
        one = lane()
        for jobs, culprit in (({(1, 1), (2, 1)}, None), ({(1, 2), (2, 2)}, None), ({(2, 3)}, (2, 3))):
            one.jobs = dict.fromkeys(jobs, Urgency.ROUTINE)
            assert end(one, 70).culprit == culprit
            again(one)

    @pytest.mark.parametrize(("code", "words"), [(75, FULL), (2, "--out /out: No space left on device; free some")])
    def test_a_full_disk_holds_the_results_and_passes(self, code: int, words: str) -> None:
        """Also where it is full before the lane has begun: that is no wrong configuration."""
        one = lane()
        one.up = False
        made = end(one, code, words)
        assert (made.kind, made.refused) == (Kind.DISK_FULL, False)
        assert 5 <= one.start_at - 100.0 <= 300 and one.settled

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (2, "/results/tumour: nothing is mounted there; mount the share of the results"),
            (70, "aggregator-0 died 6 times in a row (exit code 70): OSError: [Errno 116] Stale file handle"),
        ],
    )
    def test_a_results_share_that_is_gone_holds_the_results_too(self, code: int, words: str) -> None:
        """It is neither a wrong configuration nor a fault."""
        one = lane()
        made = end(one, code, words)
        assert (made.kind, made.refused, one.faults) == (Kind.WRITE_ERROR, False, 0)

    def test_a_configuration_that_cannot_be_used_ends_the_service_only_at_its_first_start(self) -> None:
        """Months later it is the model's folder that is not there for a while."""
        one = lane()
        one.up = False
        assert end(one, 2, "/models/x: does not exist").refused
        one = lane()
        end(one, -9)
        one.began(SimpleNamespace(sentence="", pid=1))
        made = end(one, 2, "/models/x: does not exist")
        assert (made.kind, made.refused) == (Kind.MODEL, False)


class TestReport:
    """Lanes added up."""

    def told(self, one: Lane, patches: int, busy: float, settled: int = 0) -> None:
        run = {
            "patches_planned": 100, "patches_inferred": patches, "patches_failed": 0, "stages": [stage("reader", 2, busy)],
            "slots": {"free": 3}, "suspects": 0, "records": 1, "telemetry": {"inference-0": {"batches": 4}},
            "active": [["s1", patches, 100]], "lost": {"inference-1": "gone"}, "engines": {},
        }  # fmt: skip
        one.told = Told(run, {"planned": settled, "inferred": settled, "failed": 0}, [])

    def test_two_lanes_are_one_run(self) -> None:
        """Workers, seconds and patches are summed; workers have their route before their name."""
        one, two = lane(), lane("other")
        self.told(one, 30, 5.0)
        self.told(two, 12, 7.0)
        values = run_values([one, two], 60.0, False)
        assert values["patches_inferred"] == 42 and values["slots"] == {"free": 6}
        (reader,) = values["stages"]
        assert (reader["workers"], reader["busy"], reader["restarts"]) == (4, 12.0, 2)
        assert set(values["telemetry"]) == {"tumour/inference-0", "other/inference-0"}
        assert values["lanes"]["other"] == {
            "up": True, "pid": 1, "out": "/results/other", "slides": 0, "restarts": 0, "problem": "",
        }  # fmt: skip

    def test_a_lane_that_begins_again_counts_what_was_settled_once(self) -> None:
        """Its slides under way count anew, from their journals; seconds go on."""
        one = lane()
        self.told(one, 30, 5.0, settled=20)
        end(one, -9)
        assert one.patches()["inferred"] == 20 and one.stages()["reader"]["workers"] == 0
        again(one)
        self.told(one, 15, 1.0)
        assert one.patches()["inferred"] == 35 and one.stages()["reader"]["busy"] == 6.0

    def test_lines_name_what_is_wrong(self) -> None:
        """A lane that is down, a worker that was lost, a slide's strange name."""
        one = lane()
        self.told(one, 30, 5.0)
        one.told.run["active"] = [["two\nlines", 3, 9]]
        values = run_values([one], 60.0, False)
        values["lanes"]["tumour"] |= {"up": False, "problem": "no engine fits"}
        counts = {state: dict.fromkeys(Urgency, 0) for state in State}
        counts[State.RUNNING][Urgency.STAT] = 1
        text = "\n".join(lines(values, counts, [], Recent(), "nothing to do", 0.0))
        assert "1 running (1 stat)" in text and "'two\\nlines': 3 of 9 patches" in text
        assert "lane tumour is not up: no engine fits" in text and "inference-1 was given up: gone" in text

    def test_no_slides_yet(self) -> None:
        """An empty ledger is said in words."""
        assert slides_line({state: dict.fromkeys(Urgency, 0) for state in State}) == "no slides yet"
