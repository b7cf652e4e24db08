from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from slides.discover import Found, discover, fingerprint
from slides.errors import SlideError
from tests.slides.test_dicom import dicom, series


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(path))


def ids(found: list[Found]) -> list[str]:
    return [slide.id for slide in found]


def test_folders_are_searched_through(tmp_path: Path) -> None:
    """Every extension that OpenSlide opens, in any case, at any depth, sorted; other and hidden files are left out."""
    names = [
        "b.svs",
        "a.TIF",
        "deep/er/c.ndpi",
        "deep/d.bif",
        "e.czi",
        "f.scn",
        "g.svslide",
        "h.vms",
        "i.vmu",
        "j.tiff",
    ]
    touch(*(tmp_path / name for name in names))
    touch(*(tmp_path / name for name in (".hidden.svs", "._b.svs", ".trash/x.svs", "notes.txt", "b.svs.mpp", "svs")))
    found, notices = discover([tmp_path])
    assert ids(found) == ["a", "b", "deep/d", "deep/er/c", "e", "f", "g", "h", "i", "j"]
    assert {slide.path for slide in found} == {tmp_path / name for name in names}
    assert notices == []


def test_files_by_name_are_taken_whatever_they_are(tmp_path: Path) -> None:
    """Also hidden ones, and such without a known extension: opening them says what they are."""
    touch(tmp_path / "a.svs", tmp_path / "notes.txt", tmp_path / ".hidden.svs", tmp_path / "bare")
    found, _ = discover([tmp_path / "notes.txt", tmp_path / ".hidden.svs", str(tmp_path / "bare")])
    assert ids(found) == [".hidden", "bare", "notes"]


def test_mirax_is_one_slide(tmp_path: Path) -> None:
    """The .mrxs file; its folder is not searched."""
    touch(
        tmp_path / "m.mrxs", tmp_path / "m" / "Data0000.dat", tmp_path / "m" / "odd.tif", tmp_path / "other" / "x.tif"
    )
    found, _ = discover([tmp_path])
    assert found == [Found("m", tmp_path / "m.mrxs"), Found("other/x", tmp_path / "other" / "x.tif")]


def test_a_dicom_series_is_one_slide(tmp_path: Path) -> None:
    """Files of one folder and series together, other series and folders and unreadable files by themselves."""
    for name, uid in {"1/a": "1.2", "1/b": "1.2", "1/c": "1.3", "2/a": "1.2"}.items():
        touch(tmp_path / f"{name}.dcm")
        (tmp_path / f"{name}.dcm").write_bytes(dicom(series(uid)))
    touch(tmp_path / "1" / "no.dcm", tmp_path / "1" / "nor.dcm")
    found, notices = discover([tmp_path])
    assert ids(found) == ["1/a", "1/c", "1/no", "1/nor", "2/a"]
    assert notices == []


def test_equal_names_in_several_inputs_never_meet(tmp_path: Path) -> None:
    """Their ids then start at the inputs' common folder; as long as there are none, at the input's own."""
    touch(tmp_path / "x" / "1" / "s.svs", tmp_path / "x" / "2" / "s.svs", tmp_path / "x" / "t.svs")
    assert ids(discover([tmp_path / "x" / "1", tmp_path / "x" / "2"])[0]) == ["1/s", "2/s"]
    assert ids(discover([tmp_path / "x" / "1", tmp_path / "x" / "t.svs"])[0]) == ["s", "t"]
    assert ids(discover([tmp_path / "x" / "1" / "s.svs", tmp_path / "x" / "2" / "s.svs"])[0]) == ["1/s", "2/s"]
    assert ids(discover([tmp_path / "x" / "1" / "s.svs"])[0]) == ["s"]


def test_ids_do_not_depend_on_how_inputs_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order, repetition and relative paths change nothing."""
    touch(tmp_path / "1" / "s.svs", tmp_path / "2" / "s.svs")
    monkeypatch.chdir(tmp_path / "1")
    expected = discover([tmp_path / "1", tmp_path / "2"])
    assert discover([Path("../2"), Path("."), "../2"]) == expected


def test_equal_ids_keep_their_extension(tmp_path: Path) -> None:
    """Also where that makes them equal to a third."""
    touch(*(tmp_path / name for name in ("a.svs", "a.tif", "a.svs.tif", "b.svs", "c/a.svs")))
    assert ids(discover([tmp_path])[0]) == ["a.svs", "a.svs.tif", "a.tif", "b", "c/a"]


def test_the_same_file_twice_is_taken_once(tmp_path: Path) -> None:
    """By link, hard link or repetition, with a notice."""
    touch(tmp_path / "a.svs")
    (tmp_path / "b.svs").symlink_to("a.svs")
    (tmp_path / "c.svs").hardlink_to(tmp_path / "a.svs")
    found, notices = discover([tmp_path, tmp_path / "a.svs"])
    assert ids(found) == ["a"]
    assert len(notices) == 2 and all("same file as" in notice and "\n" not in notice for notice in notices)


def test_of_a_file_with_two_names_is_told_where_its_results_are(tmp_path: Path) -> None:
    """Beside other slides, and where the id of the first name is not its file's name."""
    for name in ("a/one.svs", "a/one.tif", "b/three.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        touch(tmp_path / name)
    (tmp_path / "b" / "zwei.svs").hardlink_to(tmp_path / "a" / "one.tif")
    found, notices = discover([tmp_path])
    assert ids(found) == ["a/one.svs", "a/one.tif", "b/three"]
    named = f"{tmp_path}/b/zwei.svs: is the same file as {tmp_path}/a/one.tif; its results are those of a/one.tif"
    assert notices == [named]


def test_a_copy_is_a_slide_of_its_own(tmp_path: Path) -> None:
    """The same bytes in two files have two results, each under its name."""
    touch(tmp_path / "a.svs")
    (tmp_path / "b.svs").write_bytes((tmp_path / "a.svs").read_bytes())
    found, notices = discover([tmp_path])
    assert ids(found) == ["a", "b"] and not notices


def test_link_loops_end(tmp_path: Path) -> None:
    """Each folder is entered once."""
    touch(tmp_path / "in" / "a.svs")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "self").symlink_to(".")
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    found, notices = discover([tmp_path])
    assert ids(found) == ["in/a", "loop"]
    assert sum("again" in notice for notice in notices) == 2


def test_broken_links_are_found_to_fail_as_slides(tmp_path: Path) -> None:
    """Rather than passed over in silence."""
    (tmp_path / "a.svs").symlink_to("gone.svs")
    assert ids(discover([tmp_path])[0]) == ["a"]


@pytest.mark.parametrize("name", ["with space", "Präparat ☃", "new\nline", "-rf", "a'\"b", "%s{0}", "tab\t"])
def test_odd_names_are_only_names(tmp_path: Path, name: str) -> None:
    """They pass through unchanged."""
    touch(tmp_path / f"{name}.svs")
    assert discover([tmp_path]) == ([Found(name, tmp_path / f"{name}.svs")], [])


def test_names_that_are_not_utf8_cannot_break_a_run(tmp_path: Path) -> None:
    """They have an id and a path that can be written anywhere, a notice, and no other slide's id."""
    with open(os.fsencode(tmp_path) + b"/a\xff.svs", "wb"):
        touch(tmp_path / "a\\xff.svs", tmp_path / "b.svs")
    found, notices = discover([tmp_path])
    assert len(found) == 3 and len(set(ids(found))) == 3
    assert len(notices) == 1 and "rename" in notices[0]
    for text in [*ids(found), *map(str, (slide.path for slide in found)), *notices]:
        text.encode("utf-8")


def test_missing_inputs_are_an_error(tmp_path: Path) -> None:
    """A misspelt input is not an empty one."""
    with pytest.raises(SlideError, match=r"none\.svs: does not exist"):
        discover([tmp_path / "none.svs"])
    with pytest.raises(SlideError, match="cannot be used"):
        discover(["a\0b"])


def test_inputs_must_be_files_or_folders(tmp_path: Path) -> None:
    """A pipe would never end."""
    os.mkfifo(tmp_path / "pipe.svs")
    with pytest.raises(SlideError, match="neither a file nor a folder"):
        discover([tmp_path / "pipe.svs"])


def test_an_empty_folder_is_noticed(tmp_path: Path) -> None:
    """No slides is worth a line."""
    assert discover([tmp_path]) == ([], [f"{tmp_path}: no slides found"])
    assert discover([]) == ([], [])


def test_skipped_folders_are_not_searched(tmp_path: Path) -> None:
    """Heatmaps of the run before are no slides."""
    touch(tmp_path / "a.svs", tmp_path / "out" / "heatmaps" / "a.tiff")
    assert ids(discover([tmp_path], skip=[tmp_path / "out", tmp_path / "not-yet"])[0]) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search everything")
def test_closed_folders_are_noticed(tmp_path: Path) -> None:
    """The others are searched all the same."""
    touch(tmp_path / "a.svs", tmp_path / "closed" / "b.svs")
    (tmp_path / "closed").chmod(0)
    found, notices = discover([tmp_path])
    (tmp_path / "closed").chmod(0o700)
    assert ids(found) == ["a"] and "cannot be searched" in notices[0]


def test_fingerprint_stays_with_copies_and_moves(tmp_path: Path) -> None:
    """Where a slide lies does not matter."""
    touch(tmp_path / "a.svs")
    before = fingerprint(tmp_path / "a.svs")
    (tmp_path / "other").mkdir()
    shutil.copy2(tmp_path / "a.svs", tmp_path / "other" / "a.svs")
    assert len(before) == 64 and fingerprint(str(tmp_path / "other" / "a.svs")) == before


@pytest.mark.parametrize("place", [0, 10, 65_535, 65_536, 199_999])
def test_fingerprint_sees_changes(tmp_path: Path, place: int) -> None:
    """In head and tail by content, anywhere by time or size."""
    path = tmp_path / "a.svs"
    path.write_bytes(bytes(200_000 if place != 65_536 else 70_000))
    os.utime(path, ns=(1, 1))
    before = fingerprint(path)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"x")
    os.utime(path, ns=(1, 1))
    assert fingerprint(path) != before


def test_fingerprint_sees_time_and_size(tmp_path: Path) -> None:
    """A slide rewritten in its middle has another time."""
    path = tmp_path / "a.svs"
    prints = set()
    for size, time in ((200_000, 1), (200_000, 2), (200_001, 1)):
        path.write_bytes(bytes(size))
        os.utime(path, ns=(time, time))
        prints.add(fingerprint(path))
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("main", "part", "alien"),
    [
        ("a.mrxs", "a/Data1.dat", "b/Data1.dat"),
        ("a.vms", "a(0,1).jpg", "b.jpg"),
        ("a.svs", "a.svs.mpp", "a.mpp"),
        ("a.dcm", "b.dcm", "c.dcm"),
    ],
)
def test_fingerprint_covers_all_files_of_a_slide(tmp_path: Path, main: str, part: str, alien: str) -> None:
    """And no others."""
    touch(*(tmp_path / name for name in (main, part, alien)))
    if main == "a.dcm":
        for name, uid in ((main, "1.2"), (part, "1.2"), (alien, "1.3")):
            (tmp_path / name).write_bytes(dicom(series(uid)))
    before = fingerprint(tmp_path / main)
    with open(tmp_path / alien, "ab") as file:
        file.write(b"more")
    assert fingerprint(tmp_path / main) == before
    with open(tmp_path / part, "ab") as file:
        file.write(b"more")
    assert fingerprint(tmp_path / main) != before


def test_fingerprint_of_what_is_not_there(tmp_path: Path) -> None:
    """Is a SlideError, as opening it would be."""
    with pytest.raises(SlideError, match=r"none\.svs: cannot be read"):
        fingerprint(tmp_path / "none.svs")


@pytest.mark.parametrize("name", ["a.svs", "a.dcm", "a.svs.mpp"])
def test_a_pipe_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    """Found among the others, and refused instead of being opened, which would wait for a writer for ever."""
    touch(tmp_path / "a.svs")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    found, _ = discover([tmp_path])
    slide = found[-1] if name == "a.svs.mpp" else next(one for one in found if one.path.name == name)
    with pytest.raises(SlideError, match="is not a file"):
        fingerprint(slide.path)
