"""A worker's line to the batcher: what it may see before its turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pipeline.dispatch.leases import BOOT_SHIFT
from pipeline.link import Link, Stopped
from pipeline.wire import Fill, Hello, Message, Stop, Welcome, Who, encode


class Batcher:
    """The other end."""

    def __init__(self, address: str):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(address)

    def hear(self) -> list[bytes]:
        assert self._socket.poll(5000)
        return self._socket.recv_multipart()

    def send(self, *messages: Message) -> None:
        for message in messages:
            self._socket.send_multipart([b"reader-0.1", *encode(message)])

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[Batcher, Link]]:
    batcher = Batcher(f"ipc://{tmp_path}/hub")
    link = Link(f"ipc://{tmp_path}/hub", "reader-0", 1, Hello(0, "reader", "run", 1, 2, {}), 1.0)
    batcher.hear()
    yield batcher, link
    link.close()
    batcher.close()


def fill(boot: int, number: int) -> Fill:
    return Fill((boot << BOOT_SHIFT) + number, 0, 100.0, [])


def peeked(link: Link, count: int) -> list[Message]:
    """What a few looks show, until that many have come."""
    seen: list[Message] = []
    deadline = time.monotonic() + 5
    while len(seen) < count and time.monotonic() < deadline:
        seen += link.peek()
    return seen


def test_peeking_takes_nothing(line: tuple[Batcher, Link]) -> None:
    """Leases are shown once, and are still received, in order."""
    batcher, link = line
    batcher.send(Welcome(1), fill(1, 1), fill(1, 2))
    assert peeked(link, 3) == [Welcome(1), fill(1, 1), fill(1, 2)] and link.peek() == []
    batcher.send(fill(1, 3))
    assert [link.receive(5) for _ in range(3)] == [fill(1, 1), fill(1, 2), fill(1, 3)]
    assert link.receive(0) is None


def test_peeking_answers_nothing(line: tuple[Batcher, Link]) -> None:
    """Stop and Who wait until the lease is done; leases of a batcher that is gone are dropped then, though they were seen."""
    batcher, link = line
    batcher.send(Welcome(1), fill(1, 1), Who(2), Welcome(2), fill(1, 2), fill(2, 1), Stop())
    assert len(peeked(link, 7)) == 7
    assert link.receive(5) == fill(1, 1)
    assert link.receive(5) == fill(2, 1)
    with pytest.raises(Stopped):
        link.receive(5)


def test_a_prompt_lease_is_received_first(line: tuple[Batcher, Link]) -> None:
    """Though others came before it; those that are taken back are not received, and none of a batcher that is gone."""
    batcher, link = line
    urgent = Fill((1 << BOOT_SHIFT) + 9, 0, 100.0, [], True)
    batcher.send(Welcome(1), fill(1, 1), fill(1, 2), fill(0, 3), urgent)
    assert len(peeked(link, 5)) == 5 and link.pressing
    assert link.receive(5) == urgent and not link.pressing
    assert link.recall(Fill) == [fill(1, 2), fill(1, 1)]
    assert link.receive(0) is None
