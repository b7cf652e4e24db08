"""All files of one slide, in the order that makes a crash harmless."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from results import atomic
from results.colours import heatmap_class as choose_class
from results.layout import FORMATS, SUMMARY, check_formats, output_path
from results.record import SlideRecord
from results.summary import write_failed_summary, write_summary

# Of a slide without a single probability only these say anything.
FAILED_FORMATS = ("parquet", "mask")


def load(formats: Collection[str]) -> None:
    """Import now what `write_slide` would import at its first use: half a second, best spent while there is nothing to do."""
    for name in check_formats(set(formats)):
        _writer(name, None)


def write_slide(
    record: SlideRecord, out: Path, formats: Collection[str], heatmap_class: str | None = None
) -> dict[str, str]:
    """Write the files of a finished slide below ``out``; format -> path relative to ``out``, '/'-separated.

    The old summary goes first and the new one comes last, so that at any moment a summary stands beside the files it
    speaks of. Files of formats that are not written now (a slide that failed this time, fewer formats) are removed:
    they would belong to another result. A slide of which nothing was inferred gets FAILED_FORMATS only; the format
    ``mask`` is left out where the record has none.

    Raises ValueError, before anything is touched, for a pending patch, a failed one without a reason, an unknown
    format or class, a slide id that leads out of ``out``; OSError with the file's path, then without a summary.
    """
    names = check_formats(set(formats))
    record.counts()
    choose_class(record.classes, heatmap_class)
    if record.outcome() == "failed":
        names = [name for name in names if name in FAILED_FORMATS]
    if record.mask is None:
        names = [name for name in names if name != "mask"]
    outputs = {name: output_path(record.slide, name) for name in names}

    atomic.remove(Path(out, output_path(record.slide, "summary")))
    writers = {name: (_writer(name, heatmap_class), Path(out, relative)) for name, relative in outputs.items()}
    slowest_first = sorted(writers, key=lambda name: name != "heatmap_png")  # it takes longer than all others together
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(writers[name][0], record, writers[name][1]) for name in slowest_first]:
            done.result()
    _remove_others(record.slide, out, outputs)
    write_summary(record, Path(out, output_path(record.slide, "summary")), outputs, formats)
    return outputs


def write_failed(
    slide: str,
    path: str,
    reason: str,
    out: Path,
    *,
    info: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    key: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write the summary of a slide that never got a plan (not a slide, no mpp, gone): state failed and the reason.

    Files of an earlier result of this slide are removed. Raises ValueError for a bad slide id, OSError.
    """
    summary = Path(out, output_path(slide, "summary"))
    atomic.remove(summary)
    _remove_others(slide, out, {})
    write_failed_summary(
        slide, path, reason, summary,
        info=info, model=model, engine=engine, seconds=seconds, key=key, versions=versions,
    )  # fmt: skip


def sweep(out: Path) -> int:
    """Remove what killed writers left half-written below ``out``; how many files. Call it before anyone writes."""
    folders = {folder for folder, _ in (*FORMATS.values(), SUMMARY)}
    return sum(atomic.sweep(Path(out, folder)) for folder in sorted(folders))


def _remove_others(slide: str, out: Path, outputs: Mapping[str, str]) -> None:
    for name in FORMATS:
        if name not in outputs:
            atomic.remove(Path(out, output_path(slide, name)))


def _writer(name: str, heatmap_class: str | None) -> Any:
    """Imported when used: a run that wants only a CSV should not load OpenCV, Pillow and tifffile."""
    if name == "csv":
        from results.csv_file import write_csv as write
    elif name == "geojson":
        from results.geojson import write_geojson as write
    elif name == "parquet":
        from results.parquet import write_parquet as write
    elif name == "mask":
        from results.mask import write_mask as write
    elif name == "heatmap_tiff":
        from results.heatmap_tiff import write_heatmap_tiff as write
    else:
        from results.heatmap_png import write_heatmap_png

        write = partial(write_heatmap_png, wanted=heatmap_class)
    return write
