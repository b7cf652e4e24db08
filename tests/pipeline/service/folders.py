"""Real files of several formats for tests of the intake."""

from __future__ import annotations

from pathlib import Path

from tests.slides.test_dicom import dicom, element, series
from tests.slides.tiffs import halved, picture, write_tiff

SLIDEDAT = """\ufeff[GENERAL]
SLIDE_VERSION = 01.02
[HIERARCHICAL]
INDEXFILE = Index.dat
[DATAFILE]
FILE_COUNT = 2
FILE_0 = Data0000.dat
FILE_1 = Data0001.dat
"""

VMS = """[Virtual Microscope Specimen]
NoJpegColumns=2
NoJpegRows=1
ImageFile=a.jpg
ImageFile(1,0)=a(1,0).jpg
MapFile=a_map2.jpg
OptimisationFile=a.opt
"""


def tiff(path: Path, seed: int = 0, size: int = 256) -> Path:
    """A small pyramid that OpenSlide opens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture(size, size, seed)
    return write_tiff(path, [image, halved(image)])


def mirax(path: Path) -> list[Path]:
    """The files of a MIRAX slide, none of them of use to OpenSlide; all of them, the .mrxs first."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    path.write_bytes(b"mirax")
    (folder / "Slidedat.ini").write_text(SLIDEDAT)
    for name in ("Index.dat", "Data0000.dat", "Data0001.dat"):
        (folder / name).write_bytes(name.encode())
    return [path, *(folder / n for n in ("Slidedat.ini", "Index.dat", "Data0000.dat", "Data0001.dat"))]


def vms(path: Path) -> list[Path]:
    """The files of a Hamamatsu VMS slide of two images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(VMS)
    others = [path.parent / name for name in ("a.jpg", "a(1,0).jpg", "a_map2.jpg", "a.opt")]
    for other in others:
        other.write_bytes(other.name.encode())
    return [path, *others]


def dicom_file(path: Path, uid: str, pixels: bytes = b"pixels") -> Path:
    """One file of a series."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom(series(uid) + element(0x7FE0, 0x10, b"OB", pixels)))
    return path
