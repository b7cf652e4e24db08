"""`slidestream bench engine`: each way to run a network on this GPU, side by side in one run.

For each model a table: latency at batch 1, images/s at the best of several batches and numbers of contexts, GPU memory there,
and the loss against ONNX Runtime in float32 (engines.verify). Ours are TensorRT in FP32, FP16 and INT8 and AOTInductor in FP16,
PyTorch's are eager in FP32 and FP16 (channels last) and torch.compile in FP16, where the model directory holds a PyTorch network.

First everything is built, several at a time; then one after the other is measured, each in a process of its own. What fails is
a line with its reason. Rows are printed, and written with --out, as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.model import load_model
from pipeline.config import ConfigError, load_config
from pipeline.engine_variants import AOTI, ON_CPU, ONNX, REFERENCE, TENSORRT, VARIANTS
from pipeline.machine import detect
from pipeline.torch_variants import COMPILED, EAGER

PATCHES = 256
CALIBRATED = 500
SHOWN = {
    EAGER: "PyTorch eager",
    COMPILED: "torch.compile",
    TENSORRT: "TensorRT",
    AOTI: "AOTInductor",
    ONNX: "ONNX Runtime",
}
_TISSUE_PX = 6000
_WORKER = [sys.executable, "-m", "pipeline.engine_variants"]

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured: its directory, patches and calibration patches as .npy, uint8 (n, P, P, 3), perhaps labels
    int (n,), and where PyTorch takes its network from if not from the directory: (module with a function `load`, argument).
    """

    name: str
    directory: Path
    patches: Path
    calibration: Path
    labels: Path | None = None
    module: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how long it may take."""

    variants: tuple[str, ...] = VARIANTS
    batches: tuple[int, ...] = (32, 64, 128, 256)
    compiled_batches: tuple[int, ...] = (128, 256)
    """Of what is compiled for one batch size: torch.compile and AOTInductor."""
    contexts: tuple[int, ...] = (1, 2, 3)
    seconds: float = 0.7
    jobs: int = 8
    prepare_s: float = 180.0
    measure_s: float = 90.0
    threads: int = field(default_factory=lambda: detect().cores)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `slidestream bench engine`."""
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="model directories")
    parser.add_argument(
        "--tissue", nargs="+", type=Path, default=[], metavar="SLIDE",
        help="slides or folders to take patches from (default: synthetic ones)",
    )  # fmt: skip
    parser.add_argument(
        "--labelled", type=Path, metavar="DIR", help="a folder of pictures for each label, for the loss"
    )
    parser.add_argument("--positive", metavar="NAME", help="the label of the last class (default: its name)")
    add_plan(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The options of what is measured."""
    plan = Plan(threads=1)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=(*VARIANTS, ON_CPU),
        default=list(VARIANTS),
        metavar="NAME",
        help=f"of {', '.join((*VARIANTS, ON_CPU))}",
    )
    parser.add_argument("--batches", nargs="+", type=int, default=list(plan.batches), metavar="N")
    parser.add_argument(
        "--compiled-batches", nargs="+", type=int, default=list(plan.compiled_batches), metavar="N",
        help="of what is compiled for one batch size (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--contexts", nargs="+", type=int, default=list(plan.contexts), metavar="N")
    parser.add_argument("--seconds", type=float, default=plan.seconds, help="of each point (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=plan.jobs, help="built at a time (default: %(default)s)")
    parser.add_argument(
        "--prepare-s", type=float, default=plan.prepare_s, help="at most, of building for a row (default: %(default)s)"
    )
    parser.add_argument(
        "--measure-s", type=float, default=plan.measure_s, help="at most, of a row (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON here as figures come")


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan of a command line. ConfigError for numbers that cannot be."""
    if (
        min(*args.batches, *args.compiled_batches, *args.contexts, args.jobs) < 1
        or min(args.seconds, args.measure_s, args.prepare_s) <= 0
    ):
        raise ConfigError("--batches, --contexts, --jobs, --seconds, --prepare-s and --measure-s must be more than 0")
    return Plan(
        variants=tuple(args.variants),
        batches=tuple(args.batches),
        compiled_batches=tuple(args.compiled_batches),
        contexts=tuple(args.contexts),
        seconds=args.seconds,
        jobs=args.jobs,
        prepare_s=args.prepare_s,
        measure_s=args.measure_s,
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit code. ConfigError, ModelError for what cannot be measured at all."""
    plan = plan_of(args)
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        folder = Path(name)
        subjects = [_subject(path, args, folder, number) for number, path in enumerate(args.models)]
        record = measure(subjects, plan, folder, tell=_tell, out=args.out)
    print(json.dumps(record, indent=2) if args.json else text(record))
    rows = [row for network in record["networks"] for row in network["rows"]]
    if not any(row["best"] for row in rows):
        why = next((problem for row in rows for problem in row["problems"]), "no variant was asked for")
        raise ConfigError(f"nothing could be measured here: {why}")
    return 0


def measure(
    subjects: Sequence[Subject], plan: Plan, folder: Path, *, tell: Tell, out: Path | None = None
) -> dict[str, Any]:
    """All figures. `tell` gets each row as it comes, `out` the record so far."""
    record: dict[str, Any] = {**_machine(), "plan": _as_json(plan), "networks": []}
    jobs = [_Job(subject, variant, plan, folder) for subject in subjects for variant in plan.variants]
    began = time.monotonic()
    _prepare(subjects, jobs, plan, folder, tell)  # all of it first: building would disturb what is measured
    record["prepare_s"] = round(time.monotonic() - began, 1)
    tell(f"built in {record['prepare_s']:.0f} s")
    for subject in subjects:
        rows: list[dict[str, Any]] = []
        record["networks"].append({"network": subject.name, "rows": rows})
        tell(f"\n{subject.name}\n{_HEAD}")
        for job in jobs:
            if job.subject is not subject:
                continue
            rows.append(job.row())
            tell(line(rows[-1]))
            record["seconds"] = round(time.monotonic() - began, 1)
            if out is not None:
                out.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _prepare(subjects: Sequence[Subject], jobs: list[_Job], plan: Plan, folder: Path, tell: Tell) -> None:
    """Reference answers and engines, several at a time; the longest first."""

    def reference(subject: Subject) -> None:
        said = _ask({"variant": REFERENCE, **_facts(subject, plan, folder)}, plan.prepare_s)
        for failed in (line["failed"] for line in said if "failed" in line):
            tell(f"{subject.name}: no reference: {failed}")

    def prepare(job: _Job) -> None:
        began = time.monotonic()
        job.prepare()
        seconds = time.monotonic() - began
        tell(f"{job.subject.name}, {job.variant}: {'; '.join(job.problems) or f'built in {seconds:.0f} s'}")

    order = (COMPILED, AOTI, TENSORRT)
    with ThreadPoolExecutor(plan.jobs) as pool:
        slow = [job for kind in order for job in jobs if job.backend == kind]
        waiting = [pool.submit(prepare, job) for job in slow]
        waiting += [pool.submit(reference, subject) for subject in subjects]
        for future in waiting:
            future.result()


class _Job:
    """One variant of one model."""

    def __init__(self, subject: Subject, variant: str, plan: Plan, folder: Path) -> None:
        self.subject, self.variant, self.backend = subject, variant, variant.split()[0]
        self.problems: list[str] = []
        self._plan, self._built = plan, 0.0
        fixed = self.backend in (AOTI, COMPILED)
        self._facts = {"variant": variant, **_facts(subject, plan, folder)}
        if fixed:
            self._facts["batches"] = list(plan.compiled_batches)

    def prepare(self) -> None:
        extra = [1] if self.backend == AOTI else []
        facts = {**self._facts, "do": "prepare", "prepare": [*self._facts["batches"], *extra]}
        for said in _ask(facts, self._plan.prepare_s):
            self._built += said.get("built", {}).get("seconds", 0.0)
            if "failed" in said:
                self.problems.append(said["failed"])

    def row(self) -> dict[str, Any]:
        """What was found, measured now."""
        row: dict[str, Any] = {"variant": self.variant, "build_s": round(self._built, 1) or None, "points": []}
        problems: list[str] = []
        for said in _ask({**self._facts, "do": "measure"}, self._plan.measure_s):
            if "point" in said:
                row["points"].append(said["point"])
            elif "verified" in said:
                row["loss"], row["verified"] = said["verified"]["loss"], said["verified"]
            elif "latency" in said:
                row["latency_ms"], row["latency"] = said["latency"]["p50_ms"], said["latency"]
            elif "failed" in said:
                problems.append(said["failed"])
        row["best"] = max(row["points"], key=lambda point: point["per_s"], default=None)
        row["problems"] = problems
        return row


def _facts(subject: Subject, plan: Plan, folder: Path) -> dict[str, Any]:
    model = load_model(subject.directory)
    return {
        "model": str(subject.directory),
        "engines": str(folder / "engines"),
        "patches": str(subject.patches),
        "reference": str(subject.patches.with_suffix(".reference.npy")),
        "calibration": str(subject.calibration),
        "labels": str(subject.labels) if subject.labels else None,
        "module": subject.module,
        "classes": len(model.classes),
        "patch_px": model.patch_px,
        "mean": model.transform.mean,
        "std": model.transform.std,
        "batches": list(plan.batches),
        "compile_batches": list(plan.compiled_batches),
        "contexts": list(plan.contexts),
        "seconds": plan.seconds,
        "threads": max(1, plan.threads // 2),
        "cache": str(folder / "inductor"),
    }


def _ask(facts: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """What a worker says, as it says it; its end or its time's end as `failed` where it was no good end."""
    cache = {"TORCHINDUCTOR_CACHE_DIR": facts["cache"], "TRITON_CACHE_DIR": f"{facts['cache']}/triton"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*_WORKER, json.dumps(facts)], stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **cache}
        )
        lines: queue.Queue[str | None] = queue.Queue()

        def listen() -> None:
            for text in process.stdout:  # type: ignore[union-attr]
                lines.put(text)
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        until = time.monotonic() + timeout_s
        failed = False
        try:
            while (text := lines.get(timeout=max(0.0, until - time.monotonic()))) is not None:
                if text.startswith("{"):
                    said = json.loads(text)
                    failed = failed or "failed" in said
                    yield said
            if process.wait() and not failed:
                errors.seek(0)
                last = errors.read().strip().splitlines() or [f"code {process.returncode}"]
                yield {"failed": f"ended: {last[-1][:300]}"}
        except queue.Empty:
            yield {"failed": f"not finished in {timeout_s:.0f} s"}
        finally:
            process.kill()
            process.wait()


# ------------------------------------------------------------ patches


def _subject(directory: Path, args: argparse.Namespace, folder: Path, number: int) -> Subject:
    """Patches of tissue for a model of the command line."""
    import numpy as np

    from pipeline.labelled import read_labelled
    from pipeline.sample import sample

    model, config = load_model(directory), load_config(None, [])
    mine = folder / f"model-{number}"
    mine.mkdir()
    inputs = args.tissue or [_synthetic(mine, model.spacing)]
    pixels = sample(inputs, model, config, PATCHES, 1, tell=_tell).pixels
    labels = None
    if args.labelled:
        found, truth = read_labelled(args.labelled, model.patch_px, args.positive or model.classes[-1])
        known = np.concatenate([np.full(len(pixels), -1), truth])
        pixels = np.concatenate([pixels, found.pixels])
        labels = mine / "labels.npy"
        np.save(labels, known)
    np.save(mine / "patches.npy", pixels)
    np.save(mine / "calibration.npy", sample(inputs, model, config, CALIBRATED, 2, tell=_tell).pixels)
    return Subject(model.name, model.directory, mine / "patches.npy", mine / "calibration.npy", labels)


def _synthetic(folder: Path, spacing: float) -> Path:
    from slides.synthetic import SyntheticSlide, make_slide

    path = folder / "tissue.tif"
    make_slide(path, SyntheticSlide(_TISSUE_PX, _TISSUE_PX, mpp=spacing, tissue=0.7, seed=3))
    return path


# ------------------------------------------------------------ for people

_HEAD = f"{'':22}{'batch 1, ms':>12}{'images/s':>10}{'batch':>7}{'contexts':>10}{'GPU MiB':>9}{'loss':>9}"


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    backend, precision = row["variant"].split()
    best = row["best"] or {}
    cells = (
        (_number(row.get("latency_ms"), ".2f"), 12),
        (_number(best.get("per_s"), ",.0f"), 10),
        (_number(best.get("batch"), "d"), 7),
        (_number(best.get("contexts"), "d"), 10),
        (_number(best.get("memory_mib"), ",d"), 9),
        (_number(row.get("loss"), ".3%"), 9),
    )
    name = f"{SHOWN[backend]} {precision.upper()}"
    problem = f"  {row['problems'][0]}" if row["problems"] else ""
    return f"{name:22}" + "".join(f"{cell:>{width}}" for cell, width in cells) + problem


def text(record: dict[str, Any]) -> str:
    """The whole, for people."""
    lines = [f"{record['gpu'] or 'no GPU'}, {record['cores']} cores, {record['date']}"]
    for network in record["networks"]:
        lines += ["", network["network"], _HEAD, *(line(row) for row in network["rows"])]
    return "\n".join([*lines, "", _FOOT])


_FOOT = (
    "PyTorch: images on the GPU already, normalised. Ours: uint8 patches in shared memory, copied and normalised, answers "
    "copied back.\nGPU MiB: of the process, where it was fastest. Loss: against float32 on the CPU, ONNX Runtime (PyTorch where "
    "there is no ONNX)."
)


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _machine() -> dict[str, Any]:
    smi = shutil.which("nvidia-smi")
    query = [smi or "nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() if smi else ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": said,
        "cores": detect().cores,
        "versions": {
            name: _version(name) for name in ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx", "cuda-bindings")
        },
        "load_before": round(os.getloadavg()[0], 2),
    }


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _as_json(plan: Plan) -> dict[str, Any]:
    return asdict(plan)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
