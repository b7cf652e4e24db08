"""`slidestream bench engine` over the networks that everyone knows, with fixed pseudo-random weights and patches of noise.

    python -m benchmarks.engines                       ResNet-50, DenseNet-121, ViT-B/16; some eight minutes on an H100
    python -m benchmarks.engines --networks resnet50 --variants "tensorrt fp16" "aoti fp16"

Needs a GPU, torch with its compiler's needs (a C++ compiler), TensorRT and cuda-python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import table
from pipeline import engine_bench
from pipeline.engine_bench import Subject

NETWORKS = ("resnet50", "densenet121", "vit_b_16")


def made(name: str, folder: Path) -> Subject:
    """A network in a model directory, written by a process of its own."""
    if not (folder / "calibration.npy").exists():  # which is written last
        table.run(table.python("-m", "benchmarks.networks", name, str(folder)), 240)
    return Subject(
        name, folder, folder / "patches.npy", folder / "calibration.npy", module=("benchmarks.networks", str(folder))
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.engines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--folder", type=Path, help="where networks and engines are made and kept (default: temporary)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    engine_bench.add_plan(parser)
    args = parser.parse_args()
    plan = engine_bench.plan_of(args)
    with tempfile.TemporaryDirectory(prefix="slidestream-bench-") as name:
        folder = args.folder or Path(name)
        with ThreadPoolExecutor(len(args.networks)) as pool:
            subjects = list(pool.map(lambda network: made(network, folder / network), args.networks))
        record = engine_bench.measure(
            subjects, plan, folder, tell=lambda line: print(line, file=sys.stderr, flush=True), out=args.out
        )
    print(json.dumps(record, indent=1) if args.json else engine_bench.text(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
