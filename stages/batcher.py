"""The patch batcher: the only process that decides. Its mind is pipeline.dispatch; here are its socket and its clock."""

from __future__ import annotations

import time

import zmq

from engines.engine import KINDS as CPU_ENGINES
from pipeline import log
from pipeline.dispatch.board import SUPERVISOR, DispatchSettings
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.link import HIGH_WATER, LINGER_MS
from pipeline.wire import MAX_BODY_BYTES, Message, ProtocolError, Report, Stop, decode, encode
from pipeline.worker import Post, main

TICK_S = 0.1
REPORT_S = 0.25
BURST = 256  # messages taken before the answers go out
# One batch of a large model on a slow processor, or the files of one huge slide, leave no moment for a beat.
UNBROKEN_WORK = 10
GARBAGE_LOGGED = 10  # a stranger may send rubbish for ever; the log need not hold it all


class Hub:
    """The ROUTER socket: peers are `name.generation`."""

    def __init__(self, address: str):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BODY_BYTES)
        self._socket.set_hwm(HIGH_WATER)
        self._socket.bind(address)

    def send(self, peer: tuple[str, int], message: Message) -> bool:
        """False where the peer is gone (its death will be told) or does not take its messages."""
        try:
            self._socket.send_multipart([f"{peer[0]}.{peer[1]}".encode(), *encode(message)], zmq.DONTWAIT)
        except (zmq.Again, zmq.ZMQError):
            return False
        return True

    def receive(self, timeout_s: float) -> list[tuple[tuple[str, int] | None, list[bytes]]]:
        """All messages at hand (at most BURST), after waiting for the first; the peer is None where its name is odd."""
        messages: list[tuple[tuple[str, int] | None, list[bytes]]] = []
        if not self._socket.poll(timeout_s * 1000):
            return messages
        while len(messages) < BURST:
            try:
                identity, *frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            messages.append((_peer(identity), frames))
        return messages

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def _peer(identity: bytes) -> tuple[str, int] | None:
    name, _, generation = identity.decode("ascii", "replace").rpartition(".")
    return (name, int(generation)) if name and generation.isdigit() and len(generation) < 10 else None


class Batcher:
    """Moves messages between the hub and the mind."""

    def __init__(self, hub: Hub, mind: Dispatcher):
        self._hub = hub
        self._mind = mind
        self._garbage = 0
        self._log = log.get_logger()

    def serve(self) -> None:
        """Until the supervisor says Stop."""
        ticked = reported = 0.0
        worked = waited = 0.0
        now = time.monotonic()
        while True:
            stop = False
            messages = self._hub.receive(TICK_S)
            began = time.monotonic()
            waited += began - now
            for peer, frames in messages:
                stop = self._take(peer, frames) or stop
            now = time.monotonic()
            if now - ticked >= TICK_S:
                ticked = now
                self._mind.tick(now)
            if now - reported >= REPORT_S:
                reported = now
                self._hub.send((SUPERVISOR, 0), self._mind.report(worked, waited))
            self._post()
            now = time.monotonic()
            worked += now - began
            if stop:
                return

    def _take(self, peer: tuple[str, int] | None, frames: list[bytes]) -> bool:
        now = time.monotonic()
        try:
            message = decode(frames)
        except ProtocolError as error:
            self._garbage += 1
            if self._garbage <= GARBAGE_LOGGED:
                self._log.warning("message ignored", sender=str(peer), reason=str(error))
            if peer is not None:
                self._mind.nonsense(*peer, reason=f"spoke nonsense: {error}")
            return False
        if peer is None:
            return False
        if peer[0] == SUPERVISOR:
            self._mind.from_supervisor(message, now)
            return isinstance(message, Stop)
        self._mind.from_worker(*peer, message, now)
        return False

    def _post(self) -> None:
        for peer, message in self._mind.letters():
            if not self._hub.send(peer, message) and not isinstance(message, Report):
                self._log.debug("not delivered", to=peer[0], message=type(message).__name__)


def settings_of(post: Post) -> DispatchSettings:
    """The batcher's part of the run's settings."""
    config, layout = post.config, post.settings["layout"]
    hang_s = config["supervisor"]["hang_s"]
    return DispatchSettings(
        run=post.settings["run"],
        folder=post.settings["private"],
        batch=layout["batch"],
        slots=layout["slots"],
        overview_slots=layout["overview_slots"],
        reserved=1 if post.settings["urgent_may_come"] and layout["slots"] > 2 else 0,
        shared=config["inference"]["engine"] in CPU_ENGINES,
        delay_urgent_ms=config["batcher"]["max_delay_ms"]["urgent"],
        delay_routine_ms=config["batcher"]["max_delay_ms"]["routine"],
        delay_hungry_ms=config["batcher"]["max_delay_ms"]["urgent"],
        floor=config["batcher"]["routine_floor"],
        ahead=config["slides"]["ahead"],
        window=config["aggregator"]["window"],
        classes=tuple(len(model["classes"]) for model in post.settings["models"]),
        patience={
            "reader": config["slides"]["read_timeout_s"],
            "tissue": hang_s,
            "inference": UNBROKEN_WORK * hang_s,
            "aggregator": hang_s,
            "writer": UNBROKEN_WORK * hang_s,
        },
    )


def work(post: Post) -> None:
    hub = Hub(post.run.hub)
    Batcher(hub, Dispatcher(settings_of(post), post.generation)).serve()
    hub.close()


if __name__ == "__main__":
    main("batcher", work)
