"""Housekeeping: old events and journals, and results where the operator wants some removed. A few at a time, in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline.service.config import Retention, Service
from pipeline.service.errands import Errands
from pipeline.service.lanes import Lane
from pipeline.service.ledger import Ledger
from pipeline.service.records import Slide
from pipeline.service.retention import free_bytes, remove_journals, remove_results

RESULTS_S = 60.0
ROOM_S = 15.0
JOURNALS_S = 3600.0
AT_ONCE = 100
DAY_S = 86400.0


class Keeper:
    """For the service's loop; what it does on disks is done in threads."""

    def __init__(self, ledger: Ledger, errands: Errands) -> None:
        self._ledger, self._errands = ledger, errands
        self._results_at = self._journals_at = self._room_at = float("-inf")
        self.free: dict[str, int] = {}
        """Bytes on the results disk of each route, as last seen; without those that could never be asked."""
        self._busy: set[str] = set()
        self._lines: list[str] = []

    def look(self, service: Service, lanes: Sequence[Lane], now: float, clock: float) -> list[str]:
        """See to what is due; gives lines about what was done since. LedgerError where that cannot be noted."""
        keep = service.retention
        if clock - self._room_at >= ROOM_S:
            self._room_at = clock
            for lane in lanes:
                self._look_for_room(lane.route.name, Path(lane.route.out))
        if clock - self._results_at >= RESULTS_S:
            self._results_at = clock
            self._ledger.forget_events(now - keep.events_days * DAY_S, now - 2 * keep.events_days * DAY_S)
            for lane in lanes:
                if lane.route.name not in self._busy and (keep.days is not None or keep.free_gb is not None):
                    self._results(lane, keep, now)
        if clock - self._journals_at >= JOURNALS_S:
            self._journals_at = clock
            for lane in lanes:
                names = self._ledger.unfinished_names(lane.route.name)
                work = partial(remove_journals, Path(lane.route.out), names, keep.journals_days * DAY_S)
                self._errands.run(work, partial(self._journals_gone, lane.route.name), self._complain)
        said, self._lines = self._lines, []
        return said

    def _look_for_room(self, route: str, out: Path) -> None:
        busy = f"room {route}"
        if busy in self._busy:  # the share hangs
            return
        self._busy.add(busy)

        def seen(room: int) -> None:
            self._busy.discard(busy)
            self.free[route] = room

        self._errands.run(partial(free_bytes, out), seen, lambda error: self._busy.discard(busy))

    def _results(self, lane: Lane, keep: Retention, now: float) -> None:
        route = lane.route
        old = [] if keep.days is None else self._ledger.with_results(route.name, now - keep.days * DAY_S, AT_ONCE)
        spare = [] if keep.free_gb is None else self._ledger.with_results(route.name, now, AT_ONCE)
        if not old and not spare:
            return
        self._busy.add(route.name)
        work = partial(_remove, Path(route.out), old, spare, int((keep.free_gb or 0) * 1e9))
        self._errands.run(work, partial(self._results_gone, route.name, now), partial(self._failed, route.name))

    def _results_gone(self, route: str, now: float, removed: list[Slide]) -> None:
        self._busy.discard(route)
        with self._ledger.batch():
            for slide in removed:
                self._ledger.results_removed(slide.id, now)
        if removed:
            self._lines.append(f"{route}: results of {len(removed)} slides were removed (service.retention)")

    def _journals_gone(self, route: str, count: int) -> None:
        if count:
            self._lines.append(f"{route}: journals of {count} slides that nobody went on with were removed")

    def _failed(self, route: str, error: Exception) -> None:
        self._busy.discard(route)
        self._complain(error)

    def _complain(self, error: Exception) -> None:
        self._lines.append(f"housekeeping: {error}")


def _remove(
    out: Path,
    old: Sequence[Slide],
    spare: Sequence[Slide],
    wanted_free: int,
    free: Callable[[Path], int] = free_bytes,
) -> list[Slide]:
    """In a thread: remove the results of all `old`, and of `spare`, oldest first, until so many bytes are free."""
    removed = []
    done: set[int] = set()
    for slide in [*old, *spare]:
        if slide.id in done:
            continue
        if slide not in old and free(out) >= wanted_free:
            break
        remove_results(_folders(out, slide), slide.name)
        done.add(slide.id)
        removed.append(slide)
    return removed


def _folders(out: Path, slide: Slide) -> list[Path]:
    """Where the results of a slide lie: OUT, or a folder of each model's name, as its result in the ledger says."""
    models = (slide.result or {}).get("models")
    return [out / name for name in models] if models else [out]
