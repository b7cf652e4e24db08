from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from pipeline.service.fingerprints import content, stamp, unreadable
from pipeline.service.parts import parts
from tests.pipeline.service.folders import dicom_file, mirax, tiff


def of(path: Path) -> str:
    return content(parts(os.fsencode(path)).files)


def sparse(path: Path, size: int, *writes: tuple[int, bytes]) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
        for at, data in writes:
            file.seek(at)
            file.write(data)
    return path


def test_a_slide_is_known_by_its_content_alone(tmp_path: Path) -> None:
    """Copied to another name, folder and time it is the same; another slide is not."""
    one = tiff(tmp_path / "a.tif", 1)
    two = tmp_path / "x" / "b.svs"
    two.parent.mkdir()
    shutil.copyfile(one, two)
    os.utime(two, (1, 1))
    assert of(one) == of(two)
    assert of(one) != of(tiff(tmp_path / "c.tif", 2))


def test_slides_of_several_files_are_known_too(tmp_path: Path) -> None:
    """MIRAX under another name, DICOM with its files renamed and in another order."""
    mirax(tmp_path / "m.mrxs")
    mirax(tmp_path / "n.mrxs")
    (tmp_path / "n.mrxs").write_bytes((tmp_path / "m.mrxs").read_bytes())
    assert of(tmp_path / "m.mrxs") == of(tmp_path / "n.mrxs")
    (tmp_path / "n" / "Data0001.dat").write_bytes(b"Data0002.dat")
    assert of(tmp_path / "m.mrxs") != of(tmp_path / "n.mrxs")
    for folder, names in (("1", "ab"), ("2", "zy")):
        for name, pixels in zip(names, (b"first.", b"second"), strict=True):
            dicom_file(tmp_path / folder / f"{name}.dcm", "1.2", pixels)
    assert of(tmp_path / "1" / "a.dcm") == of(tmp_path / "2" / "y.dcm")


def test_a_large_file_is_told_by_head_tail_middle_and_size(tmp_path: Path) -> None:
    """A change of a sampled block, or one byte more, is another content."""
    size = 64 << 20
    prints = {
        of(sparse(tmp_path / "a.czi", size)),
        of(sparse(tmp_path / "b.czi", size, (10, b"x"))),
        of(sparse(tmp_path / "c.czi", size, (size - 1, b"x"))),
        of(sparse(tmp_path / "d.czi", size, (256 << 10, b"x"))),
        of(sparse(tmp_path / "e.czi", size + 1)),
        *(of(sparse(tmp_path / f"{i}.czi", size, (i * size // 32, b"x" * (2 << 20)))) for i in range(1, 31)),
    }
    assert len(prints) == 35


def test_a_large_tiff_is_told_by_the_lengths_of_all_tiles(tmp_path: Path) -> None:
    """Two files that agree in every sampled block differ where their index does."""
    import tifffile

    data = np.zeros((4096, 4096, 3), np.uint8)
    data[::2] = np.random.default_rng(0).integers(0, 256, (2048, 4096, 3), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, tile=(256, 256), photometric="rgb", bigtiff=True)
    before = of(path)
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[325].valueoffset + 8 * 100
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\1")
    if at > 256 << 10:  # else the head would tell
        raise AssertionError("the index lies elsewhere")
    assert of(path) != before


def test_a_few_megabytes_are_read_of_five_gigabytes(tmp_path: Path) -> None:
    """What a fingerprint costs does not grow with the slide."""
    path = sparse(tmp_path / "a.czi", 5 << 30)
    before = _read_bytes()
    of(path)
    assert _read_bytes() - before < 4 << 20


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar:")).split()[1])


def test_a_stamp_changes_with_size_and_time_of_any_file() -> None:
    """And not with the order in which they are found."""
    files = [(b"a", 1, 1), (b"b", 2, 2)]
    assert stamp(files) == stamp(files[::-1])
    assert (
        len({stamp(files), stamp([(b"a", 1, 2), (b"b", 2, 2)]), stamp(files[:1]), stamp([(b"a", 1, 1), (b"c", 2, 2)])})
        == 4
    )


def test_an_unreadable_file_has_a_stand_in() -> None:
    """Of its own kind, by path and state."""
    assert unreadable(b"/a", "1").startswith("unread-")
    assert len({unreadable(b"/a", "1"), unreadable(b"/a", "2"), unreadable(b"/b", "1")}) == 3
