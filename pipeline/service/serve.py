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
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
import zmq

from pipeline import __version__, log
from pipeline.config import Config
from pipeline.control import Control, Later
from pipeline.log import LogSink
from pipeline.machine import detect
from pipeline.rundir import RunDir
from pipeline.service import lane as lane_process
from pipeline.service import notify, web
from pipeline.service.balance import bottleneck
from pipeline.service.deadlines import Pace, risk
from pipeline.service.desk import Desk
from pipeline.service.errands import Errands
from pipeline.service.intake import Intake
from pipeline.service.keeper import Keeper
from pipeline.service.lanes import Lane
from pipeline.service.lanewire import (
    MAX_BYTES,
    Amend,
    Cancel,
    Do,
    First,
    LaneMessage,
    LaneProtocolError,
    Over,
    Scale,
    Scaled,
    Told,
    Up,
    decode,
    encode,
)
from pipeline.service.ledger import Ledger, results_key
from pipeline.service.lifecycle import State, Urgency
from pipeline.service.migrations import LedgerError
from pipeline.service.offspring import Offspring
from pipeline.service.reasons import RULES, Kind, decide, kind_of_text
from pipeline.service.recent import Recent
from pipeline.service.records import Slide
from pipeline.service.report import lines, run_values, sample
from pipeline.service.state import LEDGER
from pipeline.supervisor import STOP_S, Ending
from pipeline.worker import EXIT_CONFIGURATION, EXIT_INTERRUPTED

LOOP_S = 0.1
INTAKE_S = 0.2
SECOND_S = 1.0
COMPLAIN_S = 60.0
WEB_PAUSE_S = 2.0
LONGEST_WEB_PAUSE_S = 60.0
# Where some patches of a slide failed for one of these, another try may give them all.
_MAY_PASS = (Kind.READ_ERROR, Kind.SHARE_GONE, Kind.TIMEOUT, Kind.VANISHED, Kind.PERMISSION)


class Service:
    """All of it, for one thread: the main one. LedgerError where the ledger cannot be used."""

    def __init__(
        self, config: Config, source: tuple[Path | None, Sequence[str]], state: Path, run: RunDir, sink: LogSink
    ):
        """`source`: the configuration's file and overrides, for `reload`."""
        self.config, self.source, self.state, self.run_dir = config, source, state, run
        self.ledger = Ledger(state / LEDGER)
        self.errands = Errands()
        self.log = structlog.get_logger()
        self.lanes = {route.name: Lane(route) for route in config.service.routes}
        self.draining = False
        self.intake = Intake(config.service, self.ledger, config.slides.mpp)
        self.pace = Pace()
        self._sink = sink
        self._keeper = Keeper(self.ledger, self.errands)
        self._web: Offspring | None = None
        self._web_at, self._web_pause_s = 0.0, WEB_PAUSE_S
        self._ending: Ending | None = None
        self._drain_until = 0.0
        self._ready_told = False
        self._inbox: deque[tuple[Lane, LaneMessage]] = deque()
        self._scaling: dict[int, Later] = {}
        self._token = 0
        self._changes = -1
        self._offered_at = float("-inf")
        self._signals: list[int] = []
        self._complained_at = float("-inf")
        self._intake_at = self._second_at = self._alive_at = float("-inf")
        self._recent = Recent()
        self._cores = detect().cores
        self._began = time.monotonic()
        self._watchdog_s = notify.watchdog_s()
        self._zmq = zmq.Context()
        self._hub = self._zmq.socket(zmq.ROUTER)
        self._hub.setsockopt(zmq.LINGER, 200)
        self._hub.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._hub.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._hub.set_hwm(0)  # bounded by the slides that a lane may have
        self._hub.bind(lane_process.lane_address(run))
        self._control = Control(self._zmq, run.control, Desk(self).handlers)
        self._poller = zmq.Poller()
        for source_ in (self._hub, self._control.socket, self.errands.descriptor):
            self._poller.register(source_, zmq.POLLIN)
        sink.listen(self._hear)

    # ------------------------------------------------------------ the loop

    def run(self) -> Ending:
        """Until it is told to end, or cannot go on."""
        with self._caught_signals():
            try:
                self._begin()
                while self._ending is None:
                    self._step()
                return self._ending
            finally:
                self._close()

    def _begin(self) -> None:
        now = time.time()
        for slide in self.ledger.recover(now):
            self.log.info("goes on after the service ended", slide=slide.name, route=slide.route)
        self.set_sinks()
        for lane in self.lanes.values():
            self.write_lane(lane)
        self._start_web()

    def _step(self) -> None:
        self._poll(LOOP_S)
        now, clock = time.time(), time.monotonic()
        self._sink.settle()
        self._answer_signals()
        self._start_what_is_due(clock)
        try:
            self._take_inbox(now)
            if clock - self._intake_at >= INTAKE_S and not self.draining:
                self._intake_at = clock
                for line in self.intake.poll(now, clock):
                    self.log.warning(line)
            self._offer(now, clock)
            if clock - self._second_at >= SECOND_S:
                self._second_at = clock
                self._every_second(now, clock)
        except LedgerError as error:
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
        if self._hub in ready:
            self._receive()
        for child in [lane.child for lane in self.lanes.values() if lane.child is not None] + [self._web]:
            if child is not None and child.stderr in ready:
                self._read(child)
        for lane in self.lanes.values():
            if lane.child is not None and lane.child.pidfd in ready:
                self._reap_lane(lane)
        if self._web is not None and self._web.pidfd in ready:
            self._reap_web()
        if self.errands.descriptor in ready:
            self.errands.collect()
        if self._control.socket in ready:
            self._control.answer()

    def _every_second(self, now: float, clock: float) -> None:
        told = {
            entry[0]: (entry[2], entry[3])
            for lane in self.lanes.values()
            if lane.told is not None
            for entry in lane.told.slides
        }
        self.pace.see(clock, told)
        for slide in self.ledger.at_risk(now + self.pace.horizon_s):
            reason = risk(slide, self.pace.left_s(slide, now), now)
            if reason and self.ledger.alarm(slide.id, reason, now):
                self.log.warning("DEADLINE AT RISK", slide=slide.name, route=slide.route, reason=reason)
        self._recent.add(sample(self.values(), clock))
        self._stop_what_is_over()
        for lane in self.lanes.values():
            if lane.silent(clock):
                lane.child.kill("it has not answered for too long")
        if not self.draining:
            for line in self._keeper.look(self.config.service, list(self.lanes.values()), now, clock):
                self.log.info(line)

    def _stop_what_is_over(self) -> None:
        """Slides that a lane still has, and that were cancelled or replaced meanwhile."""
        running = {(slide.id, slide.attempts) for slide in self.ledger.running()}
        for lane in self.lanes.values():
            waiting = {(m.slide, m.attempt) for owner, m in self._inbox if owner is lane and isinstance(m, Over)}
            for job in [job for job in lane.jobs if job not in running and job not in waiting]:
                self.say(lane, Cancel(*job))

    def _tell_manager(self, clock: float) -> None:
        if not self._ready_told and all(lane.up for lane in self.lanes.values()):
            self._ready_told = True
            notify.notify(notify.READY)
            self.log.info("ready", routes=", ".join(self.lanes), watched=len(self.config.service.watch))
        if self._watchdog_s is not None and clock - self._alive_at >= self._watchdog_s:
            self._alive_at = clock
            notify.notify(notify.WATCHDOG)

    # ------------------------------------------------------------ slides to lanes

    def _offer(self, now: float, clock: float) -> None:
        """Give lanes what they have room for, where anything has changed, or a second has passed (a time may have come)."""
        if self.draining or (self.ledger.changes == self._changes and clock - self._offered_at < SECOND_S):
            return
        self._changes, self._offered_at = self.ledger.changes, clock
        for lane in self.lanes.values():
            if lane.up:
                self._offer_to(lane, now)

    def _offer_to(self, lane: Lane, now: float) -> None:
        stat, routine = lane.room()
        if not stat and not routine:
            return
        held = {slide for slide, _ in lane.jobs}
        begun: list[Slide] = []
        with self.ledger.batch():
            for slide in self.ledger.next_due(now, stat + routine, lane.route.name):
                if slide.id in held and lane.faults:
                    continue
                if slide.urgency is Urgency.STAT and stat:
                    stat -= 1
                elif slide.urgency is Urgency.ROUTINE and routine:
                    routine -= 1
                else:
                    continue
                begun.append(self.ledger.started(slide.id, now))
        for slide in begun:  # only now: it is on disk
            lane.jobs[slide.id, slide.attempts] = slide.urgency
            urgent = slide.urgency is Urgency.STAT
            self.say(
                lane, Do(slide.id, slide.attempts, slide.name, slide.path.decode("utf-8", "backslashreplace"), urgent)
            )

    def amend(self, slide: Slide) -> None:
        """The class of a slide has changed: its lane must know, if it has it."""
        job = (slide.id, slide.attempts)
        lane = self.lanes.get(slide.route)
        if lane is not None and job in lane.jobs:
            lane.jobs[job] = slide.urgency
            self.say(lane, Amend(*job, slide.urgency is Urgency.STAT))

    def cancel(self, slide: Slide) -> None:
        """A slide was cancelled: its lane must stop it, if it has it."""
        job = (slide.id, slide.attempts)
        lane = self.lanes.get(slide.route)
        if lane is not None and job in lane.jobs:
            self.say(lane, Cancel(*job))

    def scale(self, lane: Lane, stage: str, workers: int) -> Later:
        """Ask a lane for more or fewer workers."""
        self._token += 1
        later = self._scaling[self._token] = Later()
        self.say(lane, Scale(self._token, stage, workers))
        return later

    def say(self, lane: Lane, message: LaneMessage) -> None:
        # A lane that is gone hears nothing; its slides are queued again when it is reaped.
        with contextlib.suppress(zmq.ZMQError):
            self._hub.send_multipart([lane.peer, encode(message)], zmq.DONTWAIT)

    # ------------------------------------------------------------ what lanes say

    def _receive(self) -> None:
        while True:
            try:
                frames = self._hub.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            lane = next((lane for lane in self.lanes.values() if lane.peer == frames[0]), None)
            if lane is None or len(frames) != 2 or lane.child is None:
                continue  # the last words of one that is dead
            try:
                message = decode(frames[1])
            except LaneProtocolError as error:
                self.log.error("a lane speaks nonsense", route=lane.route.name, reason=str(error))
                continue
            lane.heard_at = time.monotonic()
            match message:
                case Up():
                    lane.up, lane.ahead, self._changes = True, message.ahead, -1
                    self._inbox.append((lane, message))
                case Told():
                    lane.told = message
                case Scaled():
                    later = self._scaling.pop(message.token, Later())
                    later.answer({"said": message.said}) if message.ok else later.refuse(message.said)
                case First() | Over():
                    self._inbox.append((lane, message))

    def _take_inbox(self, now: float) -> None:
        """What has to be noted. It stays in the inbox until it is on disk."""
        while self._inbox:
            lane, message = self._inbox[0]
            match message:
                case Up():
                    self._release(lane, now)
                case First():
                    self.ledger.first_result(message.slide, message.attempt, now)
                case Over():
                    self._over(lane, message, now)
            self._inbox.popleft()

    def _release(self, lane: Lane, now: float) -> None:
        """A lane that was held because it could not be started is up."""
        key = results_key(lane.route.name)
        if any(hold.key == key and hold.kind in (Kind.MODEL, Kind.INTERNAL) for hold in self.ledger.holds()):
            self.ledger.release(key, now)

    def _over(self, lane: Lane, over: Over, now: float) -> None:
        slide = self.ledger.slide(over.slide)
        if over.state == "complete" or (over.state == "partial" and not self._worth_another_try(slide, over.reason)):
            lane.did_well()
            state = State.COMPLETE if over.state == "complete" else State.PARTIAL
            result = {**over.result, **({"reason": over.reason} if over.reason else {})}
            if self.ledger.finished(over.slide, over.attempt, state, result, now):
                self.pace.took(slide.urgency, now - (slide.started or now))
        elif over.state == "cancelled":
            self.ledger.interrupted(over.slide, over.attempt, "its work was stopped", now)
        else:
            kind = (
                Kind.CHANGED if over.state == "changed" else Kind(over.kind) if over.kind else kind_of_text(over.reason)
            )
            self.ledger.fail(over.slide, over.attempt, kind, over.reason, now)
        lane.jobs.pop((over.slide, over.attempt), None)

    def _worth_another_try(self, slide: Slide, reason: str) -> bool:
        kind = kind_of_text(reason)
        failures = (slide.waits if RULES[kind].attempts is None else slide.failures) + 1
        return kind in _MAY_PASS and decide(kind, failures, 0.0).retry_at is not None

    # ------------------------------------------------------------ processes

    def write_lane(self, lane: Lane) -> None:
        """What the lane's next process reads."""
        route = lane.route
        models = {} if route.model is None else {"model": route.model}
        own = Config().service
        config = self.config.model_copy(update={**models, "service": own})
        lane_process.write_settings(self.run_dir, route.name, config, route.out, route.hashes, len(self.lanes))

    def _start_what_is_due(self, clock: float) -> None:
        if self.draining:
            return
        for lane in self.lanes.values():
            if lane.child is None and clock >= lane.start_at:
                lane.generation += 1
                command = lane_process.command(self.run_dir, lane.route.name, lane.generation)
                child = self._spawn(f"lane {lane.route.name}", command)
                if child is None:
                    lane.start_at = clock + WEB_PAUSE_S
                else:
                    lane.began(child)
        if self._web is None and clock >= self._web_at:
            self._start_web()

    def _start_web(self) -> None:
        service = self.config.service
        parts = (part.model_dump(mode="json") for part in (service.http, service.webhook, service.spool))
        web.write_settings(self.run_dir, self.state / LEDGER, __version__, self.config.log.level, *parts)
        self._web = self._spawn("web", web.command(self.run_dir))

    def restart_web(self) -> None:
        """With what the configuration says now."""
        self._web_pause_s = WEB_PAUSE_S
        if self._web is not None:
            self._web.terminate()

    def _spawn(self, name: str, command: list[str]) -> Offspring | None:
        try:
            child = Offspring(name, command)
        except OSError as error:
            self.log.error("a process cannot be started", process_name=name, reason=error.strerror)
            return None
        self._poller.register(child.stderr, zmq.POLLIN)
        self._poller.register(child.pidfd, zmq.POLLIN)
        return child

    def _read(self, child: Offspring) -> None:
        while chunk := child.read():
            self._sink.feed(child.name, chunk)

    def _drop(self, child: Offspring) -> None:
        self._read(child)
        self._sink.end(child.name)
        self._poller.unregister(child.stderr)
        self._poller.unregister(child.pidfd)
        child.close()

    def _reap_lane(self, lane: Lane) -> None:
        child, code = lane.child, lane.child.reap()
        if code is None:
            return
        self._receive()  # its last words
        self._drop(child)
        now = time.time()
        end = lane.ended(code, child.out_of_memory, time.monotonic())
        jobs, lane.jobs = lane.jobs, {}
        said = {(m.slide, m.attempt) for owner, m in self._inbox if owner is lane and isinstance(m, Over)}
        for job in said & jobs.keys():
            lane.jobs[job] = jobs.pop(job)
        self._to_note(lane, end, jobs, now)
        if self.draining:
            return
        pause = max(0.0, lane.start_at - time.monotonic())
        self.log.warning("lane ended", route=lane.route.name, reason=end.reason, restart_in_s=round(pause, 1))
        if end.refused and not self._ready_told:
            self._ending = Ending(EXIT_CONFIGURATION, end.reason)

    def _to_note(self, lane: Lane, end: Any, jobs: dict[tuple[int, int], Urgency], now: float) -> None:
        """What ran is queued again. Where the ledger cannot be written now, the next start of the service does it."""
        try:
            with self.ledger.batch():
                for number, attempt in jobs:
                    if (number, attempt) == end.culprit:
                        self.ledger.fail(number, attempt, Kind.CRASH, f"killed the lane: {end.reason}", now)
                    else:
                        self.ledger.interrupted(number, attempt, f"its lane ended: {end.reason}", now)
                if end.kind is not None and not self.draining:
                    until = now + max(0.0, lane.start_at - time.monotonic())
                    self.ledger.hold(results_key(lane.route.name), end.kind, end.reason, now, until)
        except LedgerError as error:
            lane.jobs |= jobs
            self._inbox.extend((lane, Over(*job, "cancelled", "", "", {})) for job in jobs)
            self.log.error(f"nothing can be noted: {error}")

    def _reap_web(self) -> None:
        code = self._web.reap()
        if code is None:
            return
        lasted = time.monotonic() - self._web.started_at
        self._drop(self._web)
        self._web = None
        if code == EXIT_CONFIGURATION and not self._ready_told:
            self._ending = Ending(EXIT_CONFIGURATION, self._web_words or "the HTTP process cannot start")
            return
        self._web_pause_s = (
            WEB_PAUSE_S if lasted > LONGEST_WEB_PAUSE_S else min(LONGEST_WEB_PAUSE_S, 2 * self._web_pause_s)
        )
        self._web_at = time.monotonic() + (0.0 if code == 0 else self._web_pause_s)
        if not self.draining and code != 0:
            self.log.warning("HTTP process ended", code=code, restart_in_s=self._web_pause_s)

    _web_words = ""

    def _hear(self, record: dict[str, Any]) -> None:
        """A log record of a child on its way to the sink: its last critical word says why it cannot go on."""
        if record.get("level") != "critical":
            return
        if record.get("process") == "web":
            self._web_words = str(record["event"])
        elif (lane := self.lanes.get(str(record.get("route")))) is not None:
            lane.words = str(record["event"])

    # ------------------------------------------------------------ what others ask for

    def values(self) -> dict[str, Any]:
        """How it stands, without the ledger."""
        return run_values(list(self.lanes.values()), time.monotonic() - self._began, self.draining)

    def status(self) -> dict[str, Any]:
        """How it stands: lines for a person, and all of it."""
        now, values, recent = time.time(), self.values(), self._recent
        counts = self.ledger.counts()
        backlog = sum(sum(counts[state].values()) for state in (State.QUEUED, State.RUNNING, State.RETRY_WAIT))
        stages = tuple(sample(values, time.monotonic()).stages)
        older = recent.oldest.stages if recent.oldest is not None else ()
        said = bottleneck(stages, older, backlog=backlog, on_gpu=bool(values["telemetry"]), cores=self._cores)
        values["bottleneck"], values["patches_per_s"] = said, recent.patches_per_s()
        values["slides"] = {state: dict(by_class) for state, by_class in counts.items()}
        return {"lines": lines(values, counts, self.ledger.holds(), recent, said, now), "run": values}

    def set_log_level(self) -> None:
        """As the configuration says; of lanes, from their next start on."""
        log.configure("service", "json", self.config.log.level, self._sink)
        self.log = structlog.get_logger()
        for lane in self.lanes.values():
            self.write_lane(lane)

    def set_sinks(self) -> None:
        """Receivers of events, as the configuration has them."""
        service = self.config.service
        wanted = [
            name
            for name, target in (("webhook", service.webhook.url), ("spool", service.spool.path))
            if target is not None
        ]
        self.ledger.keep_sinks(wanted)
        for name in wanted:
            self.ledger.add_sink(name)

    # ------------------------------------------------------------ signals and the end

    def drain(self) -> None:
        """Take nothing more, bring what is under way to a checkpoint, then end."""
        if self.draining:
            return
        self.draining = True
        self._drain_until = time.monotonic() + self.config.supervisor.drain_s + STOP_S + 5.0
        notify.notify(notify.STOPPING)
        self.log.info("draining: what is under way comes to a checkpoint")
        for lane in self.lanes.values():
            if lane.child is not None:
                lane.child.terminate()

    def _see_drained(self, clock: float) -> None:
        if all(lane.child is None for lane in self.lanes.values()) and not self._inbox:
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
                Desk(self).reload_from_signal()
            elif self.draining:
                self._ending = Ending(EXIT_INTERRUPTED, "stopped at once; the next start goes on")
            else:
                self.drain()

    def _close(self) -> None:
        for child in [lane.child for lane in self.lanes.values()] + [self._web]:
            if child is not None:
                child.kill("the service ends")
                child.wait()
                self._drop(child)
        self.intake.close()
        self._hub.close()
        self._control.close()
        self._zmq.term()
        self.ledger.close()
