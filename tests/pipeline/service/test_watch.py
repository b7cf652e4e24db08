from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.service.config import WatchFolder
from pipeline.service.scan import Look, Scanner
from pipeline.service.watch import Report, Watched, file_system

LONG = 20.0


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(folder: Path = tmp_path, **more: Any) -> Watched:
        made.append(Watched(WatchFolder(path=str(folder), **more)))
        return made[-1]

    yield make
    for watched in made:
        watched.close()


def report(watched: Watched, wanted: Callable[[Report], bool], within_s: float = 10.0) -> Report:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        got = watched.take()
        if got is not None and wanted(got):
            return got
        time.sleep(0.01)
    raise AssertionError(f"no such report within {within_s} s")


def count(number: int) -> Callable[[Report], bool]:
    return lambda got: got.look is not None and len(got.look.seen) == number


@pytest.mark.parametrize("notify", ["auto", "never"])
def test_a_new_slide_is_seen(tmp_path: Path, watch: Callable[..., Watched], notify: str) -> None:
    """With inotify and without."""
    watched = watch(poll_s=0.05, notify=notify)
    report(watched, count(0))
    (tmp_path / "a.svs").write_bytes(b"x")
    report(watched, count(1))


def test_inotify_does_not_wait_for_the_next_poll(tmp_path: Path, watch: Callable[..., Watched]) -> None:
    """Also in a folder that was made after the start, and in one that was removed and made again."""
    watched = watch(poll_s=LONG)
    if not watched.notified:
        pytest.skip(f"no inotify on {file_system(str(tmp_path))}")
    watched.restless = False
    report(watched, count(0))
    (tmp_path / "new" / "deep").mkdir(parents=True)
    report(watched, lambda got: len(got.look.folders) == 3)
    (tmp_path / "new" / "deep" / "a.svs").write_bytes(b"x")
    report(watched, count(1))
    (tmp_path / "new" / "deep" / "a.svs").unlink()
    (tmp_path / "new" / "deep").rmdir()
    (tmp_path / "new" / "deep").mkdir()
    report(watched, count(0))
    time.sleep(0.5)
    (tmp_path / "new" / "deep" / "b.svs").write_bytes(b"x")
    report(watched, count(1))


def test_a_folder_that_goes_and_comes_is_reported(tmp_path: Path, watch: Callable[..., Watched]) -> None:
    """With its reason, and watched as before when it is there again."""
    folder = tmp_path / "share"
    folder.mkdir()
    watched = watch(folder, poll_s=0.05)
    report(watched, count(0))
    folder.rmdir()
    gone = report(watched, lambda got: got.look is None)
    assert "No such file" in gone.gone
    folder.mkdir()
    report(watched, count(0))
    (folder / "a.svs").write_bytes(b"x")
    report(watched, count(1))


def test_a_share_that_hangs_stops_only_its_own_thread(
    tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service sees for how long."""
    release = threading.Event()
    look = Scanner.look

    def hang(self: Scanner) -> Look:
        release.wait(10)
        return look(self)

    monkeypatch.setattr(Scanner, "look", hang)
    watched = watch(poll_s=0.05)
    time.sleep(0.2)
    assert watched.take() is None
    assert watched.silent_s(time.monotonic()) > 0.1
    release.set()
    report(watched, count(0))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Neither threads nor descriptors, after many folders."""
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        Watched(WatchFolder(path=str(tmp_path), poll_s=0.05)).close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def test_file_systems_are_told_apart() -> None:
    """By the mount that a path lies below, whether it exists or not."""
    assert file_system("/proc/self") == "proc"
    assert file_system("/proc-not") == file_system("/")
    assert file_system("/proc/none/at all") == "proc"
