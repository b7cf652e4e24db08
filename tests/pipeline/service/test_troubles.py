"""What makes the service go on with less is told once, and once when it is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.service.config import Route
from pipeline.service.lanes import Lane
from pipeline.service.lanewire import Told
from pipeline.service.ledger import Ledger
from pipeline.service.reasons import Kind
from pipeline.service.records import Hold, Trouble
from pipeline.service.troubles import DOWN_S, OVER_S, Watchman

LOW = 5e9


def lane(up: bool = True, lost: dict[str, str] | None = None, **more: Any) -> Lane:
    told = Told({"lost": lost or {}}, {}, []) if up else None
    return Lane(Route(name="tumour", out="/srv/out"), up=up, told=told, **more)


class Look:
    """Looks one after the other, each with what the last one found standing."""

    def __init__(self) -> None:
        self.watchman, self.standing = Watchman(), {}

    def __call__(self, clock: float, *lanes: Lane, holds: tuple = (), free: dict[str, int] | None = None) -> list[str]:
        self.standing = self.watchman.look(lanes, holds, free or {}, LOW, self.standing, clock)
        return sorted(self.standing)


def test_lost_worker_is_a_trouble_until_it_is_back_for_a_while() -> None:
    """A GPU given up; scaled back; and not over before it has been back for OVER_S."""
    look = Look()
    assert look(0.0, lane()) == []
    assert look(1.0, lane(lost={"inference-1": "killed"})) == ["worker:tumour/inference-1"]
    assert look(2.0, lane()) == ["worker:tumour/inference-1"]
    assert look(2.0 + OVER_S - 1, lane()) == ["worker:tumour/inference-1"]
    assert look(2.0 + OVER_S, lane()) == []


def test_what_cannot_be_seen_is_as_it_was() -> None:
    """A lane on its way up tells of no worker: those that were given up are not back by that."""
    look = Look()
    look(0.0, lane(lost={"inference-1": "killed"}))
    assert look(5 * OVER_S, lane(up=False)) == ["worker:tumour/inference-1"]


def test_a_share_that_comes_and_goes_rings_once() -> None:
    """Gone, back for less than OVER_S, gone again: one trouble, with the reason that was told."""
    look = Look()
    hold = Hold("folder:/mnt/a", Kind.SHARE_GONE, "nothing is mounted", 0.0, None)
    for clock in range(0, int(4 * OVER_S), 10):
        assert look(float(clock), holds=(hold,) if clock % 20 == 0 else ()) == ["folder:/mnt/a"]


def test_a_lane_that_dies_and_comes_back_is_none() -> None:
    """Only one that is not up for DOWN_S, and has a reason."""
    look = Look()
    assert look(0.0, lane(up=False, problem="no engine")) == []
    assert look(DOWN_S - 1, lane(up=False, problem="no engine")) == []
    assert look(DOWN_S, lane(up=False, problem="no engine")) == ["lane:tumour"]
    again = Look()
    again(0.0, lane(up=False, problem="no engine"))
    again(DOWN_S - 1, lane())
    assert again(DOWN_S + 1, lane(up=False, problem="no engine")) == []


def test_disk_nearly_full_until_there_is_clearly_more_room() -> None:
    """Less than the bound; a little above it is not yet room."""
    look = Look()
    assert look(0.0, free={"tumour": 6_000_000_000}) == []
    assert look(1.0, free={"tumour": 4_900_000_000}) == ["disk:tumour"]
    assert look(2 * OVER_S, free={"tumour": 5_500_000_000}) == ["disk:tumour"]
    look(3 * OVER_S, free={"tumour": 7_000_000_000})
    assert look(4 * OVER_S, free={"tumour": 7_000_000_000}) == []


def test_events_come_once_also_across_restarts(tmp_path: Path) -> None:
    """One event at the beginning, none while it lasts or after a restart, one at the end with how long it lasted."""
    found = {"disk:tumour": Trouble("disk:tumour", "disk_low", "2.0 GB are free")}
    with Ledger(tmp_path / "l") as ledger:
        ledger.add_sink("spool")
        begun, over = ledger.troubled(found, 10.0)
        assert [trouble.key for trouble in begun] == ["disk:tumour"] and not over
        assert ledger.troubled(found, 11.0) == ((), ())
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.troubles()["disk:tumour"].since == 10.0
        ledger.troubled(found, 20.0)
        ledger.troubled({}, 30.0)
        events = ledger.unsent("spool")
    assert [event.event for event in events] == ["service.degraded", "service.recovered"]
    assert events[0].body["kind"] == "disk_low" and "free some space" in events[0].body["remedy"]
    assert events[1].body == {"trouble": "disk:tumour", "kind": "disk_low", "lasted_s": 20.0, "troubles": 0}


def test_every_kind_says_what_to_do(tmp_path: Path) -> None:
    """Kinds of what is held have the remedy of their reason."""
    found = {kind: Trouble(kind, kind, "reason") for kind in ("worker_lost", "lane_down", "share_gone", "disk_full")}
    with Ledger(tmp_path / "l") as ledger:
        ledger.add_sink("spool")
        ledger.troubled(found, 1.0)
        assert all(event.body["remedy"] for event in ledger.unsent("spool"))
