"""Whether a slide is whole by the rules of its own format: what is still being copied is not.

TIFF (Aperio, Hamamatsu NDPI, Ventana, Leica, generic): its chain of directories can be read to the end, and every tile and
strip lies within the file. MIRAX, VMS and DICOM: every file is there, and each DICOM file to its end. Of other formats
(Zeiss CZI, Sakura) only opening them tells.
"""

from __future__ import annotations

import logging
import os
import struct

import numpy as np

from pipeline.service.parts import DICOM, Parts, extension
from slides.dicom_whole import Instance, examine
from slides.tiff_index import Directory, TiffError, read_index

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def lack(parts: Parts) -> str:
    """What a slide of these files lacks, a clause without a subject; empty where it is whole. OSError of reading."""
    if parts.missing:
        return parts.missing
    if extension(parts.files[0]) in DICOM:
        return _dicom([file for file in parts.files if extension(file) in DICOM])
    if is_tiff(parts.files[0]):
        return _tiff(parts.files[0])
    return ""


def is_tiff(path: bytes) -> bool:
    """Whether a file begins as a TIFF does."""
    with open(path, "rb") as file:
        return file.read(4) in _TIFF_HEADS


def index_of(path: bytes) -> tuple[Directory, ...] | None:
    """The tile index of a TIFF, or None where the file is none that `slides.tiff_index` reads whole."""
    try:
        with open(path, "rb") as file:
            return read_index(file.fileno())
    except TiffError:
        return None


def _tiff(path: bytes) -> str:
    size = os.path.getsize(path)
    if extension(path) == b".ndpi":
        return _ndpi(path, size)
    try:
        with open(path, "rb") as file:
            directories = read_index(file.fileno())
    except TiffError as error:
        return str(error)
    for number, directory in enumerate(directories):
        if directory.tiled:
            beyond = int(np.count_nonzero(directory.offsets + directory.counts > size))
            if beyond:
                tiles = len(directory.offsets)
                return f"{beyond} of the {tiles} tiles of directory {number} lie past the end of the file"
    return _strips(path, size, [number for number, directory in enumerate(directories) if not directory.tiled])


def _strips(path: bytes, size: int, pages: list[int]) -> str:
    """Of directories that are not tiled: the label, the macro image and thumbnails. Their pixels are not read."""
    return _by_tifffile(path, size, pages) if pages else ""


def _ndpi(path: bytes, size: int) -> str:
    # NDPI beyond 4 GB keeps the upper halves of its offsets where TIFF has none; tifffile knows where.
    return _by_tifffile(path, size, None)


def _by_tifffile(path: bytes, size: int, numbers: list[int] | None) -> str:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(os.fsdecode(path)) as tiff:
            pages = list(tiff.pages) if numbers is None else [tiff.pages[number] for number in numbers]
            if not pages:
                return "has no directory"
            for page in pages:
                pieces = zip(page.dataoffsets, page.databytecounts, strict=False)
                if any(offset + count > size for offset, count in pieces):
                    return f"strips of directory {page.index} lie past the end of the file"
    except (tifffile.TiffFileError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        return f"its directories cannot be read: {error}"
    return ""


def _dicom(files: list[bytes]) -> str:
    parts: dict[str, dict[int, Instance]] = {}
    for file in files:
        instance = examine(file)
        if instance.problem:
            return f"{os.path.basename(file).decode('utf-8', 'backslashreplace')} {instance.problem}"
        if instance.concatenation:
            parts.setdefault(instance.concatenation, {})[instance.number] = instance
    for instances in parts.values():
        total = max(max(instance.total for instance in instances.values()), max(instances))
        if len(instances) < total:
            return f"{total - len(instances)} of the {total} files of an image are missing"
    return ""
