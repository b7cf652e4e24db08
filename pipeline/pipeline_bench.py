"""`slidestream bench pipeline`: the whole system over synthetic slides, against its parts alone.

Measured one after the other, and all of that again for `--rounds`; the median counts:

- many slides: `slidestream run` over N slides in a row, from files on disk to results on disk;
- one slide: the same over a single slide of as many pixels, to see what a change of slides costs;
- engine alone: a bare loop over one slot, with the engine, workers, contexts and batch that the run had;
- again: the same command once more, where all results are there already (the first round only);
- readers alone: the run over N slides again, with an engine that computes nothing;
- DataLoader: PyTorch's over OpenSlide, with the same network, where PyTorch is installed;
- only NAME: of several models (`--model` more than once) each one's own run over the N slides, to see what one pass for all
  of them saves. The engine alone is then what they do together, one after the other.

A run's `patches/s` counts from its first result to its last file: processes are up by then, as in a service that runs
for days. `whole run` counts from the start of its processes to their end. Where the engine computes on the cores that
the readers decode on, neither part can go at its own speed: "shared" is what both could do together, one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from engines.cache import EngineCache
from engines.model import load_model
from pipeline.bench_engine import engine_alone
from pipeline.bench_loader import loader_alone
from pipeline.config import ConfigError
from pipeline.machine import MIB, detect

DEMO_MODEL = Path(__file__).resolve().parent.parent / "models" / "demo-tumour"
_TISSUE = 0.7
_LOADER_PATCHES = 2048
_MANY, _ONE, READERS_ALONE = "many slides", "one slide", "readers alone"


@dataclass(frozen=True, slots=True)
class Ran:
    """A run: patches, seconds of the whole and from the first result to the last file, processor seconds of all processes,
    the share of that time in which inference workers held a batch, and the bottleneck in its own words."""

    what: str
    slides: int
    patches: int
    whole_s: float
    steady_s: float
    cpu_s: float
    holding: float
    first_result_s: float
    bottleneck: str
    record: dict[str, Any]

    @property
    def per_s(self) -> float:
        return self.patches / self.steady_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `slidestream bench pipeline`."""
    parser.add_argument("--slides", type=int, default=4, metavar="N", help="slides in a row (default %(default)s)")
    parser.add_argument("--size", default="8000x6000", metavar="WxH", help="of each, in pixels (default %(default)s)")
    parser.add_argument("--tile", type=int, default=256, help="pixels a side of their tiles (default %(default)s)")
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        metavar="DIR",
        help="model directory (default: the demonstration model); several times: all run in one pass over a slide",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for slidestream run")
    parser.add_argument("--rounds", type=int, default=1, help="of which the median counts (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the engine alone (default %(default)s)")
    parser.add_argument("--no-one", action="store_true", help="leave out the single large slide")
    parser.add_argument("--no-loader", action="store_true", help="leave out PyTorch's DataLoader")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where slides are made and kept (default: a temporary one)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit code. ConfigError for what cannot be, RuntimeError where a run fails."""
    if not (1 <= args.slides <= 1000 and 1 <= args.rounds <= 1000 and 0 < args.seconds <= 3600):
        raise ConfigError("--slides and --rounds must be 1 to 1000, --seconds more than 0 and at most 3600")
    for model in args.model or ():
        load_model(model).require_onnx()  # of which the engine alone and the DataLoader are made
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        scratch = Path(name)
        folder = args.folder or scratch / "slides"
        many, one = make_slides(args, folder)
        runs: list[Ran] = []
        engine: list[float] = []
        again_s = 0.0
        models = args.model or [DEMO_MODEL]
        folded = [scratch / f"folded-{number}.onnx" for number in range(len(models))]
        for number in range(args.rounds):
            runs.append(whole(args, _MANY, many, scratch))
            record = runs[0].record
            if number == 0:
                again_s = again(args, many, scratch)
                for model, about, path in zip(models, described(record), folded, strict=True):
                    prepare_model(model, path, about["patch_px"])
            if not args.no_one:
                runs.append(whole(args, _ONE, [one], scratch))
            if len(models) > 1:
                for model, about in zip(models, described(record), strict=True):
                    only = argparse.Namespace(**{**vars(args), "model": [model]})
                    runs.append(whole(only, _only(about), many, scratch))
            engine.append(alone(record, folded, args.seconds))
            runs.append(whole(args, READERS_ALONE, many, scratch, nothing(record["configuration"])))
        if args.no_loader or len(models) > 1:
            loader = {"skipped": "left out" if args.no_loader else "measured with one model only"}
        else:
            loader = loader_alone(loader_facts(runs[0].record, many[0], models[0], folded[0]))
    record = summarise(args, runs, engine, loader, before, again_s)
    print(json.dumps(record, indent=2) if args.json else text(record))
    return 0


def make_slides(args: argparse.Namespace, folder: Path) -> tuple[list[Path], Path]:
    """N slides (copies of one: each is a file of its own to the kernel), and one with as many pixels as all of them."""
    from slides.synthetic import SyntheticSlide, make_slide, parse_size

    try:
        width, height = parse_size(args.size)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error

    def made(name: str, width: int, height: int) -> Path:
        path = folder / name / f"{width}x{height}-{args.tile}.tif"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make_slide(path, SyntheticSlide(width, height, tissue=_TISSUE, tile=args.tile, seed=1))
        return path

    first = made("many", width, height)
    many = [first]
    for number in range(2, args.slides + 1):
        copy = folder / "many" / f"{first.stem}-{number}.tif"
        if not copy.exists():
            shutil.copyfile(first, copy.with_suffix(".part"))
            os.replace(copy.with_suffix(".part"), copy)
        many.append(copy)
    scale = math.sqrt(args.slides)
    one = first if args.no_one or args.slides == 1 else made("one", round(width * scale), round(height * scale))
    return many, one


def alone(record: dict[str, Any], folded: Sequence[Path], seconds: float) -> float:
    """The engine alone, as the run of this run.json had it: on the same GPUs, by the same engines. Of several models, whose
    folded models are given in their order, what all do together, one after the other."""
    folder = record["configuration"]["inference"].get("engines")
    gpus = record.get("gpus", [])
    cache = EngineCache(Path(folder).expanduser() if folder else None).folder
    visible = [{"CUDA_VISIBLE_DEVICES": gpu["uuid"]} if gpu.get("uuid") else {} for gpu in gpus]
    took = 0.0
    for number, (model, path) in enumerate(zip(described(record), folded, strict=True)):
        plans = [cache / (gpu["engines"][number] if "engines" in gpu else gpu["engine"]) for gpu in gpus]
        took += 1 / engine_alone(record["configuration"], model, path, seconds, plans, visible)
    return 1 / took


def described(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of a run.json, which names one or lists several."""
    return record["models"] if "models" in record else [record["model"]]


def _only(model: dict[str, Any]) -> str:
    return f"only {model['name']}"


def nothing(configuration: dict[str, Any]) -> list[str]:
    """What makes of a run one with an engine that computes nothing, and the same readers and batches."""
    return [
        'inference.engine="null"',
        "inference.precision=auto",
        "inference.workers=1",
        "inference.threads=1",
        f"reader.workers={configuration['reader']['workers']}",
        f"batcher.batch={configuration['batcher']['batch']}",
        f"batcher.slots={configuration['batcher']['slots']}",
    ]


def whole(args: argparse.Namespace, what: str, slides: list[Path], scratch: Path, sets: list[str] | None = None) -> Ran:
    """One `slidestream run`."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    before = os.times()
    _call(args, what, slides, out, sets or ())
    after = os.times()
    record = json.loads((out / "run.json").read_text())
    began, finished = times(out / "slidestream.log")
    first = record["first_result_s"] or 0.0
    steady = max(1e-3, finished - began - first)
    inference = record["stages"]["inference"]
    return Ran(
        what=what,
        slides=len(slides),
        patches=record["patches"]["inferred"],
        whole_s=record["seconds"],
        steady_s=steady,
        cpu_s=after.children_user - before.children_user + after.children_system - before.children_system,
        holding=min(1.0, inference["working_s"] / (inference["workers"] * steady)),
        first_result_s=first,
        bottleneck=record["bottleneck"],
        record=record,
    )


def again(args: argparse.Namespace, slides: list[Path], scratch: Path) -> float:
    """Seconds of the same command once more after `whole`, which has nothing left to do. RuntimeError where it had."""
    began = time.perf_counter()
    _call(args, "again", slides, scratch / "out", ())
    took = time.perf_counter() - began
    skipped = json.loads((scratch / "out" / "run.json").read_text())["slides"]["skipped"]
    if skipped != len(slides):
        raise RuntimeError(f"again: {len(slides) - skipped} of {len(slides)} slides were not found complete")
    return took


def _call(args: argparse.Namespace, what: str, slides: list[Path], out: Path, sets: Sequence[str]) -> None:
    """`slidestream run` to its end. RuntimeError with its last lines where it fails."""
    command = [sys.executable, "-m", "pipeline.cli", "run", *map(str, slides), "--out", str(out), "--no-progress"]
    command += [word for model in args.model or [DEMO_MODEL] for word in ("--model", str(model))]
    command += [word for text in (*args.set, *sets) for word in ("--set", text)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-8:])
        raise RuntimeError(f"{what}: slidestream run ended with code {done.returncode}:\n{last}")


def times(log: Path) -> tuple[float, float]:
    """When a run started and when its last slide was complete, in seconds since the epoch."""
    began = finished = 0.0
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry["event"] in ("starting", "slide complete"):
            at = datetime.fromisoformat(entry["timestamp"]).timestamp()
            began = at if entry["event"] == "starting" else began
            finished = max(finished, at)
    return began, finished


def prepare_model(model: Path, folded: Path, patch_px: int | None = None) -> None:
    """Folds a model for `open_engine`, at its own patch size or at this one."""
    from engines.check import prepare

    own = load_model(model)
    prepare(own if patch_px is None else own.at(patch_px), folded)


def loader_facts(
    record: dict[str, Any], slide: Path, model: Path, folded: Path, patches: int = _LOADER_PATCHES
) -> dict[str, Any]:
    """Patches from the middle of a slide, in the order of a plan."""
    import numpy as np

    from slides.geometry import geometry
    from slides.plan import plan
    from slides.source import open_source

    source = open_source(slide, None, "openslide")
    try:
        seen = described(record)[0]
        grid = geometry(source.info, seen["patch_px"], seen["spacing"])
        everything = plan(np.ones((64, 64), bool), source.info, grid, 0.999)
    finally:
        source.close()
    xy = grid.xy(everything.columns, everything.rows)
    start = max(0, (len(xy) - patches) // 2)
    return {
        "slide": str(slide),
        "model": str(model),
        "folded": str(folded),
        "batch": record["configuration"]["batcher"]["batch"],
        "cores": detect().cores,
        "geometry": grid.to_dict(),
        "xy": xy[start : start + patches].tolist(),
    }


# ------------------------------------------------------------ what it comes to


def summarise(
    args: argparse.Namespace,
    runs: list[Ran],
    engine: list[float],
    loader: dict[str, Any],
    load: float,
    again_s: float,
) -> dict[str, Any]:
    """All figures: medians over the rounds, and the ratios that count."""

    def median(what: str, figure: str) -> float | None:
        values = [getattr(ran, figure) for ran in runs if ran.what == what]
        return statistics.median(values) if values else None

    per_s = {what: median(what, "per_s") for what in (_MANY, _ONE, READERS_ALONE)}
    per_s["engine alone"] = statistics.median(engine)
    per_s["DataLoader"] = loader.get("patches_per_s")
    record = runs[0].record
    models = described(record)
    each = {_only(model): median(_only(model), "per_s") for model in models} if len(models) > 1 else {}
    per_s |= each
    configuration = record["configuration"]
    on_cores = record["engine"].get("provider") == "CPUExecutionProvider"  # of several models: of all of them
    limit = min(per_s["engine alone"], per_s[READERS_ALONE])
    shared = 1 / (1 / per_s["engine alone"] + 1 / per_s[READERS_ALONE]) if on_cores else None
    rounds = []
    for ran in runs:
        values = {name: value for name, value in asdict(ran).items() if name != "record"}
        rounds.append({**values, "per_s": ran.per_s, "cpu_ms_per_patch": 1e3 * ran.cpu_s / max(1, ran.patches)})
    return {
        "date": record["started"],
        "cores": detect().cores,
        "memory_mib": detect().memory_bytes // MIB,
        "load_before": round(load, 2),
        "model": " + ".join(model["name"] for model in models),
        "engine": record["engine"],
        "slides": args.slides,
        "size": args.size,
        "readers": configuration["reader"]["workers"],
        "inference": {key: configuration["inference"][key] for key in ("workers", "threads", "contexts")},
        "batch": configuration["batcher"]["batch"],
        "runs": rounds,
        "again_s": again_s,
        "loader": loader,
        "patches_per_s": per_s,
        "shared_limit": shared,
        "engine_needs": {w: per_s[w] / per_s["engine alone"] for w in (_MANY, _ONE) if per_s[w]},
        "ratios": {
            "many slides to the engine alone": per_s[_MANY] / per_s["engine alone"],
            "many slides to the readers alone": per_s[_MANY] / per_s[READERS_ALONE],
            "many slides to the shared limit": per_s[_MANY] / shared if shared else None,
            "many slides to one": per_s[_MANY] / per_s[_ONE] if per_s[_ONE] else None,
            # What the runs of each model take one after the other, over what one pass for all of them takes.
            "one pass to a run for each model": per_s[_MANY] * sum(1 / own for own in each.values()) if each else None,
            "many slides to the DataLoader": per_s[_MANY] / per_s["DataLoader"] if per_s["DataLoader"] else None,
        },
        "bottleneck": _bottleneck(per_s[_MANY], limit, shared, per_s),
    }


def _bottleneck(reached: float, limit: float, shared: float | None, per_s: dict[str, float | None]) -> str:
    """In words, by which of the parts alone is hardly faster than the whole."""
    if shared is not None:
        part = "engine" if per_s["engine alone"] < per_s[READERS_ALONE] else "readers"  # type: ignore[operator]
        share = shared / min(per_s["engine alone"], per_s[READERS_ALONE])  # type: ignore[type-var]
        return (
            f"the cores: engine and readers share them ({reached / shared:.0%} of what both can do together); "
            f"{share:.0%} of the time goes to the {part}"
        )
    name = "the engine" if limit == per_s["engine alone"] else "the readers"
    if reached < 0.9 * limit:
        return (
            f"neither part alone: {name} alone would reach {limit:,.0f} patches/s, {limit / reached:.2f} times as much"
        )
    return f"{name} ({reached / limit:.0%} of what {name} reach{'es' if name == 'the engine' else ''} alone)"


def text(record: dict[str, Any]) -> str:
    """For people."""
    engine, inference = record["engine"], record["inference"]
    head = ("patches", 9), ("patches/s", 11), ("whole run", 11), ("first s", 9), ("CPU ms each", 13)
    head = *head, ("engine needs", 14), ("holds work", 12)
    wide = max(16, *(len(ran["what"]) + 1 for ran in record["runs"]))
    lines = [
        f"{record['slides']} slides of {record['size']} pixels, model {record['model']}",
        f"{record['cores']} cores, load {record['load_before']:g} before the start; {record['readers']} readers",
        f"engine {engine.get('engine')} {engine.get('precision')}: {inference['workers']} workers of {inference['threads']} "
        + f"threads and {inference['contexts']} contexts, batch {record['batch']}",
        "",
        f"{'':{wide}}" + "".join(f"{name:>{width}}" for name, width in head),
    ]
    alone = record["patches_per_s"]["engine alone"]
    for ran in record["runs"]:
        needs = "-" if ran["what"] not in (_MANY, _ONE) else f"{ran['per_s'] / alone:.0%}"
        lines.append(
            f"{ran['what']:{wide}}{ran['patches']:>9,}{ran['per_s']:>11,.0f}{ran['patches'] / ran['whole_s']:>11,.0f}"
            f"{ran['first_result_s']:>9.2f}{ran['cpu_ms_per_patch']:>13.2f}{needs:>14}{ran['holding']:>12.0%}"
        )
    lines.append(f"{'engine alone':{wide}}{'':9}{alone:>11,.0f}")
    loader = record["loader"]
    if "skipped" in loader:
        lines.append(f"{'DataLoader':{wide}}{'':9}{'-':>11}  {loader['skipped']}")
    else:
        speed = loader["patches_per_s"]
        lines.append(f"{'DataLoader':{wide}}{loader['patches']:>9,}{speed:>11,.0f}  {loader['network']}")
    lines += ["", "engine needs: the share of the time that the engine alone would take for these patches"]
    lines += [f"again, with all slides complete: {record['again_s']:.2f} s", ""]
    lines += [f"{name}: {ratio:.2f}" for name, ratio in record["ratios"].items() if ratio is not None]
    return "\n".join([*lines, f"bottleneck: {record['bottleneck']}"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m pipeline.pipeline_bench", description=__doc__.splitlines()[0])
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
