"""Several results folders as one worklist, with what the ledger knows, and a log of reviews beside each."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.service.ledger import Ledger
from pipeline.service.lifecycle import State, Urgency
from pipeline.service.reasons import Kind
from pipeline.service.snapshot import Snapshot
from pipeline.status import StageStatus
from results.write import write_failed
from review import library as module
from review import library_log
from review.acts import Review
from review.catalogue import Catalogue
from review.errors import AuditError, Refused
from review.facts import slide_key
from review.ledger_facts import LedgerFacts
from review.library import Library
from review.library_log import LibraryLog, Place
from review.live import changes
from review.log import ReviewLog
from review.served import as_keys, watch
from review.service_figures import ServiceFigures, shown
from tests.pipeline.service.ledgers import delivery


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two results folders with a slide of the same name."""
    made = [tmp_path / "tumour", tmp_path / "grading"]
    for folder in made:
        write_failed("S1", f"/slides/{folder.name}.svs", f"of {folder.name}", folder)
    return made


def library(folders: list[Path]) -> Library:
    return Library([(folder.name, Catalogue(folder)) for folder in folders])


def test_the_same_slide_under_two_routes_is_two_rows(folders):
    """Each with the name of its route, its own results and its own key; what it is called in reports is without the route."""
    found = library(folders).look()
    assert {entry.id: entry.reason for entry in found.values()} == {
        "tumour/S1": "of tumour",
        "grading/S1": "of grading",
    }
    assert set(found) == {slide_key("tumour/S1"), slide_key("grading/S1")}
    assert {entry.own_id for entry in found.values()} == {"S1"}
    (alone,) = library(folders[:1]).look().values()
    assert (alone.id, alone.key) == ("S1", slide_key("S1"))


def test_new_results_are_in_the_next_look_and_tell_of_themselves(folders):
    """Rows that did not change stay the same objects, so that no event is made of them."""
    both = library(folders)
    before = both.look()
    write_failed("S2", "/slides/x.svs", "new", folders[1])
    now = both.look(0)
    assert now.keys() - before.keys() == {slide_key("grading/S2")}
    assert all(now[key] is entry for key, entry in before.items())
    assert [event["key"] for event in changes(before, now)] == [slide_key("grading/S2")]


def test_a_folder_that_hangs_holds_up_no_other(folders, monkeypatch):
    """Its slides stay as they were seen last; those of the other folder are up to date."""
    monkeypatch.setattr(module, "WAIT_S", 0.3)
    free = threading.Event()

    class Hanging(Catalogue):
        hangs = False

        def look(self, patience_s: float = 0.5):
            if self.hangs:
                free.wait(30)
            return super().look(patience_s)

    hanging = Hanging(folders[0])
    both = Library([("tumour", hanging), ("grading", Catalogue(folders[1]))])
    assert len(both.look()) == 2
    hanging.hangs = True
    write_failed("S2", "/slides/x.svs", "new", folders[1])
    began = time.monotonic()
    now = both.look(0)
    assert time.monotonic() - began < 5
    assert {entry.id for entry in now.values()} == {"tumour/S1", "grading/S1", "grading/S2"}
    free.set()


def test_a_fault_in_one_folder_leaves_the_other(folders):
    """It is in the log, and the next look tries again."""

    class Faulty(Catalogue):
        def look(self, patience_s: float = 0.5):
            raise RuntimeError("a fault of ours")

    both = Library([("tumour", Faulty(folders[0])), ("grading", Catalogue(folders[1]))])
    assert [entry.id for entry in both.look().values()] == ["grading/S1"]
    with pytest.raises(Refused):
        both.entry(slide_key("tumour/S1"))


# ------------------------------------------------------------ reviews


def test_reviews_lie_beside_their_own_results(folders):
    """Under the name within the folder: `slidestream review` over it finds them, and another route changes nothing."""
    both = library(folders)
    log = LibraryLog(both, [Place(folder) for folder in folders])
    key = slide_key("grading/S1")
    log.add(key, "rosa", "open", None, lambda review: {})
    assert log.review(key).reviewer == "rosa" and log.review(slide_key("tumour/S1")) == Review()
    assert set(log.reviews()) == {key} and [row.user for row in log.rows(key)] == ["rosa"]
    assert log.proven(key).state == "in_review" and log.head_of(key).n == 1
    log.close()
    alone = ReviewLog(folders[1] / "review.sqlite")
    assert alone.review(slide_key("S1")).reviewer == "rosa"
    alone.close()
    only = library(folders[1:])
    assert LibraryLog(only, [Place(folders[1])]).review(slide_key("S1")).reviewer == "rosa"


def test_the_first_answer_of_a_new_process_has_every_review(folders):
    """Before anybody has asked for the slides themselves: what is signed must not seem new for a moment."""
    both = LibraryLog(library(folders), [Place(folder) for folder in folders])
    both.add(slide_key("grading/S1"), "rosa", "open", None, lambda review: {})
    both.close()
    again = LibraryLog(library(folders), [Place(folder) for folder in folders])
    assert {key: review.reviewer for key, review in again.reviews().items()} == {slide_key("grading/S1"): "rosa"}
    again.close()


def test_nothing_is_written_below_a_mount_point(folders):
    """Where the share of the results is not mounted, acts are refused; the other folder's are kept."""
    log = LibraryLog(library(folders), [Place(folders[0], require_mount=True), Place(folders[1])])
    if module_is_mounted(folders[0]):
        pytest.skip("the temporary folder lies on a file system of its own")
    with pytest.raises(AuditError, match="nothing is mounted"):
        log.add(slide_key("tumour/S1"), "rosa", "open", None, lambda review: {})
    assert not (folders[0] / "review.sqlite").exists()
    assert log.add(slide_key("grading/S1"), "rosa", "open", None, lambda review: {}).revision == 1
    assert set(log.reviews()) == {slide_key("grading/S1")}


def module_is_mounted(folder: Path) -> bool:
    return library_log.mounted(bytes(folder))


def test_a_log_that_does_not_answer_is_refused_in_time(folders, monkeypatch):
    """Acts end with an error instead of waiting for ever; what is known is still shown."""
    monkeypatch.setattr(library_log, "PATIENCE_S", 0.3)
    log = LibraryLog(library(folders), [Place(folder) for folder in folders])
    key, free = slide_key("tumour/S1"), threading.Event()
    log.add(key, "rosa", "open", None, lambda review: {})
    assert set(log.reviews()) == {key}
    with pytest.raises(AuditError, match="does not answer"):
        log.add(key, "ruth", "open", None, lambda review: free.wait(20) and {})
    assert log.review(key).opened == ("rosa",) and set(log.reviews()) == {key}
    free.set()


# ------------------------------------------------------------ the ledger


def test_what_waits_is_in_the_worklist(tmp_path):
    """With class, time of arrival and reason; also what will not be tried again. What has results says itself how it stands."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number, name in enumerate(("queued", "broken", "gone", "done")):
        ledger.deliver(delivery(name, seen=100.0 + number, urgency=Urgency.STAT), 200.0)
    ids = {slide.name: slide.id for slide in (ledger.named(n)[0] for n in ("queued", "broken", "gone", "done"))}
    ledger.started(ids["broken"], 201.0)
    ledger.fail(ids["broken"], 1, Kind.BAD_SLIDE, "is no slide", 202.0)
    ledger.cancel(ids["gone"], 203.0)
    facts = LedgerFacts(tmp_path / "ledger.sqlite", "tumour")
    shelf = Catalogue(tmp_path / "out", None, facts)
    found = {entry.id: entry for entry in shelf.look().values()}
    assert (found["queued"].state, found["queued"].urgency, found["queued"].arrived) == (
        "waiting",
        "stat",
        "1970-01-01T00:01:40Z",
    )
    assert (found["broken"].state, found["broken"].reason) == ("failed", "is no slide")
    assert found["broken"].finished == "1970-01-01T00:03:22Z" and found["queued"].finished is None
    assert found["gone"].state == "failed" and "cancelled" in found["gone"].reason

    # Later: one runs, one has a result, one is of another class; what did not change is the same object.
    first = facts()
    ledger.started(ids["done"], 204.0)
    ledger.finished(ids["done"], 1, State.COMPLETE, {}, 205.0)
    ledger.prioritise(ids["queued"], Urgency.ROUTINE, None, 206.0)
    now = facts()
    assert "state" not in now["done"] and now["queued"]["urgency"] == "routine" and now["broken"] is first["broken"]
    write_failed("done", "/slides/done.svs", "for the test", tmp_path / "out")
    later = {entry.id: entry for entry in shelf.look(0).values()}
    assert (later["done"].reason, later["done"].urgency) == ("for the test", "stat")
    assert shelf.look(0)[slide_key("done")] is later["done"]
    ledger.close()


def test_a_ledger_that_cannot_be_read_takes_nothing_away(tmp_path):
    """What was known stands."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.deliver(delivery("S1"), 1.0)
    facts = LedgerFacts(tmp_path / "ledger.sqlite", "tumour")
    assert set(facts()) == {"S1"}
    ledger.close()
    (tmp_path / "ledger.sqlite").unlink()
    assert set(facts()) == {"S1"}


# ------------------------------------------------------------ the process


def test_messages_name_the_keys_of_the_configuration():
    """What the command calls an option is a key here."""
    assert as_keys("--host 0.0.0.0: give --users FILE, --certificate and --key") == (
        "service.review.host 0.0.0.0: give service.review.users FILE, service.review.certificate and "
        "service.review.certificate_key"
    )


def test_the_operations_page_tells_of_the_last_minute():
    """After months the sum since the start says nothing of now; what a service that has begun anew did before is no figure."""
    before = Snapshot(100.0, started=0.0, answers=True, stages=(StageStatus("reader", 2, 50.0, 40.0, 10.0, 3),))
    now = replace(before, time=160.0, stages=(StageStatus("reader", 2, 60.0, 41.0, 10.0, 3),))
    told = shown(now, before)
    assert told["lately"] and told["stages"]["reader"] == {
        "workers": 2, "working_s": 10.0, "waiting_input_s": 1.0, "waiting_room_s": 0.0, "restarts": 3,
    }  # fmt: skip
    assert shown(now)["stages"]["reader"]["working_s"] == 60.0 and not shown(now)["lately"]

    class Looks:
        def __init__(self, *looks: Snapshot) -> None:
            self._looks = list(looks)

        def look(self) -> Snapshot:
            return self._looks.pop(0)

    figures = ServiceFigures(Looks(now, replace(before, started=150.0)), Library([]))
    assert not figures()["lately"]
    time.sleep(1.1)
    assert not figures()["lately"]


def test_a_page_whose_loop_stands_still_is_ended():
    """So that the service starts another; one that turns is left alone."""

    class Turning:
        turned_at = float("inf")

    left: list[int] = []
    server = Turning()
    thread = threading.Thread(target=watch, args=(server, 1.0, left.append))
    thread.start()
    for _ in range(5):
        server.turned_at = time.monotonic()
        time.sleep(0.1)
    assert left == [] and thread.is_alive()
    thread.join(10)
    assert left == [70]
