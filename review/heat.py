"""The patches of a slide for the viewer: from the journal while the slide runs, from its table when it is finished.

As bytes, little-endian: "SSH1", u32 version, u32 patches n, u32 classes c, u32 next; then i32 columns (n), i32 rows (n),
u8 states (n: 0 pending, 1 inferred, 2 failed), zeros up to a multiple of 4, u8 probabilities (n, c: round(p * 255), 0 where
nothing was inferred).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from results.columns import share
from results.journal import Follower
from results.layout import output_path
from results.record import FAILED, INFERRED, PENDING
from review.errors import Refused
from slides.plan import Plan

MAGIC, VERSION = b"SSH1", 1
# `next`: eight bits of the journal's epoch, so that another journal's count is not taken for this one's, and 24 of its
# changes. FINAL: of a table to which nothing will be added.
FINAL = 0xFFFFFFFF
_COUNT_BITS = 24
_EPOCHS = 0xFF
NO_REASON = "its reason was not kept"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The n planned patches of a slide as one model knows them.

    `columns`, `rows` int32 (n,); `states` uint8 (n,); `probabilities` float32 (n, classes), NaN where nothing was inferred;
    `reasons` by index. `grid`: as `reading` of a summary. `version` changes with any of it; `changed`: indices in the order
    of their changes, None for a slide that is finished.
    """

    columns: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    states: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]
    reasons: dict[int, str]
    classes: tuple[str, ...]
    grid: dict[str, Any]
    version: str
    changed: npt.NDArray[np.int32] | None = None
    epoch: int = 0

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.columns.nbytes + self.rows.nbytes + self.states.nbytes + self.probabilities.nbytes

    def at(self, column: int, row: int) -> int | None:
        """Index of the patch at a place of the grid; None where none is planned."""
        found = np.flatnonzero((self.columns == column) & (self.rows == row))
        return int(found[0]) if len(found) else None


def encode(table: Table, since: int = 0) -> bytes:
    """The bytes above: all patches for 0, else those that changed since an answer whose `next` was `since`.

    All of them, too, where `since` is no number that this table can have given.
    """
    if table.changed is None:
        following, which = FINAL, (slice(0, 0) if since == FINAL else slice(None))
    else:
        count, epoch = len(table.changed), table.epoch << _COUNT_BITS
        following = epoch | min(count, (1 << _COUNT_BITS) - 1)
        known = 0 < since - epoch <= count
        which = np.unique(table.changed[since - epoch :]) if known else slice(None)
    columns, rows, states = table.columns[which], table.rows[which], table.states[which]
    n, classes = len(states), table.probabilities.shape[1]
    probabilities = np.nan_to_num(table.probabilities[which])
    levels = np.floor(np.clip(probabilities, 0, 1) * 255 + 0.5).astype(np.uint8)
    levels[states != INFERRED] = 0
    head = struct.pack("<4sIIII", MAGIC, VERSION, n, classes, following)
    body = (
        columns.astype("<i4").tobytes(),
        rows.astype("<i4").tobytes(),
        states.tobytes(),
        bytes(-n % 4),
        levels.tobytes(),
    )
    return b"".join((head, *body))


def running(follower: Follower, plan: Plan, classes: tuple[str, ...], part: slice) -> Table:
    """The table of one model from the journal of a slide that is under way; `part`: its columns."""
    header, patches = follower.header, follower.patches
    own = share(patches.states, patches.probabilities, patches.reasons, part)
    changed = follower.changed
    # Copies: the follower goes on in another thread.
    return Table(
        plan.columns,
        plan.rows,
        own.states.copy(),
        own.probabilities.copy(),
        dict(own.reasons),
        classes,
        header["geometry"],
        f"journal-{len(changed)}",
        changed,
        zlib.crc32(repr(header["key"]).encode() + header["plan"]) % _EPOCHS,
    )


def finished(out: Path, slide: str, summary: dict[str, Any], version: str) -> Table:
    """The table of a finished slide: from Parquet, else from CSV and summary. Refused (404) where it has neither."""
    classes = tuple((summary.get("model") or {}).get("classes") or ())
    outputs, grid = summary.get("outputs") or {}, summary.get("reading")
    if grid is None or not classes:
        return nothing(classes, grid or {}, version)
    for name, read in (("parquet", _from_parquet), ("csv", _from_csv)):
        path = out / output_path(slide, name)  # not what the summary says: a path out of the folder is not followed
        if name in outputs and path.is_file():
            return read(path, summary, classes, grid, version)
    if not summary["patches"]["planned"]:
        return nothing(classes, grid, version)
    raise Refused(
        404, "no_table", "this result has no table of its patches; run again with csv or parquet in results.formats"
    )


def nothing(classes: tuple[str, ...], grid: dict[str, Any] | None = None, version: str = "") -> Table:
    """The table of a slide without patches."""
    none, states = np.zeros(0, np.int32), np.zeros(0, np.uint8)
    return Table(none, none, states, np.zeros((0, len(classes)), np.float32), {}, classes, grid or {}, version)


def _from_parquet(
    path: Path, summary: dict[str, Any], classes: tuple[str, ...], grid: dict[str, Any], version: str
) -> Table:
    import pyarrow.parquet as pq  # half a second, which a worklist does without

    names = [f"prob_{name}" for name in classes]
    table = pq.read_table(path, columns=["column", "row", "state", "reason", *names], use_threads=False)
    states = np.array(table["state"].to_numpy(zero_copy_only=False) == "inferred")
    codes = np.where(states, INFERRED, FAILED).astype(np.uint8)
    probabilities = np.stack(
        [table[name].to_numpy(zero_copy_only=False).astype(np.float32, copy=False) for name in names], axis=1
    )
    failed = np.flatnonzero(codes == FAILED)
    texts = table["reason"].take(failed).to_pylist() if len(failed) else []
    reasons = {int(i): text or NO_REASON for i, text in zip(failed, texts, strict=True)}
    columns, rows = (table[name].to_numpy().astype(np.int32, copy=False) for name in ("column", "row"))
    return Table(columns, rows, codes, np.ascontiguousarray(probabilities), reasons, classes, grid, version)


def _from_csv(
    path: Path, summary: dict[str, Any], classes: tuple[str, ...], grid: dict[str, Any], version: str
) -> Table:
    from pyarrow import csv

    table = csv.read_csv(path, read_options=csv.ReadOptions(use_threads=False))
    x, y = (table[name].to_numpy() for name in ("minx", "miny"))
    columns = ((x - grid["origin_x"]) // grid["step_x"]).astype(np.int32)
    rows = ((y - grid["origin_y"]) // grid["step_y"]).astype(np.int32)
    names = [f"prob_{name}" for name in classes]
    probabilities = np.stack([table[name].to_numpy().astype(np.float32) for name in names], axis=1)
    failures = summary.get("failed_patches") or []
    n, lost = len(columns), len(failures)
    return Table(
        np.concatenate([columns, np.array([failure["column"] for failure in failures], np.int32)]),
        np.concatenate([rows, np.array([failure["row"] for failure in failures], np.int32)]),
        np.concatenate([np.full(n, INFERRED, np.uint8), np.full(lost, FAILED, np.uint8)]),
        np.concatenate([probabilities, np.full((lost, len(classes)), np.nan, np.float32)]),
        {n + i: failure["reason"] for i, failure in enumerate(failures)},
        classes,
        grid,
        version,
    )


def patch(table: Table, column: int, row: int) -> dict[str, Any]:
    """What is known of one patch, for the pointer. `state` is null where no patch is planned."""
    index = table.at(column, row)
    if index is None:
        return {"state": None, "reason": None, "probabilities": {}}
    state = int(table.states[index])
    values = {}
    if state == INFERRED:
        values = {name: float(p) for name, p in zip(table.classes, table.probabilities[index], strict=True)}
    return {
        "state": {PENDING: "pending", INFERRED: "inferred", FAILED: "failed"}[state],
        "reason": table.reasons.get(index, NO_REASON) if state == FAILED else None,
        "probabilities": values,
    }
