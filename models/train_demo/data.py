"""The labelled images that the demonstration model learns from, and the one slide that it never sees.

Every image is brought to one scale by its um/px, so that a view of FIELD_UM means the same thing in each source:

- CAMELYON16 sample patches, 256 px at about 0.243 um/px, lymph node (CC0-1.0);
- Kather et al. 2016, 150 px at 0.495 um/px enlarged to 224 px, colorectal (CC BY 4.0);
- CMU-1-Small-Region, 20x, benign H&E skin (CC0-1.0).

Splits. `held_out` is the whole of CAMELYON16 slide tumor_064: no function here gives it to training or to a choice.
`validation` is every fourth Kather image of each class, all of tumor_001 (a slide that the models under comparison
have then not seen), and the right quarter of the skin slide. The shipped model is trained, after the choices were
made, on `train` and `validation` together.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

PATCH_PX = 224
SPACING_UM = 0.25
FIELD_UM = PATCH_PX * SPACING_UM
HELD_OUT_SLIDE = "tumor_064"

CAMELYON_MPP = 0.243
KATHER_MPP = 0.495 * 150 / 224
SKIN_MPP = 0.499
KATHER_KINDS = ("tumour", "stroma", "complex", "lymphoid", "debris", "mucosa", "adipose", "empty")

# Drawn by eye by an engineer, not by a pathologist: (patch, x0, y0, x1, y1) in its 256 px.
LYMPHOCYTES = (
    ("tumor_001_69916_134313", 0, 60, 60, 256),
    ("tumor_001_69921_134388", 0, 0, 62, 256),
    ("tumor_001_69921_134388", 0, 172, 110, 256),
    ("tumor_001_69921_134388", 0, 192, 185, 256),
    ("tumor_001_69975_134132", 0, 0, 78, 185),
    ("tumor_001_70094_124883", 0, 125, 80, 256),
    ("tumor_001_70101_124852", 0, 145, 78, 256),
    ("tumor_001_70272_124240", 0, 0, 95, 75),
    ("tumor_001_70397_125645", 0, 195, 75, 256),
    ("tumor_001_70413_125330", 0, 60, 256, 215),
    ("tumor_001_70413_125330", 0, 110, 200, 256),
    ("tumor_001_70419_125452", 0, 0, 256, 85),
    ("tumor_001_70553_125464", 0, 0, 256, 66),
)


@dataclass(frozen=True, slots=True)
class Image:
    """One source image: `pixels` uint8 (h, w, 3) RGB at `mpp` um/px; `tumour` is None where the label is ambiguous."""

    name: str
    kind: str
    pixels: np.ndarray
    mpp: float
    tumour: bool | None
    split: str  # "train", "validation" or "held_out"


def read_rgb(path: Path) -> np.ndarray:
    """An image file as uint8 (h, w, 3) RGB; an alpha channel is dropped. Raises OSError when it cannot be read."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise OSError(f"{path}: not a readable image")
    return np.ascontiguousarray(pixels[:, :, ::-1])


def camelyon(data: Path) -> list[Image]:
    """CAMELYON16 sample patches; those of HELD_OUT_SLIDE are marked `held_out`."""
    images = []
    for label in ("normal", "tumor"):
        for path in sorted((data / "patches/camelyon16" / label).glob("*.png")):
            split = "held_out" if path.name.startswith(HELD_OUT_SLIDE) else "validation"
            kind = "node_tumour" if label == "tumor" else "node_normal"
            images.append(Image(path.stem, kind, read_rgb(path), CAMELYON_MPP, label == "tumor", split))
    return images


def node_lymphocytes(images: list[Image]) -> list[Image]:
    """The places in tumor_001's patches that show lymphocytes and no tumour, cut out: normal node, the same slide.

    All whole patches of that slide are tumour; without these a network could learn the slide instead of the tumour.
    """
    found = {image.name: image for image in images}
    return [
        Image(f"{name}_{x0}_{y0}", "node_normal", whole.pixels[y0:y1, x0:x1], CAMELYON_MPP, False, whole.split)
        for name, x0, y0, x1, y1 in LYMPHOCYTES
        if (whole := found.get(name)) is not None
    ]


def kather(data: Path) -> list[Image]:
    """The Kather 2016 subset; class 2 ("complex") has no label of its own, as it mixes tumour and stroma."""
    images, seen = [], defaultdict(int)
    for path in sorted((data / "patches/kather2016").glob("*.png"), key=lambda p: int(p.stem.split("_")[1])):
        match = re.fullmatch(r"image_\d+_label_(\d)", path.stem)
        if match is None:
            raise OSError(f"{path}: expected the name image_<number>_label_<0-7>.png")
        label = int(match.group(1))
        split = "validation" if seen[label] % 4 == 3 else "train"
        seen[label] += 1
        tumour = None if label == 2 else label == 0
        images.append(Image(path.stem, KATHER_KINDS[label], read_rgb(path), KATHER_MPP, tumour, split))
    return images


def skin(data: Path) -> list[Image]:
    """Crops of 240 px (120 um) of the benign skin slide, without those that are mostly background."""
    import openslide

    images = []
    with openslide.OpenSlide(str(data / "slides/CMU-1-Small-Region.svs")) as slide:
        width, height = slide.dimensions
        pixels = np.asarray(slide.read_region((0, 0), 0, (width, height)).convert("RGB"))
    for y in range(0, height - 239, 240):
        for x in range(0, width - 239, 240):
            crop = np.ascontiguousarray(pixels[y : y + 240, x : x + 240])
            if (crop.max(2).astype(int) - crop.min(2) > 20).mean() < 0.3:
                continue
            split = "validation" if x > 0.75 * width else "train"
            images.append(Image(f"skin_{x}_{y}", "skin", crop, SKIN_MPP, False, split))
    return images


def load(data: Path) -> list[Image]:
    """All images of the three sources, `held_out` ones left out."""
    node = [image for image in camelyon(data) if image.split != "held_out"]
    return node + node_lymphocytes(node) + kather(data) + skin(data)


def held_out(data: Path) -> list[Image]:
    """The images of HELD_OUT_SLIDE: for the one final figure, for nothing else."""
    return [image for image in camelyon(data) if image.split == "held_out"]


def mirrored(start: int, count: int, size: int) -> np.ndarray:
    """Indices start .. start + count - 1 of an axis of `size` pixels that goes on as its mirror image: (count,)."""
    at = np.mod(np.arange(start, start + count), 2 * size)
    return np.where(at < size, at, 2 * size - 1 - at)


def centre_view(image: Image) -> np.ndarray:
    """The FIELD_UM in the middle of an image, uint8 (PATCH_PX, PATCH_PX, 3): what the pipeline would give the model.

    A smaller image is continued by its mirror image.
    """
    side = round(FIELD_UM / image.mpp)
    rows, columns = (mirrored((n - side) // 2, side, n) for n in image.pixels.shape[:2])
    crop = image.pixels[rows[:, None], columns[None, :]]
    method = cv2.INTER_AREA if side > PATCH_PX else cv2.INTER_LINEAR
    return cv2.resize(crop, (PATCH_PX, PATCH_PX), interpolation=method)
