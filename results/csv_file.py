"""``model-outputs-csv/<slide>.csv``: WSInfer's table of patches."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from results import table
from results.atomic import write_atomic
from results.record import SlideRecord


def write_csv(record: SlideRecord, path: Path) -> None:
    """Write the inferred patches: ``minx,miny,width,height,prob_<class>...``, one line each, by grid row then column.

    Coordinates are integers in level-0 px, probabilities the shortest decimals that give the same float32 back.
    A failed patch has no probability, so it has no line. The same record gives the same bytes.
    Columns as WSInfer writes them (wsinfer run, results directory ``model-outputs-csv``). Raises OSError.
    """
    header = io.StringIO()
    names = ["minx", "miny", "width", "height", *(f"prob_{name}" for name in record.classes)]
    csv.writer(header, lineterminator="\n").writerow(names)

    def write(file: BinaryIO) -> None:
        file.write(header.getvalue().encode("utf-8", "surrogateescape"))
        table.write_rows(file, _lines(record))

    write_atomic(path, write)


def _lines(record: SlideRecord) -> Iterator[memoryview]:
    size = f",{int(record.geometry['patch_width'])},{int(record.geometry['patch_height'])}"
    for index in table.chunks(record.inferred_order()):
        pieces = [table.integers(record.minx(index)), ",", table.integers(record.miny(index)), size]
        for column in range(len(record.classes)):
            pieces += [",", table.floats(record.probabilities[index, column])]
        yield table.join(*pieces, "\n")
