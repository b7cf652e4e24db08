"""The service: takes slides as they come off the scanner, has lanes work on them, and keeps the ledger, for months.

    service (this loop) ── the ledger's only writer; intake, control socket, deadlines, retention; never touches pixels
      ├─ lane of each route ── a supervisor with its readers, masks, batcher, inference, aggregator, writers
      └─ HTTP ── health, metrics, events for the world outside

Everything that counts is on disk before it is acted on. `kill -9` of any process, or of all at once, costs time: what ran is
queued again, and the journals make it go on where it was.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
import zmq

from pipeline import __version__, log
from pipeline.balance import bottleneck
from pipeline.config import Config
from pipeline.control import Control
from pipeline.log import LogSink
from pipeline.machine import detect
from pipeline.rundir import RunDir
from pipeline.service import notify, review_page, web
from pipeline.service.deadlines import Pace, risk
from pipeline.service.desk import Desk
from pipeline.service.errands import Errands
from pipeline.service.foreman import Foreman
from pipeline.service.frontdoor import FrontDoor
from pipeline.service.intake import Intake
from pipeline.service.keeper import Keeper
from pipeline.service.ledger import Ledger
from pipeline.service.lifecycle import UNFINISHED
from pipeline.service.migrations import LedgerError
from pipeline.service.nursery import Nursery
from pipeline.service.recent import Recent
from pipeline.service.report import lines, run_values, sample
from pipeline.service.state import LEDGER
from pipeline.service.troubles import Watchman
from pipeline.supervisor import STOP_S, Ending
from pipeline.worker import EXIT_CONFIGURATION, EXIT_INTERRUPTED

LOOP_S = 0.1
INTAKE_S = 0.2
SECOND_S = 1.0
COMPLAIN_S = 60.0
MARGIN_S = 5.0


class Service:
    """All of it, for one thread: the main one. LedgerError where the ledger cannot be used."""

    def __init__(self, config: Config, source: tuple[Path, Sequence[str]], state: Path, run: RunDir, sink: LogSink):
        """`source`: the configuration's file and overrides, for `reload`."""
        self.config, self.source = config, source
        self.ledger = Ledger(state / LEDGER)
        self.errands = Errands()
        self.log = structlog.get_logger()
        self._sink = sink
        self._zmq = zmq.Context()
        self._poller = zmq.Poller()
        self._nursery = Nursery(self._poller, sink)
        self._pace = Pace()
        self.foreman = Foreman(self._zmq, run, self.ledger, self._nursery, self._pace, config.service.routes)
        ledger = state / LEDGER

        def for_web(config: Config) -> bool:
            parts = (config.service.http, config.service.webhook, config.service.spool)
            sections = [part.model_dump(mode="json") for part in parts]
            return web.write_settings(run, ledger, __version__, config.log.level, *sections)

        def for_review(config: Config) -> bool:
            return review_page.write_settings(run, ledger, __version__, config)

        self._run = run
        self._web = FrontDoor("web", web.command(run), for_web, self._nursery)
        self._review = FrontDoor("review", review_page.command(run), for_review, self._nursery)
        self._keeper = Keeper(self.ledger, self.errands)
        self._watchman = Watchman()
        self._desk = Desk(self)
        self._control = Control(self._zmq, run.control, self._desk.handlers)
        self.intake = Intake(config.service, self.ledger, config.slides.mpp)
        for source_ in (self.foreman.socket, self._control.socket, self.errands.descriptor):
            self._poller.register(source_, zmq.POLLIN)
        self._ending: Ending | None = None
        self._ready = False
        self._drain_until = 0.0
        self._signals: list[int] = []
        self._intake_at = self._second_at = self._alive_at = self._complained_at = float("-inf")
        self._recent = Recent()
        self._cores = detect().cores
        self._began = time.monotonic()
        self._watchdog_s = notify.watchdog_s()
        sink.listen(self._hear)

    @property
    def draining(self) -> bool:
        """Whether it takes nothing more and is on its way out."""
        return self.foreman.draining

    @property
    def closing(self) -> bool:
        """Whether it takes nothing more: it drains, or does what is under way to its end before."""
        return self.foreman.draining or self.foreman.finishing

    # ------------------------------------------------------------ the loop

    def run(self) -> Ending:
        """Until it is told to end, or cannot go on."""
        with self._caught_signals():
            try:
                for slide in self.ledger.recover(time.time()):
                    self.log.info("goes on after the service ended", slide=slide.name, route=slide.route)
                self.set_sinks()
                self.foreman.configure(self.config)
                while self._ending is None:
                    self._step()
                return self._ending
            finally:
                self._close()

    def _step(self) -> None:
        self._poll(LOOP_S)
        now, clock = time.time(), time.monotonic()
        self._sink.settle()
        self._answer_signals()
        self.foreman.start_what_is_due(clock)
        for door in (self._web, self._review):
            door.start_if_due(self.config, clock)
        try:
            self.errands.collect()
            self.foreman.note(now)
            if clock - self._intake_at >= INTAKE_S and not self.closing:
                self._intake_at = clock
                for line in self.intake.poll(now, clock):
                    self.log.warning(line)
            self.foreman.offer(now, clock, SECOND_S)
            if clock - self._second_at >= SECOND_S:
                self._second_at = clock
                self._every_second(now, clock)
        except (LedgerError, sqlite3.Error) as error:
            if clock - self._complained_at > COMPLAIN_S:
                self._complained_at = clock
                self.log.error(f"nothing can be noted, so nothing is begun: {error}")
        self._tell_manager(clock)
        if self.draining:
            self._see_drained(clock)

    def _poll(self, timeout_s: float) -> None:
        ready = dict(self._poller.poll(timeout_s * 1000))
        if self._wakeup in ready:
            self._wakeup_reader.recv(1 << 12)
        if self.foreman.socket in ready:
            self.foreman.receive()
        self._nursery.listen(ready)
        refused = self.foreman.reap(ready) or self._web.reap(ready)
        self._review.reap(ready)  # results are made, whether or not they can be looked at here
        if refused is not None and not self._ready:
            self._ending = Ending(EXIT_CONFIGURATION, refused)
        if self._control.socket in ready:
            self._control.answer()

    def _every_second(self, now: float, clock: float) -> None:
        told = [lane.told.slides for lane in self.foreman.lanes.values() if lane.told is not None]
        self._pace.see(clock, {slide: (done, planned) for part in told for slide, _, done, planned in part})
        for slide in self.ledger.at_risk(now + self._pace.horizon_s):
            reason = risk(slide, self._pace.left_s(slide, now), now)
            if reason and self.ledger.alarm(slide.id, reason, now):
                self.log.warning("DEADLINE AT RISK", slide=slide.name, route=slide.route, reason=reason)
        self._recent.add(sample(self.values(), clock))
        self.foreman.stop_what_is_over()
        self.foreman.end_what_is_silent(clock)
        if self.foreman.finishing and self.foreman.idle:
            self.drain()
        if not self.draining:
            for line in self._keeper.look(self.config.service, list(self.foreman.lanes.values()), now, clock):
                self.log.info(line)
            self._see_troubles(now, clock)

    def _see_troubles(self, now: float, clock: float) -> None:
        low = (self.config.service.low_disk_gb or 0.0) * 1e9
        lanes = list(self.foreman.lanes.values())
        standing = self.ledger.troubles()
        found = self._watchman.look(lanes, self.ledger.holds(), self._keeper.free, low, standing, clock)
        begun, over = self.ledger.troubled(found, now)
        for trouble in begun:
            self.log.error("DEGRADED", trouble=trouble.key, kind=trouble.kind, reason=trouble.reason)
        for trouble in over:
            self.log.info("no longer degraded", trouble=trouble.key, lasted_s=round(now - trouble.since))

    def _tell_manager(self, clock: float) -> None:
        if not self._ready and self.foreman.settled:
            self._ready = True
            notify.notify(notify.READY)
            self.log.info("ready", routes=", ".join(self.foreman.lanes), watched=len(self.config.service.watch))
        if self._watchdog_s is not None and clock - self._alive_at >= self._watchdog_s:
            self._alive_at = clock
            notify.notify(notify.WATCHDOG)

    def _hear(self, record: dict[str, Any]) -> None:
        """A log record of a child on its way to the sink: its last critical word says why it cannot go on."""
        if record.get("level") != "critical":
            return
        door = next((door for door in (self._web, self._review) if door.name == record.get("process")), None)
        if door is not None:
            door.words = str(record["event"])
        elif (lane := self.foreman.lanes.get(str(record.get("route")))) is not None:
            lane.words = str(record["event"])

    # ------------------------------------------------------------ what others ask for

    def values(self) -> dict[str, Any]:
        """How it stands, without the ledger."""
        return run_values(list(self.foreman.lanes.values()), time.monotonic() - self._began, self.closing)

    def status(self) -> dict[str, Any]:
        """How it stands: lines for a person, and all of it."""
        now, values, recent = time.time(), self.values(), self._recent
        counts = self.ledger.counts()
        older = recent.oldest.stages if recent.oldest is not None else ()
        said = bottleneck(
            sample(values, time.monotonic()).stages,
            older,
            backlog=sum(sum(counts[state].values()) for state in UNFINISHED),
            on_gpu=bool(values["telemetry"]),
            cores=self._cores,
        )
        values["bottleneck"], values["patches_per_s"] = said, recent.patches_per_s()
        values["slides"] = {state: dict(by_class) for state, by_class in counts.items()}
        where = review_page.address(self._run) if self._review.up else None
        values["review"] = {"address": where, "problem": self._review.problem}
        values["troubles"] = {trouble.key: trouble.reason for trouble in self.ledger.troubles().values()}
        return {"lines": lines(values, counts, self.ledger.holds(), recent, said, now), "run": values}

    def watch_anew(self) -> None:
        """Watch the folders that the configuration has now. What was not taken yet is looked at again."""
        self.intake.close()
        self.intake = Intake(self.config.service, self.ledger, self.config.slides.mpp)

    def tell_anew(self) -> None:
        """HTTP, events and log as the configuration has them now, those of lanes too."""
        self.set_sinks()
        self._web.restart()
        log.configure("service", "json", self.config.log.level, self._sink)
        self.foreman.configure(self.config)

    def review_anew(self) -> None:
        """The review page as the configuration has it now."""
        self._review.restart()

    def set_sinks(self) -> None:
        """Receivers of events, as the configuration has them."""
        service = self.config.service
        targets = (("webhook", service.webhook.url), ("spool", service.spool.path))
        wanted = [name for name, target in targets if target is not None]
        self.ledger.keep_sinks(wanted)
        for name in wanted:
            self.ledger.add_sink(name)

    # ------------------------------------------------------------ signals and the end

    def drain(self) -> None:
        """Take nothing more, bring what is under way to a checkpoint, then end."""
        if self.draining:
            return
        self._drain_until = time.monotonic() + self.config.supervisor.drain_s + STOP_S + MARGIN_S
        notify.notify(notify.STOPPING)
        self.log.info("draining: what is under way comes to a checkpoint")
        self.foreman.drain()

    def finish(self) -> None:
        """Take nothing more, do what is under way to its end, however long that takes, then end."""
        if not self.closing:
            self.foreman.finishing = True
            self.log.info("draining: what is under way is done to its end")

    def _see_drained(self, clock: float) -> None:
        if self.foreman.ended:
            self._ending = Ending(EXIT_INTERRUPTED, "drained to a checkpoint; the next start goes on")
        elif clock > self._drain_until:
            self._ending = Ending(EXIT_INTERRUPTED, "no checkpoint within supervisor.drain_s; the next start goes on")

    @contextlib.contextmanager
    def _caught_signals(self) -> Iterator[None]:
        self._wakeup_reader, writer = socket.socketpair()
        self._wakeup_reader.setblocking(False)
        writer.setblocking(False)
        self._wakeup = self._wakeup_reader.fileno()
        self._poller.register(self._wakeup, zmq.POLLIN)
        signal.set_wakeup_fd(writer.fileno())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda n, _: self._signals.append(n))
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            writer.close()
            self._wakeup_reader.close()

    def _answer_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP:
                self._desk.reload_from_signal()
            elif self.draining:
                self._ending = Ending(EXIT_INTERRUPTED, "stopped at once; the next start goes on")
            else:
                self.drain()

    def _close(self) -> None:
        self._nursery.close()
        self.intake.close()
        self.foreman.close()
        self._control.close()
        self._zmq.term()
        self.ledger.close()
