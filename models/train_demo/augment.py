"""Augmentation of H&E views: geometry, stain, and what scanners and compression do. uint8 RGB in, uint8 RGB out.

Stain is changed in two ways: in optical density along the haematoxylin, eosin and residual axes (Ruifrok and Johnston
2001; jitter as in Tellez et al. 2018), and by moving an image's Lab mean and deviation to those of another image
(Reinhard et al. 2001). The second breaks the link between a source's colours and its label: all tumour patches of
one source come from one slide, and colour alone would tell them apart from the rest.
"""

from __future__ import annotations

import cv2
import numpy as np

from models.train_demo.data import FIELD_UM, PATCH_PX, Image

RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)


def view(image: Image, rng: np.random.Generator, scale: tuple[float, float] = (0.85, 1.2)) -> np.ndarray:
    """A rotated, mirrored, scaled view at a random place of the image, uint8 (PATCH_PX, PATCH_PX, 3)."""
    height, width = image.pixels.shape[:2]
    side = FIELD_UM * rng.uniform(*scale) / image.mpp
    angle = rng.choice(4) * 90 + (rng.uniform(-45, 45) if rng.random() < 0.5 else 0)
    slack_x, slack_y = max(0.0, width - side) / 2, max(0.0, height - side) / 2
    cx = width / 2 + rng.uniform(-slack_x, slack_x)
    cy = height / 2 + rng.uniform(-slack_y, slack_y)
    matrix = cv2.getRotationMatrix2D((cx, cy), float(angle), PATCH_PX / side)
    matrix[:, 2] += PATCH_PX / 2 - np.array([cx, cy])
    out = cv2.warpAffine(image.pixels, matrix, (PATCH_PX, PATCH_PX), flags=cv2.INTER_LINEAR,
                         borderMode=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(out[:, ::-1]) if rng.random() < 0.5 else out


def lab_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the tissue's Lab values (background left out), each float32 (3,)."""
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32)
    tissue = lab[lab[:, 0] < 0.88 * 255]
    lab = tissue if len(tissue) > 500 else lab
    return lab.mean(0), lab.std(0) + 1.0


def restain(pixels: np.ndarray, target: tuple[np.ndarray, np.ndarray], strength: float) -> np.ndarray:
    """Moves the Lab statistics towards `target` by `strength` (0 none, 1 whole); background stays white."""
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).astype(np.float32)
    mean, deviation = lab_statistics(pixels)
    gain = np.clip(target[1] / deviation, 0.6, 1.6)
    moved = (lab - mean) * gain + target[0]
    weight = strength * np.clip((0.95 * 255 - lab[:, :, :1]) / (0.15 * 255), 0, 1)
    mixed = lab + weight * (moved - lab)
    return cv2.cvtColor(np.clip(mixed, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)


def jitter_stain(pixels: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Scales and shifts the haematoxylin, eosin and residual densities, each on its own."""
    basis = RGB_FROM_HED + rng.normal(0, 0.04 * strength, (3, 3)).astype(np.float32)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    density = -np.log(np.maximum(pixels.reshape(-1, 3), 1).astype(np.float32) / 255)
    stains = density @ np.linalg.inv(basis)
    gain = 1 + strength * rng.uniform(-0.3, 0.3, 3)
    shift = strength * rng.uniform(-0.04, 0.04, 3)
    density = (stains * gain + shift).astype(np.float32) @ basis
    return np.clip(255 * np.exp(-density), 0, 255).astype(np.uint8).reshape(pixels.shape)


def degrade(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, gamma, blur, noise, JPEG: each with its own chance."""
    x = pixels.astype(np.float32) / 255
    if rng.random() < 0.6:
        x = np.clip((x - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.06, 0.06), 0, 1)
        x = x ** rng.uniform(0.8, 1.25)
        x = x * rng.uniform(0.94, 1.0, 3)
    if rng.random() < 0.5:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.8))
    if rng.random() < 0.3:
        x = x + rng.normal(0, rng.uniform(0.005, 0.03), x.shape)
    out = np.clip(x * 255, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(40, 95))
        _, coded = cv2.imencode(".jpg", out[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        out = cv2.imdecode(coded, cv2.IMREAD_COLOR)[:, :, ::-1]
    return np.ascontiguousarray(out)


def mosaic(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Two views joined along a smooth random border; also the share of `a`. Tissue borders look like this."""
    field = cv2.GaussianBlur(rng.normal(0, 1, (PATCH_PX, PATCH_PX)).astype(np.float32), (0, 0), 30)
    field = field / (field.std() + 1e-6) + rng.uniform(-0.8, 0.8)
    weight = np.clip(field * 6 + 0.5, 0, 1)[:, :, None]
    return (a * weight + b * (1 - weight)).astype(np.uint8), float(weight.mean())


def halve(pixels: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, (PATCH_PX / 2) wide: the first thing that the exported network does to a patch."""
    return cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
