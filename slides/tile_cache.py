"""Decoded tiles that may be needed again, in bounded memory.

In plan order a tile is needed by a few patches that follow each other, then never again, except those on the border of
a block of patches, which the next blocks need. So every tile knows how much of it is still to be handed out and goes
when that is nothing; what remains are the border tiles, of which the least recently used goes first.

All slides that a thread holds open share one cache: a cache for each would take its limit for each.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

# The source that a tile belongs to, its level, the factor that it was shrunk by, its index.
Key = tuple[int, int, int, int]

_LOCAL = threading.local()


def shared_cache(limit: int) -> TileCache:
    """The calling thread's cache of this limit."""
    caches: dict[int, TileCache] = _LOCAL.__dict__.setdefault("caches", {})
    if limit not in caches:
        caches[limit] = TileCache(limit)
    return caches[limit]


class TileCache:
    """Tiles uint8 (h, w, 3) by key. Their buffers are used again: a tile is valid until the next call of `buffer`."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes, of tiles and spare buffers together; one tile is held however large it is."""
        self._limit = limit
        self._bytes = 0
        self._tiles: OrderedDict[Key, tuple[Pixels, int]] = OrderedDict()
        self._spare: dict[tuple[int, ...], list[Pixels]] = {}

    def __len__(self) -> int:
        return len(self._tiles)

    def __contains__(self, key: Key) -> bool:
        return key in self._tiles

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self._bytes

    def get(self, key: Key, pixels: int) -> Pixels | None:
        """The tile, if it is here; `pixels` of it are about to be handed out."""
        entry = self._tiles.get(key)
        if entry is None:
            return None
        tile, left = entry
        self._use(key, tile, left - pixels)
        return tile

    def put(self, key: Key, tile: Pixels, left: int, pixels: int) -> None:
        """Keep a tile that came from `buffer`, of which `left` pixels are wanted in all, `pixels` of them now."""
        self._use(key, tile, left - pixels)

    def buffer(self, height: int, width: int) -> Pixels:
        """An uninitialised tile; the caller gives it to `put` or `give_back`."""
        shape = height, width, 3
        if spare := self._spare.get(shape):
            return spare.pop()
        size = height * width * 3
        while self._bytes + size > self._limit and self._bytes:
            tile = self._oldest()
            if tile.shape == shape:
                return tile
            self._bytes -= tile.nbytes
        self._bytes += size
        return np.empty(shape, np.uint8)

    def give_back(self, tile: Pixels) -> None:
        """A buffer that is not needed (any more)."""
        self._spare.setdefault(tile.shape, []).append(tile)

    def discard(self, source: int) -> None:
        """Let go of the tiles of a source; their buffers go to the others."""
        for key in [key for key in self._tiles if key[0] == source]:
            self.give_back(self._tiles.pop(key)[0])

    def _use(self, key: Key, tile: Pixels, left: int) -> None:
        if left > 0:
            self._tiles[key] = (tile, left)
            self._tiles.move_to_end(key)
        else:
            self._tiles.pop(key, None)
            self.give_back(tile)

    def _oldest(self) -> Pixels:
        """Let go of a spare buffer, or else of the tile that was used longest ago."""
        for tiles in self._spare.values():
            if tiles:
                return tiles.pop()
        return self._tiles.popitem(last=False)[1][0]
