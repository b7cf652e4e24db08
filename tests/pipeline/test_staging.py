"""Slides on a slow share are copied beforehand, in bounded room, by real processes; and nothing is left of the copies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.staging import PREFIX, Staging, StagingError

LIMIT_S = 60.0


@pytest.fixture
def warnings() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def stage(tmp_path: Path, warnings: list[tuple[str, str]]) -> Iterator[Callable[..., Staging]]:
    made: list[Staging] = []

    def begin(limit_bytes: int = 1 << 30, patience_s: float = 30.0) -> Staging:
        made.append(Staging(tmp_path / "local", limit_bytes, patience_s, lambda *words: warnings.append(words)))
        return made[-1]

    yield begin
    for staging in made:
        staging.close()


def share(folder: Path, name: str, size: int = 1000) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


def until(condition: Callable[[], object]) -> object:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_slide_is_read_from_its_copy_until_it_is_done(tmp_path: Path, stage, warnings) -> None:
    """The copy has the slide's name and bytes, and goes when the slide is done."""
    slide = share(tmp_path / "share", "a.svs", 100_000)
    staging = stage()
    staging.want(1, slide)
    copy = until(lambda: staging.place(1))
    assert copy != slide and copy.name == "a.svs" and copy.read_bytes() == slide.read_bytes()
    staging.release(1)
    assert not copy.exists() and slide.exists() and warnings == []


def test_slides_of_many_files_are_copied_whole(tmp_path: Path, stage) -> None:
    """A MIRAX slide comes with its folder, any slide with its sidecar, and nothing else that lies there."""
    slide = share(tmp_path / "share", "a.mrxs")
    share(tmp_path / "share" / "a", "Slidedat.ini")
    share(tmp_path / "share" / "a", "Data0000.dat", 50_000)
    (tmp_path / "share" / "a.mrxs.mpp").write_text("0.25")
    share(tmp_path / "share", "other.svs")
    staging = stage()
    staging.want(1, slide)
    folder = until(lambda: staging.place(1)).parent
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["a.mrxs", "a.mrxs.mpp", "a/Data0000.dat", "a/Slidedat.ini"]
    assert (folder / "a" / "Data0000.dat").read_bytes() == (tmp_path / "share" / "a" / "Data0000.dat").read_bytes()


def test_copies_take_no_more_room_than_allowed(tmp_path: Path, stage, warnings) -> None:
    """The next slide waits until there is room; they come in order."""
    slides = [share(tmp_path / "share", f"{n}.svs", 400_000) for n in range(4)]
    staging = stage(limit_bytes=1_000_000)
    for number, slide in enumerate(slides):
        staging.want(number, slide)
    for number in range(4):
        until(lambda number=number: staging.place(number))
        for _ in range(20):
            staging.place(number)
            assert taken(tmp_path / "local") <= 1_000_000
            time.sleep(0.01)
        staging.release(number)
    assert warnings == []


def test_room_comes_back_though_readers_hold_the_copy_open(tmp_path: Path, stage) -> None:
    """A reader closes a slide long after it is done; its copy's blocks are free before that."""
    staging = stage()
    staging.want(1, share(tmp_path / "share", "a.svs", 500_000))
    with open(until(lambda: staging.place(1)), "rb") as held:
        staging.release(1)
        assert os.fstat(held.fileno()).st_blocks == 0


def test_a_slide_that_is_too_large_is_read_from_where_it_lies(tmp_path: Path, stage, warnings) -> None:
    """With a warning that names the key, and without holding up the others."""
    big, small = share(tmp_path / "share", "big.svs", 5000), share(tmp_path / "share", "small.svs", 500)
    staging = stage(limit_bytes=1000)
    staging.want(1, big)
    staging.want(2, small)
    assert staging.place(1) == big and until(lambda: staging.place(2)) != small
    assert [slide for slide, _ in warnings] == [str(big)] and "slides.stage_gb" in warnings[0][1]


def test_a_slide_that_cannot_be_copied_is_read_from_where_it_lies(tmp_path: Path, stage, warnings) -> None:
    """A full disk (a limit on file sizes, here) is a warning; nothing of the copy stays."""
    slide = share(tmp_path / "share", "a.svs", 300_000)
    staging = stage()
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the child inherits it
    try:
        staging.want(1, slide)
        place = until(lambda: staging.place(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert place == slide and len(warnings) == 1 and "cannot be copied" in warnings[0][1]
    assert taken(tmp_path / "local") == 0


def test_a_copier_that_is_killed_costs_a_warning(tmp_path: Path, stage, warnings) -> None:
    """kill -9 of the child: the slide is read from where it lies, the next one is copied."""
    pipe = tmp_path / "share" / "a.svs"
    pipe.parent.mkdir()
    os.mkfifo(pipe)  # never gives a byte, as a dead share
    next_ = share(tmp_path / "share", "b.svs")
    staging = stage()
    staging.want(1, pipe)
    staging.want(2, next_)
    assert staging.place(1) is None
    child = until(lambda: staging._copies[1].child)
    os.kill(child.pid, signal.SIGKILL)
    assert until(lambda: staging.place(1)) == pipe and until(lambda: staging.place(2)) != next_
    assert len(warnings) == 1 and "-9" in warnings[0][1]


def test_a_copy_without_headway_is_given_up(tmp_path: Path, stage, warnings) -> None:
    """What a dead share holds up is not waited for."""
    pipe = tmp_path / "a.svs"
    os.mkfifo(pipe)
    staging = stage(patience_s=0.5)
    staging.want(1, pipe)
    assert until(lambda: staging.place(1)) == pipe
    assert "no headway" in warnings[0][1]


def test_a_slide_that_is_gone_fails_as_a_slide(tmp_path: Path, stage, warnings) -> None:
    """Staging says nothing of it: the reader will."""
    staging = stage()
    staging.want(1, tmp_path / "nowhere.svs")
    assert staging.place(1) == tmp_path / "nowhere.svs" and warnings == []


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path, stage) -> None:
    """kill -9 of the run's process: its copier dies with it, its copies go at the next start; a living run's stay."""
    share(tmp_path / "share", "a.svs", 200_000)
    os.mkfifo(tmp_path / "share" / "b.svs")
    code = f"""
import sys, time
from pathlib import Path
from pipeline.staging import Staging
staging = Staging(Path({str(tmp_path / "local")!r}), 1 << 30, 60.0, print)
staging.want(1, Path({str(tmp_path / "share" / "a.svs")!r}))
staging.want(2, Path({str(tmp_path / "share" / "b.svs")!r}))
while staging.place(1) is None: time.sleep(0.01)
while staging.place(2) is None and staging._copies[2].child is None: time.sleep(0.01)
print(staging._copies[2].child.pid, flush=True)
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        copier = int(run.stdout.readline())
        alive = stage()
        assert taken(tmp_path / "local") == 200_000  # it lives, so nobody sweeps
        run.kill()
    until(lambda: not Path(f"/proc/{copier}").exists() or "Z" in Path(f"/proc/{copier}/stat").read_text().split()[2])
    assert taken(tmp_path / "local") == 200_000
    stage()
    assert len(list((tmp_path / "local").glob(f"{PREFIX}*"))) == 2 and taken(tmp_path / "local") == 0
    assert alive._folder.exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """One line, before anything runs."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StagingError, match="file/local: Not a directory; name a folder"):
        Staging(tmp_path / "file" / "local", 1, 1.0, lambda *_: None)
