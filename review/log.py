"""The reviews of a results folder: its log of acts, replayed and kept up to date, and the one way to add to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from review import acts
from review.acts import NotAllowed, Review, Row
from review.audit import GENESIS, AuditFile, Head
from review.errors import AuditError

NAME = "review.sqlite"


class Conflict(Exception):
    """Somebody else was quicker: `review` is what there is now."""

    def __init__(self, review: Review) -> None:
        super().__init__(f"the review is at revision {review.revision}")
        self.review = review


class Reviews(Protocol):
    """The reviews of slides by key: of one results folder (`ReviewLog`), or of several (`review.library_log`)."""

    def review(self, key: str) -> Review:
        """The review of a slide, now. AuditError where it cannot be known."""

    def reviews(self) -> Mapping[str, Review]:
        """Of all slides that anybody has reviewed."""

    def rows(self, key: str) -> list[Row]:
        """The acts of a slide. AuditError."""

    def proven(self, key: str) -> Review:
        """The review of a slide, read from the disk again. AuditError."""

    def head_of(self, key: str) -> Head:
        """The last row of the log that a slide's acts are in. AuditError."""

    def add(
        self, key: str, user: str, act: str, revision: int | None, fields: Callable[[Review], Mapping[str, Any]]
    ) -> Review:
        """Add an act. Conflict, NotAllowed, AuditError."""


class ReviewLog:
    """Thread-safe, and safe beside other processes with the same file.

    Every row is checked once, when it is first seen. Where the chain is broken `problem` says so: reviews stay at what was
    whole, and nothing is added any more.
    """

    def __init__(self, path: Path) -> None:
        """Open (or make) the log and replay it. AuditError where it cannot be opened; a broken chain is a `problem`."""
        self._file = AuditFile(path)
        self._lock = threading.Lock()
        self._reviews: dict[str, Review] = {}
        self._head = Head(0, GENESIS)
        self.problem: str | None = None
        with self._lock:
            self._refresh()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    @property
    def head(self) -> Head:
        """The last row as far as the log is whole."""
        with self._lock:
            self._refresh()
            return self._head

    def head_of(self, key: str) -> Head:
        """See `Reviews`: there is one log."""
        return self.head

    def review(self, key: str) -> Review:
        """The review of a slide, now."""
        with self._lock:
            self._refresh()
            return self._reviews.get(key, Review())

    def reviews(self) -> Mapping[str, Review]:
        """Of all slides that anybody has reviewed, by key."""
        with self._lock:
            self._refresh()
            return dict(self._reviews)

    def rows(self, key: str) -> list[Row]:
        """The acts of a slide. AuditError where one of them was changed."""
        with self._lock:
            return self._file.rows_of(key)

    def proven(self, key: str) -> Review:
        """The review of a slide, read from the disk again: for what is signed or leaves the house. AuditError where the rows
        are not those that this page has replayed."""
        with self._lock:
            self._refresh()
            if self.problem is None:
                try:
                    found = acts.replay(self._file.rows_of(key))
                    if found == self._reviews.get(key, Review()):
                        return found
                    self.problem = f"the log of reviews is not whole: acts of the slide {key} were changed"
                except (AuditError, NotAllowed, KeyError, TypeError, ValueError) as error:
                    self.problem = f"the log of reviews is not whole: {error}"
            raise AuditError(self.problem)

    def add(
        self, key: str, user: str, act: str, revision: int | None, fields: Callable[[Review], Mapping[str, Any]]
    ) -> Review:
        """Add an act to a slide whose review is at `revision` (None: whatever it is), and give the review after it.

        `fields` makes the act's fields from the review as it is at that moment; other writers wait meanwhile, so it must not
        take long. Conflict for another revision, NotAllowed where the act cannot be done, AuditError where it cannot be
        written; nothing is written then.
        """
        with self._lock:
            with self._file.transaction():
                self._refresh()
                if self.problem is not None:
                    raise AuditError(self.problem)
                review = self._reviews.get(key, Review())
                if revision is not None and revision != review.revision:
                    raise Conflict(review)
                if not acts.needs_appending(review, act, user):
                    return review
                row = self._file.next_row(self._head, user, key, act, fields(review))
                after = acts.apply(review, row)
                self._file.append(row)
            self._head = Head(row.n, row.hash)
            self._reviews[key] = after
            return after

    def _refresh(self) -> None:
        """Take in what other processes have added; notice when what was there is gone."""
        if self.problem is not None:
            return
        row = None
        try:
            if self._file.hash_of(self._head.n) != self._head.hash:
                raise AuditError(f"row {self._head.n} was changed or taken away while the page was served")
            for row in self._file.rows(self._head):
                self._reviews[row.slide] = acts.apply(self._reviews.get(row.slide, Review()), row)
                self._head = Head(row.n, row.hash)
        except AuditError as error:
            self.problem = f"the log of reviews is not whole: {error}"
        except (NotAllowed, KeyError, TypeError, ValueError) as error:
            self.problem = f"the log of reviews is not whole: row {row and row.n} cannot follow ({error})"
