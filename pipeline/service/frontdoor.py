"""A process that serves HTTP as the service keeps it: started, restarted with what the configuration says, replaced when it dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from pipeline.config import Config
from pipeline.service.nursery import Nursery
from pipeline.service.offspring import Offspring
from pipeline.worker import EXIT_CONFIGURATION

PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0

Prepare = Callable[[Config], bool]
"""Writes what the process reads at its start; False where there is to be none. OSError."""


class FrontDoor:
    """At most one process of `command`. Times are monotonic seconds. `words`: its last critical ones."""

    def __init__(self, name: str, command: Sequence[str], prepare: Prepare, nursery: Nursery) -> None:
        self.name = name
        self._command, self._prepare, self._nursery = list(command), prepare, nursery
        self._child: Offspring | None = None
        self._start_at, self._pause_s = 0.0, PAUSE_S
        self.words = ""

    @property
    def up(self) -> bool:
        """Whether there is a process."""
        return self._child is not None

    @property
    def problem(self) -> str:
        """Why there is no process, as it said itself; empty while there is one."""
        return self.words if self._child is None else ""

    def start_if_due(self, config: Config, now: float) -> None:
        """Start it where there is none."""
        if self._child is not None or now < self._start_at:
            return
        self._start_at = now + PAUSE_S  # where it cannot be, or is not wanted
        try:
            if not self._prepare(config):
                self.words = ""
                return
        except OSError as error:
            structlog.get_logger().error("HTTP cannot be started", what=self.name, reason=error.strerror)
            return
        self.words = ""
        self._child = self._nursery.spawn(self.name, self._command)

    def restart(self) -> None:
        """End it, so that it starts with what the configuration says by then."""
        self._pause_s, self._start_at = PAUSE_S, 0.0
        if self._child is not None:
            self._child.terminate()

    def reap(self, ready: dict[object, int]) -> str | None:
        """Take in its death; why it cannot start as it is configured, where that is so."""
        if self._child is None or self._child.pidfd not in ready or (code := self._child.reap()) is None:
            return None
        lasted = time.monotonic() - self._child.started_at
        self._nursery.drop(self._child)
        self._child = None
        if code == EXIT_CONFIGURATION:
            structlog.get_logger().error("no HTTP", what=self.name, reason=self.words)
        if code != 0:
            self._pause_s = PAUSE_S if lasted > LONGEST_PAUSE_S else min(LONGEST_PAUSE_S, 2 * self._pause_s)
            self._start_at = time.monotonic() + self._pause_s
        return (self.words or "the HTTP process cannot start") if code == EXIT_CONFIGURATION else None
