"""Signals that ask a process to end, taken in by its loop instead of in the middle of whatever it is at."""

from __future__ import annotations

import signal
import socket
from typing import Any

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BYTES = 1 << 12


class Signals:
    """To be used from the main thread. `came` are the numbers since the loop took them out; `descriptor` wakes it."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.descriptor = -1
        self._old: dict[int, Any] = {}
        self._old_fd = -1

    def catch(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.descriptor = self._reader.fileno()
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno())
        self._old = {number: signal.signal(number, lambda n, _: self.came.append(n)) for number in CAUGHT}

    def awake(self) -> None:
        """To be called when `descriptor` is readable."""
        self._reader.recv(_BYTES)

    def restore(self) -> None:
        """What was there before `catch`."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._reader.close()
        self._writer.close()
