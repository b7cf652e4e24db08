"""The lanes in the service's loop: started and replaced, given slides, listened to; what they say is put into the ledger."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import Sequence

import structlog
import zmq

from pipeline.config import Config
from pipeline.control import Later
from pipeline.rundir import RunDir
from pipeline.service import lane as lane_process
from pipeline.service.config import Route
from pipeline.service.config import Service as ServiceSection
from pipeline.service.deadlines import Pace
from pipeline.service.lanes import End, Lane
from pipeline.service.lanewire import (
    MAX_BYTES,
    Amend,
    Cancel,
    Do,
    First,
    LaneMessage,
    LaneProtocolError,
    Loud,
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
from pipeline.service.nursery import Nursery
from pipeline.service.reasons import RULES, Kind, decide, kind_of_text
from pipeline.service.records import Slide

AGAIN_S = 2.0
# Where some patches of a slide failed for one of these, another try may give them all.
MAY_PASS = (Kind.READ_ERROR, Kind.SHARE_GONE, Kind.TIMEOUT, Kind.VANISHED, Kind.PERMISSION)


class Foreman:
    """Keeps a lane for each route. `lanes` by the route's name; for the loop's thread alone."""

    def __init__(
        self,
        context: zmq.Context,
        run: RunDir,
        ledger: Ledger,
        nursery: Nursery,
        pace: Pace,
        routes: Sequence[Route],
    ) -> None:
        self.lanes = {route.name: Lane(route) for route in routes}
        self.draining = False
        self.finishing = False
        """Nothing more is given to lanes; what they have they do to its end."""
        self._run, self._ledger, self._nursery, self._pace = run, ledger, nursery, pace
        self._inbox: deque[tuple[Lane, LaneMessage]] = deque()
        self._scaling: dict[int, tuple[Lane, Scale, Later]] = {}
        self._token = 0
        self._changes = -1
        self._offered_at = float("-inf")
        self._config: Config | None = None
        self._log = structlog.get_logger()
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.set_hwm(0)  # bounded by the slides that a lane may have
        self.socket.bind(lane_process.lane_address(run))

    def close(self) -> None:
        self.socket.close()

    @property
    def settled(self) -> bool:
        """Whether it is known of every lane what becomes of it."""
        return all(lane.settled for lane in self.lanes.values())

    @property
    def idle(self) -> bool:
        """Whether no lane has a slide, and all that they said is in the ledger."""
        return not any(lane.jobs for lane in self.lanes.values()) and not self._inbox

    @property
    def ended(self) -> bool:
        """Whether no lane runs, and all that they said is in the ledger."""
        return all(lane.child is None for lane in self.lanes.values()) and not self._inbox

    # Processes

    def configure(self, config: Config) -> None:
        """What the next process of each lane works with; what it says to the log changes at once."""
        louder = self._config is not None and self._config.log.level != config.log.level
        self._config = config
        for lane in self.lanes.values() if louder else ():
            self._say(lane, Loud(config.log.level))

    def _write(self, lane: Lane) -> None:
        route = lane.route
        own = route.over(self._config)
        update = {stage: getattr(own, stage).model_copy(update={"workers": n}) for stage, n in lane.scaled.items()}
        own = own.model_copy(update={**update, "service": ServiceSection()})
        lane_process.write_settings(self._run, route, own, len(self.lanes))

    def start_what_is_due(self, clock: float) -> None:
        """Start lanes that have no process, unless they have to wait."""
        for lane in self.lanes.values():
            if self.draining or lane.child is not None or clock < lane.start_at:
                continue
            lane.generation += 1
            lane.start_at = clock + AGAIN_S  # where it cannot be
            try:
                self._write(lane)
            except OSError as error:
                self._log.error("a lane cannot be started", route=lane.route.name, reason=error.strerror)
                continue
            command = lane_process.command(self._run, lane.route.name, lane.generation)
            if (child := self._nursery.spawn(f"lane {lane.route.name}", command)) is not None:
                lane.began(child)

    def drain(self) -> None:
        """Have all lanes come to a checkpoint and end."""
        self.draining = True
        for lane in self.lanes.values():
            if lane.child is not None:
                lane.child.terminate()

    def reap(self, ready: dict[object, int]) -> str | None:
        """Take in the deaths of lanes; why a lane cannot start as it is configured, where that is so from its first start."""
        refused = None
        for lane in self.lanes.values():
            if lane.child is None or lane.child.pidfd not in ready or (code := lane.child.reap()) is None:
                continue
            self.receive()  # its last words
            child = lane.child
            self._nursery.drop(child)
            for token in [token for token, (asked, _, _) in self._scaling.items() if asked is lane]:
                self._scaling.pop(token)[2].refuse(f"the lane of {lane.route.name} has ended; try again when it is up")
            end = lane.ended(code, child.out_of_memory, time.monotonic())
            self._requeue(lane, end, time.time())
            if not self.draining:
                pause = max(0.0, lane.start_at - time.monotonic())
                self._log.warning("lane ended", route=lane.route.name, reason=end.reason, restart_in_s=round(pause, 1))
            refused = refused or (end.reason if end.refused else None)
        return refused

    def _requeue(self, lane: Lane, end: End, now: float) -> None:
        """What it had is queued again, but for what it said to be over."""
        said = {(m.slide, m.attempt) for owner, m in self._inbox if owner is lane and isinstance(m, Over)}
        lost = [job for job in lane.jobs if job not in said]
        try:
            with self._ledger.batch():
                for number, attempt in lost:
                    if (number, attempt) == end.culprit:
                        self._ledger.fail(number, attempt, Kind.CRASH, f"killed the lane: {end.reason}", now)
                    else:
                        self._ledger.interrupted(number, attempt, f"its lane ended: {end.reason}", now)
                if end.kind is not None and not self.draining:
                    until = now + max(0.0, lane.start_at - time.monotonic())
                    self._ledger.hold(results_key(lane.route.name), end.kind, end.reason, now, until)
        except (LedgerError, sqlite3.Error) as error:  # noted later, like what a lane says itself
            self._inbox.extend((lane, Over(*job, "cancelled", "", "", {})) for job in lost)
            self._log.error(f"nothing can be noted: {error}")
            return
        for job in lost:
            del lane.jobs[job]

    def end_what_is_silent(self, clock: float) -> None:
        """Kill lanes that do not answer."""
        for lane in self.lanes.values():
            if lane.child is not None and lane.silent(clock):
                lane.child.kill("it has not answered for too long")

    # To lanes

    def offer(self, now: float, clock: float, pause_s: float) -> None:
        """Give lanes what they have room for, where anything has changed, or so long has passed (a time may have come)."""
        if (
            self.draining
            or self.finishing
            or (self._ledger.changes == self._changes and clock - self._offered_at < pause_s)
        ):
            return
        for lane in self.lanes.values():
            most = sum(lane.room().values()) if lane.up else 0
            if not most:
                continue
            with self._ledger.batch():
                chosen = lane.choose(self._ledger.next_due(now, most, lane.route.name))
                begun = [self._ledger.started(slide.id, now) for slide in chosen]
            for slide in begun:  # only now: it is on disk
                lane.jobs[slide.id, slide.attempts] = slide.urgency
                path, urgent = slide.path.decode("utf-8", "backslashreplace"), slide.urgency is Urgency.STAT
                self._say(lane, Do(slide.id, slide.attempts, slide.name, path, urgent))
        self._changes, self._offered_at = self._ledger.changes, clock

    def amend(self, slide: Slide) -> None:
        """The class of a slide has changed: its lane must know, if it has it."""
        job, lane = (slide.id, slide.attempts), self.lanes.get(slide.route)
        if lane is not None and job in lane.jobs:
            lane.jobs[job] = slide.urgency
            self._say(lane, Amend(*job, slide.urgency is Urgency.STAT))

    def stop_what_is_over(self) -> None:
        """Slides that a lane still has, and that were cancelled or replaced meanwhile."""
        running = {(slide.id, slide.attempts): slide for slide in self._ledger.running()}
        for lane in self.lanes.values():
            for job in [job for job in lane.jobs if job not in running]:
                self._say(lane, Cancel(*job))
            for job, urgency in list(lane.jobs.items()):  # delivered again, as a stat slide
                if job in running and running[job].urgency is not urgency:
                    self.amend(running[job])

    def scale(self, lane: Lane, stage: str, workers: int) -> Later:
        """Ask a lane for more or fewer workers."""
        self._token += 1
        message, later = Scale(self._token, stage, workers), Later()
        self._scaling[self._token] = (lane, message, later)
        self._say(lane, message)
        return later

    def _say(self, lane: Lane, message: LaneMessage) -> None:
        # A lane that is gone hears nothing; its slides are queued again when it is reaped.
        with contextlib.suppress(zmq.ZMQError):
            self.socket.send_multipart([lane.peer, encode(message)], zmq.DONTWAIT)

    # From lanes

    def receive(self) -> None:
        """Take what lanes have said. What has to be noted waits for `note`."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            lane = next((lane for lane in self.lanes.values() if lane.peer == frames[0]), None)
            if lane is None or len(frames) != 2 or lane.child is None:
                continue  # the last words of one that is dead
            try:
                message = decode(frames[1])
            except LaneProtocolError as error:
                self._log.error("a lane speaks nonsense", route=lane.route.name, reason=str(error))
                continue
            lane.heard_at = time.monotonic()
            match message:
                case Told():
                    lane.told = message
                case Scaled() if message.token in self._scaling:
                    self._scaled(message)
                case Up():
                    lane.up, lane.ahead, self._changes = True, message.ahead, -1
                    self._say(lane, Loud(self._config.log.level))  # it may have changed while this lane came up
                    self._inbox.append((lane, message))
                case First() | Over():
                    self._inbox.append((lane, message))

    def _scaled(self, message: Scaled) -> None:
        lane, asked, later = self._scaling.pop(message.token)
        if not message.ok:
            later.refuse(message.said)
            return
        later.answer({"said": message.said})
        lane.scaled[asked.stage] = asked.workers  # its next process has as many

    def note(self, now: float) -> None:
        """Put into the ledger what lanes have said. LedgerError: what is not on disk is noted with the next call."""
        while self._inbox:
            lane, message = self._inbox[0]
            match message:
                case Up():
                    self._release(lane, now)
                case First():
                    self._ledger.first_result(message.slide, message.attempt, now)
                case Over():
                    self._over(lane, message, now)
            self._inbox.popleft()

    def _release(self, lane: Lane, now: float) -> None:
        """A lane that was held because it could not be started is up."""
        key = results_key(lane.route.name)
        if any(hold.key == key and hold.kind in (Kind.MODEL, Kind.INTERNAL) for hold in self._ledger.holds()):
            self._ledger.release(key, now)

    def _over(self, lane: Lane, over: Over, now: float) -> None:
        slide = self._ledger.slide(over.slide)
        if over.state == "complete" or (over.state == "partial" and not _worth_another_try(slide, over.reason)):
            lane.did_well()
            state = State.COMPLETE if over.state == "complete" else State.PARTIAL
            result = {**over.result, **({"reason": over.reason} if over.reason else {})}
            if self._ledger.finished(over.slide, over.attempt, state, result, now):
                self._pace.took(slide.urgency, now - (slide.started or now))
        elif over.state == "cancelled":
            self._ledger.interrupted(over.slide, over.attempt, "its work was stopped", now)
        else:
            kind = (
                Kind.CHANGED if over.state == "changed" else Kind(over.kind) if over.kind else kind_of_text(over.reason)
            )
            self._ledger.fail(over.slide, over.attempt, kind, over.reason, now)
        lane.jobs.pop((over.slide, over.attempt), None)


def _worth_another_try(slide: Slide, reason: str) -> bool:
    kind = kind_of_text(reason)
    failures = (slide.waits if RULES[kind].attempts is None else slide.failures) + 1
    return kind in MAY_PASS and decide(kind, failures, 0.0).retry_at is not None
