"""The writer: turns the journal of a finished slide into result files, beside the inference of the next one."""

from __future__ import annotations

from pathlib import Path

from pipeline import log
from pipeline.rundir import work_folder
from pipeline.wire import Refused, Write, Written
from pipeline.worker import HOPELESS_ERRNOS, Post, main
from results import journal
from results.pictures import load_png
from results.record import SlideRecord
from results.write import load, write_failed, write_slide
from slides.plan import Plan


def record_of(lease: Write, settings: dict) -> SlideRecord:
    """Everything about a finished slide, from its journal. FileNotFoundError where it has none."""
    folder = work_folder(settings["private"], lease.id)
    found = journal.read(folder)
    if found is None:
        raise FileNotFoundError(f"{folder / 'journal'}: the journal of this slide is gone")
    header, patches, _ = found
    plan = Plan.from_bytes(header["plan"])
    mask = load_png(folder / "mask.png")
    return SlideRecord(
        slide=lease.id,
        path=lease.path,
        info=header["info"],
        geometry=header["geometry"],
        model=settings["model"],
        engine=lease.engine,
        columns=plan.columns,
        rows=plan.rows,
        fraction=plan.fraction,
        state=patches.states,
        probabilities=patches.probabilities,
        reasons=patches.reasons,
        tissue=header["tissue"],
        seconds=lease.seconds,
        key=lease.key,
        versions=settings["versions"],
        overview=load_png(folder / "overview.png"),
        mask=None if mask is None else mask > 0,
    )


def serve(lease: Write, post: Post) -> Written | Refused:
    """Write one slide's results. What ails the output folder as a whole is left to the caller."""
    out = Path(post.settings["out"])
    if lease.problem:
        write_failed(
            lease.id,
            lease.path,
            lease.problem,
            out,
            model=post.settings["model"],
            engine=lease.engine,
            seconds=lease.seconds,
            key=lease.key,
            versions=post.settings["versions"],
        )
        return Written(lease.lease, "failed", lease.problem, 0, 0, 0)
    record = record_of(lease, post.settings)
    write_slide(record, out, post.config["results"]["formats"], post.config["results"]["heatmap_class"])
    counts, state = record.counts(), record.outcome()
    reason = "" if state == "complete" else f"{counts.failed} of {counts.planned} patches failed"
    return Written(lease.lease, state, reason, counts.planned, counts.inferred, counts.failed)


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
                    answer = Refused(lease.lease, f"its results could not be written: {error}")
                link.send(answer)


if __name__ == "__main__":
    main("writer", work)
