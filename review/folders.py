"""What lies in a results folder: its summaries, the run that may be writing to it, and the journals of unfinished slides.

A run with several models has a folder for each below the results folder; a slide is then "model/slide". Nothing is written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.journal import Follower, JournalError
from results.layout import FORMATS, SUMMARY
from slides.plan import Plan

PRIVATE = ".slidestream"
_SUFFIX = SUMMARY[1]
# A change within this time of an earlier look may have left a folder's time as it was.
_GRAIN_NS = 2_000_000_000
# What was written to a journal so lately is being written, whoever can see the process.
_LATELY_S = 60.0
_BIG = 64 << 20


@dataclass(frozen=True, slots=True)
class Root:
    """A folder of one model's results; `model` is empty where it is the results folder itself."""

    model: str
    path: Path

    def full(self, slide: str) -> str:
        """The id of a slide in the worklist."""
        return f"{self.model}/{slide}" if self.model else slide


class Summaries:
    """The summaries below a root. A folder that has not changed is not read again."""

    def __init__(self, root: Root) -> None:
        self._top = os.fspath(root.path / SUMMARY[0])
        self._folders: dict[str, tuple[int, dict[str, int], list[str]]] = {}

    def look(self) -> dict[str, int]:
        """Slide id to the time (ns) of its summary. A rewritten summary has another time: writers rename."""
        found: dict[str, int] = {}
        seen: dict[str, tuple[int, dict[str, int], list[str]]] = {}
        left = [""]
        while left:
            prefix = left.pop()
            try:
                known = self._folder(prefix)
            except OSError:
                continue  # removed meanwhile, or not there yet
            seen[prefix] = known
            found.update(known[1])
            left += known[2]
        self._folders = seen
        return found

    def _folder(self, prefix: str) -> tuple[int, dict[str, int], list[str]]:
        path = os.path.join(self._top, prefix)
        changed = os.stat(path).st_mtime_ns
        known = self._folders.get(prefix)
        if known is not None and known[0] == changed:
            return known
        files: dict[str, int] = {}
        folders: list[str] = []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.name.endswith("-part"):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{prefix}{entry.name}/")
                elif entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False):
                    files[f"{prefix}{entry.name.removesuffix(_SUFFIX)}"] = entry.stat().st_mtime_ns
        settled = time.time_ns() - changed > _GRAIN_NS
        return (changed if settled else -1), files, folders


@dataclass(frozen=True, slots=True)
class Model:
    """One of the models of a run: where its results go, and its classes."""

    name: str
    out: Path
    classes: tuple[str, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """The run that writes to a results folder now (`alive`), or the last one."""

    alive: bool = False
    models: tuple[Model, ...] = ()
    urgent: tuple[str, ...] = ()
    heatmap_class: str | None = None
    record: Mapping[str, Any] | None = None
    """run.json, of the last run that ended."""


class Runs:
    """Looks for the run of a results folder."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._files: dict[Path, tuple[int, Any]] = {}

    def look(self) -> Run:
        """What is known now."""
        record = self._json(self._results / "run.json")
        settings = self._settings()
        source = settings or record or {}
        if settings is not None:
            outs = [Path(target["out"]) for target in settings["results"]]
            models = [
                Model(model["name"], out, tuple(model["classes"]), model)
                for model, out in zip(settings["models"], outs, strict=True)
            ]
        else:
            each = source.get("models") or [source[name] for name in ("model",) if source.get(name)]
            outs = [self._results / model["name"] if len(each) > 1 else self._results for model in each]
            models = [Model(m["name"], out, tuple(m["classes"]), m) for m, out in zip(each, outs, strict=True)]
        configuration = source.get("config") or source.get("configuration") or {}
        return Run(
            settings is not None,
            tuple(models),
            tuple((configuration.get("batcher") or {}).get("urgent") or ()),
            (configuration.get("results") or {}).get("heatmap_class"),
            record,
        )

    def _settings(self) -> dict[str, Any] | None:
        """Of a run that lives; None where there is none, or it cannot be seen from here."""
        private = self._results / PRIVATE
        try:
            holder = int((private / "lock").read_text(encoding="ascii"))
            folder = Path((private / "run").read_text().strip())
            os.kill(holder, 0)
            ours = folder.name.startswith("slidestream-") and os.stat(folder).st_uid == os.getuid()
        except (OSError, ValueError):
            return None
        if not ours:
            return None
        return self._json(folder / "settings.json")

    def _json(self, path: Path) -> dict[str, Any] | None:
        try:
            status = os.stat(path)
            known = self._files.get(path)
            if known is not None and known[0] == status.st_mtime_ns:
                return known[1]
            values = json.loads(path.read_bytes()) if status.st_size < _BIG else None
        except (OSError, ValueError):
            return None
        values = values if isinstance(values, dict) else None
        self._files = {path: (status.st_mtime_ns, values), **{p: v for p, v in self._files.items() if p != path}}
        return values


def roots(results: Path, run: Run) -> list[Root]:
    """The folders of results: of each model of the run, and those that earlier runs left."""
    found = {results: Root("", results)} if (results / SUMMARY[0]).is_dir() else {}
    for model in run.models:
        if model.out.parent == results:
            found[model.out] = Root(model.out.name, model.out)
        elif model.out == results:
            found[results] = Root("", results)
    reserved = {PRIVATE, SUMMARY[0], *(folder for folder, _ in FORMATS.values())}
    try:
        with os.scandir(results) as entries:
            names = [
                entry.name for entry in entries if entry.name not in reserved and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        names = []
    for name in sorted(names):
        if (results / name / SUMMARY[0]).is_dir():
            found.setdefault(results / name, Root(name, results / name))
    return list(found.values()) or [Root("", results)]


@dataclass(slots=True, eq=False)
class Unfinished:
    """A slide with a journal: `stamp` (time in ns, bytes) of it, as it was when it was last read."""

    follower: Follower
    plan: Plan
    stamp: tuple[int, int]
    begun: float

    @property
    def slide(self) -> str:
        return self.follower.header["id"]

    @property
    def lately(self) -> bool:
        """Whether somebody writes to it."""
        return time.time() - self.stamp[0] / 1e9 < _LATELY_S


class Journals:
    """The journals of unfinished slides, followed as they grow."""

    def __init__(self, results: Path) -> None:
        self._folder = results / PRIVATE / "work"
        self._known: dict[str, Unfinished] = {}
        self._passed: dict[str, tuple[tuple[int, int], str]] = {}

    def look(self, finished: Mapping[str, int]) -> dict[str, Unfinished]:
        """By slide id. `finished`: times (ns) of summaries by slide id: a journal that is older than its slide's is over."""
        try:
            names = os.listdir(self._folder)
        except OSError:  # none, or not for this user
            names = []
        known: dict[str, Unfinished] = {}
        passed: dict[str, tuple[tuple[int, int], str]] = {}
        for name in names:
            try:
                status = os.stat(self._folder / name / "journal")
                stamp = status.st_mtime_ns, status.st_size
                before = self._passed.get(name)
                if before is not None and before[0] == stamp and stamp[0] <= finished.get(before[1], 0):
                    passed[name] = before
                    continue
                one = self._follow(name, stamp)
            except (OSError, JournalError, ValueError, KeyError):
                continue  # being made or removed, or damaged: the run will say so
            if stamp[0] <= finished.get(one.slide, 0):
                passed[name] = stamp, one.slide
            else:
                known[name] = one
        self._known, self._passed = known, passed
        return {one.slide: one for one in known.values()}

    def _follow(self, name: str, stamp: tuple[int, int]) -> Unfinished:
        one = self._known.get(name)
        if one is not None:
            if one.stamp == stamp:
                return one
            if one.follower.advance():
                one.stamp = stamp
                return one
        follower = Follower(self._folder / name)
        begun = os.stat(self._folder / name).st_ctime
        return Unfinished(follower, Plan.from_bytes(follower.header["plan"]), stamp, begun)
