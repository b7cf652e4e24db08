"""``heatmaps/<slide>.tiff``: the probabilities as an image that QuPath lays over the slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tifffile

from results.atomic import write_atomic
from results.geojson import uuid_prefix
from results.raster import halve, probability_raster
from results.record import SlideRecord

TILE = 256


def write_heatmap_tiff(record: SlideRecord, path: Path) -> None:
    """Write a tiled OME-TIFF pyramid (levels as SubIFDs, zlib): float32, one channel a class, named ``prob_<class>``.

    One pixel is one step of the grid: pixel (x, y) covers level-0 px from (origin_x + x step_x, origin_y + y step_y)
    on, so the downsample to level 0 is exactly (step_x, step_y) and PhysicalSizeX/Y is that times mpp. The last column
    and row may overhang the slide by less than a patch. NaN where nothing was inferred; with overlap, a mean over
    the patches that cover a pixel (results.raster). Levels: tifffile's and Bio-Formats' OME-TIFF pyramid
    (docs.openmicroscopy.org/ome-model, "Sub-resolutions"). The same record gives the same bytes. Raises OSError.
    """
    levels = [probability_raster(record, list(range(len(record.classes))))]
    while max(levels[-1].shape[1:]) > TILE:
        levels.append(halve(levels[-1]))
    options: dict[str, Any] = {
        "tile": (TILE, TILE),
        "compression": "zlib",
        "photometric": "minisblack",
        "resolutionunit": "CENTIMETER",
        "software": "slidestream",
    }

    def write(file: Any) -> None:
        with tifffile.TiffWriter(file, ome=True) as tiff:
            for number, level in enumerate(levels):
                size_x, size_y = _pixel_um(record, 2**number)
                tiff.write(
                    level,
                    subifds=len(levels) - 1 if number == 0 else None,
                    subfiletype=1 if number else 0,
                    metadata=_ome(record) if number == 0 else None,
                    resolution=(1e4 / size_x, 1e4 / size_y),
                    **options,
                )

    write_atomic(path, write)


def _pixel_um(record: SlideRecord, downsample: int = 1) -> tuple[float, float]:
    info, geometry = record.info, record.geometry
    return (
        geometry["step_x"] * info["mpp_x"] * downsample,
        geometry["step_y"] * info["mpp_y"] * downsample,
    )


def _ome(record: SlideRecord) -> dict[str, Any]:
    size_x, size_y = _pixel_um(record)
    metadata: dict[str, Any] = {
        "axes": "CYX",
        "Name": _xml_text(record.slide),
        "Creator": "slidestream",
        # Tifffile would draw a random one, and two runs would differ.
        "UUID": uuid_prefix(record) + "0" * 12,
        "PhysicalSizeX": size_x,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": size_y,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": [_xml_text(f"prob_{name}") for name in record.classes]},
    }
    x = record.geometry["origin_x"] * record.info["mpp_x"]
    y = record.geometry["origin_y"] * record.info["mpp_y"]
    if x or y:
        n = len(record.classes)
        metadata["Plane"] = {
            "PositionX": [x] * n,
            "PositionXUnit": ["µm"] * n,
            "PositionY": [y] * n,
            "PositionYUnit": ["µm"] * n,
        }
    return metadata


def _xml_text(text: str) -> str:
    """XML 1.0 has no place for control characters and lone surrogates, which file names may hold."""
    return "".join(c if c >= " " and not 0xD800 <= ord(c) <= 0xDFFF and c not in "\ufffe\uffff" else "?" for c in text)
