"""Looks at the service for many who ask: one look at a time, none older than a second, and nobody waits for long."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline import log
from pipeline.service.sampler import ANSWER_S, Sampler
from pipeline.service.snapshot import Snapshot

FRESH_S = 1.0
PATIENCE_S = ANSWER_S + 1.0
EVERY_S = 5.0  # also when nobody asks: the speed of the last minute wants looks to compare with


class Looker:
    """Runs a Sampler in one thread; its connection to the ledger belongs to that thread."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._pool = ThreadPoolExecutor(1, "looker")
        self._latest: tuple[float, Snapshot] | None = None
        self._under_way: asyncio.Future[Snapshot] | None = None

    async def look(self) -> Snapshot:
        """The service at most a second ago. Where that takes too long: a Snapshot that says so."""
        if self._latest is not None and time.monotonic() - self._latest[0] < FRESH_S:
            return self._latest[1]
        if self._under_way is None:
            self._under_way = asyncio.get_running_loop().run_in_executor(self._pool, self._sampler.look)
            self._under_way.add_done_callback(self._seen)
        try:
            return await asyncio.wait_for(asyncio.shield(self._under_way), PATIENCE_S)
        except TimeoutError:
            return Snapshot(time.time(), problem=f"looking at the service takes longer than {PATIENCE_S:g} s")
        except Exception as error:  # a fault of ours must look like a service in trouble, not like none
            logger = log.get_logger()
            logger.exception("looking at the service crashed")
            return Snapshot(
                time.time(), problem=f"looking at the service crashed ({type(error).__name__}); see the log"
            )

    async def keep_looking(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    def _seen(self, future: asyncio.Future[Snapshot]) -> None:
        self._under_way = None
        if not future.cancelled() and future.exception() is None:
            self._latest = (time.monotonic(), future.result())
