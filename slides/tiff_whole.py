"""Whether a TIFF is there to its end: its chain of directories, and every tile and strip that they name.

Also for Hamamatsu's variant (`slides.ndpi`), whose offsets beyond 4 GB have their high halves after each directory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slides.tiff_index import MAX_TILES, Entries, Entry, TiffError

_STRIPS, _TILES = (273, 279), (324, 325)
_LONG, _DTYPES = 4, {3: "u2", 4: "u4", 16: "u8"}


def lack(fd: int, ndpi: bool = False) -> str:
    """What a TIFF lacks, a clause without a subject; empty where it is whole. OSError where it cannot be read."""
    try:
        return _Pieces(fd, {*_STRIPS, *_TILES}, ndpi).lack()
    except TiffError as error:
        return str(error)


class _Pieces(Entries):
    def lack(self) -> str:
        pieces = 0
        for number, entries in enumerate(self.chain()):
            for (offsets_tag, counts_tag), name in ((_STRIPS, "strips"), (_TILES, "tiles")):
                if offsets_tag not in entries or counts_tag not in entries:
                    continue
                offsets, counts = (self._values(tag, entries[tag]) for tag in (offsets_tag, counts_tag))
                pieces += len(offsets)
                if len(offsets) != len(counts):
                    return f"directory {number} has {len(offsets)} offsets of {name} and {len(counts)} lengths"
                if pieces > MAX_TILES:
                    return f"has more than {MAX_TILES} tiles and strips"
                # Without a sum, which could run over: an offset may be anything.
                beyond = np.count_nonzero(
                    (counts > self._size) | (offsets > self._size - np.minimum(counts, self._size))
                )
                if beyond:
                    return f"{beyond} of the {len(offsets)} {name} of directory {number} lie past the end of the file"
        return ""

    def _values(self, tag: int, entry: Entry) -> npt.NDArray[np.uint64]:
        kind, count, field = entry
        if kind not in _DTYPES or not 1 <= count <= MAX_TILES:
            raise TiffError(f"tag {tag} has {count} values of type {kind}")
        if self._wide and kind == _LONG and count == 1:
            return np.array([self._unpack("Q", field)], np.uint64)
        dtype = np.dtype(self._order + _DTYPES[kind])
        return np.frombuffer(self._value(count * dtype.itemsize, field), dtype).astype(np.uint64)
