"""Bad slides, models, folders and messages: one clear line each, the right exit code, and other slides unharmed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
import zmq

from benchmarks import sequential
from engines.model import load_model
from pipeline.wire import Hello, Stop, encode
from slides.geometry import geometry
from slides.source import open_source
from tests.end_to_end import runs
from tests.end_to_end.runs import FEWEST, Finished, assert_same
from tests.engines.tiny import tiny_model
from tests.slides.damage import corrupt_tiles, tiles_under

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


def with_mpp(source: Path, to: Path, mpp: float | None) -> None:
    """The same pixels in a TIFF of other resolution tags."""
    with openslide.OpenSlide(source) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    tags = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3}
    tifffile.imwrite(to, pixels, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None, **tags)


def middle_tile(slide: Path, table: pd.DataFrame) -> list[tuple[int, int]]:
    """A level-0 tile in the middle of the slide's tissue."""
    row = table.iloc[len(table) // 2]
    return tiles_under(slide, 0, int(row.minx), int(row.miny), 1, 1)


LONG_NAME = "x" * 249  # no room for .parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small: Path, small_csv: pd.DataFrame) -> Path:
    """A good slide among many bad ones."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("good", "corrupt", "truncated"):
        shutil.copyfile(small, folder / f"{name}.tif")
    os.link(folder / "good.tif", folder / "good-again.tif")
    corrupt_tiles(folder / "corrupt.tif", middle_tile(small, small_csv))
    os.truncate(folder / "truncated.tif", small.stat().st_size // 3)
    (folder / "text.svs").write_text("This is no slide.\n")
    (folder / "empty.svs").touch()
    (folder / "gone.svs").symlink_to(folder / "nowhere.svs")
    os.mkfifo(folder / "pipe.svs")
    shutil.copyfile(small, folder / f"{LONG_NAME}.tif")
    with_mpp(small, folder / "no-mpp.tif", None)
    with_mpp(small, folder / "absurd-mpp.tif", 352.8)  # 72 dpi
    (folder / "notes.txt").write_text("Not looked at: no slide by its name.\n")
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """One run over all of them."""
    run = runs.start([folder], tmp_path_factory.mktemp("bad-out"), model, *FEWEST)
    yield run.finish()
    run.destroy()


def test_exit_code_1_and_every_bad_slide_in_the_summary(finished: Finished):
    """The others are done; each failure is one line of the final summary."""
    assert finished.code == 1, finished.console
    assert "Traceback" not in finished.console
    states = finished.record["slides"]
    assert (states["complete"], states["partial"], states["unfinished"]) == (1, 1, 0)
    for failure in finished.record["failures"]:
        assert "\n" not in failure["reason"]
        assert f"{failure['state']}: {failure['slide']}: {failure['reason']}" in finished.console.splitlines()


@pytest.mark.parametrize(
    ("slide", "words"),
    [
        ("text", "not a slide"),
        ("empty", "empty (0 bytes)"),
        ("gone", "No such file"),
        ("truncated", ""),
        ("pipe", "is not a file"),
        (LONG_NAME, "rename it to 247 or less"),
        ("no-mpp", "--set slides.mpp="),
        ("absurd-mpp", "--set slides.mpp="),
    ],
)
def test_a_bad_slide_fails_with_its_reason(finished: Finished, slide: str, words: str):
    """In run.json and in the slide's own summary."""
    summary = finished.summary(slide)
    assert summary["state"] == "failed"
    assert words in summary["reason"]
    assert summary["patches"]["planned"] == summary["patches"]["failed"]
    assert {f["reason"] for f in finished.record["failures"] if f["slide"] == slide} == {summary["reason"]}


def test_a_good_slide_among_bad_ones_is_unharmed(finished: Finished, small_csv: pd.DataFrame):
    """Its result is that of a run without them."""
    slide = "good" if (finished.out / "slides/good.json").exists() else "good-again"
    assert_same(finished.table(slide), small_csv)


def test_the_same_file_twice_is_taken_once(finished: Finished):
    """With a notice."""
    assert len(list(finished.out.glob("slides/good*.json"))) == 1
    assert "is the same file as" in finished.console


def test_corrupt_tiles_fail_alone_and_are_listed(finished: Finished, small_csv: pd.DataFrame):
    """The patches of a broken tile fail with a reason, the rest is inferred as ever: partial."""
    summary = finished.summary("corrupt")
    assert summary["state"] == "partial"
    patches, failed = summary["patches"], summary["failed_patches"]
    assert patches["planned"] == patches["inferred"] + patches["failed"] and patches["failed"] == len(failed) > 0
    assert all(entry["reason"] for entry in failed)
    table = finished.table("corrupt")
    bad = {(entry["minx"], entry["miny"]) for entry in failed}
    expected = small_csv[[(x, y) not in bad for x, y in zip(small_csv.minx, small_csv.miny, strict=True)]]
    assert_same(table, expected.reset_index(drop=True))


def test_the_named_override_of_mpp_works(folder: Path, tmp_path: Path, model: Path, small_csv, start):
    """What the error tells to do is what helps."""
    done = start([folder / "no-mpp.tif"], tmp_path / "out", model, *FEWEST, "slides.mpp=0.5").finish()
    assert done.code == 0, done.console
    assert done.summary("no-mpp")["mpp"]["source"] == "configuration"
    assert len(done.table("no-mpp")) == pytest.approx(len(small_csv), abs=20)


@pytest.mark.data
def test_the_sample_of_bad_slides(data_dir: Path, tmp_path: Path, model: Path, small: Path, start):
    """One cannot be opened; one opens, but every read fails: both fail with a reason."""
    done = start([data_dir / "bad", small], tmp_path / "out", model, *FEWEST, "slides.mpp=0.5").finish()
    assert done.code == 1, done.console
    assert "Traceback" not in done.console
    assert {f["slide"]: f["state"] for f in done.record["failures"]} == {"unopenable": "failed", "unreadable": "failed"}
    assert done.record["slides"]["complete"] == 1


def test_a_slide_that_disappears_after_the_start(tmp_path: Path, small: Path, model: Path, small_csv, start):
    """It fails, in whole or for what was not read yet; every planned patch has an outcome."""
    for name in ("good", "goner"):
        shutil.copyfile(small, tmp_path / f"{name}.tif")
    sets = (*FEWEST, "batcher.batch=8")
    run = start([tmp_path], tmp_path / "out", model, *sets, sabotage={"reader": {"block": 1, "after": 6}})
    reader = run.blocked("reader")
    (tmp_path / "goner.tif").unlink()
    os.kill(reader, signal.SIGKILL)  # it has the file open, and could read on
    done = run.finish()
    assert done.code == 1, done.console
    summary = done.summary("goner")
    assert summary["state"] in ("failed", "partial") and summary["reason"]
    assert summary["patches"]["planned"] == summary["patches"]["inferred"] + summary["patches"]["failed"]
    assert_same(done.table("good"), small_csv)


# ---------------------------------------------------------------- poison


def assert_quarantined(done: Finished, x: int, y: int, words: str, table: pd.DataFrame) -> None:
    assert done.code == 1, done.console
    summary = done.summary("small")
    assert summary["state"] == "partial"
    assert [(entry["minx"], entry["miny"]) for entry in summary["failed_patches"]] == [(x, y)]
    assert "quarantined" in summary["failed_patches"][0]["reason"] and words in summary["failed_patches"][0]["reason"]
    assert any("Segmentation fault" in entry.get("text", "") for entry in done.log)
    others = table[(table.minx != x) | (table.miny != y)].reset_index(drop=True)
    assert_same(done.table("small"), others)


POISON = ("batcher.batch=8", "supervisor.backoff_s=0.05")


def test_a_patch_that_kills_the_reader_is_quarantined_alone(tmp_path, small, model, small_csv, start):
    """Exactly that patch is listed; all others are inferred."""
    x, y = map(int, small_csv.loc[120, ["minx", "miny"]])
    sabotage = {"reader": {"segv_at": ["small.tif", x, y]}}
    done = start([small], tmp_path / "out", model, *POISON, sabotage=sabotage).finish()
    assert_quarantined(done, x, y, "reading it", small_csv)


def test_a_patch_that_kills_the_inference_is_quarantined_alone(tmp_path, small, model, small_csv, start):
    """By its pixels, whatever batch it lies in."""
    x, y = map(int, small_csv.loc[77, ["minx", "miny"]])
    source = open_source(small, None)
    out = np.empty((1, 64, 64, 3), np.uint8)
    source.read(geometry(source.info, 64, 0.5), np.array([[x, y]]), out)
    sabotage = {"inference": {"segv_crc": zlib.crc32(out[0].tobytes())}}
    done = start([small], tmp_path / "out", model, *POISON, sabotage=sabotage).finish()
    assert_quarantined(done, x, y, "inferring it", small_csv)


def test_a_slide_that_kills_its_reader_fails_alone(tmp_path, small, model, small_csv, start):
    """Opening it is tried again, alone, and then given up."""
    for name in ("good", "poison", "zgood"):
        shutil.copyfile(small, tmp_path / f"{name}.tif")
    sabotage = {"reader": {"segv_open": "poison.tif"}}
    done = start([tmp_path], tmp_path / "out", model, *POISON, sabotage=sabotage).finish()
    assert done.code == 1, done.console
    assert done.summary("poison")["state"] == "failed"
    assert "opening it killed the reader" in done.summary("poison")["reason"]
    assert_same(done.table("good"), small_csv)
    assert_same(done.table("zgood"), small_csv)


# ---------------------------------------------------------------- folders, disks, permissions


def test_a_slide_without_permission_fails_alone(tmp_path, small, model, small_csv, start):
    """For a user who may not read it."""
    for name in ("good", "secret"):
        shutil.copyfile(small, tmp_path / f"{name}.tif")
    (tmp_path / "secret.tif").chmod(0)
    done = start([tmp_path], tmp_path / "out", model, *FEWEST, ordinary=True).finish()
    assert done.code == 1, done.console
    assert "ermission denied" in done.summary("secret")["reason"]
    assert_same(done.table("good"), small_csv)


@pytest.mark.parametrize("made", [False, True])
def test_an_output_folder_that_cannot_be_written(made: bool, tmp_path, small, model, start):
    """One line that names it, and exit code 2, whether it is there or would have to be made."""
    locked = tmp_path / "locked"
    (locked / "out").mkdir(parents=True) if made else locked.mkdir()
    for folder in (locked / "out", locked):
        if folder.exists():
            folder.chmod(0o500)
    done = start([small], locked / "out", model, *FEWEST, ordinary=True).finish()
    assert done.code == 2, done.console
    assert str(locked / "out") in done.complaint() and "ermission denied" in done.complaint()


@as_root
def test_a_full_disk_ends_the_run_and_nothing_is_lost(tmp_path, native, model, native_csv, start):
    """Exit code 75 with one reason; with space again, the same command goes on."""
    out = tmp_path / "out"
    out.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", out]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        filler = out / "filler"
        run = start([native], out, model, *FEWEST, sabotage={"reader": {"slow_s": 0.003}})
        run.at_work()
        with open(filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)) or file.write(b"x"):
                    pass
            except OSError:
                pass
        done = run.finish()
        assert done.code == 75, done.console
        assert "No space left" in done.console and "Traceback" not in done.console
        assert run.left_behind() == []
        assert not (out / "slides/native.json").exists()
        filler.unlink()
        again = start([native], out, model, *FEWEST).finish()
        assert again.code == 0, again.console
        assert_same(again.table("native"), native_csv)
    finally:
        subprocess.run(["umount", "-l", out], check=False)


def test_two_runs_cannot_share_an_output_folder(tmp_path, small, model, small_csv, start):
    """The second one says who holds it; the first is not disturbed."""
    first = start([small], tmp_path / "out", model, *FEWEST, sabotage={"tissue": {"slow_s": 4}})
    first.until(first.run_directory, "the first run holds the folder")
    second = start([small], tmp_path / "out", model).finish()
    assert second.code == 2
    assert f"process {first.process.pid}" in second.complaint()
    done = first.finish()
    assert done.code == 0, done.console
    assert_same(done.table("small"), small_csv)


# ---------------------------------------------------------------- configuration and models


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path, small, model, start):
    """Exit code 2, before anything is made."""
    done = start([small], tmp_path / "out", model, "reader.worker=3").finish()
    assert done.code == 2
    assert "reader.workers" in done.complaint()
    assert not (tmp_path / "out").exists()


def test_an_input_that_does_not_exist(tmp_path, model, start):
    """A slip of the pen in the command is told at once."""
    done = start([tmp_path / "nowhere.svs"], tmp_path / "out", model).finish()
    assert done.code == 2
    assert "nowhere.svs: does not exist" in done.complaint()


def test_a_folder_without_slides(tmp_path, model, start):
    """Nothing to do is a mistake of the command."""
    (tmp_path / "empty").mkdir()
    done = start([tmp_path / "empty"], tmp_path / "out", model).finish()
    assert done.code == 2
    assert "no slides found" in done.complaint()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such model directory"),
        ("broken", "model.onnx"),
        ("wrong_classes", "class"),
        ("nan", "NaN"),
    ],
)
def test_a_bad_model_is_refused(kind: str, words: str, tmp_path, small, start):
    """Exit code 2 and the reason; nothing that looks like a result."""
    bad = tmp_path / "model" if kind == "missing" else tiny_model(tmp_path / "model", kind=kind)
    done = start([small], tmp_path / "out", bad).finish()
    assert done.code == 2, done.console
    last = done.console.strip().splitlines()[-1]
    assert last.startswith("slidestream: ") and words in last
    assert "Traceback" not in done.console
    assert not (tmp_path / "out" / "slides").exists()


# ---------------------------------------------------------------- strangers on the socket


def test_strangers_on_the_socket_change_nothing(tmp_path, native, model, native_csv, start):
    """Random frames, a wrong protocol, another run's worker, the names of living workers and of the supervisor."""
    run = start([native], tmp_path / "out", model, sabotage={"reader": {"slow_s": 0.004}})
    run.at_work()
    hub = f"ipc://{run.run_directory()}/hub"
    rng = np.random.default_rng(0)
    context = zmq.Context()
    over = threading.Event()
    names = (None, b"reader-0.1", b"inference-0.1", b"supervisor.0", b"reader-7.1", b"\xff\x00.1", b"x" * 200)
    sockets = []
    for name in names:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        if name is not None:
            socket.setsockopt(zmq.IDENTITY, name)
        socket.connect(hub)
        sockets.append(socket)
    for _ in range(40):
        for socket in sockets:
            frames = [
                [rng.bytes(int(rng.integers(1, 400))) for _ in range(int(rng.integers(1, 5)))],
                [b"SS0", b"\x01", b"\x90"],
                [b"SS1", bytes([int(rng.integers(256))]), rng.bytes(30)],
                encode(Hello(0, "inference", "another run", 1, 8, {})),
                encode(Stop()),
                [b""],
            ]
            for message in frames:
                try:
                    socket.send_multipart(message, zmq.DONTWAIT)
                except zmq.Again:
                    pass
        over.wait(0.02)
    done = run.finish()
    context.destroy(linger=0)
    assert done.code == 0, done.console
    assert "message ignored" in done.console
    assert "Traceback" not in done.console
    assert_same(done.table("native"), native_csv)
    assert all(stage["restarts"] == 0 for stage in done.record["stages"].values())


def test_the_plain_script_is_a_command(tmp_path, small, model, small_csv):
    """benchmarks/sequential.py writes slidestream's columns and prints its speed as JSON."""
    command = [runs.sys.executable, str(runs.ROOT / "benchmarks/sequential.py"), str(small), "--model", str(model)]
    done = subprocess.run([*command, "--out", tmp_path / "x.csv"], capture_output=True, text=True, check=True)
    assert runs.json.loads(done.stdout)["patches"] == len(small_csv)
    found = pd.read_csv(tmp_path / "x.csv").sort_values(["miny", "minx"]).reset_index(drop=True)
    assert_same(found, small_csv, 1e-5)
    assert sequential.BATCH == 32 and load_model(model).patch_px == 64
