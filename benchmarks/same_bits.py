"""Does a patch get the same bits whatever context, row, batch, load and process it meets? If not: the largest difference.

    python -m benchmarks.same_bits --network resnet50 --engine tensorrt       on a GPU
    python -m benchmarks.same_bits --network demo --engine onnx --batch 8      on any machine

An engine is opened in three processes, one after the other: the first finds no compiled kernels, the later ones those that it
left. In each the same patches go through every context: at every row, in batches of other sizes, and with all contexts busy
at once. All are compared with that context's own first answers, these with those of the first context, and the first context's
with those of the first process. 0 is the same bits. With `tensorrt` that is done in two ways:

- one size: as `slidestream engine build` does, an engine for this batch size alone
- any size: one that takes every batch up to this size

Patches/s are those of all contexts at work, so that it is seen what a way costs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.prepared import NAMES, Ready, ready
from engines.engine import Context, Engine

PROCESSES = 3
ROUNDS = 30  # with all contexts busy at once
TIMEOUT_S = 120
ONE_SIZE, ANY_SIZE = "one size", "any size"
COLUMNS = ("way", "process", "contexts", "rows", "batches", "load", "processes", "start s", "patches/s")


@dataclass(frozen=True, slots=True)
class Differences:
    """The largest absolute differences of probabilities; 0.0 is the same bits."""

    contexts: float
    rows: float
    batches: float
    load: float

    @property
    def none(self) -> bool:
        return not any(asdict(self).values())


def compare(
    contexts: Sequence[Context], patches: np.ndarray, rows: int | None = None
) -> tuple[Differences, np.ndarray]:
    """What differs, and the first context's answers. `patches` uint8 (n, P, P, 3), one batch; `rows`: of its rotations."""
    count = len(patches)

    def answers(context: Context, batch: np.ndarray) -> np.ndarray:
        context.submit(np.ascontiguousarray(batch))
        return context.result()

    def largest(found: list[np.ndarray]) -> float:
        # A NaN is a difference too.
        return max((float(np.nan_to_num(np.abs(part), nan=np.inf).max(initial=0.0)) for part in found), default=0.0)

    own = [answers(context, patches) for context in contexts]
    pairs = list(zip(contexts, own, strict=True))
    rolled = [
        np.roll(answers(context, np.roll(patches, step, axis=0)), -step, axis=0) - first
        for context, first in pairs
        for step in range(1, count if rows is None else min(count, rows + 1))
    ]
    sizes = sorted({1, min(7, count), max(1, count // 2), max(1, count - 1)})
    smaller = [answers(context, patches[:size]) - first[:size] for context, first in pairs for size in sizes]
    loaded = []
    for _ in range(ROUNDS):
        for context in contexts:
            context.submit(patches)
        loaded += [context.result() - first for context, first in pairs]
    apart = [other - own[0] for other in own[1:]]
    return Differences(largest(apart), largest(rolled), largest(smaller), largest(loaded)), own[0]


# ------------------------------------------------------------ in a process of its own


def _open(facts: dict[str, Any]) -> Engine:
    shape = {"classes": facts["classes"], "patch_px": facts["patch_px"], "max_batch": facts["batch"]}
    if facts["engine"] == "onnx":
        from engines.check import prepare
        from engines.engine import open_engine
        from engines.model import load_model

        folded = Path(facts["answers"]).with_suffix(".onnx")
        prepare(load_model(Path(facts["model"])), folded)
        return open_engine("onnx", folded, **shape, threads=1)
    from engines.backend import open_plan

    return open_plan(Path(facts["plan"]), **shape, unverified=True)


def _try(facts: dict[str, Any]) -> dict[str, Any]:
    from engines.choose import measure

    patches = np.load(facts["patches"])
    began = time.monotonic()
    engine = _open(facts)
    try:
        contexts = engine.contexts(facts["contexts"])
        start_s = time.monotonic() - began
        batch = np.resize(patches, (facts["batch"], *patches.shape[1:]))
        found, answers = compare(contexts, batch, facts["rows"])
    finally:
        engine.close()
    np.save(facts["answers"], answers)
    engine = _open(facts)  # afresh: the speed is that of as many contexts, not of more
    try:
        speed = measure(engine, batch, facts["batch"], facts["contexts"], facts["seconds"])
    finally:
        engine.close()
    return {**asdict(found), "start_s": round(start_s, 2), "per_s": round(speed, 1)}


def _make(facts: dict[str, Any]) -> dict[str, Any]:
    """An engine for batches of every size; its plan."""
    from engines.cache import EngineCache
    from engines.cuda import find_gpu
    from engines.flavour import load_flavour
    from engines.make import Maker, Order
    from engines.model import load_model
    from engines.recipe import BuildOptions, Profile

    model, batch = load_model(Path(facts["model"])), facts["batch"]
    profiles = (Profile(model.patch_px, 1, batch, batch),)
    order = Order(model, facts["precision"], profiles, BuildOptions(), load_flavour(), find_gpu())
    return {"plan": str(Maker(EngineCache(Path(facts["engines"]))).make(order).plan.absolute())}


def _ask(facts: dict[str, Any]) -> dict[str, Any]:
    """RuntimeError with its last words where it fails, subprocess.TimeoutExpired."""
    done = table.run(table.python("-m", "benchmarks.same_bits", "--child", json.dumps(facts)), TIMEOUT_S)
    return json.loads(next(line for line in reversed(done.output.splitlines()) if line.startswith("{")))


# ------------------------------------------------------------ ways and processes


def ways(subject: Ready, facts: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Facts of each way by its name."""
    if subject.kind != "tensorrt":
        return {"as in a run": {**facts, "plan": str(subject.plan)}}
    free = _ask({**facts, "do": "make", "engines": str(folder / f"engines-any-{facts['batch']}")})["plan"]
    return {ONE_SIZE: {**facts, "plan": str(subject.plan)}, ANY_SIZE: {**facts, "plan": free}}


def tried(name: str, facts: dict[str, Any], scratch: Path) -> list[dict[str, Any]]:
    """A row for each process."""
    scratch.mkdir()
    if facts["engine"] != "onnx":
        plan = Path(facts["plan"])
        for file in (plan, plan.with_suffix(".json")):  # without the kernels beside it
            shutil.copy(file, scratch / file.name)
        facts = {**facts, "plan": str(scratch / plan.name)}
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for number in range(PROCESSES):
        answers = scratch / f"answers-{number}.npy"
        found = _ask({**facts, "do": "try", "answers": str(answers)})
        mine = np.load(answers)
        first = mine if first is None else first
        apart = float(np.nan_to_num(np.abs(mine - first), nan=np.inf).max())
        row = {"way": name, "process": number, **found, "processes": apart}
        row["start s"], row["patches/s"] = row.pop("start_s"), row.pop("per_s")
        rows.append(row)
    return rows


def same(rows: Sequence[dict[str, Any]]) -> bool:
    return not any(row[name] for row in rows for name in ("contexts", "rows", "batches", "load", "processes"))


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.same_bits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50", help=NAMES)
    parser.add_argument("--engine", choices=("tensorrt", "aoti", "onnx"), default="tensorrt")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--contexts", type=int, default=3)
    parser.add_argument("--rows", type=int, help="rotations of a batch (default: every row)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of speed")
    parser.add_argument("--folder", type=Path, help="where networks and engines are kept (default: temporary)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON here as figures come")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        facts = json.loads(args.child)
        print(json.dumps((_make if facts["do"] == "make" else _try)(facts)))
        return 0
    from engines.model import load_model

    machine, rows = table.facts(), []
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        folder = args.folder or Path(name)
        subject = ready(args.network, args.engine, args.batch, folder)
        model = load_model(subject.model)
        patches = subject.model / "patches.npy"
        if not patches.exists():
            patches = Path(name) / "patches.npy"
            side = model.patch_px
            np.save(patches, np.random.default_rng(0).integers(0, 256, (args.batch, side, side, 3), np.uint8))
        facts = {
            "engine": args.engine, "model": str(subject.model), "patches": str(patches), "batch": args.batch,
            "contexts": args.contexts, "rows": args.rows, "seconds": args.seconds, "classes": len(model.classes),
            "patch_px": model.patch_px, "precision": "fp16",
        }  # fmt: skip
        for number, (way, about) in enumerate(ways(subject, facts, folder).items()):
            try:
                found = tried(way, about, Path(name) / f"way-{number}")
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                found = [{"way": way, "problem": str(error).splitlines()[-1]}]
            rows += found
            print(*(json.dumps(row) for row in found), sep="\n", file=sys.stderr, flush=True)
            if args.out is not None:
                record = {"machine": machine, "network": subject.name, "engine": args.engine, "rows": rows}
                args.out.write_text(json.dumps(record, indent=1))
    good = [row for row in rows if "problem" not in row]
    print(f"{subject.name}, {args.engine}, batch {args.batch}, {args.contexts} contexts; 0 is the same bits\n")
    print(table.text(COLUMNS, [[row[column] for column in COLUMNS] for row in good]))
    # What a run does, which is the first way, is what must hold.
    return 0 if good and "problem" not in rows[0] and same([row for row in good if row["way"] == rows[0]["way"]]) else 1


if __name__ == "__main__":
    sys.exit(main())
