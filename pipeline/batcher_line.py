"""The supervisor's line to the batcher."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog
import zmq

from pipeline.dispatch.board import SUPERVISOR
from pipeline.link import HIGH_WATER
from pipeline.wire import Message, ProtocolError, decode, encode


class BatcherLine:
    """A DEALER socket, a new one for each batcher, so that nothing that was meant for the last one arrives. Belongs to the
    thread that made it."""

    def __init__(self, context: zmq.Context, address: str, poller: zmq.Poller):
        self._context = context
        self._address = address
        self._poller = poller
        self._socket: zmq.Socket | None = None
        self.heard_at = 0.0
        """On the monotonic clock: the batcher's last word, or when there was a new line."""

    def renew(self) -> None:
        """To a batcher that is being started."""
        self.close()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"{SUPERVISOR}.0".encode())
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.set_hwm(HIGH_WATER)
        self._socket.connect(self._address)
        self._poller.register(self._socket, zmq.POLLIN)
        self.heard_at = time.monotonic()

    def send(self, message: Message) -> None:
        """Nothing where there is no batcher yet: it will be told all that it must know."""
        if self._socket is not None:
            self._socket.send_multipart(encode(message), zmq.DONTWAIT)

    def messages(self) -> Iterator[Message]:
        """Those at hand."""
        while self._socket is not None:
            try:
                message = decode(self._socket.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                return
            except ProtocolError as error:
                structlog.get_logger().error("batcher speaks nonsense", reason=str(error))
                continue
            self.heard_at = time.monotonic()
            yield message

    def close(self) -> None:
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close(linger=0)
            self._socket = None
