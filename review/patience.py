"""Threads that read slides, so that storage which does not answer holds up nobody but who looks at that slide.

A read that hangs in the kernel cannot be ended. So whoever waits for it is answered after a while (503), and its thread is
left behind: it no longer counts among those that may read at a time, and of one slide no more than `each` can be left. The
threads are daemons: what hangs does not keep the server from ending.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from review.errors import Refused

T = TypeVar("T")

# After so long a read does not count as work any more: it waits for storage, which others need not.
LATE_S = 1.0
# What is not there by then is answered with 503. A large slide without small levels may take longer at its first look, and
# is there at a later try.
LIMIT_S = 10.0
# Threads that are left behind, over all slides. Beyond, nothing new is read until some come back.
LEFT_MOST = 256
# Reads that may wait; more come only from what has no window.
WAITING_MOST = 1024


@dataclass(eq=False, slots=True)
class _Job:
    slide: str
    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    began: float = 0.0
    left: bool = False  # whoever waited for it has been answered


class Readers:
    """`most` reads at a time, of one slide at most `each` (default: half of them, so that one slide never takes all). Slides
    take turns. From any thread."""

    def __init__(self, most: int, each: int | None = None, late_s: float = LATE_S, limit_s: float = LIMIT_S) -> None:
        self.most, self.each = most, each or max(1, most // 2)
        self._late_s, self._limit_s = late_s, limit_s
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._running: dict[str, list[_Job]] = {}
        self._idle = 0
        self._closed = False
        self._own = threading.local()

    async def run(
        self, slide: str, work: Callable[[], T], gone: Callable[[], Awaitable[Any]] | None = None
    ) -> T | None:
        """What `work` gives, for an event loop; None where `gone` came back first, and then nothing is begun for it.

        Refused: 503 `storage` where the slide's storage does not answer, 503 `busy` where too much waits.
        """
        job = self._submit(slide, work)
        future = asyncio.wrap_future(job.future)
        leaving = None
        try:
            done, _ = await asyncio.wait({future}, timeout=min(0.05, self._limit_s))
            if not done and gone is not None:
                leaving = asyncio.ensure_future(gone())
            if not done:
                both = {future} | ({leaving} if leaving is not None else set())
                await asyncio.wait(both, timeout=self._limit_s, return_when=asyncio.FIRST_COMPLETED)
            if job.future.cancelled():
                raise _ending()
            if future.done():
                return future.result()
            if leaving is not None and leaving.done():
                return None
            raise self._too_late(job)
        finally:
            if leaving is not None:
                leaving.cancel()
            job.future.cancel()  # not begun, it never is

    def call(self, slide: str, work: Callable[[], T], limit_s: float | None = None) -> T:
        """The same for a thread, which waits, at most `limit_s`; not where the slide's threads wait for storage already. In
        a thread of this class the work is done there."""
        if getattr(self._own, "inside", False):
            return work()
        with self._changed:
            running, now = self._running.get(slide, ()), time.monotonic()
            if len(running) >= self.each and all(now - job.began > self._late_s for job in running):
                raise _no_answer(now - running[0].began)
        job = self._submit(slide, work)
        try:
            return job.future.result(self._limit_s if limit_s is None else limit_s)
        except TimeoutError:
            if job.future.done():  # the work's own
                raise
            raise self._too_late(job) from None
        except CancelledError:
            raise _ending() from None
        finally:
            job.future.cancel()

    def close(self) -> None:
        """What waits is not begun any more."""
        with self._changed:
            self._closed = True
            jobs = [job for queue in self._waiting.values() for job in queue]
            self._waiting.clear()
            self._changed.notify_all()
        for job in jobs:
            job.future.cancel()

    # ------------------------------------------------------------ within

    def _submit(self, slide: str, work: Callable[[], Any]) -> _Job:
        job, now = _Job(slide, work), time.monotonic()
        with self._changed:
            if self._closed:
                raise _ending()
            if sum(map(len, self._waiting.values())) >= WAITING_MOST:
                raise Refused(503, "busy", "too many pictures are being made; try again", retry_after=2)
            stuck = [other for other in self._running.get(slide, ()) if other.left]
            if len(stuck) >= self.each:
                raise _no_answer(now - stuck[0].began)
            if sum(other.left for jobs in self._running.values() for other in jobs) >= LEFT_MOST:
                text = "the storage of too many slides does not answer; tell whoever runs this page"
                raise Refused(503, "storage", text, retry_after=10)
            self._waiting.setdefault(slide, deque()).append(job)
            self._wake()
        return job

    def _too_late(self, job: _Job) -> Refused:
        with self._changed:
            if job.began:
                job.left = True
                return _no_answer(time.monotonic() - job.began)
            late = [other.began for other in self._running.get(job.slide, ())]
        waited = time.monotonic() - min(late) if late else 0.0
        if waited > self._late_s:
            return _no_answer(waited)
        return Refused(503, "busy", "too many pictures are being made; try again", retry_after=2)

    def _wake(self) -> None:
        """There is always a thread that waits for the next job, or for another to become late."""
        if self._idle:
            self._changed.notify()
        else:
            self._idle += 1
            threading.Thread(target=self._serve, name="slide reader", daemon=True).start()

    def _serve(self) -> None:
        self._own.inside = True
        while True:
            with self._changed:
                job = self._next()
                if job is None:
                    return
                self._idle -= 1
                job.began = time.monotonic()
                self._running.setdefault(job.slide, []).append(job)
                if self._waiting:
                    self._wake()
            try:
                result = job.work()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for it
                self._ended(job)
                job.future.set_exception(error)
            else:
                self._ended(job)
                job.future.set_result(result)
                del result
            del job

    def _ended(self, job: _Job) -> None:
        with self._changed:
            jobs = self._running[job.slide]
            jobs.remove(job)
            if not jobs:
                del self._running[job.slide]
            self._idle += 1
            self._changed.notify()

    def _next(self) -> _Job | None:
        """The job that this idle thread begins; None where the thread is not needed any more. Waits; holds the lock."""
        while not self._closed:
            now = time.monotonic()
            begun = [job.began for job in itertools.chain.from_iterable(self._running.values())]
            working = [began for began in begun if now - began <= self._late_s]
            if len(working) < self.most:
                for slide in list(self._waiting):
                    if len(self._running.get(slide, ())) < self.each:
                        queue = self._waiting[slide]
                        job = queue.popleft()
                        if queue:
                            self._waiting.move_to_end(slide)
                        else:
                            del self._waiting[slide]
                        if job.future.set_running_or_notify_cancel():
                            return job
                        break
                else:
                    if not self._rest(None):
                        return None
            elif not self._rest(min(working) + self._late_s - now + 0.001 if self._waiting else None):
                return None
        self._idle -= 1
        return None

    def _rest(self, seconds: float | None) -> bool:
        """Wait for a change; False where there are idle threads enough."""
        if self._idle > self.most:
            self._idle -= 1
            return False
        self._changed.wait(seconds)
        return True


def _no_answer(seconds: float) -> Refused:
    text = f"the storage of this slide has not answered for {seconds:.0f} s; try again later"
    return Refused(503, "storage", text, retry_after=10)


def _ending() -> Refused:
    return Refused(503, "busy", "the server is ending")
