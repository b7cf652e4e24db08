"""Live: what is told of changes, and who is there."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from results.write import write_failed, write_slide
from review import live as module
from review.catalogue import Catalogue, Entry, key_of
from review.errors import Refused
from review.live import Live, changes
from tests.results.conftest import build


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    write_slide(build(), tmp_path, {"csv"})
    (one,) = Catalogue(tmp_path).look().values()
    return dataclasses.replace(one, state="running", finished=None, planned=20, inferred=5, version="running-1")


def test_rows_that_come_change_and_go_are_told(entry):
    """Once each; an equal row is no change."""
    later = dataclasses.replace(entry, urgency="stat")
    worklist = {"type": "worklist", "key": entry.key}
    assert changes({}, {entry.key: entry}) == changes({entry.key: entry}, {}) == [worklist]
    assert changes({entry.key: entry}, {entry.key: later}) == [worklist]
    assert changes({entry.key: entry}, {entry.key: dataclasses.replace(entry)}) == []


def test_new_patches_of_a_slide_are_told(entry):
    """With a hint from where on; from the beginning where it begins anew or is over."""
    grown = dataclasses.replace(entry, inferred=9, version="running-2")
    assert changes({entry.key: entry}, {entry.key: grown})[1] == {"type": "slide", "key": entry.key, "from": 5}
    again = dataclasses.replace(entry, inferred=0, version="running-3")
    assert changes({entry.key: grown}, {entry.key: again})[1]["from"] == 0
    over = dataclasses.replace(entry, state="complete", inferred=20, version="summary-1")
    assert changes({entry.key: grown}, {entry.key: over})[1]["from"] == 0


class Listener:
    """Takes the events of one stream."""

    def __init__(self, stream) -> None:
        self.events: list[dict] = []
        self.beats = 0
        self.task = asyncio.create_task(self._take(stream))

    async def _take(self, stream) -> None:
        async for chunk in stream:
            if chunk.startswith(b"data: "):
                self.events.append(json.loads(chunk[6:]))
            elif chunk.startswith(b":"):
                self.beats += 1

    async def until(self, true) -> None:
        for _ in range(1000):
            if true(self):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"did not come; there was {self.events}")

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def test_the_folder_is_watched_while_somebody_listens(tmp_path):
    """New results are told; without listeners nobody looks."""

    async def story() -> None:
        live = Live(Catalogue(tmp_path), poll_s=0.02)
        listener = Listener(await live.stream(None, "anna", lambda: True))
        await asyncio.sleep(0.1)
        write_failed("a", "/slides/a.svs", "gone", tmp_path)
        await listener.until(lambda one: {"type": "worklist", "key": key_of("a")} in one.events)
        await listener.leave()
        for _ in range(200):
            if live._watching.done():
                break
            await asyncio.sleep(0.01)
        assert live._watching.done()

    asyncio.run(story())


def test_who_has_a_slide_open_is_told(tmp_path):
    """To all who listen; two windows of one person are one; who leaves is gone."""

    async def story() -> None:
        live = Live(Catalogue(tmp_path), poll_s=5)
        watcher = Listener(await live.stream(None, "worklist", lambda: True))
        anna = Listener(await live.stream("k", "anna", lambda: True))
        await anna.until(lambda one: one.events and one.events[0]["users"] == ["anna"])
        second = Listener(await live.stream("k", "anna", lambda: True))
        bert = Listener(await live.stream("k", "bert", lambda: True))
        await watcher.until(lambda one: one.events and one.events[-1]["users"] == ["anna", "bert"])
        assert live.present("k") == ["anna", "bert"] and live.all_present() == {"k": ["anna", "bert"]}
        await second.leave()
        await anna.leave()
        await watcher.until(lambda one: one.events[-1] == {"type": "presence", "key": "k", "users": ["bert"]})
        assert [event["users"] for event in watcher.events] == [["anna"], ["anna", "bert"], ["bert"]]
        await bert.leave()
        await watcher.leave()

    asyncio.run(story())


def test_reviews_are_told_from_any_thread(tmp_path):
    """Before anybody listens it is no error."""

    async def story() -> None:
        live = Live(Catalogue(tmp_path), poll_s=5)
        live.reviewed("k", 1)
        listener = Listener(await live.stream(None, "anna", lambda: True))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(live.reviewed, "k", 7)
        await listener.until(lambda one: one.events == [{"type": "review", "key": "k", "revision": 7}])
        await listener.leave()

    asyncio.run(story())


def test_who_is_signed_out_hears_no_more(tmp_path, monkeypatch):
    """At the next beat."""
    monkeypatch.setattr(module, "BEAT_S", 0.02)

    async def story() -> None:
        live, signed_in = Live(Catalogue(tmp_path), poll_s=5), [True]
        listener = Listener(await live.stream("k", "anna", lambda: signed_in[0]))
        await listener.until(lambda one: one.beats > 2)
        assert not listener.task.done()
        signed_in[0] = False
        await listener.until(lambda one: one.task.done())
        assert live.present("k") == []

    asyncio.run(story())


def test_a_listener_that_does_not_take_its_events_is_told_to_ask_again(tmp_path, monkeypatch):
    """Instead of holding memory; and too many listeners are refused."""
    monkeypatch.setattr(module, "QUEUE", 5)
    monkeypatch.setattr(module, "MOST", 1)

    async def story() -> None:
        live = Live(Catalogue(tmp_path), poll_s=5)
        stream = await live.stream(None, "anna", lambda: True)
        for number in range(20):
            live.publish({"type": "review", "key": "k", "revision": number})
        await asyncio.sleep(0.05)
        with pytest.raises(Refused) as caught:
            await live.stream(None, "bert", lambda: True)
        assert caught.value.status == 429
        listener = Listener(stream)
        await listener.until(lambda one: one.events and one.events[-1].get("revision") == 19)
        assert listener.events[0] == {"type": "caught-up"} and len(listener.events) <= 5
        await listener.leave()

    asyncio.run(story())
