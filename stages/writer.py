"""The writer: turns the journal of a finished slide into result files, beside the inference of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.ensemble import MODELS
from pipeline import log
from pipeline.rundir import work_folder
from pipeline.wire import Refused, Write, Written
from pipeline.worker import HOPELESS_ERRNOS, Post, main
from results import journal
from results.columns import columns, share
from results.pictures import load_pictures
from results.record import FAILED, SlideRecord
from results.write import load, write_failed, write_slide
from slides.plan import Plan


def records_of(lease: Write, settings: dict) -> list[SlideRecord]:
    """Everything about a finished slide, from its journal, for each model of the run. FileNotFoundError where it has none."""
    folder = work_folder(settings["private"], lease.id)
    found = journal.read(folder)
    if found is None:
        raise FileNotFoundError(f"{folder / 'journal'}: the journal of this slide is gone")
    header, patches, _ = found
    plan = Plan.from_bytes(header["plan"])
    overview, mask = load_pictures(folder)
    models, targets = settings["models"], settings["results"]

    def record(model: dict, target: dict, part: slice) -> SlideRecord:
        own = share(patches.states, patches.probabilities, patches.reasons, part)
        return SlideRecord(
            slide=lease.id,
            path=lease.path,
            info=header["info"],
            geometry=header["geometry"],
            model=model,
            engine=engine_of(lease, model),
            columns=plan.columns,
            rows=plan.rows,
            fraction=plan.fraction,
            state=own.states,
            probabilities=own.probabilities,
            reasons=own.reasons,
            tissue=header["tissue"],
            seconds=lease.seconds,
            key=key_of(lease, target),
            versions=settings["versions"],
            overview=overview,
            mask=mask,
        )

    parts = columns([len(model["classes"]) for model in models])
    return [record(*one) for one in zip(models, targets, parts, strict=True)]


def engine_of(lease: Write, model: dict) -> dict:
    """What ran this model: of several, each had an engine of its own."""
    return lease.engine.get(MODELS, {}).get(model["name"], lease.engine)


def key_of(lease: Write, target: dict) -> dict:
    """What this model's results depend on, as where it had run alone."""
    return {"fingerprint": lease.key["fingerprint"], **target["key"]}


def serve(lease: Write, post: Post) -> Written | Refused:
    """Write one slide's results. What ails the output folder as a whole is left to the caller."""
    settings = post.settings
    if lease.problem:
        for model, target in zip(settings["models"], settings["results"], strict=True):
            write_failed(
                lease.id,
                lease.path,
                lease.problem,
                Path(target["out"]),
                model=model,
                engine=engine_of(lease, model),
                seconds=lease.seconds,
                key=key_of(lease, target),
                versions=settings["versions"],
            )
        return Written(lease.lease, "failed", lease.problem, 0, 0, 0)
    records = records_of(lease, settings)
    for record, target in zip(records, settings["results"], strict=True):
        write_slide(record, Path(target["out"]), post.config["results"]["formats"], target["heatmap_class"])
    return Written(lease.lease, *verdict(records))


def verdict(records: Sequence[SlideRecord]) -> tuple[str, str, int, int, int]:
    """State of a slide over all models, reason, and patches planned, inferred, failed: failed is what failed for any model."""
    states = {record.outcome() for record in records}
    state = states.pop() if len(states) == 1 else "partial"
    planned = len(records[0].state)
    failed = int(np.count_nonzero(np.logical_or.reduce([record.state == FAILED for record in records])))
    reason = "" if state == "complete" else f"{failed} of {planned} patches failed"
    return state, reason, planned, planned - failed, failed


def work(post: Post) -> None:
    link = post.connect(credit=1)
    logger = log.get_logger()
    loaded = False
    while True:
        match link.receive(post.config["supervisor"]["beat_s"]):
            case None if not loaded:  # not at the start, when every process is busy loading
                loaded = True
                load(post.config["results"]["formats"])
            case Write() as lease:
                try:
                    answer = serve(lease, post)
                except (OSError, ValueError) as error:
                    if isinstance(error, OSError) and error.errno in HOPELESS_ERRNOS:
                        raise
                    logger.error("results not written", slide=lease.id, reason=str(error))
                    first = f"{lease.problem}; " if lease.problem else ""
                    answer = Refused(lease.lease, f"{first}its results could not be written: {error}")
                link.send(answer)


if __name__ == "__main__":
    main("writer", work)
