"""Labelled patches: pictures in folders that are named after what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.calibration import Patches
from pipeline.config import ConfigError
from slides.geometry import resample

_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")


def read_labelled(folder: Path, patch_px: int, positive: str) -> tuple[Patches, np.ndarray]:
    """All pictures of the subfolders of `folder`, resampled to `patch_px` where they have another size.

    Returns the patches (a group for each subfolder) and labels int (n,): 1 for the subfolder `positive` (case does not
    count), 0 for the others. Raises ConfigError: no such folder, no picture, or one that cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; it holds a folder of pictures for each label")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if positive.casefold() not in {name.casefold() for name in names} or len(names) < 2:
        has = ", ".join(names) or "none"
        raise ConfigError(f"{folder}: has no folder {positive!r} beside another one (it has: {has}); use --positive NAME")
    pixels: list[np.ndarray] = []
    groups: list[int] = []
    for index, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            if path.suffix.lower() not in _SUFFIXES:
                continue
            try:
                with Image.open(path) as image:
                    picture = np.asarray(image.convert("RGB"))
            except (OSError, UnidentifiedImageError) as error:
                raise ConfigError(f"{path}: is no picture that can be read ({error})") from error
            out = np.empty((patch_px, patch_px, 3), np.uint8)
            resample(np.ascontiguousarray(picture), patch_px, out)
            pixels.append(out)
            groups.append(index)
    if not pixels:
        raise ConfigError(f"{folder}: holds no pictures ({', '.join(_SUFFIXES)})")
    owners = np.array(groups)
    wanted = next(index for index, name in enumerate(names) if name.casefold() == positive.casefold())
    return Patches(np.stack(pixels), owners, tuple(names), 0), (owners == wanted).astype(np.int64)
