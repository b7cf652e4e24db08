"""Breaks slides on purpose, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tifffile


def corrupt_tiles(path: Path | str, tiles: Iterable[tuple[int, int]]) -> None:
    """Overwrite the stored bytes of tiles, (level, index in row order), with rubbish of the same length, in place.

    Levels are the pages of a TIFF. Other tiles keep their bytes. Raises IndexError for a tile that does not exist.
    """
    with tifffile.TiffFile(path) as tiff:
        spans = []
        for level, index in tiles:
            page = tiff.pages[level]
            if not 0 <= index < len(page.dataoffsets):
                raise IndexError(f"level {level} has {len(page.dataoffsets)} tiles; there is no tile {index}")
            spans.append((page.dataoffsets[index], page.databytecounts[index]))
    with open(path, "r+b") as file:
        for offset, count in spans:
            file.seek(offset)
            file.write((b"rubbish!" * (count // 8 + 1))[:count])


def tiles_under(path: Path | str, level: int, x: int, y: int, width: int, height: int) -> list[tuple[int, int]]:
    """The tiles, (level, index), that a box of the level's own pixels touches."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        across = -(-page.imagewidth // page.tilewidth)
        rows = range(y // page.tilelength, (y + height - 1) // page.tilelength + 1)
        columns = range(x // page.tilewidth, (x + width - 1) // page.tilewidth + 1)
        return [(level, row * across + column) for row in rows for column in columns]
