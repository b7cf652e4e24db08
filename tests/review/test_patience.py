"""Storage that does not answer: a reader's thread really hangs in the kernel, in a pipe that nobody writes to."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from review.errors import Refused
from review.patience import Readers


@pytest.fixture
def hang(tmp_path: Path) -> Iterator[Callable[[], bytes]]:
    """A read that does not come back before the test is over."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)

    def read() -> bytes:
        with open(pipe, "rb", buffering=0) as file:
            return file.read(1)

    yield read
    os.write(writer, b"x" * 64)
    time.sleep(0.05)
    os.close(writer)


def refused(readers: Readers, slide: str, work: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as refusal:
        readers.call(slide, work)
    return refusal.value


def test_who_waits_for_a_hung_read_is_answered(hang):
    """503 with a code after the limit, not before; once as many threads are left as may be, at once."""
    readers = Readers(4, late_s=0.1, limit_s=0.3)
    for _ in range(2):
        began = time.monotonic()
        refusal = refused(readers, "hung", hang)
        assert (refusal.status, refusal.code) == (503, "storage") and refusal.retry_after
        assert 0.25 < time.monotonic() - began < 3
    threads = threading.active_count()
    began = time.monotonic()
    for _ in range(20):
        assert refused(readers, "hung", hang).code == "storage"
    assert time.monotonic() - began < 3 and threading.active_count() == threads
    readers.close()


def test_other_slides_are_read_meanwhile(hang):
    """Also when requests for the hung slide fill the queue, and when several slides hang, more than there are threads."""
    readers, failed = Readers(2, late_s=0.1, limit_s=5), []

    def ask(slide: str) -> None:
        try:
            readers.call(slide, hang)
        except Refused:
            failed.append(slide)

    asking = [threading.Thread(target=ask, args=(f"hung {number % 4}",), daemon=True) for number in range(20)]
    for thread in asking:
        thread.start()
    began = time.monotonic()
    assert [readers.call(f"good {number}", lambda: 7) for number in range(10)] == [7] * 10
    assert time.monotonic() - began < 2 and not failed
    readers.close()


def test_a_slide_that_answers_again_is_read_again(tmp_path):
    """As soon as a read that was left has come back."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    readers = Readers(2, late_s=0.05, limit_s=0.1)
    assert refused(readers, "slide", lambda: os.read(writer, 1)).code == "storage"
    assert refused(readers, "slide", lambda: 1).code == "storage"
    os.write(writer, b"x")
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            assert readers.call("slide", lambda: 8) == 8
            break
        except Refused:
            time.sleep(0.01)
    else:
        pytest.fail("not read again")
    os.close(writer)
    readers.close()


def test_one_slide_does_not_take_all(hang):
    """Of one slide half of the threads at most read at a time; the limit of all is kept."""
    readers, now, most, lock = Readers(4, late_s=60), {"a": 0, "b": 0}, {"a": 0, "b": 0, "all": 0}, threading.Lock()

    def work(slide: str) -> None:
        with lock:
            now[slide] += 1
            most[slide] = max(most[slide], now[slide])
            most["all"] = max(most["all"], sum(now.values()))
        time.sleep(0.01)
        with lock:
            now[slide] -= 1

    def ask(slide: str) -> None:
        readers.call(slide, lambda: work(slide))

    asking = [threading.Thread(target=ask, args=("ab"[number % 2],)) for number in range(40)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(20)
    assert most == {"a": 2, "b": 2, "all": 4}
    readers.close()


def test_nothing_is_begun_for_who_has_left():
    """What waits when its window moves on is never read; errors of the work come through."""
    readers, begun, go = Readers(1, 1), [], threading.Event()

    async def scene() -> None:
        first = asyncio.create_task(readers.run("a", lambda: go.wait(5)))
        await asyncio.sleep(0.05)

        async def gone() -> None:
            await asyncio.sleep(0.05)

        assert await readers.run("a", lambda: begun.append(1), gone) is None
        go.set()
        assert await first is True
        with pytest.raises(ZeroDivisionError):
            await readers.run("a", lambda: 1 / 0)

    asyncio.run(scene())
    assert not begun
    readers.close()
