"""What slidestream is measured against: the plain script, one patch after the other, in one process.

    python benchmarks/sequential.py SLIDE --model DIR [--out patches.csv] [--mpp 0.25]

Reads each patch with OpenSlide's `read_region`, resizes it, normalises it, and runs ONNX Runtime on batches of 32, as most
scripts do. The patches are those of slidestream (its tissue mask and grid), but their pixels and probabilities are
made here by the ordinary means: PIL, numpy and the model's own ONNX file, so the tests compare the two to 1e-5. Prints one
JSON object: patches, seconds (tissue mask and model loading apart), patches_per_s.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import openslide
from PIL import Image

from engines.model import Model, load_model
from slides.geometry import Geometry, SlideInfo, geometry
from slides.plan import plan
from slides.source import open_source
from slides.tissue import tissue_mask

BATCH = 32
OVERVIEW_PX = 2048  # slidestream's default, as are the others
MIN_FRACTION = 0.1
MIN_AREA_MM2 = 0.01
MAX_HOLE_MM2 = 0.01


def wanted(path: Path, model: Model, mpp: float | None) -> tuple[SlideInfo, Geometry, np.ndarray]:
    """The slide, its grid, and the patches with tissue: int64 (n, 2), level-0 corners in reading order."""
    source = open_source(path, mpp, "openslide")
    try:
        info = source.info
        overview = source.overview(OVERVIEW_PX)
    finally:
        source.close()
    um_per_px = info.mpp_x * info.width / overview.shape[1]
    mask = tissue_mask(overview, um_per_px, "auto", min_area_mm2=MIN_AREA_MM2, max_hole_mm2=MAX_HOLE_MM2).mask
    grid = geometry(info, model.patch_px, model.spacing)
    patches = plan(mask, info, grid, MIN_FRACTION)
    return info, grid, grid.xy(patches.columns, patches.rows)


def read_patch(slide: openslide.OpenSlide, info: SlideInfo, grid: Geometry, x: int, y: int) -> np.ndarray:
    """One patch at level-0 (x, y), uint8 (P, P, 3)."""
    # The level pixel nearest to the corner: in between, OpenSlide would interpolate.
    column, row = grid.level_xy(np.array([[x, y]]))[0].tolist()
    place = (math.floor(column * grid.level_downsample + 0.5), math.floor(row * grid.level_downsample + 0.5))
    region = slide.read_region(place, grid.level, grid.region_px)
    canvas = Image.new("RGB", region.size, info.background)
    canvas.paste(region, mask=region.getchannel("A"))
    pixels = np.asarray(canvas)
    if grid.resampling == "none":
        return pixels
    how = cv2.INTER_AREA if grid.resampling == "area" else cv2.INTER_LINEAR
    return cv2.resize(pixels, (grid.patch_px, grid.patch_px), interpolation=how)


def patches(path: Path, info: SlideInfo, grid: Geometry, xy: np.ndarray) -> Iterator[np.ndarray]:
    with openslide.OpenSlide(path) as slide:
        for x, y in xy.tolist():
            yield read_patch(slide, info, grid, x, y)


def prepared(patch: np.ndarray, model: Model) -> np.ndarray:
    """The model's transform as torchvision does it: float32 (3, H, W)."""
    transform = model.transform
    if transform.resize is not None:
        height, width = transform.resize
        patch = np.asarray(Image.fromarray(patch).resize((width, height), Image.Resampling.BILINEAR))
    values = (patch.astype(np.float32) / 255 - np.float32(transform.mean)) / np.float32(transform.std)
    return values.transpose(2, 0, 1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    if logits.shape[1] == 1:
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def run(path: Path, model: Model, mpp: float | None = None) -> tuple[Geometry, np.ndarray, np.ndarray, float]:
    """The grid, corners int64 (n, 2), probabilities float32 (n, classes), and the seconds it took."""
    import onnxruntime  # after engines, which silences its telemetry

    info, grid, xy = wanted(path, model, mpp)
    session = onnxruntime.InferenceSession(str(model.onnx_path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    answers = [np.empty((0, len(model.classes)), np.float32)]
    began = time.perf_counter()
    batch: list[np.ndarray] = []
    for patch in patches(path, info, grid, xy):
        batch.append(prepared(patch, model))
        if len(batch) == BATCH:
            answers.append(probabilities(session.run(None, {name: np.stack(batch)})[0]))
            batch.clear()
    if batch:
        answers.append(probabilities(session.run(None, {name: np.stack(batch)})[0]))
    return grid, xy, np.concatenate(answers), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="The plain sequential script, for comparison.")
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--out", type=Path, help="CSV of the probabilities, in slidestream's columns")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel, where the slide does not say")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    grid, xy, answers, seconds = run(arguments.slide, model, arguments.mpp)
    if arguments.out is not None:
        with open(arguments.out, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["minx", "miny", "width", "height", *(f"prob_{name}" for name in model.classes)])
            for (x, y), row in zip(xy.tolist(), answers, strict=True):
                writer.writerow([x, y, grid.patch_width, grid.patch_height, *(repr(float(value)) for value in row)])
    speed = len(xy) / seconds if len(xy) else 0.0
    print(json.dumps({"patches": len(xy), "seconds": round(seconds, 3), "patches_per_s": round(speed, 1)}))


if __name__ == "__main__":
    main()
