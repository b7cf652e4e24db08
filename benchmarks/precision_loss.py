"""What the FP16 and INT8 recipes lose by themselves, on any machine: the graphs that a build gives to TensorRT, in ONNX Runtime.

    python -m benchmarks.precision_loss --model FOLDER --labelled PATCHES --positive tumour [--calibrate SLIDE...]

The graphs are made as `slidestream engine build` makes them: folded, quantised with ranges from tissue, converted to float16.
ONNX Runtime has hardly any float16 kernel for processors: it computes such nodes in float32 and drops the roundings between
them, so that a float16 graph would show what its weights lose and nothing else (the row `fp16 weights alone`). Here each result
of a float16 node is rounded to float16 by Casts that the graph itself asks for. What is summed inside of a node is summed in
float32; Q and DQ are computed as they stand, with the product between them in float32. TensorRT's kernels may sum otherwise,
and round less often where they join nodes: this is the loss of the recipe, not of an engine.

Without --calibrate, the ranges come from the labelled patches: from one half of them for the answers to the other half.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks import table
from benchmarks.inputs import DEMO_MODEL
from engines.errors import EngineError, ModelError
from engines.fold import INPUT, fold, save_folded
from engines.model import Model, load_model
from engines.onnx_engine import PIECE, PROVIDER, session_options
from engines.precision import tensor_types, to_half
from engines.quantize import QUANTISABLE, WITHOUT_CONVOLUTIONS, Ranges, calibrate, points, quantise
from engines.verify import auc, compare
from pipeline.config import ConfigError, load_config
from pipeline.engine_options import tell
from pipeline.engine_trial import TrialMaker
from pipeline.labelled import read_labelled

REFERENCE, WEIGHTS = "fp32", "fp16 weights alone"
_INT8 = {"int8": QUANTISABLE, "int8 without convolutions": WITHOUT_CONVOLUTIONS}
VARIANTS = (REFERENCE, WEIGHTS, "fp16", *_INT8)
COLUMNS = ("recipe", "mean difference", "largest", "flips", "AUC", "AUC lost", "from", "to", "patches")
Row = tuple[str, float, float, int, float, float, float, float, int]
"""In the order of COLUMNS; `from` and `to` are the 95 % interval of what the AUC loses."""
RESAMPLES = 2000


def rounded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 graph in float32, where each result of what was a float16 node is rounded to float16. Changes `proto`.

    Raises EngineError: the types of the graph cannot be derived.
    """
    types = tensor_types(proto)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    for node in proto.graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if types.get(name) != TensorProto.FLOAT16:
                continue
            exact, half = f"{name}.exact", f"{name}.rounded"
            node.output[place] = exact
            nodes.append(helper.make_node("Cast", [exact], [half], name=half, to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [half], [name], name=f"{name}.again", to=TensorProto.FLOAT))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.graph.value_info[:]
    tensor_types(proto)  # proves that the types fit together
    return proto


def graph_of(model: Model, variant: str, ranges: Ranges) -> onnx.ModelProto:
    """The graph of a recipe for ONNX Runtime. Raises EngineError (nothing to quantise, ...), ModelError."""
    graph = fold(model)
    graph = to_half(quantise(graph, ranges, _INT8[variant]) if variant in _INT8 else graph)
    return graph if variant == WEIGHTS else rounded(graph)


def answers(graph: onnx.ModelProto, patches: np.ndarray) -> np.ndarray:
    """Probabilities float32 (n, classes) of uint8 (n, P, P, 3) patches, Q and DQ being computed as they stand."""
    options = session_options(1)
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    with tempfile.TemporaryDirectory(prefix="slidestream-") as folder:
        path = Path(folder) / "graph.onnx"
        save_folded(graph, path)
        session = ort.InferenceSession(str(path), options, providers=[PROVIDER])
        parts = [session.run(None, {INPUT: patches[at : at + PIECE]})[0] for at in range(0, len(patches), PIECE)]
    return np.concatenate(parts)


def halves(truth: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two (indices to calibrate with, indices to measure): either half of each label, in random order, and the other one."""
    order = np.random.default_rng(seed).permutation(len(truth))
    first = np.zeros(len(truth), bool)
    for label in np.unique(truth):
        mine = order[truth[order] == label]
        first[mine[: len(mine) // 2]] = True
    return [(np.flatnonzero(first), np.flatnonzero(~first)), (np.flatnonzero(~first), np.flatnonzero(first))]


def interval(reference: np.ndarray, answer: np.ndarray, truth: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of the AUC that `answer` loses, by drawing patches again (percentiles of a paired bootstrap).

    Scores and labels (n,), both labels being there. Draws of one label alone are left out.
    """
    generator, losses = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(truth), len(truth))
        before, after = (auc(scores[drawn], truth[drawn]) for scores in (reference, answer))
        if before is not None and after is not None:
            losses.append(before - after)
    low, high = np.quantile(losses, (0.025, 0.975))
    return float(low), float(high)


def rows(model: Model, patches: np.ndarray, truth: np.ndarray, ranges: Sequence[Ranges], seed: int) -> Iterator[Row]:
    """A row for each of VARIANTS, over uint8 (n, P, P, 3) patches with labels (n,).

    `ranges`: one for all patches, or two, of either of the `halves` for the other one. What cannot be made is told and
    left out. Raises ModelError.
    """
    parts = [measure for _, measure in halves(truth, seed)] if len(ranges) > 1 else [np.arange(len(truth))]

    def run(variant: str) -> np.ndarray:
        if variant not in _INT8:
            return answers(graph_of(model, variant, {}), patches)
        work = zip(ranges, parts, strict=True)
        found = [answers(graph_of(model, variant, known), patches[part]) for known, part in work]
        return np.concatenate(found)[np.argsort(np.concatenate(parts))]

    reference = answers(fold(model), patches)
    for variant in VARIANTS:
        try:
            answer = reference if variant == REFERENCE else run(variant)
        except EngineError as error:
            tell(f"{variant}: {error}")
            continue
        found = compare(reference, answer, labels=truth)
        if found.auc_reference is None or found.auc is None:
            tell(f"{variant}: {found.reason or 'the labelled patches have one label alone'}")
            continue
        lost = found.auc_reference - found.auc
        bounds = interval(reference[:, -1], answer[:, -1], truth > 0, seed)
        yield variant, found.mean_difference, found.max_difference, found.flips, found.auc, lost, *bounds, len(truth)


def calibrated(model: Model, patches: Sequence[np.ndarray]) -> list[Ranges]:
    """The ranges of the model's tensors on each of these sets of patches; nothing where the model has nothing for int8."""
    graph = fold(model)
    if not points(graph):
        return [{} for _ in patches]
    with tempfile.TemporaryDirectory(prefix="slidestream-") as folder:
        return [calibrate(graph, pixels, Path(folder), threads=1) for pixels in patches]


def main(words: Sequence[str] | None = None) -> int:
    parser = table.parser("precision_loss", __doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, metavar="DIR", help="(default: the demonstration's)")
    parser.add_argument("--labelled", type=Path, required=True, metavar="DIR", help="folders of pictures, by label")
    parser.add_argument("--positive", metavar="NAME", help="the label of the last class (default: its name)")
    parser.add_argument("--calibrate", nargs="+", type=Path, default=[], metavar="SLIDE", help="tissue for int8")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    args = parser.parse_args(words)
    machine = table.facts()
    try:
        model = load_model(args.model)
        patches, truth = read_labelled(args.labelled, model.patch_px, args.positive or model.classes[-1])
        if args.calibrate:
            sets = [TrialMaker(model, load_config(), args, 1, tell).calibration(args.calibrate).pixels]
        else:
            sets = [patches.pixels[part] for part, _ in halves(truth, args.seed)]
        found = list(rows(model, patches.pixels, truth, calibrated(model, sets), args.seed))
    except (ConfigError, EngineError, ModelError) as error:
        print(f"precision_loss: {error}", file=sys.stderr)
        return 2
    table.emit(
        args.json,
        f"what the recipes of FP16 and INT8 lose by themselves: {model.name}, in ONNX Runtime {ort.__version__}",
        COLUMNS,
        found if args.json else [_cells(row) for row in found],
        machine=machine,
        positive=int(truth.sum()),
        calibrated_with=" and ".join(str(len(part)) for part in sets),
    )
    return 0


def _cells(row: Row) -> list[object]:
    name, mean, largest, flips, *rest, n = row
    return [name, f"{mean:.1e}", f"{largest:.1e}", flips, *[f"{value:.4f}" for value in rest], n]


if __name__ == "__main__":
    sys.exit(main())
