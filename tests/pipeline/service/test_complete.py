from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import tifffile

from pipeline.service.complete import lack
from pipeline.service.parts import parts
from tests.pipeline.service.folders import dicom_file, mirax, tiff, vms
from tests.slides.tiffs import picture


def of(path: Path) -> str:
    return lack(parts(os.fsencode(path)))


def test_a_tiff_is_whole_only_to_its_last_byte_of_tiles(tmp_path: Path) -> None:
    """Cut short at some fifty places, in its directories or its tiles, it is not."""
    path = tiff(tmp_path / "a.tif")
    data = path.read_bytes()
    assert of(path) == ""
    for size in range(0, len(data) - 1, len(data) // 50):
        path.write_bytes(data[:size])
        assert size < 4 or of(path), size


def test_a_tiff_whose_directories_come_first_must_have_its_tiles(tmp_path: Path) -> None:
    """A file that was made at its full length would not be found out; one that ends early is."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(512, 512), tile=(64, 64), photometric="rgb")
    path.write_bytes(path.read_bytes()[:-1])
    assert of(path) == "1 of the 64 tiles of directory 0 lie past the end of the file"


def test_strips_must_be_there_too(tmp_path: Path) -> None:
    """A label or thumbnail behind the tiles is part of the file, though nobody looks at it."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(picture(128, 128), tile=(64, 64), photometric="rgb")
        writer.write(picture(64, 64, 1), photometric="rgb", rowsperstrip=16)
    with tifffile.TiffFile(path) as file:
        ends = [max(o + c for o, c in zip(p.dataoffsets, p.databytecounts, strict=True)) for p in file.pages]
    assert of(path) == ""
    if ends[1] == path.stat().st_size:
        path.write_bytes(path.read_bytes()[:-1])
        assert of(path) == "1 of the 4 strips of directory 1 lie past the end of the file"
    else:
        pytest.fail("the writer put the strips elsewhere")


@pytest.mark.parametrize("index", range(1, 5))
def test_mirax_needs_all_of_its_files(tmp_path: Path, index: int) -> None:
    """Each that Slidedat.ini names, and itself; an empty file is not there yet."""
    files = mirax(tmp_path / "m.mrxs")
    assert of(files[0]) == ""
    assert len(parts(os.fsencode(files[0])).files) == 5
    if index > 1:
        files[index].write_bytes(b"")
        assert f"'{files[index].name}' is missing" in of(files[0])
    files[index].unlink()
    assert "missing" in of(files[0])


@pytest.mark.parametrize("index", range(1, 5))
def test_vms_needs_all_of_its_files(tmp_path: Path, index: int) -> None:
    """Each that the .vms file names."""
    files = vms(tmp_path / "a.vms")
    assert of(files[0]) == ""
    files[index].unlink()
    assert of(files[0]) == f"'{files[index].name}' is missing"


def test_vms_must_name_all_of_its_images(tmp_path: Path) -> None:
    """As many as it says that there are."""
    path = vms(tmp_path / "a.vms")[0]
    path.write_text(path.read_text().replace("NoJpegRows=1", "NoJpegRows=2"))
    assert of(path) == "it names 2 of its 4 image files"


@pytest.mark.parametrize("name", ["../secret.dat", "/etc/passwd", "..\\secret.dat", ".."])
def test_what_a_slide_names_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    """A name that leads out is refused, and its file not touched."""
    (tmp_path / "secret.dat").write_bytes(b"x")
    path = mirax(tmp_path / "m.mrxs")[0]
    index = tmp_path / "m" / "Slidedat.ini"
    index.write_text(index.read_text().replace("Data0001.dat", name))
    assert "outside its folder" in of(path)
    assert parts(os.fsencode(path)).files == (os.fsencode(path), os.fsencode(index))


def test_what_a_slide_names_is_no_link(tmp_path: Path) -> None:
    """A link could lead anywhere."""
    path = mirax(tmp_path / "m.mrxs")[0]
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "m" / "Data0001.dat").unlink()
    (tmp_path / "m" / "Data0001.dat").symlink_to(tmp_path / "secret")
    assert "missing" in of(path)


@pytest.mark.parametrize("text", ["", "no ini at all", "[DATAFILE]\nFILE_COUNT = 99999999999\n", "\x00\xff" * 50])
def test_an_index_that_makes_no_sense_is_a_reason(tmp_path: Path, text: str) -> None:
    """Not an error of ours."""
    path = mirax(tmp_path / "m.mrxs")[0]
    (tmp_path / "m" / "Slidedat.ini").write_text(text, encoding="latin-1")
    assert "its Slidedat.ini" in of(path)
    vms_path = tmp_path / "a.vms"
    vms_path.write_text(text, encoding="latin-1")
    assert of(vms_path)


def test_dicom_needs_every_file_to_its_end(tmp_path: Path) -> None:
    """Files of another series are none of its business."""
    first = dicom_file(tmp_path / "a.dcm", "1.2")
    second = dicom_file(tmp_path / "b.dcm", "1.2")
    other = dicom_file(tmp_path / "c.dcm", "1.3")
    other.write_bytes(other.read_bytes()[:-2])
    assert of(first) == ""
    assert parts(os.fsencode(first)).files == (os.fsencode(first), os.fsencode(second))
    second.write_bytes(second.read_bytes()[:-2])
    assert of(first).startswith("b.dcm ends at byte")


def test_real_slides_are_whole_and_cut_ones_are_not(data_dir: Path, tmp_path: Path) -> None:
    """Aperio, Hamamatsu NDPI and generic TIFF, without their last quarter and last kilobyte."""
    for name in ("CMU-1-Small-Region.svs", "fluorescence-387.ndpi", "no-mpp.tif"):
        whole = data_dir / "slides" / name
        assert of(whole) == "", name
        data = whole.read_bytes()
        for size in (len(data) * 3 // 4, len(data) - 1024):
            (tmp_path / name).write_bytes(data[:size])
            assert of(tmp_path / name), (name, size)


def test_a_sidecar_belongs_to_its_slide(tmp_path: Path) -> None:
    """It changes the results, so it is part of the content."""
    path = tiff(tmp_path / "a.tif")
    shutil.copy(path, tmp_path / "b.tif")
    (tmp_path / "a.tif.mpp").write_text("0.5")
    assert parts(os.fsencode(path)).files[1:] == (os.fsencode(tmp_path / "a.tif.mpp"),)
