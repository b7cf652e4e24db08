from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.service import scan
from pipeline.service.config import WatchFolder
from pipeline.service.scan import FolderGone, Look, Scanner
from tests.pipeline.service.folders import dicom_file, mirax, vms


def scanner(folder: Path, **more: Any) -> Scanner:
    return Scanner(WatchFolder(path=str(folder), **more))


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(look: Look, folder: Path) -> list[str]:
    return sorted(os.path.relpath(os.fsdecode(seen.path), folder) for seen in look.seen)


def test_slides_are_found_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    """By extension in any case; temporary and hidden names, also of folders, are passed over."""
    touch(*(tmp_path / name for name in ("a.svs", "B.NDPI", "x/y z/c.tiff", "x/.hid/d.svs", ".a.svs.Xa81kq")))
    touch(*(tmp_path / name for name in ("a.svs.part", "~$a.svs", "notes.txt", "t.tmp/e.svs", "a.tmp.svs")))
    assert names(scanner(tmp_path).look(), tmp_path) == ["B.NDPI", "a.svs", "x/y z/c.tiff"]
    assert names(scanner(tmp_path, recursive=False).look(), tmp_path) == ["B.NDPI", "a.svs"]
    assert names(scanner(tmp_path, patterns=("x/*", "b*")).look(), tmp_path) == ["B.NDPI", "x/y z/c.tiff"]
    assert names(scanner(tmp_path, ignore=("x",)).look(), tmp_path) == ["B.NDPI", "a.svs"]


def test_odd_names_are_found_to_the_byte(tmp_path: Path) -> None:
    """Newlines, no UTF-8, composed and decomposed letters, names as long as the file system allows."""
    root = os.fsencode(tmp_path)
    odd = [
        b"a\nb.svs",
        b"\xff.svs",
        "é.svs".encode(),
        "e\u0301.svs".encode(),
        b"x" * 251 + b".svs",
        b" .svs",
        b"a.svs",
        b"A.svs",
    ]
    for name in odd:
        Path(os.fsdecode(root + b"/" + name)).write_bytes(b"x")
    assert sorted(seen.path for seen in scanner(tmp_path).look().seen) == sorted(root + b"/" + name for name in odd)


def test_a_slide_of_several_files_is_one_and_changes_with_each(tmp_path: Path) -> None:
    """MIRAX, VMS and a DICOM series: a file that is touched, or comes later, gives another stamp."""
    series = [dicom_file(tmp_path / f"{name}.dcm", "1.2", name.encode() * 8) for name in "pqr"]
    groups = [mirax(tmp_path / "m.mrxs"), vms(tmp_path / "v" / "a.vms"), series]
    look = scanner(tmp_path)
    before = {seen.path: seen for seen in look.look().seen}
    assert sorted(before) == sorted(os.fsencode(files[0]) for files in groups)
    for files in groups:
        path = os.fsencode(files[0])
        assert before[path].size == sum(file.stat().st_size for file in files)
        assert before[path].settle_s == 60.0
        stamps = {before[path].stamp}
        for number, file in enumerate(files, 1):
            os.utime(file, (number, number))
            stamps.add(next(seen.stamp for seen in look.look().seen if seen.path == path))
        data = files[-1].read_bytes()
        files[-1].unlink()
        stamps.add(next(seen.stamp for seen in look.look().seen if seen.path == path))
        files[-1].write_bytes(data)
        assert len(stamps) == len(files) + 2


def test_a_folder_beside_a_mirax_slide_is_searched_unless_it_is_its_own(tmp_path: Path) -> None:
    """Also where the names differ only by case, as on a case-insensitive share."""
    mirax(tmp_path / "M.mrxs")
    touch(tmp_path / "M" / "odd.tif", tmp_path / "m" / "other.svs", tmp_path / "k.mrxs", tmp_path / "K" / "odd.svs")
    assert names(scanner(tmp_path).look(), tmp_path) == ["M.mrxs", "k.mrxs", "m/other.svs"]


def test_links_are_left_alone_unless_asked(tmp_path: Path) -> None:
    """With a notice; where they are followed, a circle ends."""
    touch(tmp_path / "out" / "a.svs", tmp_path / "in" / "b.svs")
    (tmp_path / "in" / "file.svs").symlink_to(tmp_path / "out" / "a.svs")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken.svs").symlink_to(tmp_path / "nowhere")
    look = scanner(tmp_path / "in").look()
    assert names(look, tmp_path / "in") == ["b.svs"]
    assert len(look.notices) == 4
    look = scanner(tmp_path / "in", follow_links=True).look()
    assert names(look, tmp_path / "in") == ["b.svs", "file.svs", "folder/a.svs"]


def test_a_sidecar_makes_a_slide_stat_and_touches_it(tmp_path: Path) -> None:
    """Whenever it comes."""
    touch(tmp_path / "a.svs")
    look = scanner(tmp_path)
    before = look.look()
    touch(tmp_path / "a.svs.stat")
    after = look.look()
    assert (before.stat, after.stat) == (set(), {os.fsencode(tmp_path / "a.svs")})
    assert before.seen[0].stamp != after.seen[0].stamp


def test_an_empty_main_file_counts_as_empty(tmp_path: Path) -> None:
    """Whatever lies beside it."""
    mirax(tmp_path / "m.mrxs")[0].write_bytes(b"")
    assert scanner(tmp_path).look().seen[0].size == 0


def test_a_renamed_slide_has_the_same_stamp(tmp_path: Path) -> None:
    """Its own name is no part of it."""
    touch(tmp_path / "a.svs")
    look = scanner(tmp_path)
    before = look.look().seen[0]
    (tmp_path / "a.svs").rename(tmp_path / "b.svs")
    after = look.look().seen[0]
    assert (before.stamp, before.identity) == (after.stamp, after.identity)


def test_a_folder_that_is_not_there_is_gone(tmp_path: Path) -> None:
    """Missing, no folder, nothing mounted where something should be."""
    touch(tmp_path / "file")
    for folder in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(FolderGone):
            scanner(folder).look()
    with pytest.raises(FolderGone, match="nothing is mounted"):
        scanner(tmp_path, require_mount=True).look()
    assert scanner(Path("/proc"), require_mount=True, recursive=False)._check_root() > 0


def test_an_empty_folder_that_had_slides_counts_as_unmounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a start, or when the file system is another; an ordinary tidying up does not."""
    touch(tmp_path / "a.svs")
    look = scanner(tmp_path)
    look.look()
    (tmp_path / "a.svs").unlink()
    assert look.look().seen == []
    with pytest.raises(FolderGone, match="is its share mounted"):
        Scanner(WatchFolder(path=str(tmp_path)), held_before=True).look()
    monkeypatch.setattr(look, "_device", -1)
    with pytest.raises(FolderGone, match="is its share mounted"):
        look.look()
    touch(tmp_path / "b.svs")
    assert len(look.look().seen) == 1
    (tmp_path / "b.svs").unlink()
    assert look.look().seen == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search everything")
def test_a_folder_that_may_not_be_searched_is_unsure(tmp_path: Path) -> None:
    """Its slides are not taken for gone."""
    touch(tmp_path / "x" / "a.svs")
    (tmp_path / "x").chmod(0)
    look = scanner(tmp_path).look()
    (tmp_path / "x").chmod(0o700)
    assert look.unsure == [os.fsencode(tmp_path / "x") + b"/"]
    assert len(look.notices) == 1


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than filling the memory."""
    touch(*(tmp_path / f"{i}.svs" for i in range(11)))
    monkeypatch.setattr(scan, "ENTRIES_MAX", 10)
    with pytest.raises(FolderGone, match="more than 10 files"):
        scanner(tmp_path).look()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Neither contents nor times of modification, also of folders."""
    mirax(tmp_path / "m.mrxs")
    dicom_file(tmp_path / "a.dcm", "1.2")

    def state() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path, *tmp_path.rglob("*")))

    before = state()
    scanner(tmp_path).look()
    assert state() == before
    shutil.rmtree(tmp_path / "m")
