"""pipeline.roster: what becomes of a worker that died, and more or fewer of them."""

from __future__ import annotations

import pytest

from pipeline.control import Refusal
from pipeline.crew import Member, member
from pipeline.roster import MOST_WORKERS, SCALABLE, TRIALS, Fate, Roster, Suspicion

CONFIG = {"backoff_s": 0.5, "backoff_max_s": 30.0, "max_failures": 3}


def roster(**counts: int) -> Roster:
    members = [member(kind, index) for kind, count in counts.items() for index in range(count)]
    return Roster(members, member, CONFIG)


def names(members: list[Member]) -> list[str]:
    return [one.name for one in members]


class Deaths:
    """Deaths of workers of one roster, in a run that makes progress or not."""

    def __init__(self, of: Roster) -> None:
        self.roster = of
        self.progress = 0
        self.generations: dict[str, int] = {}

    def of(
        self,
        name: str,
        *,
        blame: bool = True,
        well: bool = False,
        others: bool = True,
        suspicion: Suspicion = Suspicion(),  # noqa: B008 (frozen)
    ) -> Fate:
        self.generations[name] = self.generations.get(name, 0) + 1
        member = self.roster.members[name]
        return self.roster.died(member, self.generations[name], blame, well, self.progress, others, suspicion)


class TestDeath:
    """Start it again, give it up, or end the run."""

    def test_pauses_grow_and_then_the_run_ends(self):
        """A kind that dies over and over without any progress has a fault that no restart mends."""
        deaths = Deaths(roster(inference=1))
        fates = [deaths.of("inference-0", well=True, others=False) for _ in range(4)]
        assert [fate.pause_s for fate in fates] == [0.0, 0.5, 1.0, None]
        assert not fates[-1].give_up and fates[-1].in_a_row == 4

    def test_progress_begins_the_count_anew(self):
        """A worker that dies once an hour is started again for ever."""
        deaths = Deaths(roster(inference=1))
        for deaths.progress in range(20):
            assert deaths.of("inference-0", well=True, others=False).pause_s == 0.0

    def test_a_death_that_is_nobodys_fault_costs_nothing(self):
        """kill -9 from outside: at once, however often."""
        deaths = Deaths(roster(inference=1))
        assert {deaths.of("inference-0", blame=False, others=False).pause_s for _ in range(20)} == {0.0}

    def test_one_that_never_comes_up_is_given_up_while_others_work(self):
        """The run makes progress all the while, so its own deaths are what counts; then it is no member any more."""
        deaths = Deaths(roster(inference=2))
        fates = []
        for deaths.progress in range(4):
            fates.append(deaths.of("inference-1"))
        assert [(fate.pause_s, fate.give_up) for fate in fates] == [
            (0.0, False),
            (0.5, False),
            (1.0, False),
            (None, True),
        ]
        assert names(deaths.roster.of_kind("inference")) == ["inference-0"]

    def test_the_last_one_is_never_given_up(self):
        """Nobody else does its work: the run ends as a fault, and the worker stays a member."""
        deaths = Deaths(roster(inference=2))
        fates = [deaths.of("inference-1", others=False) for _ in range(4)]
        assert fates[-1] == Fate(None, give_up=False, in_a_row=4)
        assert names(deaths.roster.of_kind("inference")) == ["inference-0", "inference-1"]

    def test_one_that_was_well_in_between_is_not_given_up(self):
        """It came up and worked, so it is no hopeless case."""
        deaths = Deaths(roster(inference=2))
        for deaths.progress in range(30):
            fate = deaths.of("inference-1", well=deaths.progress % 3 == 2)
            assert not fate.give_up and fate.pause_s is not None

    def test_a_poisonous_patch_costs_no_worker(self):
        """Bisecting a batch kills two healthy workers in turn, ten times within a minute: both stay."""
        deaths = Deaths(roster(inference=2))
        for deaths.progress in range(12):
            # The first death of each comes before anything was told of it.
            suspicion = Suspicion(present=deaths.progress > 1)
            fate = deaths.of(f"inference-{deaths.progress % 2}", suspicion=suspicion)
            assert not fate.give_up and fate.pause_s is not None
        assert names(deaths.roster.of_kind("inference")) == ["inference-0", "inference-1"]

    def test_a_patch_that_is_found_guilty_clears_the_worker(self):
        """A slide with many poisonous patches: those deaths that went before the suspicion do not add up."""
        deaths = Deaths(roster(inference=2))
        for deaths.progress in range(20):
            assert not deaths.of("inference-1", suspicion=Suspicion(False, quarantined=deaths.progress)).give_up

    def test_suspicion_does_not_excuse_for_ever(self):
        """More deaths than one patch can cost, and none is found guilty: it is the worker after all."""
        deaths = Deaths(roster(inference=2))
        fates = []
        for deaths.progress in range(TRIALS + 4):
            fates.append(deaths.of("inference-1", suspicion=Suspicion(present=True)))
        assert [fate.give_up for fate in fates] == [False] * (TRIALS + 3) + [True]

    def test_several_hopeless_ones_are_given_up_one_by_one(self):
        """A machine with four GPUs, two of which are gone."""
        deaths = Deaths(roster(inference=4))
        given_up = []
        for deaths.progress in range(4):
            given_up += [name for name in ("inference-1", "inference-3") if deaths.of(name).give_up]
        assert given_up == ["inference-1", "inference-3"]
        assert names(deaths.roster.of_kind("inference")) == ["inference-0", "inference-2"]

    def test_deaths_of_one_kind_say_nothing_of_another(self):
        """Readers that crash do not end the run on behalf of a writer."""
        deaths = Deaths(roster(reader=1, writer=1))
        for _ in range(3):
            deaths.of("reader-0", well=True, others=False)
        assert deaths.of("writer-0", well=True, others=False).in_a_row == 1


class TestScale:
    """More or fewer workers of a stage."""

    def test_up(self):
        """The new ones get the next names and belong to the run."""
        team = roster(reader=2)
        leaving, joining = team.scale("reader", 4, ["reader-0", "reader-1"])
        assert (leaving, names(joining)) == ([], ["reader-2", "reader-3"])
        assert names(team.of_kind("reader")) == ["reader-0", "reader-1", "reader-2", "reader-3"]

    def test_down(self):
        """The last ones go, by number and not by alphabet."""
        team = roster(reader=12)
        leaving, joining = team.scale("reader", 9, [])
        assert (names(leaving), joining) == (["reader-9", "reader-10", "reader-11"], [])
        assert len(team.of_kind("reader")) == 9

    def test_to_what_it_is_changes_nothing(self):
        """Nobody goes, nobody comes."""
        assert roster(reader=3).scale("reader", 3, []) == ([], [])

    def test_a_name_whose_process_is_still_there_is_not_given_again(self):
        """One that was sent away a moment ago is not reaped yet: two processes of one name would be mixed up."""
        team = roster(inference=3)
        team.scale("inference", 1, ["inference-0", "inference-1", "inference-2"])
        _, joining = team.scale("inference", 3, ["inference-0", "inference-1", "inference-2"])
        assert names(joining) == ["inference-3", "inference-4"]

    def test_gaps_are_filled(self):
        """Once those processes are gone their names are free."""
        team = roster(inference=3)
        del team.members["inference-1"]
        assert names(team.scale("inference", 4, ["inference-0", "inference-2"])[1]) == ["inference-1", "inference-3"]

    def test_other_kinds_are_left_alone(self):
        """Each kind is counted for itself."""
        team = roster(reader=2, writer=2)
        team.scale("reader", 1, [])
        assert names(team.of_kind("writer")) == ["writer-0", "writer-1"]

    def test_a_given_up_worker_gets_another_chance_by_hand(self):
        """Its deaths of old do not count against what the operator asks for."""
        deaths = Deaths(roster(inference=2))
        for deaths.progress in range(4):
            deaths.of("inference-1")
        _, joining = deaths.roster.scale("inference", 2, ["inference-0"])
        assert names(joining) == ["inference-1"]
        assert not deaths.of("inference-1").give_up

    @pytest.mark.parametrize("kind", ["batcher", "aggregator", "supervisor", "", None, 3, ["reader"], "Reader"])
    def test_what_is_no_stage_or_must_be_one_is_refused(self, kind: object):
        """There is one batcher and one aggregator, always."""
        with pytest.raises(Refusal, match=f"there are {', '.join(SCALABLE)}$"):
            roster(reader=1).scale(kind, 2, [])

    @pytest.mark.parametrize("wanted", [0, -1, MOST_WORKERS + 1, 1.5, "2", None, True, [3]])
    def test_what_is_no_number_of_workers_is_refused(self, wanted: object):
        """And nothing has changed then."""
        team = roster(reader=2)
        with pytest.raises(Refusal, match=f"a stage has 1 to {MOST_WORKERS} workers"):
            team.scale("reader", wanted, [])
        assert len(team.of_kind("reader")) == 2
