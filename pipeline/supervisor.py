"""The supervisor: starts the processes of a run, watches them, replaces the dead, and ends the run in good order.

It holds nothing that matters: what is done lies in journals and result files. It is the only one that kills, and it
tells the batcher of a death only when the process is reaped, so that nothing of it can touch a slot any more.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import zmq

from pipeline.batcher_line import BatcherLine
from pipeline.children import Child, Death, judge, oom_kills, spawn
from pipeline.control import Control, Handler, Refusal
from pipeline.crew import Member, starting_order
from pipeline.limits import allow_files, check_workers, lack_for_more
from pipeline.log import LogSink
from pipeline.memory import Layout
from pipeline.roster import MOST_WORKERS, WELL_S, Roster, Suspicion
from pipeline.rundir import RunDir
from pipeline.signals import Signals
from pipeline.submissions import Source, Verdict
from pipeline.watch import Watch
from pipeline.wire import (
    Amend,
    Condemn,
    Dead,
    Drain,
    Living,
    Report,
    SlideDone,
    Stop,
)
from pipeline.worker import EXIT_CONFIGURATION, EXIT_FAULT, EXIT_INTERRUPTED

BATCHER = "batcher"
LOOP_S = 0.1
STARTS_A_STEP = 8  # processes; questions and signals are to be answered meanwhile
STOP_S = 10.0  # from Stop to the last process gone; writers may be syncing files
PIPE_BYTES = 1 << 16
GPU_START = 5  # times supervisor.start_s: an engine that comes from another machine compiles its kernels first
# A child that leaves with one of these has said why no other try would help.
_FINAL_CODES = (EXIT_CONFIGURATION, EXIT_INTERRUPTED)


@dataclass(slots=True)
class Ending:
    """How a run ended: its exit code, and why where it is not plain success."""

    code: int
    reason: str = ""


class Supervisor:
    """One run. `crew` is every worker but the batcher."""

    def __init__(
        self,
        run: RunDir,
        memory_fd: int,
        settings: dict[str, Any],
        crew: list[Member],
        recruit: Callable[[str, int], Member],
        submissions: Source,
        sink: LogSink,
        watching: Callable[[Watch], None],
        ended: Callable[[Verdict], None],
        answers: dict[str, Handler],
    ):
        """`recruit(kind, index)` is a worker more, for `scale`; `watching` is called several times a second, `ended` for
        every slide that is done. `answers` are what the control socket answers beside `scale`. MemoryLack or ConfigError
        where this machine cannot have so many workers.
        """
        self._run_dir = run
        self._memory_fd = memory_fd
        self._run_id = settings["run"]
        self._config = settings["config"]["supervisor"]
        self._roster = Roster((Member(BATCHER, BATCHER), *crew), recruit, self._config)
        kinds = [member.kind for member in self._roster.members.values()]
        check_workers(kinds, Layout(**settings["layout"]))
        allow_files(kinds)
        self._submissions = submissions
        self._sink = sink
        self._watching = watching
        self._ended = ended
        self.watch = Watch()
        self._children: dict[str, Child] = {}
        self._generations: dict[str, int] = {}
        self._start_at: dict[str, float] = {}
        self._last_words: dict[str, str] = {}
        self._amended: dict[int, Amend] = {}  # by slide, of those under way
        self._signals = Signals()
        self._ending: Ending | None = None
        self._drain_until: float | None = None
        self._drained = False
        self._log = structlog.get_logger()
        self._zmq = zmq.Context()
        self._poller = zmq.Poller()
        self._line = BatcherLine(self._zmq, run.hub, self._poller)
        self._control = Control(self._zmq, run.control, {"scale": self.scale, **answers})
        self._poller.register(self._control.socket, zmq.POLLIN)
        self._attached: dict[int | zmq.Socket, Callable[[], None]] = {}

    def attach(self, source: int | zmq.Socket, heard: Callable[[], None]) -> None:
        """Call `heard` in the loop whenever this descriptor or socket is readable."""
        self._attached[source] = heard
        self._poller.register(source, zmq.POLLIN)

    # ------------------------------------------------------------ the loop

    def run(self, prepare: Callable[[], None]) -> Ending:
        """Until every slide is done, or something ends the run earlier. To be called from the main thread.

        `prepare` makes what inference workers on a CPU need, while the others start; what it raises ends the run.
        """
        self.watch.started_at = time.monotonic()
        self._sink.listen(self._hear)
        self._signals.catch()
        self._poller.register(self._signals.descriptor, zmq.POLLIN)
        try:
            at_once, waiting = starting_order(self._roster.members.values())
            for member in at_once:
                self._start(member)
            prepare()
            for member in waiting:
                self._start(member)
            while self._ending is None:
                self._step()
            return self._finish(self._ending)
        finally:
            self._poller.unregister(self._signals.descriptor)
            self._signals.restore()
            for child in list(self._children.values()):
                child.kill("the run is over")
                child.process.wait()
                self._drop(child)
            self._line.close()
            self._control.close()
            self._zmq.term()

    def _step(self) -> None:
        self._submit()
        self._poll(LOOP_S)
        now = time.monotonic()
        for name in [name for name, at in self._start_at.items() if now >= at][:STARTS_A_STEP]:
            del self._start_at[name]
            self._start(self._roster.members[name])
        self._sink.settle()
        self._find_hanging(now)
        self._answer_signals(now)
        self._watching(self.watch)
        if self._submissions.finished:
            self._end(Ending(0))
        elif self._drain_until is not None and (self._drained or now > self._drain_until):
            how = (
                "checkpoint reached"
                if self._drained
                else f"no checkpoint within supervisor.drain_s={self._config['drain_s']:g}"
            )
            self._end(Ending(EXIT_INTERRUPTED, f"interrupted, {how}; run the same command again to go on"))

    def _poll(self, timeout_s: float) -> None:
        ready = dict(self._poller.poll(timeout_s * 1000))
        if self._signals.descriptor in ready:
            self._signals.awake()
        for child in list(self._children.values()):
            if child.stderr in ready:
                self._read_stderr(child)
            if child.pidfd in ready or not child.running:
                self._reap(child)
        self._receive()
        if self._control.socket in ready:
            self._control.answer()
        for source, heard in self._attached.items():
            if source in ready:
                heard()

    def _end(self, ending: Ending) -> None:
        """The first cause stands."""
        if self._ending is None:
            self._ending = ending

    # ------------------------------------------------------------ processes

    def _start(self, member: Member) -> None:
        generation = self._generations.get(member.name, 0) + 1
        self._generations[member.name] = generation
        child = spawn(member, generation, self._run_dir, self._memory_fd)
        self._children[member.name] = child
        self._poller.register(child.pidfd, zmq.POLLIN)
        self._poller.register(child.stderr, zmq.POLLIN)
        if member.kind == BATCHER:
            self._greet_batcher()

    def _greet_batcher(self) -> None:
        """A new batcher: a new line to it, and all that it must know."""
        self._line.renew()
        living = [[c.name, c.generation] for c in self._children.values() if c.kind != BATCHER]
        self._line.send(Living(self._run_id, living))
        submits = self._submissions.again()
        self._amended = {s.slide: self._amended[s.slide] for s in submits if s.slide in self._amended}
        for message in (*submits, *self._amended.values()):
            self._line.send(message)
        if self._drain_until is not None:
            self._line.send(Drain())

    def _reap(self, child: Child) -> None:
        code = child.reap()
        if code is None or self._children.get(child.name) is not child:
            return
        self._read_stderr(child)
        self._sink.end(child.name)
        self._drop(child)
        self.watch.cpu_s[child.kind] = self.watch.cpu_s.get(child.kind, 0.0) + child.cpu_s
        death = judge(code, child.sentence, oom_kills() > child.oom_kills)
        if self._ending is not None:
            return
        if child.kind != BATCHER:
            self._line.send(Dead(child.name, child.generation, death.cause, death.blame))
        if death.code in _FINAL_CODES:
            self._end(Ending(death.code, self._last_words.get(child.name, f"{child.name}: {death.cause}")))
            return
        if (member := self._roster.members.get(child.name)) is not None:  # not one that `scale` has sent away
            self._replace(child, member, death)

    def _replace(self, child: Child, member: Member, death: Death) -> None:
        self.watch.restarts[child.kind] = self.watch.restarts.get(child.kind, 0) + 1
        report = self.watch.report
        progress = (report.get("settled"), report.get("suspects"), self._submissions.tally.over)
        well = child.joined and (not child.device or time.monotonic() - child.started_at > WELL_S)
        others = any(other.kind == child.kind and other.joined for other in self._children.values())
        suspicion = Suspicion(
            child.joined and bool(report.get("suspects") or report.get("on_trial")), report.get("quarantined", 0)
        )
        fate = self._roster.died(member, child.generation, death.blame, well, progress, others, suspicion)
        words = self._last_words.get(child.name)
        reason = f"{death.cause}: {words}" if words else death.cause
        if fate.give_up:
            self.watch.lost[child.name] = reason
            left = len(self._roster.of_kind(child.kind))
            self._log.error("DEGRADED: a worker is given up", worker=child.name, left=left, reason=reason)
            return
        self._log.warning("process died", worker=child.name, cause=death.cause, restart_in_s=fate.pause_s)
        if fate.pause_s is None:
            times = f"died {fate.in_a_row} times in a row without any progress"
            self._end(Ending(EXIT_FAULT, f"{child.name} {times} ({death.cause}){f': {words}' if words else ''}"))
            return
        self._start_at[child.name] = time.monotonic() + fate.pause_s

    def scale(self, question: dict[str, Any]) -> dict[str, Any]:
        """More or fewer workers of a stage, from now on. Those sent away are killed: others do again what they were at.

        Raises Refusal.
        """
        kind, wanted = question.get("stage"), question.get("workers")
        before = len(self._roster.of_kind(str(kind)))
        possible = isinstance(wanted, int) and wanted <= MOST_WORKERS
        if possible and (lack := lack_for_more(len(self._roster.members), wanted - before)):
            raise Refusal(f"{kind}={wanted}: {lack}")
        leaving, joining = self._roster.scale(kind, wanted, self._children)
        for member in leaving:
            self._start_at.pop(member.name, None)
            if (child := self._children.get(member.name)) is not None:
                child.kill("")  # without a sentence: nobody's fault
        for member in joining:
            self.watch.lost.pop(member.name, None)
            self._start_at[member.name] = 0.0
        self._log.info("scaled", stage=kind, before=before, now=wanted)
        return {"said": f"{kind}: {before} -> {wanted} workers"}

    def _drop(self, child: Child) -> None:
        self._poller.unregister(child.pidfd)
        self._poller.unregister(child.stderr)
        child.close()
        self._children.pop(child.name, None)

    def _read_stderr(self, child: Child) -> None:
        while True:
            try:
                chunk = os.read(child.stderr, PIPE_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                return
            self._sink.feed(child.name, chunk)

    def _hear(self, record: dict[str, Any]) -> None:
        """A log record on its way to the sink: the last word of a process says why it cannot go on, or how it crashed."""
        if record.get("level") == "critical":
            self._last_words[record["process"]] = str(record["event"])
        elif record.get("level") == "error" and record.get("reason"):
            self._last_words[record["process"]] = f"{record['event']}: {record['reason']}"
        elif text := str(record.get("exception") or record.get("text") or "").strip():
            self._last_words[record["process"]] = text.splitlines()[-1]

    def _find_hanging(self, now: float) -> None:
        batcher = self._children.get(BATCHER)
        if batcher is not None and now - self._line.heard_at > max(self._config["hang_s"], 3 * LOOP_S):
            batcher.kill(f"no report for {now - self._line.heard_at:.1f} s")
        present = self.watch.report.get("present", [])
        for child in self._children.values():
            if child.kind == BATCHER or child.joined:
                continue
            child.joined = [child.name, child.generation] in present
            patience = self._config["start_s"] * (GPU_START if child.device else 1)
            if not child.joined and now - child.started_at > patience:
                child.kill(f"not ready after {patience:g} s (supervisor.start_s)")

    # ------------------------------------------------------------ messages

    def amend(self, number: int, urgent: bool) -> bool:
        """A slide that is under way is of this class from now on; False where it is not, or is cancelled."""
        return self._amend(Amend(number, urgent, cancel=False))

    def cancel(self, number: int) -> bool:
        """A slide that is under way is not wanted any more; False where it is not under way.

        What becomes of it is told to the submissions like any end, mostly as "cancelled", with no result written; where its
        results were being written already, as what they say. Its journal is removed: submitted again, it starts anew.
        """
        submit = self._submissions.under_way.get(number)
        return submit is not None and self._amend(Amend(number, submit.urgent, cancel=True))

    def _amend(self, amend: Amend) -> bool:
        """Kept for as long as the slide is under way: a new batcher must be told the same."""
        before = self._amended.get(amend.slide)
        if amend.slide not in self._submissions.under_way or (before is not None and before.cancel):
            return False
        self._amended[amend.slide] = amend
        self._line.send(amend)
        return True

    def _submit(self) -> None:
        while self._drain_until is None and (submit := self._submissions.next()) is not None:
            self._line.send(submit)

    def _receive(self) -> None:
        for message in self._line.messages():
            match message:
                case Report():
                    self._note(message.status)
                case SlideDone():
                    self._amended.pop(message.slide, None)
                    verdict = self._submissions.done(message)
                    if verdict is not None:
                        self._ended(verdict)
                case Condemn():
                    child = self._children.get(message.name)
                    if child is not None and child.generation == message.generation:
                        child.kill(message.reason)

    def _note(self, report: dict[str, Any]) -> None:
        self.watch.take(report, time.monotonic() - self.watch.started_at)
        for name, gauge in self.watch.gauges.items():
            if grown := gauge.grown_mib():
                self._log.warning("memory on the GPU grows", worker=name, grown_mib=round(grown))
        self._drained = bool(report["drained"])
        if self.watch.first_result_s is None and report["first_result_at"] is not None:
            # CLOCK_MONOTONIC is the machine's: the batcher's reading can be compared with ours.
            self.watch.first_result_s = report["first_result_at"] - self.watch.started_at
            self.watch.at_first_result = self.watch.stages

    # ------------------------------------------------------------ signals and the end

    def _answer_signals(self, now: float) -> None:
        while self._signals.came:
            number = signal.Signals(self._signals.came.pop(0)).name
            if self._drain_until is None:
                self._drain_until = now + self._config["drain_s"]
                self._line.send(Drain())
                self._log.info(f"{number}: finishing what is under way; once more stops at once")
            else:
                self._end(Ending(EXIT_INTERRUPTED, "stopped at once; run the same command again to go on"))
                for child in self._children.values():
                    child.kill("stopped at once")

    def _finish(self, ending: Ending) -> Ending:
        """Let everybody leave by themselves, within a bound."""
        self._line.send(Stop())
        # The batcher passes the Stop on to those it knows. One that has not joined yet would wait for it for ever, and
        # holds nothing.
        report = self.watch.report
        current = BATCHER in self._children and report.get("boot") == self._children[BATCHER].generation
        present = report["present"] if current else []
        for child in self._children.values():
            if child.kind != BATCHER and [child.name, child.generation] not in present:
                child.kill("the run is over")
        until = time.monotonic() + STOP_S
        while self._children and time.monotonic() < until:
            self._poll(LOOP_S)
            if self._signals.came:
                break
        return ending
