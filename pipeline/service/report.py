"""What the service tells of itself: the lanes added up, and the lines for a person. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.outcome import STAGES
from pipeline.service.lanes import Lane
from pipeline.service.lifecycle import State, Urgency
from pipeline.service.recent import Recent, Sample
from pipeline.service.records import Hold
from pipeline.status import StageStatus, duration, shares, stage_name

_SHOWN = 8


def run_values(lanes: Sequence[Lane], elapsed_s: float, draining: bool) -> dict[str, Any]:
    """All lanes as one run, as `pipeline.service.sampler` reads it. Of several, workers are called "<route>/<worker>"."""
    named = len(lanes) > 1
    values: dict[str, Any] = {"elapsed_s": round(elapsed_s, 3), "draining": draining}
    for name in ("planned", "inferred", "failed"):
        values[f"patches_{name}"] = sum(lane.patches()[name] for lane in lanes)
    values["stages"] = _stages(lanes)
    told = [(lane.route.name, lane.told.run) for lane in lanes if lane.told is not None]
    for name in ("suspects", "records"):
        values[name] = sum(int(run.get(name) or 0) for _, run in told)
    values["slots"] = _added(run.get("slots") or {} for _, run in told)
    for name in ("telemetry", "engines", "lost"):
        values[name] = {
            f"{route}/{worker}" if named else worker: entry
            for route, run in told
            for worker, entry in (run.get(name) or {}).items()
        }
    values["active"] = [entry for _, run in told for entry in run.get("active", ())]
    values["lanes"] = {
        lane.route.name: {
            "up": lane.up,
            "pid": None if lane.child is None else lane.child.pid,
            "out": lane.route.out,
            "slides": len(lane.jobs),
            "restarts": lane.restarts,
            "problem": lane.problem,
        }
        for lane in lanes
    }
    return values


def _stages(lanes: Sequence[Lane]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for lane in lanes:
        for kind, stage in lane.stages().items():
            before = found.get(kind)
            found[kind] = stage if before is None else {"kind": kind, **_added(_figures(s) for s in (before, stage))}
    return [found[kind] for kind in STAGES if kind in found]


def _figures(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stage.items() if name != "kind"}


def _added(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


def sample(values: Mapping[str, Any], at: float) -> Sample:
    """For `Recent`."""
    stages = tuple(StageStatus(**stage) for stage in values["stages"])
    return Sample(at, values["patches_inferred"] + values["patches_failed"], stages, values["telemetry"])


def lines(
    values: Mapping[str, Any],
    counts: Mapping[State, Mapping[Urgency, int]],
    holds: Sequence[Hold],
    recent: Recent,
    bottleneck: str,
    now: float,
) -> list[str]:
    """The service in a few lines. `counts` are slides by state and class."""
    speed = recent.patches_per_s()
    found = [
        f"up {duration(values['elapsed_s'])}{', draining' if values['draining'] else ''}; {slides_line(counts)}",
        f"patches: {values['patches_inferred']:,} inferred, {values['patches_failed']:,} failed"
        + ("" if speed is None else f"; {speed:,.0f} patches/s"),
    ]
    older = {stage.kind: stage for stage in recent.oldest.stages} if recent.oldest is not None else {}
    stages = [StageStatus(**stage) for stage in values["stages"]]
    busy = [f"{stage_name(s.kind)} {100 * shares(s, older.get(s.kind))[0]:.0f} % of {s.workers}" for s in stages]
    if busy:
        found.append("busy: " + ", ".join(busy))
    found.append(f"bottleneck: {bottleneck}")
    for name, done, planned in values["active"][:_SHOWN]:
        found.append(f"  {_shown(name)}: {done:,} of {planned:,} patches")
    for name, lane in values["lanes"].items():
        if not lane["up"]:
            found.append(f"lane {name} is not up{': ' + lane['problem'] if lane['problem'] else ''}")
    if page := values.get("review"):
        if page["address"] is not None:
            found.append(f"review page: {page['address']}")
        elif page["problem"]:
            found.append(f"review page is not served: {page['problem']}")
    found += [f"{name} was given up: {reason}" for name, reason in values["lost"].items()]
    # Lanes, workers and what is held have lines of their own.
    found += [f"DEGRADED: {reason}" for key, reason in values.get("troubles", {}).items() if key.startswith("disk:")]
    found += [hold_line(hold, now) for hold in holds]
    return found


def slides_line(counts: Mapping[State, Mapping[Urgency, int]]) -> str:
    """ "3 running (1 stat), 12 queued, 340 complete": states without a slide are left out."""
    words = []
    for state in (State.RUNNING, State.QUEUED, State.WAITING, State.RETRY_WAIT, State.QUARANTINED, State.PARTIAL,
                  State.CANCELLED, State.COMPLETE):  # fmt: skip
        total = sum(counts[state].values())
        if total:
            stat = counts[state][Urgency.STAT]
            unfinished = state in (State.RUNNING, State.QUEUED, State.WAITING, State.RETRY_WAIT)
            words.append(f"{total:,} {_NAMES[state]}" + (f" ({stat} stat)" if stat and unfinished else ""))
    return ", ".join(words) or "no slides yet"


_NAMES = {state: state.replace("_", " ") for state in State} | {
    State.WAITING: "arriving",
    State.RETRY_WAIT: "waiting for another try",
}


def hold_line(hold: Hold, now: float) -> str:
    """What is held and why."""
    until = "" if hold.until is None else f", next try in {max(0.0, hold.until - now):.0f} s"
    return f"held: {_shown(hold.key)} since {duration(max(0.0, now - hold.since))}: {hold.reason}{until}"


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)
