"""`slidestream model import`: a model directory out of a WSInfer folder, TorchScript, a torch.export program, or ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  slidestream model import breast-tumor-resnet34.tcga-brca/ --out models/breast
  slidestream model import network.pt2 --out models/mine --classes normal tumour --patch-px 256 --spacing 0.5 \\
      --resize 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  slidestream model import network.onnx --out models/mine --config-json config.json

PyTorch files need PyTorch: pip install slidestream[import]. See docs/models.md.
"""


def add_parser(commands: Any) -> None:
    """Adds `model` to the command line; `commands` is what argparse's add_subparsers gave."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "model", help="bring a model", description="Make model directories.", epilog=_EXAMPLES, formatter_class=raw
    )
    parser.set_defaults(command=lambda args: (parser.print_help(), 2)[1])
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    importing = verbs.add_parser(
        "import",
        help="make a model directory of a network",
        description="Export a network to ONNX, prove that it answers as its source does, and write a model directory.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    importing.add_argument(
        "source", type=Path, metavar="SOURCE", help="a WSInfer folder, or a file: TorchScript, .pt2 or .onnx"
    )
    importing.add_argument("--out", required=True, type=Path, metavar="DIR", help="the model directory to be made")
    importing.add_argument(
        "--no-onnx", action="store_true", help="keep the PyTorch file alone: for networks that ONNX cannot express, which only "
        "the backend aoti runs",
    )  # fmt: skip
    importing.add_argument("--no-source", action="store_true", help="keep no copy of the PyTorch file in it")
    keys = importing.add_argument_group("config.json", "where the source has none, or to change what it says")
    keys.add_argument("--config-json", type=Path, metavar="FILE", help="a config.json")
    keys.add_argument("--classes", nargs="+", metavar="NAME", help="class names, in the order of the logits")
    keys.add_argument("--patch-px", type=int, metavar="PX", help="side of a patch as it is read, in pixels")
    keys.add_argument("--spacing", type=float, metavar="UM", help="micrometres per pixel of a patch")
    keys.add_argument("--resize", type=_sizes, metavar="PX[,PX]", help="what the patch is resized to (height,width)")
    keys.add_argument("--mean", type=_numbers, metavar="R,G,B", help="subtracted, of colours from 0 to 1")
    keys.add_argument("--std", type=_numbers, metavar="R,G,B", help="divided by, of colours from 0 to 1")
    keys.add_argument("--architecture", metavar="TEXT", help="what kind of network it is, for people")
    importing.set_defaults(command=_import)


def _import(args: argparse.Namespace) -> int:
    from engines.import_model import import_model
    from pipeline.config import ConfigError

    if args.no_onnx and args.no_source:
        raise ConfigError("--no-onnx and --no-source: nothing would be left of the network; give one of them")

    found = import_model(
        args.source,
        args.out,
        config=args.config_json,
        keys=_keys(args),
        keep_source=not args.no_source,
        export=not args.no_onnx,
    )
    model = found.model
    shape = f"{len(model.classes)} classes ({', '.join(model.classes)}), {model.patch_px} px at {model.spacing:g} µm/px"
    batches = ", ".join(map(str, found.batches))
    how = f"opset {found.opset}, free batch axis" if found.opset else "no ONNX: for the backend aoti alone"
    print(f"{args.out}: {shape}; {how}")
    print(
        f"checked against the {found.kind} source on {found.patches} patches in batches of {batches}: probabilities differ "
        f"by at most {found.max_difference:.2g} (allowed: {found.bound:g})"
    )
    if found.source_file:
        print(f"{args.out / found.source_file}: kept, for engines that are built from the PyTorch source")
    return 0


def _keys(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of config.json that were given. Raises ConfigError: options that make no sense without another."""
    from pipeline.config import ConfigError

    keys: dict[str, Any] = {}
    if args.classes:
        keys |= {"num_classes": len(args.classes), "class_names": args.classes}
    if args.patch_px is not None:
        keys["patch_size_pixels"] = args.patch_px
    if args.spacing is not None:
        keys["spacing_um_px"] = args.spacing
    if (args.mean is None) != (args.std is None):
        raise ConfigError("--mean and --std: give both or neither")
    alone = not args.config_json and not args.source.is_dir()
    if args.resize or args.mean or (keys and alone):
        steps: list[dict[str, Any]] = []
        if args.resize:
            steps.append({"name": "Resize", "arguments": {"size": args.resize}})
        steps.append({"name": "ToTensor"})
        if args.mean:
            steps.append({"name": "Normalize", "arguments": {"mean": args.mean, "std": args.std}})
        keys["transform"] = steps
    if args.architecture or (keys and alone):
        keys["architecture"] = args.architecture or "unknown"
    return keys


def _numbers(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError("three numbers: R,G,B")
    return numbers


def _sizes(text: str) -> int | list[int]:
    numbers = [int(part) for part in text.split(",")]
    return numbers[0] if len(numbers) == 1 else numbers
