"""What a slide's content is, told from a few megabytes of it, wherever it lies and whatever it is called.

SHA-256 over each file's size, its first and last 256 KiB and 32 blocks of 64 KiB evenly between, all of it up to 4 MiB; of
a TIFF also where each stored tile begins and how long it is, which of compressed slides no two share. Names and times are
left out, the order of files too. The same slide from another share, or under another name, has the same fingerprint; two
scans never have, unless they were made to.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from pipeline.service.complete import index_of, is_tiff

_SCHEME = b"slidestream content 1\n"
_WHOLE = 4 << 20
_END = 256 << 10
_BLOCK = 64 << 10
_BLOCKS = 32


def content(files: Sequence[bytes]) -> str:
    """The fingerprint, in hex, of the slide that these files are. OSError where one cannot be read."""
    digests = sorted(_of_file(file) for file in files)
    return hashlib.sha256(_SCHEME + b"%d\n" % len(digests) + b"".join(digests)).hexdigest()


def unreadable(path: bytes, stamp: str) -> str:
    """Stands in for the content of a file that cannot be read: the same as long as the file is not touched."""
    return "unread-" + hashlib.sha256(b"%d\n%s%s" % (len(path), path, stamp.encode())).hexdigest()


def stamp(files: Sequence[tuple[bytes, int, int]]) -> str:
    """What changes when a slide is touched: over (name, size in bytes, modification time in ns) of each of its files."""
    digest = hashlib.blake2b(digest_size=16)
    for name, size, mtime_ns in sorted(files):
        digest.update(b"%d %s %d %d\n" % (len(name), name, size, mtime_ns))
    return digest.hexdigest()


def _of_file(path: bytes) -> bytes:
    with open(path, "rb") as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        digest = hashlib.sha256(b"%d\n" % size)
        for start, length in _pieces(size):
            digest.update(os.pread(descriptor, length, start))
    if size > _WHOLE and is_tiff(path):
        for directory in index_of(path) or ():
            digest.update(b"%d %d\n" % (directory.width, directory.height))
            if directory.tiled:
                digest.update(directory.offsets.astype("<u8").tobytes())
                digest.update(directory.counts.astype("<u8").tobytes())
    return digest.digest()


def _pieces(size: int) -> list[tuple[int, int]]:
    """(start, length) of what is read of a file."""
    if size <= _WHOLE:
        return [(0, size)]
    middle = size - 2 * _END - _BLOCK
    blocks = [(_END + middle * i // (_BLOCKS - 1), _BLOCK) for i in range(_BLOCKS)]
    return [(0, _END), *blocks, (size - _END, _END)]
