"""Large slides in seconds: one block of rendered tissue, its JPEG streams repeated, with a border of background.

Rendering 52,000 patches takes minutes of processor time; reading them does not know that tissue repeats, as each tile of the
file is stored, read and decoded on its own. Sizes are in blocks of 4,096 pixels at 0.5 µm per pixel, of 256-px tiles.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import tifffile

from slides.synthetic import SyntheticSlide, make_slide
from slides.tiff_writer import Page, TiffWriter

BLOCK, TILE, LEVELS, FACTOR, MPP = 4096, 256, 3, 4, 0.5


def blocks(folder: Path) -> tuple[Path, Path]:
    """A block full of tissue, and one of background."""
    made = []
    for name, tissue in (("tissue", 1.0), ("background", 0.0)):
        path = folder / f"block-{name}.tif"
        if not path.exists():
            make_slide(path, SyntheticSlide(BLOCK, BLOCK, mpp=MPP, tissue=tissue, tile=TILE, downsample=FACTOR, seed=1))
        made.append(path)
    return made[0], made[1]


def mosaic(path: Path, columns: int, rows: int) -> Path:
    """A slide with a rectangle of `columns` x `rows` blocks of tissue, and a block of background around it."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    tissue, background = (_streams(block) for block in blocks(path.parent))
    wide, high = columns + 2, rows + 2

    def tiles(level: int) -> Iterator[bytes]:
        side = BLOCK // FACTOR**level // TILE
        for block_row in range(high):
            for row in range(side):
                for block_column in range(wide):
                    inside = 1 <= block_row <= rows and 1 <= block_column <= columns
                    streams = (tissue if inside else background)[level]
                    yield from streams[row * side : (row + 1) * side]

    part = path.with_suffix(".part")
    with open(part, "w+b") as file:
        writer = TiffWriter(file, big=True)
        for level in range(LEVELS):
            scale = FACTOR**level
            per_cm = 1e4 / MPP / scale
            size = wide * BLOCK // scale, high * BLOCK // scale
            writer.add(Page(*size, TILE, (2, 2), (per_cm, per_cm), level > 0, "slidestream"), tiles(level))
    os.replace(part, path)
    return path


def copies(first: Path, count: int) -> list[Path]:
    """`first` and copies of it: to the kernel each is a file of its own."""
    made = [first]
    for number in range(2, count + 1):
        path = first.with_name(f"{first.stem}-{number}{first.suffix}")
        if not path.exists():
            shutil.copyfile(first, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
        made.append(path)
    return made


def _streams(block: Path) -> list[list[bytes]]:
    """By level, the JPEG streams in their order."""
    with tifffile.TiffFile(block) as file, block.open("rb") as raw:
        levels = []
        for page in list(file.pages)[:LEVELS]:
            streams = []
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                raw.seek(offset)
                streams.append(raw.read(size))
            levels.append(streams)
    return levels
