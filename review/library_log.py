"""The logs of reviews of a service: one beside the results of each route, as `slidestream review` has it there.

Each is used by a thread of its own, with patience: a results share that hangs, or is not mounted, holds up or stops the
reviews of its own slides only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.service.scan import mounted
from review.acts import Review, Row
from review.audit import Head
from review.errors import AuditError
from review.library import Library
from review.log import NAME, ReviewLog

PATIENCE_S = 10.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log lies. `require_mount`: nothing is written there while nothing is mounted (it would lie on the disk below)."""

    folder: Path
    require_mount: bool = False


class _Kept:
    """One log, opened when it is first needed and can be."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._log: ReviewLog | None = None
        self._thread = ThreadPoolExecutor(1, "reviews")
        self.reviews: Mapping[str, Review] | None = None

    def ask(self, question: Callable[[ReviewLog], T]) -> T:
        """The answer of the log. AuditError where it cannot be opened, or does not answer in time."""
        asked = self._thread.submit(lambda: question(self._opened()))
        try:
            return asked.result(PATIENCE_S)
        except TimeoutError:
            asked.cancel()  # what has not begun must not be done later, behind anybody's back
            raise AuditError(f"{self._place.folder / NAME}: does not answer; is its disk there?") from None

    def _opened(self) -> ReviewLog:
        if self._log is None:
            folder = self._place.folder
            if self._place.require_mount and not mounted(os.fsencode(folder)):
                raise AuditError(f"{folder}: nothing is mounted there; mount the share of the results")
            self._log = ReviewLog(folder / NAME)
        return self._log

    def close(self) -> None:
        """Close the file, unless its disk hangs."""
        if self._log is not None:
            self._thread.submit(self._log.close).exception(PATIENCE_S)


class LibraryLog:
    """A `review.log.Reviews` over the logs of all folders of a library, in its order. Thread-safe."""

    def __init__(self, library: Library, places: Sequence[Place]) -> None:
        self._library = library
        self._kept = [_Kept(place) for place in places]

    def close(self) -> None:
        """Close the files."""
        for kept in self._kept:
            kept.close()

    def reviews(self) -> Mapping[str, Review]:
        """See `Reviews`. Of a log that cannot be asked now: as it was last."""
        self._library.look()  # a slide that nobody has looked for yet has no key, and would seem not to be reviewed
        found: dict[str, Review] = {}
        for number, kept in enumerate(self._kept):
            with contextlib.suppress(AuditError):  # acts are refused with the reason; the list is shown
                kept.reviews = kept.ask(lambda log: log.reviews())
            keys = self._library.keys(number)
            found.update((keys[own], review) for own, review in (kept.reviews or {}).items() if own in keys)
        return found

    def review(self, key: str) -> Review:
        """See `Reviews`. As it was last, if it was known."""
        number, own = self._library.place(key)
        kept = self._kept[number]
        try:
            return kept.ask(lambda log: log.review(own))
        except AuditError:
            if kept.reviews is None:
                raise
            return kept.reviews.get(own, Review())

    def rows(self, key: str) -> list[Row]:
        """See `Reviews`."""
        return self._ask(key, lambda log, own: log.rows(own))

    def proven(self, key: str) -> Review:
        """See `Reviews`."""
        return self._ask(key, lambda log, own: log.proven(own))

    def head_of(self, key: str) -> Head:
        """See `Reviews`."""
        return self._ask(key, lambda log, own: log.head_of(own))

    def add(
        self, key: str, user: str, act: str, revision: int | None, fields: Callable[[Review], Mapping[str, Any]]
    ) -> Review:
        """See `Reviews`."""
        return self._ask(key, lambda log, own: log.add(own, user, act, revision, fields))

    def _ask(self, key: str, question: Callable[[ReviewLog, str], T]) -> T:
        number, own = self._library.place(key)
        return self._kept[number].ask(lambda log: question(log, own))
