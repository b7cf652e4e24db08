"""A worker's line to the batcher: greeting, beats, and leases that are valid."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import zmq

from pipeline.dispatch.leases import BOOT_SHIFT
from pipeline.line import Line
from pipeline.wire import Beat, Hello, Message, ProtocolError, Stop, Welcome, Who, decode, encode

LINGER_MS = 2000  # how long a leaving process waits for its last words to be taken
HIGH_WATER = 100_000  # never reached: credits bound what is under way; a full queue is a fault of ours


class Stopped(Exception):
    """The batcher has told this worker to leave."""


class Link:
    """A DEALER socket with the manners of this protocol. Belongs to the thread that made it.

    Every lease carries in its high bits the boot of the batcher that granted it. After a batcher has died, leases of the
    dead one may still lie in this socket; they are dropped, as its successor knows nothing of them. Hello says that the
    worker touches no slot, so as long as `holding` is true, none is said.
    """

    def __init__(self, address: str, name: str, generation: int, hello: Hello, beat_s: float):
        self._hello = hello
        self._beat_s = beat_s
        self._boot: int | None = None
        self._said_hello_to = 0
        self._asked_by = 0
        self.holding = False
        self._line = Line()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"{name}.{generation}".encode())
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.set_hwm(HIGH_WATER)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._socket.connect(address)
        self._spoke_at = 0.0
        self.send(hello)

    def send(self, message: Message) -> None:
        self._socket.send_multipart(encode(message))
        self._spoke_at = time.monotonic()

    def beat(self) -> None:
        """To be called from the work loop as often as convenient: sends a Beat when one is due."""
        if time.monotonic() - self._spoke_at >= self._beat_s:
            self.send(Beat())

    def receive(self, timeout_s: float) -> Message | None:
        """The next message for the stage, or None after `timeout_s` (beats are sent meanwhile). Stopped when told to."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._say_hello()
            self.beat()
            left = deadline - time.monotonic()
            self._listen()
            if not len(self._line):
                if left <= 0:
                    return None
                self._socket.poll(max(0.0, min(left, self._beat_s)) * 1000)
                continue
            message = self._valid(self._line.take())
            if message is not None:
                return message

    def peek(self) -> list[Message]:
        """What has come since the last look, for a worker that is at a lease and wants to know what comes after it.

        Nothing is taken and nothing answered: all of it is still to be received, and may be stale by then.
        """
        self._listen()
        return self._line.fresh()

    @property
    def pressing(self) -> bool:
        """Whether a prompt lease is in line, as far as has been listened: by `receive` and `peek`."""
        return self._line.pressing

    def recall(self, kind: type[Message]) -> list[Any]:
        """Leases of a kind that are not prompt and will not be received any more, the last one first."""
        return [message for message in self._line.recall(kind) if self._ours(message)]

    def _listen(self) -> None:
        while True:
            try:
                self._line.put(decode(self._socket.recv_multipart(zmq.DONTWAIT)))
            except zmq.Again:
                return
            except ProtocolError:
                continue  # only the batcher can write to this socket; what it garbles, it will find missing

    def _ours(self, message: Message) -> bool:
        lease = getattr(message, "lease", None)
        return self._boot is not None and (lease is None or lease >> BOOT_SHIFT == self._boot)

    def _valid(self, message: Message) -> Message | None:
        match message:
            case Welcome():
                self._boot = message.boot
            case Who():
                if message.boot > self._asked_by:
                    self._asked_by = message.boot
                    self._boot = None
            case Stop():
                raise Stopped
            case _ if self._ours(message):
                return message
        return None

    def _say_hello(self) -> None:
        if self._asked_by > self._said_hello_to and not self.holding:
            self._said_hello_to = self._asked_by
            self.send(replace(self._hello, boot=self._asked_by))

    @property
    def closed(self) -> bool:
        return bool(self._socket.closed)

    def close(self) -> None:
        self._socket.close()
        self._context.term()
