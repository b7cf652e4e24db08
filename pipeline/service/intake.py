"""The intake: from what lies in watched folders to slides in the ledger.

    intake = Intake(config.service, ledger, mpp)
    while True:
        for line in intake.poll(time.time(), time.monotonic()):   # several times a second; never waits
            logger.warning(line)

Each folder is looked into by its own thread (watch), what has come to rest is decided by `Settle`, and tried in a child
process (trials); only then is it delivered. Nothing in a folder is opened for writing, renamed or removed.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

from pipeline.service import fingerprints
from pipeline.service.config import Service, WatchFolder
from pipeline.service.ledger import Ledger, folder_key
from pipeline.service.lifecycle import Urgency
from pipeline.service.migrations import LedgerError
from pipeline.service.naming import fits, result_name
from pipeline.service.reasons import Kind, decide
from pipeline.service.records import Delivery
from pipeline.service.scan import Look
from pipeline.service.settle import Change, Seen, Settle, What
from pipeline.service.trials import Outcome, Trials
from pipeline.service.watch import Report, Watched
from slides.errors import one_line

# A look that takes longer than this means that the share does not answer.
SILENT_S = 60.0
# Folder of slides that were submitted by hand.
SUBMITTED = "submitted"
_ARRIVALS_MAX = 1_000_000
# What may be a slide that is still being copied, so it has `give_up_s` to become whole.
_PERHAPS_UNFINISHED = (Kind.INCOMPLETE, Kind.BAD_SLIDE, Kind.CHANGED)
_NOT_THERE = (Kind.VANISHED, Kind.SHARE_GONE)


@dataclass(slots=True)
class _Candidate:
    """A slide that has come to rest, on its way through the trial. Times are monotonic."""

    path: bytes
    folder: _Folder | None
    name: str
    stamp: str
    rested: float
    routes: tuple[str, ...]
    urgency: Urgency


class _Folder:
    """One watched folder as the intake knows it."""

    def __init__(self, config: WatchFolder, ledger: Ledger) -> None:
        known = ledger.there(config.path)
        self.config = config
        self.key = folder_key(config.path)
        self.settle = Settle(known)
        self.first_seen = {
            arrival.path: arrival.seen for arrival in ledger.arrivals(_ARRIVALS_MAX) if arrival.folder == config.path
        }
        self.stat: set[bytes] = set()
        self.held = any(hold.key == self.key and hold.until is None for hold in ledger.holds())
        self.swept = False
        self.tries: dict[bytes, int] = {}
        self.noticed: set[str] = set()
        self.watched = Watched(config, held_before=bool(known))

    def urgency(self, path: bytes) -> Urgency:
        relative = self.watched.scanner.relative(path)
        if path in self.stat or fits(relative, self.config.stat_patterns):
            return Urgency.STAT
        return Urgency(self.config.urgency)


class Intake:
    """Watches all folders of the configuration. For one thread, the one that has the ledger."""

    def __init__(self, config: Service, ledger: Ledger, mpp: float | None = None) -> None:
        """Starts watching. `mpp` as in `slides.mpp`. LedgerError of the ledger."""
        self._config = config
        self._ledger = ledger
        self._trials = Trials(config.trials, config.trial_timeout_s, mpp)
        self._waiting: collections.OrderedDict[bytes, _Candidate] = collections.OrderedDict()
        self._under_trial: dict[bytes, _Candidate] = {}
        self._outcomes: list[Outcome] = []
        self._folders = [_Folder(folder, ledger) for folder in config.watch]
        watched = {folder.path for folder in config.watch}
        self._strays = [a.path for a in ledger.arrivals(_ARRIVALS_MAX) if a.folder not in watched]

    def poll(self, now: float, clock: float) -> list[str]:
        """Take in what has happened since the last call. `now` is wall-clock, `clock` monotonic time, in seconds.

        Gives lines for the operator. LedgerError where the ledger cannot be written: call again later, nothing is lost.
        """
        lines: list[str] = []
        for path in self._strays:
            self._ledger.withdrawn(path, now)
        self._strays = []
        for folder in self._folders:
            report = folder.watched.take()
            if report is not None:
                lines += self._take(folder, report, now, clock)
            elif folder.watched.silent_s(clock) > SILENT_S:
                lines += self._gone(folder, f"has not answered for {SILENT_S:g} s", now, clock)
        self._outcomes += self._trials.poll(clock)
        while self._outcomes:
            self._judge(self._under_trial[self._outcomes[0].path], self._outcomes[0], now, clock)
            del self._under_trial[self._outcomes.pop(0).path]  # only now: it may not have come to disk
        return lines + self._start_trials(clock)

    def submit(self, path: bytes, routes: tuple[str, ...], urgency: Urgency, name: str, clock: float) -> None:
        """Take a slide that was named by hand: tried at once, delivered whatever comes of it. `path` is absolute.

        Confining it to the folders that may be named is the caller's part.
        """
        self._waiting[path] = _Candidate(path, None, name, "", clock, routes, urgency)

    @property
    def busy(self) -> int:
        """Slides at rest that are under trial or wait for it."""
        return len(self._waiting) + len(self._under_trial)

    def folders(self) -> dict[str, dict[str, object]]:
        """For status and metrics: of each folder whether it is held, uses inotify, and how many slides are not settled."""
        return {
            folder.config.path: {
                "held": folder.held,
                "notified": folder.watched.notified,
                "unsettled": folder.settle.unsettled,
            }
            for folder in self._folders
        }

    def close(self) -> None:
        """Stop watching and end the trials."""
        self._trials.close()
        for folder in self._folders:
            folder.watched.close()

    # What a look found

    def _take(self, folder: _Folder, report: Report, now: float, clock: float) -> list[str]:
        if report.look is None:
            return self._gone(folder, report.gone, now, clock)
        try:
            lines = self._write(folder, report, report.look, now)
        except LedgerError:
            # What the look found is not on disk: start this folder anew from what is.
            folder.settle = Settle(self._ledger.there(folder.config.path))
            self._drop_waiting(folder)
            raise
        folder.held = False
        folder.watched.restless = folder.settle.unsettled > 0
        fresh = [line for line in report.look.notices if line not in folder.noticed]
        folder.noticed = set(report.look.notices)
        return lines + fresh

    def _write(self, folder: _Folder, report: Report, look: Look, now: float) -> list[str]:
        lines = []
        with self._ledger.batch():
            if folder.held:
                self._ledger.release(folder.key, now)
                lines.append(f"{one_line(folder.config.path)}: is there again")
            folder.stat = look.stat
            if not folder.swept:
                there = {seen.path for seen in look.seen}
                for path in [path for path in folder.first_seen if path not in there]:
                    self._ledger.withdrawn(path, now)
                    del folder.first_seen[path]
                folder.swept = True
            for change in folder.settle.look(report.at, look.seen, look.unsure):
                self._change(folder, change, now)
            for seen in look.seen:
                if seen.size == 0 and now - folder.first_seen.get(seen.path, now) >= self._config.give_up_s:
                    self._ledger.stuck(seen.path, "is empty", now)
        return lines

    def _gone(self, folder: _Folder, reason: str, now: float, clock: float) -> list[str]:
        folder.settle.interrupted(clock)
        for candidate in self._drop_waiting(folder):
            folder.settle.refused(candidate.path, candidate.stamp, clock)
        if folder.held:
            return []
        self._ledger.hold(folder.key, Kind.SHARE_GONE, reason, now)
        folder.held = True
        return [f"{one_line(folder.config.path)}: {reason}; its slides wait until it is there again"]

    def _drop_waiting(self, folder: _Folder) -> list[_Candidate]:
        paths = [path for path, candidate in self._waiting.items() if candidate.folder is folder]
        return [self._waiting.pop(path) for path in paths]

    def _change(self, folder: _Folder, change: Change, now: float) -> None:
        path = change.path
        if change.what is What.RENAMED and _utf8(change.old):
            self._ledger.renamed(change.old, path, now)
            folder.first_seen[path] = folder.first_seen.pop(change.old, now)
            folder.tries.pop(change.old, None)
            # What was on its way to the trial under its old name goes there again under the new one.
            if self._waiting.pop(change.old, None) is not None or change.old in self._under_trial:
                folder.settle.refused(path, change.seen.stamp, change.rested)
            return
        if change.what is What.RENAMED:  # from a name that nothing could be done with: a slide like any new one
            self._ledger.withdrawn(change.old, now)
            folder.settle.refused(path, change.seen.stamp, change.rested)
        elif change.what is What.GONE:
            self._ledger.withdrawn(path, now)
            self._waiting.pop(path, None)
            folder.first_seen.pop(path, None)
            folder.tries.pop(path, None)
        elif change.what is What.READY:
            self._waiting[path] = self._candidate(folder, change)
        else:
            self._waiting.pop(path, None)
            folder.tries.pop(path, None)
            words = "is empty" if change.seen.size == 0 else "is being written"
            self._note(folder, change.seen, words, now)

    def _note(self, folder: _Folder, seen: Seen, words: str, now: float) -> None:
        first = folder.first_seen.setdefault(seen.path, now)
        self._ledger.waiting(seen.path, folder.config.path, folder.urgency(seen.path), first, seen.size, words, now)

    def _candidate(self, folder: _Folder, change: Change) -> _Candidate:
        return _Candidate(
            change.path,
            folder,
            result_name(folder.watched.scanner.relative(change.path)),
            change.seen.stamp,
            change.rested,
            folder.config.routes,
            folder.urgency(change.path),
        )

    # Trials

    def _start_trials(self, clock: float) -> list[str]:
        while self._trials.room > 0:
            # A trial of an earlier state of the same file has to end first.
            free = [candidate for path, candidate in self._waiting.items() if path not in self._under_trial]
            if not free:
                break
            candidate = min(free, key=lambda one: one.urgency is not Urgency.STAT)
            try:
                self._trials.start(candidate.path, clock)
            except OSError as error:
                return [f"no trial can be started: {error.strerror}; slides wait"]
            self._under_trial[candidate.path] = self._waiting.pop(candidate.path)
        return []

    def _judge(self, candidate: _Candidate, outcome: Outcome, now: float, clock: float) -> None:
        folder, path, kind, reason = candidate.folder, candidate.path, outcome.kind, outcome.reason
        if kind is None and not _utf8(path):
            kind, reason = Kind.BAD_NAME, "its name is not UTF-8"
        if folder is None:
            self._deliver(candidate, outcome, kind, reason, now, clock)
            return
        if folder.settle.stamp(path) != candidate.stamp:
            return  # it has changed since, and will be READY again
        if kind is None or kind is Kind.BAD_NAME or self._given_up(folder, candidate, kind, clock):
            self._deliver(candidate, outcome, kind, reason, now, clock)
            return
        tries = folder.tries[path] = folder.tries.get(path, 0) + 1
        pause = min(
            max(folder.config.settle_s, self._config.give_up_s / 8), folder.config.settle_s * 2.0 ** min(tries, 16)
        )
        folder.settle.refused(path, candidate.stamp, clock + pause)
        seen = folder.settle.seen(path)
        if seen is not None:
            self._note(folder, seen, reason, now)

    def _given_up(self, folder: _Folder, candidate: _Candidate, kind: Kind, clock: float) -> bool:
        if kind in _NOT_THERE:
            return False  # the next look says what that means
        if kind in _PERHAPS_UNFINISHED:
            return clock - candidate.rested >= self._config.give_up_s
        return decide(kind, folder.tries.get(candidate.path, 0) + 1, 0.0).retry_at is None

    def _deliver(
        self, candidate: _Candidate, outcome: Outcome, kind: Kind | None, reason: str, now: float, clock: float
    ) -> None:
        rested = now - (clock - candidate.rested)
        deadline = getattr(self._config.deadline_s, candidate.urgency)
        folder = candidate.folder
        delivery = Delivery(
            path=candidate.path,
            folder=SUBMITTED if folder is None else folder.config.path,
            name=candidate.name,
            stamp=candidate.stamp,
            fingerprint=outcome.fingerprint or fingerprints.unreadable(candidate.path, candidate.stamp),
            bytes=outcome.bytes,
            files=outcome.files,
            seen=now if folder is None else folder.first_seen.get(candidate.path, now),
            rested=rested,
            routes=candidate.routes,
            urgency=candidate.urgency,
            deadline=None if deadline is None else rested + deadline,
            problem=kind,
            reason=reason,
        )
        self._ledger.deliver(delivery, now)
        if folder is not None:
            folder.first_seen.pop(candidate.path, None)
            folder.tries.pop(candidate.path, None)


def _utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True
