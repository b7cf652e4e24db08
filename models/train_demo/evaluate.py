"""Figures of an exported model: `python -m models.train_demo.evaluate --data DATA`.

Measured on the file itself in ONNX Runtime, on the one slide that neither training nor any choice has seen, and on
synthetic tissue of unseen seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from engines.fold import INPUT, fold
from engines.model import load_model
from models.train_demo import data

MODEL = Path(__file__).parents[1] / "demo-tumour"


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half."""
    high, low = scores[positive][:, None], scores[~positive][None, :]
    if high.size == 0 or low.size == 0:
        raise ValueError("an AUC needs both positives and negatives")
    return float(np.mean(high > low) + 0.5 * np.mean(high == low))


def interval(scores: np.ndarray, positive: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the AUC, positives and negatives drawn apart (both counts stay)."""
    rng = np.random.default_rng(seed)
    high, low = scores[positive], scores[~positive]
    truth = np.r_[np.ones(len(high), bool), np.zeros(len(low), bool)]
    drawn = [auc(np.r_[rng.choice(high, len(high)), rng.choice(low, len(low))], truth) for _ in range(draws)]
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


class Exported:
    """A model directory as the pipeline runs it: the folded graph (engines.fold), one thread of ONNX Runtime."""

    def __init__(self, directory: Path = MODEL) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        graph = fold(load_model(directory)).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """uint8 (n, 224, 224, 3) -> tumour probabilities float32 (n,), in batches of 32."""
        batches = (patches[start : start + 32] for start in range(0, len(patches), 32))
        return np.concatenate([self._session.run(None, {INPUT: batch})[0][:, 1] for batch in batches])


def speed(model: Exported, seconds: float = 5.0) -> float:
    """Patches per second of CPU time on one thread, in batches of 32, from uint8 pixels to probabilities."""
    patches = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), np.uint8)
    model(patches)
    started, done = time.process_time(), 0
    while time.process_time() - started < seconds:
        model(patches)
        done += len(patches)
    return done / (time.process_time() - started)


def synthetic_slide(model: Exported, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tumour probabilities float32 (n,) of a whole synthetic slide's tissue patches, and bool (n,), which are tumour.

    Judged as the demo judges: patches with at least half tissue; tumour where it is at least half of the patch, normal
    where there is none.
    """
    import openslide

    from slides.synthetic import SyntheticSlide, make_slide

    side = data.PATCH_PX
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        truth = make_slide(path, SyntheticSlide(5000, 4000, data.SPACING_UM, seed=seed), threads=1)
        x, y = (a.ravel() for a in np.meshgrid(np.arange(0, 5000 - side, side), np.arange(0, 4000 - side, side)))
        share = truth.tumour_fraction(x, y, np.array(side), np.array(side))
        judged = (truth.tissue_fraction(x, y, np.array(side), np.array(side)) >= 0.5) & ((share >= 0.5) | (share == 0))
        with openslide.OpenSlide(str(path)) as slide:
            regions = [slide.read_region((int(a), int(b)), 0, (side, side)) for a, b in zip(x[judged], y[judged])]
    return model(np.stack([np.asarray(r.convert("RGB")) for r in regions])), share[judged] >= 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--synthetic-views", type=int, default=400)
    parser.add_argument("--synthetic-slides", type=int, default=3)
    parser.add_argument("--list", action="store_true", help="print every held-out patch")
    args = parser.parse_args()
    model = Exported(args.model)
    images = data.held_out(args.data)
    truth = np.array([bool(i.tumour) for i in images])
    got = model(np.stack([data.centre_view(i) for i in images]))
    low, high = interval(got, truth)
    print(f"held-out slide {data.HELD_OUT_SLIDE}: AUC {auc(got, truth):.3f}, 95 % bootstrap interval {low:.3f} to "
          f"{high:.3f}, n = {truth.sum()} tumour + {(~truth).sum()} normal patches")  # fmt: skip
    print(f"  mean probability: tumour {got[truth].mean():.3f}, normal {got[~truth].mean():.3f}")
    if args.list:
        for image, score in sorted(zip(images, got), key=lambda pair: -pair[1]):
            print(f"  {score:.3f} {'tumour' if image.tumour else 'normal'} {image.name}")
    from models.train_demo.synthetic import plain_views

    patches, tumour = plain_views(args.synthetic_views, np.random.default_rng(987_654))
    got = model(patches)
    print(f"synthetic tissue, unseen seeds: AUC {auc(got, tumour):.3f}, n = {tumour.sum()} + {(~tumour).sum()}")
    for seed in range(900_001, 900_001 + args.synthetic_slides):
        got, tumour = synthetic_slide(model, seed)
        print(f"synthetic slide, seed {seed}: AUC {auc(got, tumour):.3f}, n = {tumour.sum()} + {(~tumour).sum()}")
    print(f"speed, from uint8 pixels to probabilities: {speed(model):.0f} patches per second of CPU time")


if __name__ == "__main__":
    main()
