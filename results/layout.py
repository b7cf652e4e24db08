"""Where a slide's files lie below the output folder."""

from __future__ import annotations

from collections.abc import Collection

# Format name (as in the configuration's results.formats) -> folder and suffix. The first folders are WSInfer's names.
FORMATS: dict[str, tuple[str, str]] = {
    "csv": ("model-outputs-csv", ".csv"),
    "geojson": ("model-outputs-geojson", ".json"),
    "parquet": ("model-outputs-parquet", ".parquet"),
    "mask": ("masks", ".png"),
    "heatmap_png": ("heatmaps", ".png"),
    "heatmap_tiff": ("heatmaps", ".tiff"),
}
SUMMARY = ("slides", ".json")
NAME_BYTES = 255  # of one file name, on every file system of Linux that matters


def check_slide_id(slide: str) -> str:
    """``slide`` itself; ValueError where it would lead out of the output folder or is no file name."""
    parts = slide.split("/")
    if not slide or "\0" in slide or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"slide id {slide!r} is not a path below the input folder; it cannot name a result file")
    return slide


def output_path(slide: str, name: str) -> str:
    """Path of the format ``name`` (or ``summary``) of ``slide``, relative to the output folder, '/'-separated."""
    folder, suffix = SUMMARY if name == "summary" else FORMATS[name]
    return f"{folder}/{check_slide_id(slide)}{suffix}"


def name_problem(slide: str, formats: Collection[str]) -> str:
    """Why ``slide`` is too long a name for its files, whose endings may be longer than its own was; "" where it is not."""
    most = NAME_BYTES - max(len(suffix) for _, suffix in (SUMMARY, *(FORMATS[name] for name in formats)))
    length = len(slide.rpartition("/")[2].encode("utf-8", "surrogateescape"))
    if length <= most:
        return ""
    return f"its name is too long for those of its result files ({length} bytes without its ending); rename it to {most} or less"


def check_formats(formats: set[str]) -> list[str]:
    """``formats`` in the order in which they are written; ValueError names one that does not exist."""
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise ValueError(f"unknown result format {unknown[0]!r}; known are {', '.join(FORMATS)}")
    return [name for name in FORMATS if name in formats]
