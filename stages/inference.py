"""The inference stage: owns one engine (or one for each model of the run) and its contexts, takes slots, gives probabilities.

The loop is the same for every engine (engines/engine.py): it never blocks but in one bounded wait, so it beats also
while a GPU computes, and a slot goes back as soon as its pixels are copied.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from engines import notices
from engines.engine import Context, Engine
from engines.ensemble import open_models
from engines.errors import EngineError
from pipeline import log
from pipeline.link import Link
from pipeline.memory import SharedSlots
from pipeline.wire import Consumed, Inferred, Refused, Run, Telemetry
from pipeline.worker import EXIT_FAULT, Lost, Post, main, step_back
from results.columns import NOT_A_NUMBER, unanswered

WAIT_S = 0.002  # for the oldest batch, before looking at the socket again
TELEMETRY_S = 1.0
# Where work has run out: sooner than the last slide's files are written, so that the record of a run has it all; a stage that
# idles between batches says no more often than this.
LAST_WORD_S = 0.1


@dataclass(slots=True)
class Busy:
    """A context at work on a lease."""

    context: Context
    lease: Run
    since: float
    returned: bool = False


class Inference:
    """Feeds idle contexts with leases, and collects what the busy ones have finished."""

    def __init__(
        self,
        link: Link,
        slots: SharedSlots,
        contexts: list[Context],
        engine: Engine,
        classes: list[int],
        hang_s: float = math.inf,
    ):
        """`classes`: how many columns each model of the run gives. `hang_s`: a batch that is not answered for so long never
        will be.
        """
        self._engine = engine
        self._hang_s = hang_s
        self._classes = classes
        self._told_at = 0.0
        self._untold = False
        self._link = link
        self._slots = slots
        self._idle = list(contexts)
        self._busy: deque[Busy] = deque()
        self._log = log.get_logger()

    def step(self, patience_s: float) -> None:
        """Take a lease if a context is idle (waiting for one at most `patience_s`), then see to the busy ones.

        Raises EngineError (fatal): the device is lost, or hangs.
        """
        self._link.holding = any(not busy.returned for busy in self._busy)
        self._tell()
        if self._idle:
            if self._untold:
                patience_s = min(patience_s, LAST_WORD_S)
            message = self._link.receive(0.0 if self._busy else patience_s)
            if isinstance(message, Run):
                self._start(message)
                if self._idle:
                    return  # perhaps there is another one
        self._link.beat()
        if self._busy:
            self._busy[0].context.wait(WAIT_S)
            for busy in list(self._busy):
                self._look(busy)
        # Nobody else would see it: a process whose GPU hangs goes on beating.
        if self._busy and time.monotonic() - self._busy[0].since > self._hang_s:
            raise EngineError(f"a batch was not answered in {self._hang_s:g} s (supervisor.hang_s)", fatal=True)

    def _tell(self) -> None:
        """Telemetry now and then, and soon when the work has run out: the last word should have it all."""
        now = time.monotonic()
        run_out = self._untold and not self._busy
        if now - self._told_at < (LAST_WORD_S if run_out else TELEMETRY_S):
            return
        self._told_at, self._untold = now, bool(self._busy)
        if values := self._engine.telemetry():
            self._link.send(Telemetry(values))

    def _start(self, lease: Run) -> None:
        context, self._untold = self._idle.pop(), True
        context.submit(self._slots.patches(lease.slot, lease.count))
        self._busy.append(Busy(context, lease, time.monotonic()))

    def _look(self, busy: Busy) -> None:
        if not busy.context.done():
            if not busy.returned and busy.context.consumed():
                busy.returned = True
                self._link.send(Consumed(busy.lease.lease))
            return
        self._busy.remove(busy)
        try:
            probabilities = busy.context.result()
        except EngineError as error:
            if error.fatal:
                raise
            self._log.warning("batch failed", reason=str(error))
            self._link.send(Refused(busy.lease.lease, str(error)))
        else:
            self._link.send(
                Inferred(
                    busy.lease.lease,
                    probabilities.astype("<f4", copy=False).tobytes(),
                    [[int(row), NOT_A_NUMBER] for row in np.flatnonzero(unanswered(probabilities, self._classes))],
                )
            )
        self._idle.append(busy.context)


def work(post: Post) -> None:
    config, models = post.config["inference"], post.settings["models"]
    slots = post.slots()
    notices.listen(lambda level, event, reason: getattr(log.get_logger(), level)(event, reason=reason))
    if post.plans:
        from engines.cuda import register_early

        register_early(slots.bytes)  # 0.4 s a GiB (H100), in which the engine is loaded
    else:  # on a GPU it has little to do, and all that wait for it are held up
        step_back()
    try:
        engine = open_models(
            config,
            models,
            folded=[post.run.folded(number) for number in range(len(models))],
            plans=post.plans,
            max_batch=post.settings["layout"]["batch"],
        )
        engine.attach(slots.bytes)
        contexts = engine.contexts(config["contexts"])
    except EngineError as error:
        # Too little memory on the GPU, a GPU that is gone: another try may meet better times, and the last word is told.
        log.get_logger().error("engine not started", reason=str(error))
        raise SystemExit(EXIT_FAULT) from error
    link: Link | None = None
    lost = False
    try:
        # One lease for each context, and `credit` more that wait in line so that no context waits for a message.
        link = post.connect(config["contexts"] + config["credit"] - 1, engine.describe())
        supervisor = post.config["supervisor"]
        classes = [len(model["classes"]) for model in models]
        inference = Inference(link, slots, contexts, engine, classes, supervisor["hang_s"])
        while True:
            inference.step(supervisor["beat_s"])
    except EngineError as error:
        log.get_logger().error("engine lost", reason=str(error))
        lost = error.fatal
        raise (Lost() if lost else SystemExit(EXIT_FAULT)) from error
    finally:
        if not lost:
            engine.close()
        if link is not None:
            link.close()


if __name__ == "__main__":
    main("inference", work)
