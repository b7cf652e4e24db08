"""How fast the review page gives tiles, to one viewer and to twenty, passed through and made; and what that costs.

    python -m benchmarks.review
    python -m benchmarks.review --seconds 20 --pipeline       also what twenty viewers take from a run on the same machine

A viewer has six connections, as a browser has. It looks at a random place of the slide, at a random level: twelve tiles. When
they are there it looks for a second, then goes on; in the lines "no pause" it goes on at once. Latency is of one tile,
from the request to its last byte, on this machine: server and viewers share its cores. The same slide is served twice, once
with pass-through turned off, so that OpenSlide decodes and a JPEG is made of every tile, as for formats that are no JPEG tiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import table
from benchmarks.inputs import synthetic_slide
from results.summary import read_head
from review.catalogue import key_of

CONNECTIONS, TILES, LOOK_S = 6, (4, 3), 1.0
MODES = ("passed through", "made")
PATCHES, SLIDES = 200_000, 10_000


def serve(results: Path, made: bool) -> None:
    """The server, in a process of its own."""
    from pipeline import cli
    from review.tiles import OpenedSlide

    if made:
        OpenedSlide._open_direct = lambda self: None
    sys.exit(cli.main(["review", "--results", str(results), "--port", "0"]))


@contextmanager
def served(results: Path, made: bool) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process of a server."""
    command = [sys.executable, "-m", "benchmarks.review", "--serve", str(results), *(["--made"] if made else [])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=table.ROOT)
    try:
        port = int(process.stderr.readline().split()[-1].rstrip("/").rpartition(":")[2])
        yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, and nothing more: what a viewer costs must not be taken for what the server costs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._body: int | None = None
        self._answer: asyncio.Future[bytes] | None = None

    async def get(self, path: str) -> bytes:
        """The body of a 200."""
        loop = asyncio.get_running_loop()
        if self._transport is None:
            self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        self._answer = loop.create_future()
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._body is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._data[:end].decode("latin-1").lower()
            if not head.startswith("http/1.1 200"):
                self._answer.set_exception(RuntimeError(head.splitlines()[0]))
                return
            self._body = end + 4 + int(head.partition("content-length:")[2].split("\r\n")[0])
            self._begin = end + 4
        if len(self._data) >= self._body:
            body, self._data, self._body = bytes(self._data[self._begin : self._body]), bytearray(), None
            self._answer.set_result(body)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server has closed the connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def look_around(
    port: int, slide: str, levels: list[dict[str, Any]], until: float, pause: float, seed: int
) -> list:
    """What one viewer met: (seconds, bytes) of each tile."""
    rng, met = random.Random(seed), []
    connections = [Connection(port) for _ in range(CONNECTIONS)]
    await asyncio.sleep(rng.random() * min(pause, 1.0))
    while time.perf_counter() < until:
        number = rng.choices(range(len(levels)), [4, *[2] * (len(levels) - 1)])[0]
        level = levels[number]
        columns, rows = (-(-level[side] // level["tile"]) for side in ("width", "height"))
        left, top = rng.randrange(max(1, columns - TILES[0] + 1)), rng.randrange(max(1, rows - TILES[1] + 1))
        wanted = [
            (column, row)
            for row in range(top, min(rows, top + TILES[1]))
            for column in range(left, min(columns, left + TILES[0]))
        ]

        async def fetch(connection: Connection, wanted: list[tuple[int, int]] = wanted, number: int = number) -> None:
            while wanted:
                column, row = wanted.pop()
                began = time.perf_counter()
                body = await connection.get(f"/api/slides/{slide}/tile/{number}/{column}_{row}.jpg")
                met.append((time.perf_counter() - began, len(body)))

        await asyncio.gather(*(fetch(connection) for connection in connections))
        await asyncio.sleep(pause)
    for connection in connections:
        connection.close()
    return met


async def crowd(port: int, slide: str, viewers: int, seconds: float, pause: float, seed: int = 0) -> list:
    """What so many viewers met together."""
    connection = Connection(port)
    levels = json.loads(await connection.get(f"/api/slides/{slide}"))["levels"]
    connection.close()
    until = time.perf_counter() + seconds
    each = [look_around(port, slide, levels, until, pause, 1000 * seed + number) for number in range(viewers)]
    return [one for met in await asyncio.gather(*each) for one in met]


def measure(
    port: int, process: psutil.Process, slide: str, viewers: int, seconds: float, pause: float
) -> dict[str, Any]:
    """One line of the table."""
    before, began = process.cpu_times(), time.perf_counter()
    met = np.array(asyncio.run(crowd(port, slide, viewers, seconds, pause)))
    after, took = process.cpu_times(), time.perf_counter() - began
    cpu = after.user + after.system - before.user - before.system
    p50, p95, p99 = np.quantile(met[:, 0] * 1000, (0.5, 0.95, 0.99)).tolist()
    return {
        "tiles": len(met),
        "tiles/s": round(len(met) / took, 1),
        "p50 ms": round(p50, 2),
        "p95 ms": round(p95, 2),
        "p99 ms": round(p99, 2),
        "processor ms/tile": round(cpu * 1000 / len(met), 3),
        "cores": round(cpu / took, 3),
        "KB/tile": round(met[:, 1].mean() / 1000, 1),
    }


def results_of(folder: Path, slide: Path) -> Path:
    """A finished result over the slide, as its writer leaves it; probabilities are made up, pictures are not written."""
    from benchmarks.writers import record_of
    from results.write import write_slide
    from slides.openslide_source import OpenSlideSource

    source = OpenSlideSource(slide)
    record = record_of(PATCHES, 512)
    object.__setattr__(record, "path", str(slide))
    object.__setattr__(record, "slide", "large")
    info = {**source.info.to_dict(), "width": record.info["width"], "height": record.info["height"]}
    object.__setattr__(record, "info", info)
    source.close()
    write_slide(record, folder, {"parquet"})
    return folder


def many(folder: Path, results: Path) -> Path:
    """A results folder of ten thousand slides."""
    text = json.dumps({**read_head(results / "slides" / "large.json"), "failed_patches": []})
    for number in range(SLIDES):
        path = folder / "slides" / f"ward {number % 50}" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def timed(port: int, path: str, times: int = 7) -> str:
    """First and best time of an answer, and its size."""

    async def ask() -> tuple[list[float], int]:
        connection, took, size = Connection(port), [], 0
        for _ in range(times):
            began = time.perf_counter()
            size = len(await connection.get(path))
            took.append((time.perf_counter() - began) * 1000)
        connection.close()
        return took, size

    took, size = asyncio.run(ask())
    return f"{took[0]:.0f} ms at first, {min(took):.1f} ms then, {size / 1000:.0f} KB"


def first_view(port: int, slide: str) -> float:
    """Milliseconds from asking for a slide that is not open to the last of its first twelve tiles."""

    async def ask() -> float:
        began = time.perf_counter()
        connections = [Connection(port) for _ in range(CONNECTIONS)]
        levels = json.loads(await connections[0].get(f"/api/slides/{slide}"))["levels"]
        number = max(i for i, level in enumerate(levels) if level["width"] >= 1000)
        wanted = [(column, row) for row in range(TILES[1]) for column in range(TILES[0])]

        async def fetch(connection: Connection) -> None:
            while wanted:
                column, row = wanted.pop()
                await connection.get(f"/api/slides/{slide}/tile/{number}/{column}_{row}.jpg")

        await asyncio.gather(*(fetch(connection) for connection in connections))
        return (time.perf_counter() - began) * 1000

    return asyncio.run(ask())


def beside_a_run(slide: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Patches/s of a run with nobody looking and with twenty viewers of another slide, in turns."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    cores: list[tuple[float, float]] = []  # of the server, of the viewers
    with served(results_of(folder / "watched", slide), False) as (port, process):
        asyncio.run(crowd(port, key_of("large"), 1, 1, 0))
        for number in range(3):
            for watched in (False, True):
                out = folder / f"run-{number}-{watched}"
                command = [sys.executable, "-m", "pipeline.cli", "run", str(slide), "--out", str(out), "--no-progress"]
                command += ["--set", "results.formats=[csv]"]
                crowding = [sys.executable, "-m", "benchmarks.review", "--crowd", str(port), "--seconds", "600"]
                others = psutil.Popen(crowding, cwd=table.ROOT) if watched else None
                before, began = _cpu(process), time.perf_counter()
                subprocess.run(command, cwd=table.ROOT, check=True, capture_output=True)
                if others is not None:
                    took = time.perf_counter() - began
                    cores.append(((_cpu(process) - before) / took, _cpu(others) / took))
                    others.kill()
                    others.wait()
                record = json.loads((out / "run.json").read_text())
                speeds[watched].append(record["patches_per_s"])
                shutil.rmtree(out)
    alone, with_viewers = (float(np.median(speeds[watched])) for watched in (False, True))
    return {
        "patches_per_s_alone": alone,
        "patches_per_s_with_20_viewers": with_viewers,
        "ratio": round(with_viewers / alone, 3),
        "ratios_by_pair": [round(b / a, 3) for a, b in zip(speeds[False], speeds[True], strict=True)],
        "server_cores": round(float(np.median([one for one, _ in cores])), 3),
        "viewers_cores_here_on_other_machines_in_life": round(float(np.median([one for _, one in cores])), 3),
    }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def main() -> None:
    parser = table.parser("review", __doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8, help="of each line (default: %(default)s)")
    parser.add_argument("--size", default="20000x15000", help="of the synthetic slide (default: %(default)s)")
    parser.add_argument("--pipeline", action="store_true", help="also a run with and without viewers")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--made", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--crowd", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve, args.made)
    if args.crowd is not None:
        asyncio.run(crowd(args.crowd, key_of("large"), 20, args.seconds, LOOK_S))
        return
    machine = table.facts()
    width, height = (int(side) for side in args.size.split("x"))
    slide = synthetic_slide(width, height)
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        results = results_of(folder / "results", slide)
        key = key_of("large")
        for made, mode in enumerate(MODES):
            with served(results, bool(made)) as (port, process):
                figures[f"first view of a slide that is not open, {mode}"] = f"{first_view(port, key):.0f} ms"
                for viewers, pause in ((1, LOOK_S), (20, LOOK_S), (20, 0.0)):
                    line = measure(port, process, key, viewers, args.seconds, pause)
                    rows.append([mode, viewers, "1 s" if pause else "no pause", *line.values()])
                if not made:
                    figures[f"heatmap of {PATCHES} patches"] = timed(port, f"/api/slides/{key}/heat")
                    figures[f"regions of {PATCHES} patches"] = timed(port, f"/api/slides/{key}/regions?threshold=0.99")
                    figures["memory of the server, MiB"] = process.memory_info().rss >> 20
        with served(many(folder / "many", results), False) as (port, _):
            figures[f"worklist of {SLIDES} slides"] = timed(port, "/api/worklist")
        if args.pipeline:
            figures |= beside_a_run(slide, folder, args.seconds)
    columns = ["tiles are", "viewers", "looks for", *line]
    table.emit(args.json, "review: tiles to viewers", columns, rows, machine=machine, **figures)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
