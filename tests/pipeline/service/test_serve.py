"""The service: real processes, real slides, dropped into folders as a scanner does."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.rundir import RunDir
from pipeline.service import web
from pipeline.service.lifecycle import State
from pipeline.service.reasons import Kind
from tests.end_to_end import runs
from tests.end_to_end.runs import assert_same, table
from tests.pipeline.service.services import LIMIT_S, Service, until

SLOW = {"inference": {"slow_s": 0.03}}
SLOWER = {"inference": {"slow_s": 0.05}}
ODD = ("two\nlines", "Präparat № 1 (a)", "-x")


def drop(slide: Path, to: Path) -> None:
    """As a scanner does that writes under a temporary name first."""
    part = to.with_name(f".{to.name}.part")
    shutil.copyfile(slide, part)
    part.rename(to)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory, model: Path, slides: dict[str, Path]) -> Iterator[Service]:
    """An undisturbed morning: two folders, two routes, slides of all sorts; up until all of them are done."""
    folder = tmp_path_factory.mktemp("day")
    service = Service(folder, model)
    other, both = folder / "out-other", folder / "both"
    both.mkdir()
    section = service.config["service"]
    section["spool"] = {"path": str(folder / "spool")}
    section["routes"].append({"name": "other", "out": str(other), "model": str(model)})
    section["watch"].append(Service.watch(both, ("tumour", "other"), urgency="stat"))
    for name in ODD:
        drop(slides["b"], service.into / f"{name}.tif")
        with (service.into / f"{name}.tif").open("r+b") as file:  # content of its own: the sort of bytes nobody reads
            file.seek(0, 2)
            file.write(name.encode())
    (service.into / "broken.tif").write_bytes(slides["a"].read_bytes()[:20_000])
    drop(slides["a"], service.into / "first.tif")
    service.start()
    service.until_state("first", State.COMPLETE)
    drop(slides["a"], service.into / "ward" / "again.tif") if (service.into / "ward").mkdir() is None else None
    drop(slides["c"], both / "frozen.tif")
    for name in (*ODD, "first"):
        service.until_state(name, State.COMPLETE)
    service.until_state("broken", State.QUARANTINED)
    for route in ("tumour", "other"):
        service.until_state("frozen", State.COMPLETE, route=route)
    until(lambda: any(e["type"] == "slide.delivered_again" for e in events(service)), "the second name is noted")
    yield service
    service.destroy()


def metrics(address: str) -> str:
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as response:
        return response.read().decode()


def events(service: Service) -> list[dict]:
    from pipeline.service.events import Outbox

    view = Outbox.open(service.state / "ledger.sqlite")
    try:
        return [{"type": told.event, **told.body} for told in view.waiting("nobody", 0, 1000)]
    finally:
        view.close()


class TestDay:
    """What an undisturbed service makes of slides that are dropped into its folders."""

    def test_results_are_those_of_a_run(self, day: Service, expected: dict) -> None:
        """Byte for byte the same patches and probabilities, also under names that are odd."""
        assert_same(table(day.out, "first"), expected["a"])
        assert_same(table(day.out, "frozen"), expected["c"])
        for name in ODD:
            assert_same(table(day.out, name), expected["b"])

    def test_the_ledger_knows_what_came_of_each(self, day: Service, expected: dict) -> None:
        """One attempt, every patch, the first result after the start and before the end."""
        slide = day.slide("first")
        assert (slide.attempts, slide.failures, slide.interruptions) == (1, 0, 0)
        counts = {name: slide.result[name] for name in ("planned", "inferred", "failed")}
        assert counts == {"planned": len(expected["a"]), "inferred": len(expected["a"]), "failed": 0}
        assert slide.started <= slide.first_result <= slide.finished
        assert slide.result["model"]["name"] == "tiny" and slide.result["probabilities"]["tumour"]["max"] > 0

    def test_the_same_slide_twice_is_done_once(self, day: Service) -> None:
        """Under its second name there is no result and no second row, but the name is recorded."""
        names = [slide.name for slide in day.slides(route="tumour")]
        assert names.count("first") == 1 and "ward/again" not in names
        assert not (day.out / "slides" / "ward" / "again.json").exists()
        said = day.command("status", "first", "--json")
        assert [Path(name["path"]).name for name in json.loads(said.stdout)["names"]] == ["first.tif", "again.tif"]

    def test_a_broken_slide_is_quarantined_with_its_reason(self, day: Service) -> None:
        """After give_up_s, and nothing else suffers."""
        slide = day.slide("broken")
        assert slide.kind in (Kind.INCOMPLETE, Kind.BAD_SLIDE) and slide.reason
        assert day.slides(State.QUARANTINED) == [slide]

    def test_a_folder_with_two_routes_gives_two_results(self, day: Service, expected: dict) -> None:
        """Each in its own results folder, with a row of its own; the class is that of the folder."""
        assert_same(table(day.folder / "out-other", "frozen"), expected["c"])
        assert {slide.urgency for slide in day.slides() if slide.name == "frozen"} == {"stat"}
        assert [slide.name for slide in day.slides(route="other")] == ["frozen"]

    def test_nothing_in_the_folders_is_touched_and_no_journal_is_left(self, day: Service) -> None:
        """The scanner's files are as they were; of complete slides no journal stays."""
        assert sorted(path.name for path in day.into.iterdir()) == sorted(
            [*(f"{name}.tif" for name in ODD), "broken.tif", "first.tif", "ward"]
        )
        until(lambda: not list(day.out.glob(".slidestream/work/*")), "no journal is left", 10.0)

    def test_status_tells_a_person_and_a_program(self, day: Service) -> None:
        """The whole, one slide by name and by number, and the lane as the run that it is."""
        lines = day.command("status").stdout
        assert "complete" in lines and "1 quarantined" in lines and "bottleneck: " in lines
        values = json.loads(day.command("status", "--json").stdout)
        assert values["lanes"]["other"]["up"] and values["slides"]["complete"]["stat"] == 2
        assert {stage["kind"]: stage["workers"] for stage in values["stages"]}["reader"] == 2
        number = day.slide("broken").id
        said = day.command("status", str(number)).stdout
        assert "broken (tumour)" in said and "quarantined" in said and day.slide("broken").reason in said
        assert "waiting -> quarantined" in said
        assert runs.command("status", str(day.out)).returncode == 0
        top = day.command("top", "--once").stdout
        assert "slide readers" in top and "tumour" in top

    def test_health_metrics_and_events_are_of_this_service(self, day: Service) -> None:
        """Live, ready and progressing; metrics of its slides; an event for each, in the spool folder, confirmed in the ledger."""
        address = web.address(RunDir(Path((day.state / "run").read_text().strip())))
        for page in ("healthz", "readyz", "progress"):
            with urllib.request.urlopen(f"{address}/{page}", timeout=10) as response:
                assert response.status == 200, page
        text = metrics(address)
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert found["slidestream_up",] == 1.0 and found["slidestream_slides", "complete", "stat"] == 2.0
        told = [json.loads(path.read_text()) for path in sorted((day.folder / "spool").glob("*.json"))]
        done = {(event["data"]["name"], event["data"]["route"]) for event in told if event["type"] == "slide.complete"}
        assert {("first", "tumour"), ("frozen", "tumour"), ("frozen", "other")} <= done
        until(lambda: 'slidestream_events_unsent{sink="spool"} 0.0' in metrics(address), "all are confirmed")

    def test_its_doors_are_its_users_alone(self, day: Service) -> None:
        """The sockets lie in a folder that nobody else may enter, as does the ledger."""
        private = Path((day.state / "run").read_text().strip())
        assert private.stat().st_mode & 0o077 == 0 and day.state.stat().st_mode & 0o077 == 0
        assert (day.state / "ledger.sqlite").stat().st_mode & 0o077 == 0

    def test_a_second_one_is_told_who_holds_it(self, day: Service) -> None:
        """Exit code 2, one line; a run on the same results folder, too."""
        said = runs.command("serve", "--config", str(day.file))
        assert said.returncode == 2 and f"(process {day.process.pid})" in said.stderr
        assert "another service works with this state folder" in said.stderr
        run = runs.command("run", str(day.into), "--out", str(day.out), "--model", day.config["model"])
        assert run.returncode == 2 and "another run holds it (process " in run.stderr

    def test_scale_goes_to_the_lane_that_is_named(self, day: Service) -> None:
        """With two lanes one has to be; the answer is the lane's own."""
        said = day.command("scale", "reader=2")
        assert said.returncode == 2 and "tumour, other" in said.stderr
        said = day.command("scale", "reader=2", "--route", "other")
        assert (said.returncode, said.stdout) == (0, "reader: 1 -> 2 workers\n")
        assert day.command("scale", "batcher=2", "--route", "other").returncode == 2

    def test_submit_takes_only_what_lies_in_its_folders(self, day: Service, slides: dict[str, Path]) -> None:
        """Neither a file elsewhere, nor a link that leads out, nor what is no slide."""
        link = day.into / "link.tif"
        link.symlink_to(slides["large"])
        try:
            for path, words in (
                (slides["large"], "service.submit_from"),
                (link, "leads out of"),
                (day.into / "none.tif", "No such file"),
            ):
                said = day.command("submit", str(path))
                assert said.returncode == 2 and words in said.stderr, said
        finally:
            link.unlink()

    def test_what_is_unknown_or_at_rest_is_refused(self, day: Service) -> None:
        """In one line each, and the exit code is 2."""
        for words in (("cancel", "nobody"), ("prioritise", "first"), ("cancel", "first")):
            said = day.command(*words)
            assert said.returncode == 2 and said.stderr.count("\n") == 1 and said.stderr.startswith("slidestream: ")

    def test_retried_a_broken_slide_is_tried_once_more(self, day: Service) -> None:
        """By its number; it is as broken as before, and so it is recorded beside the results."""
        number = day.slide("broken").id
        assert day.command("retry", str(number)).stdout == "broken (tumour) is queued again\n"
        slide = day.until_state("broken", State.QUARANTINED)
        until(lambda: day.slide("broken").attempts == 1, "it was tried")
        slide = day.until_state("broken", State.QUARANTINED)
        assert slide.kind == Kind.BAD_SLIDE
        assert json.loads((day.out / "slides" / "broken.json").read_text())["state"] == "failed"


class TestUrgency:
    """stat before routine."""

    @pytest.mark.long
    def test_a_stat_slide_overtakes_and_the_operator_changes_the_order(
        self, service, slides: dict[str, Path], expected: dict
    ) -> None:
        """It comes last and is complete first; what is prioritised is second; what is cancelled is never done."""
        one = service(sabotage=SLOW)
        one.config["slides"] = {"ahead": 1}
        one.config["service"]["watch"][0]["stat_patterns"] = ["*frozen*"]
        one.config["service"]["watch"][0]["poll_s"] = 0.5
        for number in range(8):
            path = one.into / f"r{number}.tif"
            drop(slides["large"], path)
            with path.open("ab") as file:
                file.write(bytes([number + 1]))
        one.start()
        until(one.journalled, "the first is at work")
        until(lambda: len(one.slides()) == 8, "all are delivered")
        last = [slide.name for slide in one.slides()][-1]
        victim = next(slide.name for slide in one.slides(State.QUEUED, State.RUNNING) if slide.name != last)
        drop(slides["a"], one.into / "frozen.tif")
        assert one.command("prioritise", last).stdout == f"{last} (tumour) is stat now\n"
        running = [slide.name for slide in one.slides(State.RUNNING)]
        assert one.command("cancel", victim).returncode == 0
        one.until_state("frozen", State.COMPLETE)
        assert_same(table(one.out, "frozen"), expected["a"])
        one.until_state(last, State.COMPLETE)
        done = [slide.name for slide in one.slides(State.COMPLETE)]
        assert len(done) <= 5, (done, running)  # most of the routine slides still wait
        assert one.slide(victim).state == State.CANCELLED
        assert not (one.out / "slides" / f"{victim}.json").exists()
        one.sabotage = None


class TestEnd:
    """Ends of all kinds, and what the next start makes of them."""

    @pytest.mark.long
    def test_drained_in_the_middle_it_goes_on(self, service, slides: dict[str, Path], expected: dict) -> None:
        """SIGTERM: exit code 75 within the bound, a journal stays; the next start infers only what is left."""
        one = service(sabotage=SLOW)
        drop(slides["large"], one.into / "large.tif")
        one.start()
        first = until(one.journalled, "a journal is begun")
        until(lambda: one.journalled() > first, "results are in the journal")
        began = time.monotonic()
        said = one.command("drain")
        assert said.returncode == 0 and "ended" in said.stdout
        assert one.process.wait(30) == 75 and time.monotonic() - began < 30
        kept = one.journalled()
        assert kept > 0 and one.slide("large").state == State.QUEUED
        assert not (one.state / "run").exists() and list(one.temporary.glob("slidestream-*")) == []
        one.sabotage = None
        one.start()
        slide = one.until_state("large", State.COMPLETE)
        assert_same(table(one.out, "large"), expected["large"])
        assert slide.attempts == 2 and slide.failures == 0
        assert one.stop() == 75

    def test_killed_lane_service_and_all_of_it(self, service, slides: dict[str, Path], expected: dict) -> None:
        """kill -9 of the lane, of the service, of every process: complete once, with the same results, without a failure."""
        one = service(sabotage=SLOW)
        drop(slides["large"], one.into / "large.tif")
        drop(slides["a"], one.into / "a.tif")
        one.start()
        until(one.journalled, "a journal is begun")
        one.lanes()[0].kill()
        until(
            lambda: one.slide("large").interruptions + one.slide("a").interruptions,
            "the lane's slides are queued again",
        )
        at = one.journalled()
        until(lambda: one.journalled() > at or len(one.slides(State.COMPLETE)) == 2, "the next lane goes on")
        one.kill()
        until(lambda: not one.family(), "all died with it", 10.0)
        one.start()
        until(lambda: one.lanes(), "a lane is there")
        time.sleep(2.0)
        for process in one.family():
            process.kill()
        one.kill()
        one.sabotage = None
        one.start()
        for name in ("large", "a"):
            slide = one.until_state(name, State.COMPLETE)
            assert slide.failures == 0
            assert_same(table(one.out, name), expected[name])
            assert [new for _, new in one.steps(name)].count("complete") == 1
        assert one.stop() == 75

    @pytest.mark.long
    def test_killed_at_random_for_two_minutes(self, service, slides: dict[str, Path], expected: dict) -> None:
        """Any process every few seconds, the service and everything among them: all accounted for, all results the same."""
        one = service()
        rng = random.Random(7)
        one.start()
        wanted = {}
        names = list(slides)
        for number in range(40):
            kind = names[number % len(names)]
            name = f"s{number}"
            drop(slides[kind], one.into / f"{name}.tif")
            with (one.into / f"{name}.tif").open("ab") as file:
                file.write(number.to_bytes(4, "little"))
            wanted[name] = kind
            time.sleep(rng.uniform(0.2, 1.0))
            if rng.random() < 0.7:
                family = one.family()
                dice = rng.random()
                if dice < 0.2:
                    one.kill()
                elif dice < 0.35:
                    one.kill()
                    for process in family:
                        process.kill() if process.is_running() else None
                elif family:
                    victim = rng.choice(family)
                    victim.kill() if victim.is_running() else None
            if one.process.poll() is not None:
                one.start()
        for name, kind in wanted.items():
            one.until_state(name, State.COMPLETE)
            assert_same(table(one.out, name), expected[kind])
            assert [new for _, new in one.steps(name)].count("complete") == 1
        assert one.stop() == 75

    @pytest.mark.long
    def test_a_deadline_that_will_be_missed_is_told_before_it_is(self, service, slides: dict[str, Path]) -> None:
        """A slide submitted by hand as stat, whose patches take too long: alarm, event, and then its result all the same."""
        one = service(sabotage=SLOWER, deadline_s={"stat": 8})
        hand = one.folder / "hand"
        hand.mkdir()
        shutil.copyfile(slides["large"], hand / "large.tif")
        one.config["service"]["submit_from"] = [str(hand)]
        one.start()
        until(lambda: "ready" in one.console(), "it is ready")
        said = one.command("submit", str(hand / "large.tif"), "--stat")
        assert said.stdout == "large: taken as stat, for tumour\n", said
        until(lambda: any(event["type"] == "slide.deadline_at_risk" for event in events(one)), "the alarm")
        slide = one.slide("large")
        assert slide.state == State.RUNNING and slide.alarmed < slide.deadline
        assert "DEADLINE AT RISK" in one.console()
        one.until_state("large", State.COMPLETE)

    @pytest.mark.long
    def test_a_full_disk_pauses_the_route_and_it_goes_on_by_itself(
        self, service, slides: dict[str, Path], expected: dict
    ) -> None:
        """The service lives on, says what is held and why, and finishes when there is room."""
        one = service()
        one.out.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(one.out)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("no tmpfs can be mounted here")
        try:
            ballast = one.out / "ballast"
            ballast.write_bytes(bytes((64 << 20) - (256 << 10)))
            drop(slides["large"], one.into / "large.tif")
            one.start()
            until(lambda: "held: results:tumour" in one.command("status").stdout, "the route is held")
            assert "No space left" in one.command("status").stdout
            assert one.slide("large").failures == 0 and one.process.poll() is None
            ballast.unlink()
            one.until_state("large", State.COMPLETE)
            assert_same(table(one.out, "large"), expected["large"])
            assert one.stop() == 75
        finally:
            one.destroy()
            subprocess.run(["umount", "-l", str(one.out)], check=False)

    def test_sighup_reloads_and_says_what_needs_a_restart(self, service, slides: dict[str, Path]) -> None:
        """A new folder is watched at once; a new number of readers has to wait."""
        one = service()
        one.start()
        until(lambda: "ready" in one.console(), "it is ready")
        more = one.folder / "more"
        more.mkdir()
        drop(slides["a"], more / "a.tif")
        one.config["service"]["watch"].append(Service.watch(more))
        one.config["reader"]["workers"] = 2
        one.write()
        said = one.command("reload")
        assert said.stdout == "changed: service.watch\nchanges only with a restart: reader.workers\n", said
        one.until_state("a", State.COMPLETE)
        one.file.write_text("service: {rotes: []}\n")
        said = one.command("reload")
        assert said.returncode == 2 and "nothing is changed: " in said.stderr and "service.rotes" in said.stderr
        one.process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded" in one.console(), "SIGHUP reloads, too")

    def test_drain_to_the_end_of_what_is_under_way(self, service, slides: dict[str, Path]) -> None:
        """The slide that runs is complete, nothing more is taken, and the service ends by itself with code 75."""
        one = service()
        one.start()
        drop(slides["large"], one.into / "large.tif")
        one.until_state("large", State.RUNNING)
        said = one.command("drain", "--finish")
        assert said.returncode == 0 and "ends when what is under way is done" in said.stdout, said
        assert one.process.wait(LIMIT_S) == 75
        assert one.slide("large").state is State.COMPLETE

    def test_a_changed_log_level_reaches_lanes_that_run(self, service, slides: dict[str, Path]) -> None:
        """Less is said of the next slide, and more of the one after it; no lane is started anew."""
        one = service()
        one.config["log"] = {"level": "error"}
        one.start()
        drop(slides["a"], one.into / "a.tif")
        one.until_state("a", State.COMPLETE)
        before = [lane.pid for lane in one.lanes()]
        assert "slide complete" not in one.console()
        one.config["log"] = {"level": "info"}
        one.write()
        assert one.command("reload").stdout == "changed: log.level\n"
        drop(slides["b"], one.into / "b.tif")
        one.until_state("b", State.COMPLETE)
        assert one.console().count("slide complete") == 1
        one.config["log"] = {"level": "error"}
        one.write()
        one.command("reload")
        drop(slides["c"], one.into / "c.tif")
        one.until_state("c", State.COMPLETE)
        assert one.console().count("slide complete") == 1
        assert [lane.pid for lane in one.lanes()] == before


class TestRefused:
    """What cannot be started is said in one line, with exit code 2."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"routs": []}, "unknown key service.routs; did you mean service.routes?"),
            ({"routes": [], "watch": []}, "names no route"),
            ({"routes": [{"name": "tumour", "out": "/x", "model": "/nowhere"}]}, "/nowhere"),
            ({"routes": [{"name": "tumour", "out": "/x", "sha256": "0" * 64}]}, "is another model"),
            ({"webhook": {"url": "http://elsewhere/x", "secret_file": "/x"}}, "must be https"),
            ({"state": "/proc/nothing"}, "name a folder that this user may write to"),
        ],
    )
    def test_before_anything_is_started(self, service, change: dict, words: str) -> None:
        """Configuration, model, state folder."""
        one = service()
        one.config["service"] |= change
        one.write()
        said = runs.command("serve", "--config", str(one.file))
        assert said.returncode == 2 and said.stderr.count("\n") == 1 and words in said.stderr, said.stderr

    @pytest.mark.long
    def test_a_results_folder_that_a_run_holds(self, service) -> None:
        """After a while in which that could be the last lane on its way out; the line says who holds it."""
        one = service()
        private = one.out / ".slidestream"
        private.mkdir(parents=True)
        with (private / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write("4711\n")
            lock.flush()
            one.start()
            assert one.process.wait(60) == 2
        assert f"slidestream: --out {one.out}: another run holds it (process 4711)" in one.console()

    def test_no_service_is_there(self, tmp_path: Path) -> None:
        """Every command says so."""
        for words in (("status",), ("drain",), ("retry", "x"), ("top", "--once"), ("scale", "reader=2")):
            said = runs.command(*words, "--service", str(tmp_path))
            assert said.returncode == 2 and said.stderr.count("\n") == 1, said
            assert "no service is under way there" in said.stderr
