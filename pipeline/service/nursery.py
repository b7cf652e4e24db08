"""The service's child processes in its loop: started, listened to, seen when they die."""

from __future__ import annotations

import structlog
import zmq

from pipeline.log import LogSink
from pipeline.service.offspring import Offspring


class Nursery:
    """Registers children with the loop's poller, and brings what they say to the log."""

    def __init__(self, poller: zmq.Poller, sink: LogSink) -> None:
        self._poller, self._sink = poller, sink
        self._children: list[Offspring] = []

    def spawn(self, name: str, command: list[str]) -> Offspring | None:
        """Start a process; None, with an error in the log, where that cannot be."""
        try:
            child = Offspring(name, command)
        except OSError as error:
            structlog.get_logger().error("a process cannot be started", what=name, reason=error.strerror)
            return None
        self._poller.register(child.stderr, zmq.POLLIN)
        self._poller.register(child.pidfd, zmq.POLLIN)
        self._children.append(child)
        return child

    def listen(self, ready: dict[object, int]) -> None:
        """Take what children have said; `ready` is what the poller gave."""
        for child in self._children:
            if child.stderr in ready:
                self._read(child)

    def drop(self, child: Offspring) -> None:
        """A child is reaped: take its last words, and let go of it."""
        self._read(child)
        self._sink.end(child.name)
        self._poller.unregister(child.stderr)
        self._poller.unregister(child.pidfd)
        self._children.remove(child)
        child.close()

    def close(self) -> None:
        """End all that are left."""
        for child in list(self._children):
            child.kill("the service ends")
            child.wait()
            self.drop(child)

    def _read(self, child: Offspring) -> None:
        while chunk := child.read():
            self._sink.feed(child.name, chunk)
