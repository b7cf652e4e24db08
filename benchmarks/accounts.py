"""Every slide accounted for: what came, against what the results folder, the ledger and the events say."""

from __future__ import annotations

import collections
import csv
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.arrivals import AGAIN, DAMAGED, GOOD, RUBBISH, SLOW, TRUNCATED, Arrival
from benchmarks.served import Served
from pipeline.rundir import work_folder
from pipeline.service.lifecycle import State
from pipeline.service.records import Filter, Slide
from pipeline.service.view import ROWS_AT_ONCE, View

RESULTS = "model-outputs-csv"
PLACE = ("minx", "miny", "width", "height")


@dataclass
class Faults:
    """One line for each thing that is not as it must be; all empty where everything is.

    lost: a slide without its result, or a broken one that nobody was told of; doubled: a slide done or told of twice, or a
    patch twice in a result; different: a result that is not that of the undisturbed run; left: what should not be there any more.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """All of them, each with its kind."""
        return [f"{one.name}: {line}" for one in fields(self) for line in getattr(self, one.name)]


def all_slides(view: View) -> list[Slide]:
    """All rows of the ledger, oldest first."""
    found: list[Slide] = []
    while page := view.rows(Filter(), ROWS_AT_ONCE, found[-1].id if found else None):
        found += page
    return found[::-1]


def named(arrivals: Iterable[Arrival]) -> dict[Arrival, list[str]]:
    """Every slide that came, with all names that it came under. Results have the name that was taken first: after a kill
    that may be any of them."""
    also: dict[Path, list[str]] = {}
    for one in arrivals:
        if one.how == AGAIN:
            also.setdefault(one.source, []).append(one.name)
    return {
        one: [one.name, *(also.get(one.source, []) if one.how == GOOD else [])] for one in arrivals if one.how != AGAIN
    }


def unfinished(view: View, arrivals: Iterable[Arrival]) -> list[str]:
    """Names of slides of which the ledger does not say what became of them, or not under all names that they came under."""
    rest = {slide.name: slide for slide in all_slides(view) if slide.state in END.values()}
    found = []
    for one, names in named(arrivals).items():
        done = next((rest[name] for name in names if name in rest), None)
        if done is None or (len(names) > 1 and len(view.names(done.id)) < len(names)):
            found.append(one.name)
    return found


END = {
    **dict.fromkeys((GOOD, SLOW), State.COMPLETE),
    DAMAGED: State.PARTIAL,
    TRUNCATED: State.QUARANTINED,
    RUBBISH: State.QUARANTINED,
}
_EVENT = {State.COMPLETE: "slide.complete", State.PARTIAL: "slide.partial", State.QUARANTINED: "slide.quarantined"}


def audit(served: Served, arrivals: list[Arrival], events: list[dict[str, Any]], undisturbed: Path) -> Faults:
    """After the end of the service. `events`: all that came to the spool folder; `undisturbed`: results folder of a run."""
    faults = Faults()
    with served.view() as view:
        slides = all_slides(view)
        steps = {slide.id: [step.new for step in view.history(slide.id)] for slide in slides}
        names = {slide.id: view.names(slide.id) for slide in slides}
    by_name = {slide.name: slide for slide in slides}
    for name, count in collections.Counter(slide.name for slide in slides).items():
        if count > 1:
            faults.doubled.append(f"{name}: {count} rows in the ledger")
    told = collections.Counter(
        (event["data"].get("name"), event["type"]) for event in {event["id"]: event for event in events}.values()
    )
    results: dict[str, str] = {}  # name of the results -> name in the undisturbed run
    for one, mine in named(arrivals).items():
        there = [name for name in mine if name in by_name]
        faults.doubled += [f"{one.name}: is also a slide of its own as {name}" for name in there[1:]]
        name = there[0] if there else one.name
        _one(faults, one, name, by_name.get(name), steps, told)
        if END[one.how] is not State.QUARANTINED:
            results[name] = one.name
        if there:
            known = {os.fsdecode(alias.path) for alias in names[by_name[name].id]}
            missing = [alias for alias in mine if not any(path.endswith(f"/{alias}.tif") for path in known)]
            faults.lost += [f"{name}: its name {alias} is not in the ledger" for alias in missing]
    _results(faults, served.out, undisturbed, results)
    wanted = {name for mine in named(arrivals).values() for name in mine}
    faults.doubled += [f"{slide.name}: nobody delivered it" for slide in slides if slide.name not in wanted]
    # Of a partial slide the journal is kept for another try.
    kept = {work_folder("", one.name).name for one in arrivals if END.get(one.how) is State.PARTIAL}
    work = (path.name for path in served.out.glob(".slidestream/work/*"))
    faults.left += [f"a journal: {name}" for name in work if name not in kept]
    faults.left += [str(path) for path in served.out.rglob("*.slidestream-part")]
    faults.left += [str(path) for path in served.temporary.iterdir() if path.name != "notify"]
    faults.left += [f"process {process.pid} ({process.kind})" for process in served.family()]
    return faults


def _one(faults: Faults, one: Arrival, name: str, slide: Slide | None, steps: dict, told: collections.Counter) -> None:
    """What the ledger and the events say of one slide."""
    end = END[one.how]
    if slide is None or slide.state is not end:
        state = "not in the ledger" if slide is None else f"{slide.state} ({slide.reason})"
        faults.lost.append(f"{name}: {one.how}, and {state}")
        return
    if end is not State.COMPLETE and not (slide.reason or (slide.result or {}).get("reason")):
        faults.lost.append(f"{name}: {end} without a reason")
    if (count := steps[slide.id].count(end)) != 1:
        faults.doubled.append(f"{name}: became {end} {count} times")
    if (count := told[name, _EVENT[end]]) != 1:
        (faults.doubled if count else faults.lost).append(f"{name}: {count} events {_EVENT[end]}")
    if end is not State.QUARANTINED and slide.result["planned"] != slide.result["inferred"] + slide.result["failed"]:
        faults.lost.append(f"{name}: patches are missing, {slide.result}")


def _results(faults: Faults, out: Path, undisturbed: Path, results: dict[str, str]) -> None:
    """The result files: those of the undisturbed run, byte for byte, and no others. `results`: their names here and there."""
    there = {str(path.relative_to(out / RESULTS))[:-4] for path in (out / RESULTS).rglob("*") if path.is_file()}
    faults.lost += [f"{name}: has no result" for name in sorted(results.keys() - there)]
    faults.doubled += [f"{name}: a result that belongs to no slide" for name in sorted(there - results.keys())]
    for name in sorted(results.keys() & there):
        path = out / RESULTS / f"{name}.csv"
        if digest(path) != digest(undisturbed / RESULTS / f"{results[name]}.csv"):
            faults.different.append(name)
        with path.open(newline="") as file:
            places = collections.Counter(tuple(row[column] for column in PLACE) for row in csv.DictReader(file))
        if twice := sum(count > 1 for count in places.values()):
            faults.doubled.append(f"{name}: {twice} patches more than once")
    summaries = {str(path.relative_to(out / "slides"))[:-5]: path for path in (out / "slides").rglob("*.json")}
    faults.lost += [f"{name}: has no summary" for name in sorted(results.keys() - summaries.keys())]
    done = {name for name, path in summaries.items() if json.loads(path.read_text())["state"] != "failed"}
    faults.doubled += [f"{name}: a summary that belongs to no slide" for name in sorted(done - results.keys())]


def digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
