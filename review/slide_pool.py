"""The slides that viewers have open: a bounded number, the least recently used closed first, and the tiles made of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from review.errors import Refused
from review.tiles import OpenedSlide, Picture
from slides.errors import SlideError

OPEN_MAX = 16
PICTURES_BYTES = 64 << 20

Identity = tuple[str, int, int, int, int]


class _Place:
    """One slide of the pool: `users` have it in hand now; `opening` is held while it is opened."""

    def __init__(self) -> None:
        self.opening = threading.Lock()
        self.slide: OpenedSlide | None = None
        self.users = 0
        self.dropped = False


class SlidePool:
    """From any thread. `most`: slides that are held open while nobody reads them."""

    def __init__(self, most: int = OPEN_MAX, pictures_bytes: int = PICTURES_BYTES) -> None:
        self._most = most
        self._limit = pictures_bytes
        self._lock = threading.Lock()
        self._places: OrderedDict[Identity, _Place] = OrderedDict()
        self._pictures: OrderedDict[tuple, Picture] = OrderedDict()
        self._bytes = 0

    @contextlib.contextmanager
    def slide(self, path: Path) -> Iterator[OpenedSlide]:
        """The slide, opened if need be. Refused (404, 422) where it cannot be."""
        identity = identify(path)
        with self._lock:
            place = self._places.get(identity)
            if place is None:
                place = self._places[identity] = _Place()
            self._places.move_to_end(identity)
            place.users += 1
        try:
            with place.opening:
                if place.slide is None:
                    place.slide = OpenedSlide(path)
            yield place.slide
        except SlideError as error:
            with self._lock:
                self._drop(identity, place)
            raise Refused(422, "slide_unreadable", f"the slide cannot be read: {error.reason}") from error
        finally:
            with self._lock:
                place.users -= 1
                for old, other in list(self._places.items())[: max(0, len(self._places) - self._most)]:
                    self._drop(old, other)
                if place.dropped and not place.users:
                    _close(place)

    def picture(self, path: Path, what: tuple, make: Callable[[OpenedSlide], Picture], keep: bool = True) -> Picture:
        """A picture of a slide, made or as it was made before. `what` names it; `keep`: it may be wanted again."""
        place = identify(path), what
        with self._lock:
            known = self._pictures.get(place)
            if known is not None:
                self._pictures.move_to_end(place)
                return known
        with self.slide(path) as slide:
            made = make(slide)
        if keep:
            with self._lock:
                if place not in self._pictures:
                    self._pictures[place] = made
                    self._bytes += len(made.jpeg)
                while self._bytes > self._limit:
                    _, old = self._pictures.popitem(last=False)
                    self._bytes -= len(old.jpeg)
        return made

    def close(self) -> None:
        """Close all slides that nobody reads, and the others when they are given back."""
        with self._lock:
            for identity, place in list(self._places.items()):
                self._drop(identity, place)

    def __len__(self) -> int:
        return len(self._places)

    def _drop(self, identity: Identity, place: _Place) -> None:
        if self._places.get(identity) is place:
            del self._places[identity]
        place.dropped = True
        if not place.users:
            _close(place)


def _close(place: _Place) -> None:
    if place.slide is not None:
        place.slide.close()
        place.slide = None


def identify(path: Path) -> Identity:
    """What changes when a slide's file is replaced. Refused (404) where it has gone."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise Refused(404, "slide_gone", "the slide's file is not there any more") from error
    return str(path), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def tag(path: Path, what: tuple) -> str:
    """An ETag for a picture of a slide."""
    return '"' + hashlib.sha256(repr((identify(path), what)).encode("utf-8", "surrogateescape")).hexdigest()[:24] + '"'
