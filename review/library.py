"""The results folders of a service as one: a `review.entry.Shelf` of several catalogues, one for each route.

Each folder is looked at by a thread of its own, so that one on a share that hangs holds up no other: its slides stay as they
were seen last. Where there are several, a slide is called "route/slide", and its key is that of this name; logs of reviews
keep to the name within the folder (`place`), so that another route changes nothing in them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import log
from review.catalogue import LOOK_S, Catalogue
from review.entry import Entry, pick
from review.errors import Refused
from review.facts import slide_key
from review.heat import Table
from review.regions import Region

# So long a look waits for all folders; the first one, which reads every summary, longer.
WAIT_S, FIRST_WAIT_S = 1.0, 20.0


class _Folder:
    """One route's results, as they were seen last. `entries` and `keys` (own key to ours) are replaced, never changed."""

    def __init__(self, route: str, catalogue: Catalogue) -> None:
        self.route, self.catalogue = route, catalogue
        self.entries: Mapping[str, Entry] = {}
        self.keys: Mapping[str, str] = {}
        self.seen = False
        self._thread = ThreadPoolExecutor(1, f"look-{route or 'results'}")
        self._under_way: Future[None] | None = None
        self._known: dict[str, tuple[Entry, Entry]] = {}
        self._lock = threading.Lock()

    def look(self, patience_s: float) -> Future[None]:
        """Begin a look, or join the one that is under way."""
        with self._lock:
            if self._under_way is None or self._under_way.done():
                self._under_way = self._thread.submit(self._look, patience_s)
            return self._under_way

    def _look(self, patience_s: float) -> None:
        own = self.catalogue.look(patience_s)
        if not self.route:
            self.entries, self.keys = own, {key: key for key in own}
        else:
            known = {}
            for key, entry in own.items():
                before = self._known.get(key)
                known[key] = before if before is not None and before[0] is entry else (entry, self._called(entry))
            self._known = known
            self.entries = {named.key: named for _, named in known.values()}
            self.keys = {key: named.key for key, (_, named) in known.items()}
        self.seen = True

    def _called(self, entry: Entry) -> Entry:
        name = f"{self.route}/{entry.id}"
        return replace(entry, id=name, key=slide_key(name), route=self.route)


class Library:
    """See above. `catalogues`: each with the name of its route."""

    def __init__(self, catalogues: Sequence[tuple[str, Catalogue]]) -> None:
        several = len(catalogues) > 1
        self._folders = [_Folder(route if several else "", catalogue) for route, catalogue in catalogues]
        self._looked = float("-inf")
        self._entries: Mapping[str, Entry] = {}
        self._owners: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def look(self, patience_s: float = LOOK_S) -> Mapping[str, Entry]:
        """See `Shelf`."""
        if time.monotonic() - self._looked < patience_s:
            return self._entries
        first = not all(folder.seen for folder in self._folders)
        looks = [folder.look(patience_s) for folder in self._folders]
        for look in wait(looks, FIRST_WAIT_S if first else WAIT_S).done:
            # Of one folder only: the others go on, and this one may be better at the next look.
            if (fault := look.exception()) is not None:
                log.get_logger().error("a results folder cannot be looked at", exc_info=fault)
        with self._lock:
            entries: dict[str, Entry] = {}
            owners: dict[str, tuple[int, str]] = {}
            for number, folder in enumerate(self._folders):
                entries.update(folder.entries)
                owners.update((key, (number, own)) for own, key in folder.keys.items())
            self._entries, self._owners = entries, owners
            self._looked = time.monotonic()
            return entries

    def entry(self, key: str, fresh: bool = True) -> Entry:
        """See `Shelf`."""
        return pick(key, {} if fresh else self._entries, self.look)

    def place(self, key: str) -> tuple[int, str]:
        """The number of a slide's folder, and its key there. Refused (404)."""
        if key not in self._owners:
            self.entry(key)
        found = self._owners.get(key)
        if found is None:
            raise Refused(404, "no_slide", "there is no such slide")
        return found

    def keys(self, number: int) -> Mapping[str, str]:
        """Of all slides of a folder: the key by the key there."""
        return self._folders[number].keys

    def running_model(self, entry: Entry) -> dict[str, Any]:
        """See `Shelf`."""
        return self._catalogue(entry.key).running_model(entry)

    def file(self, entry: Entry) -> Path:
        """See `Shelf`."""
        return self._catalogue(entry.key).file(entry)

    def patches(self, key: str) -> Table:
        """See `Shelf`."""
        number, own = self.place(key)
        return self._folders[number].catalogue.patches(own)

    def regions(self, key: str, label: str | None, threshold: float, min_um2: float) -> list[Region]:
        """See `Shelf`."""
        number, own = self.place(key)
        return self._folders[number].catalogue.regions(own, label, threshold, min_um2)

    def _catalogue(self, key: str) -> Catalogue:
        return self._folders[self.place(key)[0]].catalogue
