"""What changes while somebody looks, told by server-sent events (HTML Living Standard, "Server-sent events").

The results folder is looked at once a second, and only while somebody listens. Events:

    {"type": "worklist", "key"}            a row changed, came or went
    {"type": "slide", "key", "from"}       its patches changed: ask for the heatmap with this `from` (0: all of it anew)
    {"type": "presence", "key", "users"}   who has it open
    {"type": "review", "key", "revision"}  somebody reviewed it
    {"type": "caught-up"}                     more happened than this listener took: ask for everything again
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from review.entry import Entry, Shelf
from review.errors import Refused

POLL_S = 1.0
BEAT_S = 15.0
# A stream ends after so long, and the browser comes again: so that who was signed out, or lost a role, is noticed anyway.
STREAM_S = 600.0
QUEUE = 1000
MOST = 100


class Live:
    """The listeners, and who has what open. All but `publish` and `present` belong to one event loop."""

    def __init__(self, catalogue: Shelf, executor: Executor | None = None, poll_s: float = POLL_S) -> None:
        self._catalogue = catalogue
        self._executor = executor
        self._poll_s = poll_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.Task[None] | None = None
        self._listeners: set[asyncio.Queue[dict[str, Any]]] = set()
        self._lock = threading.Lock()
        self._here: Counter[tuple[str, str]] = Counter()

    def publish(self, event: dict[str, Any]) -> None:
        """Tell all listeners; from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended: nobody listens
                loop.call_soon_threadsafe(self._tell, event)

    def reviewed(self, key: str, revision: int) -> None:
        """Tell that a slide was reviewed; from any thread."""
        self.publish({"type": "review", "key": key, "revision": revision})

    def present(self, key: str) -> list[str]:
        """The names of those who have a slide open."""
        with self._lock:
            return sorted({user for slide, user in self._here if slide == key})

    def all_present(self) -> dict[str, list[str]]:
        """The same for all slides that anybody has open."""
        found: dict[str, list[str]] = {}
        with self._lock:
            for key, user in sorted(self._here):
                found.setdefault(key, []).append(user)
        return found

    async def stream(self, key: str | None, user: str, alive: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The events for one listener, who has the slide `key` open, if any. Ends when `alive` says so at a beat.

        Refused (429) where there are too many listeners.
        """
        if len(self._listeners) >= MOST:
            raise Refused(429, "busy", "too many windows listen; close some", retry_after=30)
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE)
        self._listeners.add(queue)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        return self._events(queue, key, user, alive)

    async def _events(
        self, queue: asyncio.Queue[dict[str, Any]], key: str | None, user: str, alive: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        ends = time.monotonic() + STREAM_S
        if key is not None:
            self._arrive(key, user, 1)
        try:
            yield b"retry: 2000\n\n"
            if key is not None:
                yield _event({"type": "presence", "key": key, "users": self.present(key)})
            while time.monotonic() < ends:
                try:
                    async with asyncio.timeout(BEAT_S):  # not wait_for, which may swallow a cancellation (3.11)
                        event = await queue.get()
                except TimeoutError:
                    if not alive():
                        return
                    yield b": still here\n\n"
                else:
                    yield _event(event)
        finally:
            self._listeners.discard(queue)
            if key is not None:
                self._arrive(key, user, -1)

    def close(self) -> None:
        """Stop looking."""
        if self._watching is not None:
            self._watching.cancel()

    def _arrive(self, key: str, user: str, change: int) -> None:
        before = self.present(key)
        with self._lock:
            self._here[key, user] += change
            if self._here[key, user] <= 0:
                del self._here[key, user]
        now = self.present(key)
        if now != before:
            self.publish({"type": "presence", "key": key, "users": now})

    def _tell(self, event: dict[str, Any]) -> None:
        for queue in self._listeners:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait({"type": "caught-up"})
            else:
                queue.put_nowait(event)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        before = await loop.run_in_executor(self._executor, self._catalogue.look)
        while self._listeners:
            await asyncio.sleep(self._poll_s)
            now = await loop.run_in_executor(self._executor, self._catalogue.look)
            if now is not before:
                for event in changes(before, now):
                    self._tell(event)
            before = now


def changes(before: Mapping[str, Entry], now: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """The events between two looks."""
    events: list[dict[str, Any]] = []
    differ = {key for key, entry in now.items() if before.get(key) is not entry} | (before.keys() - now.keys())
    for key in sorted(differ):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        events.append({"type": "worklist", "key": key})
        if old is not None and new is not None and old.version != new.version:
            # While a slide runs, its journal counts on; where that was begun anew, or is over, the count is another's.
            grew = old.state == new.state == "running" and new.planned == old.planned
            grew = grew and new.inferred + new.failed >= old.inferred + old.failed
            events.append({"type": "slide", "key": key, "from": old.inferred + old.failed if grew else 0})
    return events


def _event(values: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(values)}\n\n".encode()
