"""Whether a slide is whole by the rules of its own format: what is still being copied is not.

TIFF (Aperio, Hamamatsu NDPI, Ventana, Leica, generic): its chain of directories can be read to the end, and every tile and
strip lies within the file. MIRAX, VMS and DICOM: every file is there, and each DICOM file to its end. Of other formats
(Zeiss CZI, Sakura) only opening them tells.
"""

from __future__ import annotations

import os

from pipeline.service.parts import DICOM, Parts, extension
from slides import tiff_whole
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
        with open(parts.files[0], "rb") as file:
            return tiff_whole.lack(file.fileno(), extension(parts.files[0]) == b".ndpi")
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
