"""The slides of a results folder as rows of a worklist, and what is known of each. Thread-safe; nothing is written.

A look is cheap: folders that have not changed are not read, summaries are read once, journals are read on from where they
were. Ten thousand slides cost one stat a folder.
"""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from results.colours import heatmap_class, is_tumour
from results.columns import columns, share
from results.layout import output_path
from results.record import FAILED, INFERRED
from results.summary import read_head
from review import heat, regions
from review.entry import Entry, iso, pick
from review.errors import Refused
from review.facts import slide_key as key_of
from review.folders import Journals, Root, Run, Runs, Summaries, Unfinished, roots
from review.patience import Readers

# Of the inferred patches' probabilities of the heatmap class: the highest one alone is often dust.
SCORE_QUANTILE = 0.99
TUMOUR_FROM = 0.5
LOOK_S = 0.5
STORAGE_S = 1.0  # for a share to say when a file was written
_TABLES_BYTES = 256 << 20
_REGIONS_KEPT = 64

# What a service knows of slides beside their results: id to "urgency", "arrived", and "state" and "reason" of those without.
# What has not changed is the same object as before.
Beside = Callable[[], Mapping[str, Mapping[str, Any]]]


class Catalogue:
    """See above. `results`: the results folder; `slides`: where given, no slide outside of these folders is opened."""

    def __init__(self, results: Path, slides: Sequence[Path] | None = None, beside: Beside | None = None) -> None:
        self.results = results.absolute()
        self._slides = slides
        self._beside = beside or dict
        # One thread looks at a time; `_lock` is held for what others use: followed journals, and what is kept.
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._looked = -math.inf
        self._runs = Runs(self.results)
        self._journals = Journals(self.results)
        self._storage = Readers(most=2, each=1, late_s=0.5, limit_s=STORAGE_S)
        self._summaries: dict[Root, Summaries] = {}
        self._loaded: dict[tuple[Path, str], tuple[int, Entry]] = {}
        self._entries: dict[str, Entry] = {}
        self._amended: dict[str, tuple[Entry | None, Mapping[str, Any], Entry]] = {}
        self._unfinished: dict[str, Unfinished] = {}
        self._tables: OrderedDict[tuple[str, str], heat.Table] = OrderedDict()
        self._regions: OrderedDict[tuple, list[regions.Region]] = OrderedDict()
        self.run = Run()

    # ------------------------------------------------------------ looking

    def look(self, patience_s: float = LOOK_S) -> dict[str, Entry]:
        """All slides by key; not older than `patience_s`, unless another thread is looking just now: nobody waits for a slow
        disk but the very first. The dictionary is not changed afterwards."""
        if time.monotonic() - self._looked < patience_s:
            return self._entries
        if not self._looking.acquire(blocking=patience_s <= 0 or self._looked < 0):
            return self._entries
        try:
            if time.monotonic() - self._looked >= patience_s:
                self._look()
                self._looked = time.monotonic()
            return self._entries
        finally:
            self._looking.release()

    def _look(self) -> None:
        self.run = run = self._runs.look()
        every = roots(self.results, run)
        self._summaries = {root: self._summaries.get(root) or Summaries(root) for root in every}
        found = {root: summaries.look() for root, summaries in self._summaries.items()}
        outs = [model.out for model in run.models]
        own = [times for root, times in found.items() if root.path in outs] or list(found.values())
        over = {slide: min(times.get(slide, 0) for times in own) for slide in own[0]} if own else {}
        with self._lock:
            unfinished = self._journals.look(over)
        beside = self._beside()
        entries: dict[str, Entry] = {}
        loaded: dict[tuple[Path, str], tuple[int, Entry]] = {}
        for root, times in found.items():
            for slide, changed in times.items():
                known = self._loaded.get((root.path, slide))
                if known is None or known[0] != changed:
                    entry = self._load(root, slide, changed)
                    if entry is None:
                        continue
                    known = changed, entry
                loaded[root.path, slide] = known
                entries[known[1].key] = known[1]
        for one in unfinished.values():
            for entry in self._under_way(one, every, self._entries):
                entries[entry.key] = entry
        self._loaded = loaded
        self._amend(entries, beside)
        self._entries, self._unfinished = entries, unfinished

    def _amend(self, entries: dict[str, Entry], beside: Mapping[str, Mapping[str, Any]]) -> None:
        """Put what a service knows into the entries, and add those that have nothing in the results folder yet."""
        amended: dict[str, tuple[Entry | None, Mapping[str, Any], Entry]] = {}
        without = set(beside)
        for key, entry in list(entries.items()):
            facts = beside.get(entry.slide)
            if facts is not None:
                without.discard(entry.slide)
                amended[key] = self._amendment(key, entry, entry, facts)
        for slide in without:
            if "state" in beside[slide]:
                new = Entry(
                    key_of(slide), slide, slide, "", self.results, str(beside[slide].get("path", "")), "waiting", None, "routine",
                    None, None, None, 0, 0, 0, None, None, "waiting", (), None,
                )  # fmt: skip
                amended[new.key] = self._amendment(new.key, None, new, beside[slide])
        entries.update((key, made) for key, (_, _, made) in amended.items())
        self._amended = amended

    def _amendment(
        self, key: str, of: Entry | None, entry: Entry, facts: Mapping[str, Any]
    ) -> tuple[Entry | None, Mapping[str, Any], Entry]:
        before = self._amended.get(key)
        return before if before and before[0] is of and before[1] is facts else (of, facts, _beside(entry, facts))

    def _load(self, root: Root, slide: str, changed: int) -> Entry | None:
        try:
            values = read_head(root.path / output_path(slide, "summary"))
            return self._entry(root, slide, changed, values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # being replaced, or none of ours

    def _entry(self, root: Root, slide: str, changed: int, values: dict[str, Any]) -> Entry:
        full, path = root.full(slide), str(values["path"])
        classes = tuple((values.get("model") or {}).get("classes") or ())
        label = self._shown(classes)
        patches, grid, mpp, size = values["patches"], values["reading"], values["mpp"], values["size"]
        numbers = values["probabilities"].get(label) if label else None
        tumour = None
        if numbers and grid and mpp and label and is_tumour(label):
            step = grid["step_x"] * mpp["x"] * grid["step_y"] * mpp["y"] * 1e-6
            tumour = round(numbers["share_at_least_half"] * patches["inferred"] * step, 4)
        return Entry(
            key_of(full),
            full,
            slide,
            root.model,
            root.path,
            path,
            values["state"],
            values["reason"],
            self._urgency(slide, path),
            numbers.get("p99", numbers["max"]) if numbers else None,  # older summaries lack it
            tumour,
            (values["tissue"] or {}).get("area_mm2"),
            patches["planned"],
            patches["inferred"],
            patches["failed"],
            self._written(path),
            iso(changed / 1e9),
            f"summary-{changed}",
            classes,
            label,
            (size["width"], size["height"]) if size else None,
            (mpp["x"], mpp["y"]) if mpp else None,
            grid,
        )

    def _under_way(self, one: Unfinished, every: list[Root], before: Mapping[str, Entry]) -> list[Entry]:
        """The slide of a journal, for each model of the run that writes it."""
        header = one.follower.header
        running = self.run.alive or one.lately
        state = "running" if running else "waiting"
        reason = None if running else "interrupted; run the same command again to go on"
        info, grid = header["info"], header["geometry"]
        mpp = info["mpp_x"], info["mpp_y"]
        entries = []
        for root, classes, part in self._parts(header, every):
            full = root.full(one.slide)
            version = f"{state}-{one.stamp[0]}-{one.stamp[1]}"
            known = before.get(key_of(full))
            if known is not None and known.version == version:
                entries.append(known)
                continue
            label = self._shown(classes)
            patches = one.follower.patches
            own = share(patches.states, patches.probabilities, patches.reasons, part)
            inferred = own.states == INFERRED
            values = own.probabilities[inferred, classes.index(label)] if label else np.zeros(0, np.float32)
            step = grid["step_x"] * mpp[0] * grid["step_y"] * mpp[1] * 1e-6
            tumour = round(float(np.count_nonzero(values >= TUMOUR_FROM)) * step, 4)
            entries.append(
                Entry(
                    key_of(full),
                    full,
                    one.slide,
                    root.model,
                    root.path,
                    str(header["path"]),
                    state,
                    reason,
                    self._urgency(one.slide, str(header["path"])),
                    float(np.quantile(values, SCORE_QUANTILE)) if len(values) else None,
                    tumour if label and is_tumour(label) else None,
                    header["tissue"].get("area_mm2"),
                    len(own.states),
                    int(np.count_nonzero(inferred)),
                    int(np.count_nonzero(own.states == FAILED)),
                    self._written(str(header["path"])),
                    None,
                    version,
                    classes,
                    label,
                    (info["width"], info["height"]),
                    mpp,
                    grid,
                )
            )
        return entries

    def _written(self, path: str) -> str | None:
        """When the slide's file was last written: that is when it arrived, as far as a results folder can tell. None where
        it cannot be told, also because its share does not answer: a list without that time is better than none."""
        share = "/".join(Path(path).parts[:3])
        try:
            return iso(self._storage.call(share, lambda: os.stat(path).st_mtime))
        except (OSError, ValueError, Refused):
            return None

    def _parts(self, header: Mapping[str, Any], every: list[Root]) -> list[tuple[Root, tuple[str, ...], slice]]:
        """Folder, classes and columns of each model whose answers a journal holds."""
        models = self.run.models
        if sum(len(model.classes) for model in models) == header["classes"]:
            slices = columns([len(model.classes) for model in models])
            by_path = {root.path: root for root in every}
            return [
                (by_path.get(model.out, every[0]), model.classes, part)
                for model, part in zip(models, slices, strict=True)
            ]
        names = tuple(f"class {number + 1}" for number in range(header["classes"]))  # its run left no word of them
        return [(every[0], names, slice(0, header["classes"]))]

    def _shown(self, classes: tuple[str, ...]) -> str | None:
        wanted = self.run.heatmap_class
        return classes[heatmap_class(classes, wanted if wanted in classes else None)] if classes else None

    def _urgency(self, slide: str, path: str) -> str:
        urgent = any(fnmatch(slide, pattern) or fnmatch(path, pattern) for pattern in self.run.urgent)
        return "stat" if urgent else "routine"

    # ------------------------------------------------------------ one slide

    def entry(self, key: str, fresh: bool = True) -> Entry:
        """The slide of a key. Refused (404) where there is none. `fresh=False`: as it was at the last look, if it was there."""
        return pick(key, {} if fresh else self._entries, self.look)

    def running_model(self, entry: Entry) -> dict[str, Any]:
        """What the run says of the model of a slide; empty where it is not known."""
        models = [model for model in self.run.models if model.out == entry.out]
        return dict(models[0].facts) if models else {}

    def summary(self, entry: Entry) -> dict[str, Any] | None:
        """The whole summary of a finished slide; None where it has none now."""
        try:
            values = json.loads((entry.out / output_path(entry.slide, "summary")).read_bytes())
        except (OSError, ValueError):
            return None
        return values if isinstance(values, dict) else None

    def file(self, entry: Entry) -> Path:
        """The slide's own file, resolved. Refused (404) where it is not there, or lies where this page may not read."""
        if not entry.path:
            raise Refused(404, "slide_gone", "it is not known where this slide lies")
        try:
            path = Path(entry.path).resolve(strict=True)
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except (OSError, ValueError, RuntimeError) as error:
            raise Refused(404, "slide_gone", "the slide's file is not there any more") from error
        if self._slides is not None and not any(path.is_relative_to(root.resolve()) for root in self._slides):
            raise Refused(404, "slide_outside", "the slide lies outside of the folders of slides")
        if not regular:
            raise Refused(404, "slide_gone", "the slide's file is no file any more")
        return path

    def patches(self, key: str) -> heat.Table:
        """The patches of a slide. Refused (404) where it has none that can be shown."""
        entry = self.entry(key)
        place = key, entry.version
        with self._lock:
            known = self._tables.get(place)
            if known is not None:
                self._tables.move_to_end(place)
                return known
            one = self._unfinished.get(entry.slide)
            if one is not None and not entry.version.startswith("summary"):
                every = roots(self.results, self.run)
                for root, classes, part in self._parts(one.follower.header, every):
                    if root.full(entry.slide) == entry.id:
                        return self._keep(place, heat.running(one.follower, one.plan, classes, part))
        summary = self.summary(entry)
        if summary is None:
            raise Refused(404, "no_table", "nothing has been read of this slide yet")
        table = heat.finished(entry.out, entry.slide, summary, entry.version)
        with self._lock:
            return self._keep(place, table)

    def _keep(self, place: tuple[str, str], table: heat.Table) -> heat.Table:
        for old in [other for other in self._tables if other[0] == place[0]]:
            del self._tables[old]
        self._tables[place] = table
        while len(self._tables) > 1 and sum(kept.bytes for kept in self._tables.values()) > _TABLES_BYTES:
            self._tables.popitem(last=False)
        return table

    def regions(self, key: str, label: str | None, threshold: float, min_um2: float) -> list[regions.Region]:
        """The suspicious regions of a slide; `label`: a class, None: the one that its heatmap shows.

        Refused: 404 as `patches`, 422 for a class that its model has not.
        """
        entry, table = self.entry(key), self.patches(key)
        label = label if label is not None else entry.heatmap_class
        if label not in table.classes:
            raise Refused(422, "bad_input", "class: the model of this slide has no such class")
        if entry.size is None or entry.mpp is None:
            return []
        place = key, table.version, label, threshold, min_um2
        with self._lock:
            known = self._regions.get(place)
        if known is None:
            known = regions.find(table, label, threshold, min_um2, entry.size, entry.mpp)
        with self._lock:
            self._regions[place] = known
            self._regions.move_to_end(place)
            while len(self._regions) > _REGIONS_KEPT:
                self._regions.popitem(last=False)
        return known


def _beside(entry: Entry, facts: Mapping[str, Any]) -> Entry:
    known = {name: facts[name] for name in ("urgency", "arrived") if facts.get(name) is not None}
    if not entry.version.startswith("summary") and (entry.state != "running" or "finished" in facts):
        known |= {name: facts[name] for name in ("state", "reason", "finished") if name in facts}
    return replace(entry, **known)
