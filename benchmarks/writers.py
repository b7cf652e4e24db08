"""How fast each file of a finished slide is written, and the journal before it: patches a second, over one large slide.

    python -m benchmarks.writers                    100,000 patches, two classes
    python -m benchmarks.writers --patches 1000000 --folder /mnt/share

Processor time of one core, the best of three, and the clock's, with all syncs to disk. Journal: records of one batch each,
synced together 20 times a second as the aggregator does at most; then it is read again, as the writer does.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks import table
from results.journal import Journal, read
from results.layout import FORMATS
from results.pictures import load_pictures, save_pictures
from results.record import SlideRecord
from results.summary import write_summary
from results.write import _writer, load, write_slide
from slides.geometry import SlideInfo, geometry
from slides.plan import plan

AIM = 100_000
FLUSH_S = 0.05
CLASSES = ["normal", "tumour"]


def record_of(patches: int, overview_px: int) -> SlideRecord:
    """A slide that is 70 % tissue, with so many patches of it, every hundredth failed."""
    side = int((patches / 0.7) ** 0.5 * 224)
    info = SlideInfo("a.svs", "aperio", side, side, ((side, side),), (1.0,), 0.25, 0.25, "slide")
    grid = geometry(info, 224, 0.25)
    rng = np.random.default_rng(1)
    field = cv2.GaussianBlur(rng.random((overview_px, overview_px), np.float32), (0, 0), overview_px / 40)
    mask = field > np.quantile(field, 0.3)
    found = plan(mask, info, grid, 0.5)
    n = len(found)
    tumour = rng.random(n, np.float32)
    state = np.where(np.arange(n) % 100, 1, 2).astype(np.uint8)
    grain = rng.integers(0, 40, (overview_px, overview_px, 3)).astype(np.uint8)
    overview = np.where(mask[..., None], np.uint8([190, 120, 170]) + cv2.blur(grain, (3, 3)), np.uint8(244))
    return SlideRecord(
        slide="a.svs",
        path="/slides/a.svs",
        info=info.to_dict(),
        geometry=grid.to_dict(),
        model={"name": "demo", "sha256": "0" * 64, "classes": CLASSES, "patch_px": 224, "spacing": 0.25},
        engine={},
        columns=found.columns,
        rows=found.rows,
        fraction=found.fraction,
        state=state,
        probabilities=np.stack([1 - tumour, tumour], axis=1),
        reasons={int(i): "tile cannot be decoded" for i in np.flatnonzero(state == 2)},
        tissue={"method": "brightfield", "threshold": 20.0, "area_mm2": 1.0, "um_per_px": 2.0},
        overview=overview.astype(np.uint8),
        mask=mask,
    )


def measure(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """(processor seconds, clock seconds), the best of the rounds."""
    found = []
    for _ in range(rounds):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        found.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(cpu for cpu, _ in found), min(wall for _, wall in found)


def journal(record: SlideRecord, folder: Path, batch: int) -> None:
    """All patches, in records of a batch."""
    shutil.rmtree(folder, ignore_errors=True)
    from slides.plan import Plan

    header = {
        "id": record.slide, "path": record.path, "key": {}, "classes": len(CLASSES), "info": record.info,
        "geometry": record.geometry, "tissue": record.tissue,
        "plan": Plan(record.columns, record.rows, record.fraction).to_bytes(),
    }  # fmt: skip
    made = Journal.create(folder, header)
    since = time.monotonic()
    for start in range(0, len(record.state), batch):
        patches = np.arange(start, min(start + batch, len(record.state)), dtype="<i4")
        good = record.state[patches] == 1
        failures = [[int(patch), record.reasons[int(patch)]] for patch in patches[~good]]
        made.append(patches[good].tobytes(), record.probabilities[patches[good]].tobytes(), failures)
        if time.monotonic() - since > FLUSH_S:
            made.flush()
            since = time.monotonic()
    made.flush()
    made.close()


def main() -> int:
    parser = table.parser("writers", __doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=100_000, help="of the slide (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="of a record of the journal (default: %(default)s)")
    parser.add_argument("--overview-px", type=int, default=2048, help="slides.overview_px (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where files are written (default: the temporary directory)")
    arguments = parser.parse_args()
    machine = table.facts()
    record = record_of(arguments.patches, arguments.overview_px)
    load(FORMATS)
    figures: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(prefix="slidestream-writers-", dir=arguments.folder) as name:
        folder, rounds = Path(name), arguments.rounds
        figures["journal"] = measure(lambda: journal(record, folder / "work", arguments.batch), rounds)
        figures["journal, read"] = measure(lambda: read(folder / "work"), rounds)
        figures["pictures, kept"] = measure(lambda: save_pictures(folder, record.overview, record.mask), rounds)
        figures["pictures, read"] = measure(lambda: load_pictures(folder), rounds)
        for kind in FORMATS:
            write = _writer(kind, None)
            figures[kind] = measure(lambda kind=kind, write=write: write(record, folder / kind), rounds)
        figures["all formats"] = measure(lambda: write_slide(record, folder / "out", FORMATS), rounds)
        figures["summary"] = measure(lambda: write_summary(record, folder / "summary.json"), rounds)
    n = len(record.state)
    rows = [[what, 1e3 * cpu, 1e3 * wall, n / cpu, n / wall] for what, (cpu, wall) in figures.items()]
    columns = ["", "processor ms", "clock ms", "patches/processor s", "patches/s"]
    title = f"Files of a slide of {n:,} patches, overview of {arguments.overview_px} px"
    slowest = min(n / cpu for what, (cpu, _) in figures.items() if what in ("journal", "csv", "geojson", "parquet"))
    table.emit(arguments.json, title, columns, rows, machine=machine, slowest_per_s=slowest, aim_per_s=AIM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
