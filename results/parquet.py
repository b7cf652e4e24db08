"""``model-outputs-parquet/<slide>.parquet``: every planned patch, failed ones too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from results.atomic import write_atomic
from results.record import FAILED, INFERRED, OWN_PATCH_PX, STATE_NAMES, SlideRecord


def write_parquet(record: SlideRecord, path: Path) -> None:
    """Write one row for each planned patch, by grid row then column; a failed one has null probabilities and a reason.

    Columns: minx, miny, width, height (int32, level-0 px), column, row, patch (int32), tissue_fraction (float32),
    state (dictionary of ``inferred``, ``failed``), reason (string), prob_<class> (float32). The schema's metadata has
    the key ``slidestream``: JSON with slide, mpp, model and what else a row cannot say. Raises OSError, and
    ValueError where a patch is pending.
    """
    record.counts()
    data = to_table(record)
    write_atomic(path, lambda file: pq.write_table(data, file, compression="zstd", row_group_size=1 << 17))


def to_table(record: SlideRecord) -> pa.Table:
    """The rows of ``write_parquet`` with their schema and metadata."""
    order = record.grid_order()
    state = record.state[order]
    failed = state == FAILED
    geometry, n = record.geometry, len(order)
    names = STATE_NAMES[INFERRED : FAILED + 1]
    columns: dict[str, pa.Array] = {
        "minx": pa.array(record.minx(order).astype(np.int32)),
        "miny": pa.array(record.miny(order).astype(np.int32)),
        "width": pa.array(np.full(n, geometry["patch_width"], np.int32)),
        "height": pa.array(np.full(n, geometry["patch_height"], np.int32)),
        "column": pa.array(record.columns[order].astype(np.int32)),
        "row": pa.array(record.rows[order].astype(np.int32)),
        "patch": pa.array(order.astype(np.int32)),
        "tissue_fraction": pa.array(record.fraction[order].astype(np.float32)),
        "state": pa.DictionaryArray.from_arrays(pa.array((state - INFERRED).astype(np.int8)), pa.array(names)),
        "reason": _reasons(record, order, failed),
    }
    for number, name in enumerate(record.classes):
        columns[f"prob_{name}"] = pa.array(record.probabilities[order, number], mask=failed)
    table = pa.table(list(columns.values()), names=list(columns))
    return table.replace_schema_metadata({"slidestream": json.dumps(metadata(record), default=_plain)})


def metadata(record: SlideRecord) -> dict[str, object]:
    """What the table's schema says about the whole slide; JSON-safe."""
    return {
        "slide": record.slide,
        "mpp_x": record.info["mpp_x"],
        "mpp_y": record.info["mpp_y"],
        "mpp_source": record.info["mpp_source"],
        "width": record.info["width"],
        "height": record.info["height"],
        "level": record.geometry["level"],
        "patch_px": record.geometry["patch_px"],
        "spacing": record.geometry["spacing"],
        "resampling": record.geometry["resampling"],
        "model": {
            **{name: record.model[name] for name in ("name", "sha256", OWN_PATCH_PX) if name in record.model},
            "classes": list(record.classes),
        },
        "engine": record.engine,
        "versions": record.versions,
    }


def _reasons(record: SlideRecord, order: np.ndarray, failed: np.ndarray) -> pa.Array:
    """Null for the inferred; a dictionary keeps one copy of a text that a million patches may share."""
    texts: dict[str, int] = {}
    code = np.zeros(len(order), np.int32)
    for place in np.flatnonzero(failed):
        reason = record.reasons[int(order[place])]
        code[place] = texts.setdefault(reason, len(texts))
    values = pa.array([text.encode("utf-8", "replace").decode() for text in texts], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(code, mask=~failed), values)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else str(value)
