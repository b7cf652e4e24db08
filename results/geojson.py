"""``model-outputs-geojson/<slide>.json``: the patches as QuPath tiles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from results import table
from results.atomic import write_atomic
from results.colours import GREY, class_colours
from results.record import OWN_PATCH_PX, SlideRecord


def write_geojson(record: SlideRecord, path: Path) -> None:
    """Write a FeatureCollection with one tile for each inferred patch, by grid row then column.

    A feature has a UUID that is the same in every run, a closed rectangle (counter-clockwise as RFC 7946 asks),
    ``objectType`` tile, the classification of the highest probability (one class: itself from 0.5 on, else
    ``Other``) with its colour, and ``measurements`` as the object that QuPath 0.4 and later read (GeoJSON as in
    QuPath's ``QuPathTypeAdapters``). Coordinates are QuPath's: level-0 px from the corner of the scanned area, which
    is the slide's corner except where the slide names bounds (MIRAX and others; QuPath crops to them). The same
    record gives the same bytes. Raises OSError.
    """
    head = {
        "slide": record.slide,
        "model": {name: record.model[name] for name in ("name", "sha256", OWN_PATCH_PX) if name in record.model},
        "origin": list(qupath_origin(record)),
    }

    def write(file: BinaryIO) -> None:
        file.write(f'{{"type":"FeatureCollection","slidestream":{json.dumps(head)},"features":[\n'.encode())
        table.write_rows(file, _features(record), separator=b",\n")
        file.write(b"\n]}\n")

    write_atomic(path, write)


def qupath_origin(record: SlideRecord) -> tuple[int, int]:
    """Level-0 px (x, y) of QuPath's origin: QuPath's OpenSlide reader crops to the slide's bounds where it has them."""
    bounds = record.info.get("bounds")
    return (int(bounds[0]), int(bounds[1])) if bounds else (0, 0)


def uuid_prefix(record: SlideRecord) -> str:
    """The first 24 characters of every feature's UUID; the last 12 are the grid row and column, six digits each.

    A version 8 UUID (RFC 9562: custom): 74 bits of SHA-256 over slide, grid and model, then the place. One hash a
    slide instead of one a patch (uuid5): strings of a million features are made without a Python loop.
    """
    geometry = {name: record.geometry[name] for name in sorted(record.geometry)}
    text = json.dumps([record.slide, geometry, record.model["sha256"]], sort_keys=True, default=list)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-8{digest[12:15]}-{'89ab'[int(digest[15], 16) % 4]}{digest[16:19]}-"


def _features(record: SlideRecord) -> Iterator[memoryview]:
    left, top = qupath_origin(record)
    width, height = int(record.geometry["patch_width"]), int(record.geometry["patch_height"])
    labels = pa.array(_classifications(record))
    head = f'{{"type":"Feature","id":"{uuid_prefix(record)}'
    for index in table.chunks(record.inferred_order()):
        minx, miny = record.minx(index) - left, record.miny(index) - top
        x0, y0 = table.integers(minx), table.integers(miny)
        x1, y1 = table.integers(minx + width), table.integers(miny + height)
        probabilities = record.probabilities[index]
        ring = ['","geometry":{"type":"Polygon","coordinates":[[[', x0, ",", y0, "],[", x1, ",", y0, "],[",
                x1, ",", y1, "],[", x0, ",", y1, "],[", x0, ",", y0, "]]]},"]  # fmt: skip
        measured: list[pa.Array | str] = []
        for column, name in enumerate(record.classes):
            measured += [("," if column else "") + json.dumps(f"prob_{name}") + ":"]
            measured += [table.floats(probabilities[:, column])]
        yield table.join(
            head,
            pc.utf8_lpad(table.integers(record.rows[index]), 6, "0"),
            pc.utf8_lpad(table.integers(record.columns[index]), 6, "0"),
            *ring,
            '"properties":{"objectType":"tile","classification":',
            labels.take(pa.array(_winners(probabilities))),
            ',"measurements":{',
            *measured,
            "}}},\n",
        )


def _winners(probabilities: np.ndarray) -> np.ndarray:
    """Index into ``_classifications`` of each row of probabilities (float32, n x classes)."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] < 0.5).astype(np.int64)
    return probabilities.argmax(axis=1)


def _classifications(record: SlideRecord) -> list[str]:
    pairs = list(zip(record.classes, class_colours(record.classes), strict=True))
    if len(pairs) == 1:
        pairs.append(("Other", GREY))
    return [json.dumps({"name": name, "color": list(colour)}, separators=(",", ":")) for name, colour in pairs]
