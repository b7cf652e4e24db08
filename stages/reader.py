"""The slide reader: opens slides, makes their overviews, and fills slots with patches.

It keeps slides open between leases; that is a cache, and nothing is lost with it.
"""

from __future__ import annotations

import time
from collections import OrderedDict

import cv2
import numpy as np

from pipeline import log
from pipeline.line import is_prompt
from pipeline.link import Link
from pipeline.memory import SharedSlots
from pipeline.wire import Fill, Filled, Open, Opened, Refused
from pipeline.worker import Post, main, step_back
from slides.errors import SlideError
from slides.geometry import Geometry, geometry
from slides.source import Source, open_source

# Patches read between two looks at the clock, when a slot may have to be closed early.
CHUNK = 8


class OpenSlides:
    """The slides that this reader has open; the one that was used longest ago is closed first."""

    def __init__(self, limit: int, mpp: float | None, kind: str, cache_bytes: int, exact: bool, preads: int):
        self._limit = limit
        self._mpp, self._kind = mpp, kind
        self._arguments = (cache_bytes, exact, preads)
        self._open: OrderedDict[int, Source] = OrderedDict()

    def get(self, slide: int, path: str, known: str = "") -> Source:
        """The open slide; SlideError where it cannot be opened. `known`: who decodes it, where a reader has found that."""
        source = self._open.get(slide)
        if source is None:
            source = self._open[slide] = self._open_source(path, known)
            while len(self._open) > self._limit:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(slide)
        return source

    def _open_source(self, path: str, known: str) -> Source:
        kind = known if known == "openslide" else self._kind
        return open_source(path, self._mpp, kind, *self._arguments, checked=known == "direct")

    def peek(self, slide: int) -> Source | None:
        """The slide, if it is open."""
        return self._open.get(slide)

    def drop(self, slide: int) -> None:
        source = self._open.pop(slide, None)
        if source is not None:
            source.close()


class Reader:
    """Serves Open and Fill leases."""

    def __init__(self, post: Post, link: Link, slots: SharedSlots):
        config = post.config
        self._link = link
        self._slots = slots
        self._model = post.settings["models"][0]  # all see patches of one size and spacing
        self._overlap = config["tissue"]["overlap"]
        self._overview_px = config["slides"]["overview_px"]
        self._log = log.get_logger()
        self._slides = OpenSlides(
            config["slides"]["ahead"] + 1,
            config["slides"]["mpp"],
            config["slides"]["source"],
            config["slides"]["cache_mb"] << 20,
            config["slides"]["shrink"] == "exact",
            config["slides"]["preads"],
        )

    def open(self, lease: Open) -> Opened | Refused:
        try:
            source = self._slides.get(lease.slide, lease.path)
            grid = geometry(source.info, self._model["patch_px"], self._model["spacing"], self._overlap)
            overview = source.overview(self._overview_px, self._link.beat)
            if source.notice:
                self._log.info(source.notice, slide=lease.path)
        except SlideError as error:
            self._slides.drop(lease.slide)
            return Refused(lease.lease, error.reason)
        height, width = overview.shape[:2]
        self._slots.overview(lease.slot, width, height)[:] = overview
        return Opened(lease.lease, source.info.to_dict(), grid.to_dict(), width, height, source.kind)

    def give_back(self) -> None:
        """A prompt lease is next: what waits behind it unread takes slots that urgent work may need."""
        for lease in self._link.recall(Fill):
            self._link.send(Filled(lease.lease, 0, [], []))

    def fill(self, lease: Fill) -> Filled:
        failures: list[list] = []
        lost: list[list] = []
        row = 0
        deadline = time.monotonic() + lease.max_delay_ms / 1000
        yields = not lease.prompt and lease.max_delay_ms != float("inf")
        self._look_ahead()
        self._slots.bring(lease.slot)
        for slide, path, grid, packed, known in lease.segments:
            geometry_ = Geometry.from_dict(grid)
            xy = np.frombuffer(packed, "<i4").reshape(-1, 2).astype(np.int64)
            for start in range(0, len(xy), CHUNK):
                if row and (time.monotonic() > deadline or (yields and self._link.pressing)):
                    return Filled(lease.lease, row, failures, lost)
                part = xy[start : start + CHUNK]
                rows = self._slots.patches(lease.slot, row + len(part))[row:]
                try:
                    source = self._slides.get(slide, path, known)
                    if not start:
                        source.advise(geometry_, xy)
                    failed = source.read(geometry_, part, rows, self._link.beat)
                except SlideError as error:
                    self._slides.drop(slide)
                    self._log.warning("slide lost", slide=path, reason=error.reason)
                    lost.append([slide, error.reason])
                    failed = {i: error.reason for i in range(len(xy) - start)}
                    failures.extend([row + i, reason] for i, reason in failed.items())
                    row += len(failed)
                    break
                failures.extend([row + i, reason] for i, reason in failed.items())
                row += len(part)
                self._look_ahead()
        return Filled(lease.lease, row, failures, lost)

    def _look_ahead(self) -> None:
        """Have the next leases' tiles read while this one's are decoded."""
        for message in self._link.peek():
            if isinstance(message, Fill):
                for slide, _, grid, packed, _ in message.segments:
                    source = self._slides.peek(slide)
                    if source is not None:
                        xy = np.frombuffer(packed, "<i4").reshape(-1, 2).astype(np.int64)
                        source.advise(Geometry.from_dict(grid), xy)


def work(post: Post) -> None:
    cv2.setNumThreads(1)  # processes are what is scaled here
    step_back()
    slots = post.slots()
    link = post.connect(post.config["reader"]["credit"])
    reader = Reader(post, link, slots)
    while True:
        lease = link.receive(post.config["supervisor"]["beat_s"])
        if lease is not None and is_prompt(lease):
            reader.give_back()
        match lease:
            case Open():
                link.send(reader.open(lease))
            case Fill():
                link.send(reader.fill(lease))


if __name__ == "__main__":
    main("reader", work)
