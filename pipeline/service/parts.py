"""Which files make up a slide, and which of them are missing. Reads only what is needed to know that.

MIRAX: the .mrxs file, and in the folder of its name Slidedat.ini, which names the index and the data files
(https://openslide.org/formats/mirax/). Hamamatsu VMS and VMU: the .vms file names the rest
(https://openslide.org/formats/hamamatsu/). DICOM: the files of one series in one folder. All others are one file. A
sidecar `.mpp` belongs to its slide. What these files name is confined to their folder.
"""

from __future__ import annotations

import configparser
import os
from dataclasses import dataclass

from slides.dicom import series_uid

MIRAX, HAMAMATSU, DICOM = (b".mrxs",), (b".vms", b".vmu"), (b".dcm",)
SEVERAL = MIRAX + HAMAMATSU + DICOM

_INI_BYTES = 8 << 20
_FILES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Parts:
    """`files`: those that are there, the one to open first. `missing`: why that is not all, or empty."""

    files: tuple[bytes, ...]
    missing: str = ""


def extension(path: bytes) -> bytes:
    """The ending of a path in small letters, with its dot."""
    return os.path.splitext(path)[1].lower()


def parts(path: bytes) -> Parts:
    """The files of a slide. OSError where the first, or its folder, cannot be read."""
    ending = extension(path)
    if ending in MIRAX:
        found = _mirax(path)
    elif ending in HAMAMATSU:
        found = _hamamatsu(path)
    elif ending in DICOM:
        found = _dicom(path)
    else:
        found = Parts((path,))
    sidecar = path + b".mpp"
    return Parts((*found.files, sidecar), found.missing) if os.path.isfile(sidecar) else found


def mirax_folder(path: bytes) -> bytes:
    """The folder that belongs to an .mrxs file, whether it is there or not."""
    return os.path.splitext(path)[0]


def _mirax(path: bytes) -> Parts:
    folder = mirax_folder(path)
    index = os.path.join(folder, b"Slidedat.ini")
    if not os.path.isfile(index):
        return Parts((path,), "its Slidedat.ini is missing")
    ini = _ini(index)
    if ini is None:
        return Parts((path, index), "its Slidedat.ini cannot be understood")
    try:
        count = int(ini["DATAFILE"]["FILE_COUNT"])
        if not 1 <= count <= _FILES_MAX:
            raise ValueError
        names = [ini["HIERARCHICAL"]["INDEXFILE"], *(ini["DATAFILE"][f"FILE_{i}"] for i in range(count))]
    except (KeyError, ValueError):
        return Parts((path, index), "its Slidedat.ini does not name its data files")
    return _named(path, (path, index), folder, names)


def _hamamatsu(path: bytes) -> Parts:
    ini = _ini(path)
    if ini is None or not ini.sections():
        return Parts((path,), "it cannot be understood")
    section = ini[ini.sections()[0]]
    images = [value for key, value in section.items() if key.startswith("ImageFile")]
    others = [section[key] for key in ("MapFile", "OptimisationFile") if section.get(key)]
    if not images:
        return Parts((path,), "it names no image file")
    try:
        wanted = int(section.get("NoJpegColumns", "1")) * int(section.get("NoJpegRows", "1"))
    except ValueError:
        wanted = 0
    if extension(path) == b".vms" and len(images) < wanted:
        return Parts((path,), f"it names {len(images)} of its {wanted} image files")
    return _named(path, (path,), os.path.dirname(path), [*images, *others])


def _named(path: bytes, have: tuple[bytes, ...], folder: bytes, names: list[str]) -> Parts:
    files, missing = list(have), []
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            return Parts(have, f"it names a file outside its folder: {name[:80]!r}")
        file = os.path.join(folder, name.encode("utf-8", "surrogateescape"))
        # Not through a link: what a slide names must not lead out of its folder.
        if os.path.isfile(file) and not os.path.islink(file) and os.path.getsize(file) > 0:
            files.append(file)
        else:
            missing.append(name)
    if missing:
        return Parts(tuple(files), f"{missing[0]!r} is missing" + _more(len(missing) - 1))
    return Parts(tuple(dict.fromkeys(files)))


def _more(count: int) -> str:
    return f", and {count} more" if count else ""


def _dicom(path: bytes) -> Parts:
    uid = series_uid(os.fsdecode(path))
    if uid is None:
        return Parts((path,))
    folder = os.path.dirname(path)
    others = []
    with os.scandir(folder) as entries:
        for entry in entries:
            usable = extension(entry.name) in DICOM and not entry.name.startswith(b".") and entry.path != path
            if usable and entry.is_file(follow_symlinks=False) and series_uid(os.fsdecode(entry.path)) == uid:
                others.append(entry.path)
    return Parts((path, *sorted(others)))


def _ini(path: bytes) -> configparser.ConfigParser | None:
    with open(path, "rb") as file:
        data = file.read(_INI_BYTES)
    ini = configparser.ConfigParser(
        interpolation=None, strict=False, delimiters=("=",), comment_prefixes=("#", ";"), allow_no_value=True
    )
    ini.optionxform = str
    try:
        ini.read_string(data.decode("utf-8-sig", "surrogateescape"))
    except configparser.Error:
        return None
    return ini
