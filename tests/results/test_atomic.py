from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess

import pytest

from results import atomic


def test_parents_are_made_and_the_umask_holds(tmp_path):
    """Folders of a slide's path appear, and the file has the rights that any new file would have."""
    target = tmp_path / "a" / "b" / "c.csv"
    atomic.write_atomic(target, lambda file: file.write(b"x"))
    (tmp_path / "plain").write_bytes(b"")
    assert target.read_bytes() == b"x"
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert os.listdir(target.parent) == ["c.csv"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    """A writer that breaks half-way changes nothing."""
    target = tmp_path / "c.csv"
    target.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        atomic.write_atomic(target, write)
    assert os.listdir(tmp_path) == ["c.csv"]
    assert target.read_bytes() == b"old"


def test_a_file_that_cannot_grow_leaves_the_old_one(tmp_path):
    """Where the system refuses to write on, the error names the result file and the old one stays."""
    target = tmp_path / "c.csv"
    target.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            atomic.write_atomic(target, lambda file: file.write(bytes(4 << 20)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(target)
    assert os.listdir(tmp_path) == ["c.csv"]
    assert target.read_bytes() == b"old"


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file(small_disk):
    """ENOSPC in the middle: named error, old file whole, the room of the temporary file given back."""
    target = small_disk / "c.csv"
    target.write_bytes(b"old")
    free = os.statvfs(small_disk).f_bfree
    with pytest.raises(OSError) as caught:
        atomic.write_atomic(target, lambda file: file.write(bytes(1 << 20)))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(target)
    assert os.listdir(small_disk) == ["c.csv"]
    assert target.read_bytes() == b"old"
    assert os.statvfs(small_disk).f_bfree == free


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    """The temporary name is not longer than the slide's."""
    target = tmp_path / ("x" * 251 + ".csv")
    atomic.write_atomic(target, lambda file: file.write(b"x"))
    assert target.read_bytes() == b"x"


def test_an_error_without_a_number_still_names_the_file(tmp_path):
    """Libraries raise OSError with a text alone; the path is added."""

    def write(file):
        raise OSError("encoder error -2")

    with pytest.raises(OSError, match="c.png: encoder error -2"):
        atomic.write_atomic(tmp_path / "c.png", write)


def test_a_folder_in_the_way_is_a_named_error(tmp_path):
    """A file cannot replace a folder; the temporary file goes too."""
    (tmp_path / "c.csv").mkdir()
    with pytest.raises(IsADirectoryError, match="c.csv"):
        atomic.write_atomic(tmp_path / "c.csv", lambda file: file.write(b"x"))
    assert os.listdir(tmp_path) == ["c.csv"]


def test_sweep_removes_what_a_killed_writer_left_and_nothing_else(tmp_path):
    """After kill -9 the temporary files go, and results stay."""
    target = tmp_path / "a" / "c.csv"
    if os.fork() == 0:
        atomic.write_atomic(target, lambda file: os.kill(os.getpid(), 9))
    os.wait()
    assert len(os.listdir(tmp_path / "a")) == 1
    (tmp_path / "a" / "other.csv").write_bytes(b"")
    assert atomic.sweep(tmp_path) == 1
    assert os.listdir(tmp_path / "a") == ["other.csv"]


def test_remove_says_whether_it_was_there(tmp_path):
    """Removing what is not there is no error, also where its folder is missing."""
    (tmp_path / "c").write_bytes(b"")
    assert atomic.remove(tmp_path / "c") is True
    assert atomic.remove(tmp_path / "c") is False
    assert atomic.remove(tmp_path / "no" / "c") is False
