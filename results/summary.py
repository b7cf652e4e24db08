"""``slides/<slide>.json``: what became of a slide. Written last: where it is, the slide's other files are whole."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from results.atomic import write_atomic
from results.layout import output_path
from results.record import FAILED, INFERRED, Counts, SlideRecord

FORMAT = "slidestream-slide/1"
_FAILED_KEY = '"failed_patches": ['
# How the list begins: at the beginning of a line, which nothing within a string of JSON can be.
_FAILED_LINE = f"\n {_FAILED_KEY}".encode()
_HEAD_BYTES = 32 << 10


def write_summary(
    record: SlideRecord, path: Path, outputs: Mapping[str, str] | None = None, formats: Collection[str] = ()
) -> None:
    """Write the summary of a finished slide; its keys are documented in docs/results.md.

    ``outputs`` maps format to path relative to the output folder; ``formats`` are the ones that were asked for (a
    slide of which nothing was inferred has fewer files than that). Raises ValueError while a patch is pending or a
    failed one has no reason, OSError.
    """
    counts = record.counts()
    state = record.outcome()
    values = _head(record.slide, record.path, state, _reason(record, counts))
    values |= _slide_values(record.info)
    values |= {
        "reading": {name: record.geometry[name] for name in sorted(record.geometry)},
        "patches": counts._asdict(),
        "probabilities": probabilities(record),
        "tissue": record.tissue,
        "model": {name: record.model[name] for name in record.model},
        "engine": record.engine,
        "seconds": record.seconds,
        "key": record.key,
        "versions": record.versions,
        "formats": sorted(formats),
        "outputs": dict(outputs or {}),
    }
    _write(path, values, _failed_lines(record))


def write_failed_summary(
    slide: str,
    path: str,
    reason: str,
    to: Path,
    *,
    info: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    key: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write the summary of a slide that has no plan (it could not be opened, say): no patches, only the reason."""
    values = _head(slide, path, "failed", reason)
    values |= _slide_values(info)
    values |= {
        "reading": None,
        "patches": Counts(0, 0, 0)._asdict(),
        "probabilities": {},
        "tissue": None,
        "model": model and dict(model),
        "engine": engine and dict(engine),
        "seconds": dict(seconds or {}),
        "key": dict(key or {}),
        "versions": dict(versions or {}),
        "formats": [],
        "outputs": {},
    }
    _write(to, values, iter(()))


def read_summary(out: Path, slide: str) -> dict[str, Any] | None:
    """The summary of ``slide`` below the output folder ``out``; None where there is none, or none that is whole."""
    try:
        values = json.loads(Path(out, output_path(slide, "summary")).read_bytes())
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return values if isinstance(values, dict) and values.get("format_version") == FORMAT else None


def read_head(path: Path) -> dict[str, Any]:
    """A summary without its failed patches, of which there may be a million. OSError; ValueError where it is none."""
    with open(path, "rb") as file:
        data = b""
        while _FAILED_LINE not in data:
            more = file.read(_HEAD_BYTES)
            if not more:
                break
            data += more
    head, found, _ = data.partition(_FAILED_LINE)
    values = json.loads(head.rstrip().removesuffix(b",") + b"}" if found else data)
    if not isinstance(values, dict) or values.get("format_version") != FORMAT:
        raise ValueError(f"{path}: is no summary of a slide")
    return values


def is_complete(
    summary: Mapping[str, Any] | None, key: Mapping[str, str], out: Path, formats: Collection[str] | None = None
) -> bool:
    """Whether a slide needs no further work: complete, made from the same ``key``, every output there.

    ``formats``: where given, each of them must have been written, so that asking for one more is noticed.
    """
    if summary is None or summary.get("state") != "complete" or summary.get("key") != _plain(key):
        return False
    outputs = summary.get("outputs", {})
    if formats is not None and not set(formats) <= set(outputs):
        return False
    return all(Path(out, name).is_file() for name in outputs.values())


def probabilities(record: SlideRecord) -> dict[str, dict[str, float]]:
    """Mean, highest value, 99th percentile and share of the inferred patches at 0.5 or more, for each class; {} where
    there are none."""
    values = record.probabilities[record.state == INFERRED]
    if not len(values):
        return {}
    return {
        name: {
            "mean": float(values[:, number].mean(dtype=np.float64)),
            "max": float(values[:, number].max()),
            "p99": float(np.quantile(values[:, number], 0.99)),
            "share_at_least_half": float((values[:, number] >= 0.5).mean()),
        }
        for number, name in enumerate(record.classes)
    }


def _head(slide: str, path: str, state: str, reason: str | None) -> dict[str, Any]:
    return {"format_version": FORMAT, "slide": slide, "path": path, "state": state, "reason": reason}


def _slide_values(info: Mapping[str, Any] | None) -> dict[str, Any]:
    if info is None:
        return {"format": None, "size": None, "mpp": None, "levels": None, "bounds": None, "objective_power": None}
    sizes, downsamples = info["level_sizes"], info["level_downsamples"]
    return {
        "format": info["format"],
        "size": {"width": info["width"], "height": info["height"]},
        "mpp": {"x": info["mpp_x"], "y": info["mpp_y"], "source": info["mpp_source"]},
        "levels": [
            {"width": size[0], "height": size[1], "downsample": downsample}
            for size, downsample in zip(sizes, downsamples, strict=True)
        ],
        "bounds": info.get("bounds"),
        "objective_power": info.get("objective_power"),
    }


def _reason(record: SlideRecord, counts: Counts) -> str | None:
    if not counts.failed:
        return None
    failed = np.flatnonzero(record.state == FAILED)
    text, times = Counter(record.reasons[int(i)] for i in failed).most_common(1)[0]
    return f"{counts.failed} of {counts.planned} patches failed; {times} of them: {text}"


def _failed_lines(record: SlideRecord) -> Iterator[str]:
    order = record.grid_order()
    order = order[record.state[order] == FAILED]
    minx, miny = record.minx(order), record.miny(order)
    for place, patch in enumerate(order):
        yield _dump(
            {
                "patch": int(patch),
                "column": int(record.columns[patch]),
                "row": int(record.rows[patch]),
                "minx": int(minx[place]),
                "miny": int(miny[place]),
                "reason": record.reasons[int(patch)],
            }
        )


def _write(path: Path, values: dict[str, Any], failed: Iterator[str]) -> None:
    """Failed patches come last and one a line: a slide whose every patch failed must not need gigabytes here."""
    head = _dump(values, indent=1)

    def write(file: BinaryIO) -> None:
        file.write(f"{head[: head.rindex('}')].rstrip()},\n {_FAILED_KEY}".encode())
        separator = "\n  "
        for line in failed:
            file.write(f"{separator}{line}".encode())
            separator = ",\n  "
        file.write(b"]\n}\n")

    write_atomic(path, write)


def _dump(values: Any, indent: int | None = None) -> str:
    """Strict JSON: a number that JSON cannot say is null; undecodable bytes in a path become escapes."""
    plain = _plain(values)
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(plain, indent=indent, allow_nan=False)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
