"""Work that may hang, such as a look at a file on a share, in threads of its own; what comes of it is taken by the loop.

errands.run(lambda: os.stat(path), done=noted, failed=complained)
...
errands.collect()       # in the loop, when errands.descriptor is readable: calls noted(result) or complained(error)
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Errands:
    """All methods are for the loop's thread. A thread that hangs in the kernel does not keep the process from ending."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._over: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.under_way = 0

    def run(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        """Start `work` now; its result or exception comes with a later `collect`."""
        self.under_way += 1
        threading.Thread(target=self._work, args=(work, done, failed), daemon=True).start()

    def _work(self, work: Callable[[], Any], done: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 (it is handed to the loop, which knows what it means)
            self._over.put(lambda error=error: failed(error))
        else:
            self._over.put(lambda: done(result))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.descriptor, 1)

    def collect(self) -> None:
        """Take what has come to its end."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)
        while True:
            try:
                answer = self._over.get_nowait()
            except queue.Empty:
                return
            self.under_way -= 1
            answer()
