"""JPEG tiles decoded by the GPU (nvImageCodec) and by processor cores (libjpeg-turbo): tiles a second, and the same pixels?

For a machine with an NVIDIA GPU, PyTorch, nvidia-nvimgcodec-cu13 and nvidia-nvjpeg (docs/slides.md). Tiles of synthetic
slides are decoded by every backend at several batch sizes, alone and beside a network (ResNet-50, FP16, a CUDA graph) that
keeps the GPU busy, and compared with libjpeg-turbo's, beside the network too. `processor ms` is what a tile costs the
processor, all threads together: where cores are few, that is what GPU decoding has to save. `network` is how many images
of 224 pixels the network did meanwhile. Without a GPU the same code runs on nvImageCodec's processor backend.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import simplejpeg

from benchmarks import table
from slides.jpeg_tiles import JpegTiles
from slides.synthetic import SyntheticSlide, make_slide
from slides.tiff_index import read_index

try:
    import torch
except ImportError:
    torch = None
GPU = torch is not None and torch.cuda.is_available()

_SIDE = 6144
_NETWORK_BATCH = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `largest`, `mean`: difference from libjpeg-turbo in grey levels; `lost`: tiles not decoded."""

    tile: str
    decoder: str
    batch: int | None
    tiles_per_s: float | None
    processor_ms: float | None
    largest: int | None = None
    mean: float | None = None
    lost: int | None = None
    network: float | None = None


def picture(folder: Path) -> np.ndarray:
    """Level 0 of a synthetic slide, uint8 (h, w, 3)."""
    path = folder / "slide.tif"
    make_slide(path, SyntheticSlide(_SIDE, _SIDE, tissue=0.7, tile=512, subsampling="444", quality=95))
    whole = np.empty((_SIDE, _SIDE, 3), np.uint8)
    fd = os.open(path, os.O_RDONLY)
    try:
        directory = read_index(fd)[0]
        jpeg = JpegTiles(512, 512, directory.photometric, directory.tables)
        tile = np.empty((512, 512, 3), np.uint8)
        for index, (offset, count) in enumerate(zip(directory.offsets, directory.counts, strict=True)):  # type: ignore[arg-type]
            jpeg.decode(os.pread(fd, int(count), int(offset)), tile)
            row, column = divmod(index, directory.columns)
            whole[row * 512 : row * 512 + 512, column * 512 : column * 512 + 512] = tile
    finally:
        os.close(fd)
    return whole


def tiles(image: np.ndarray, side: int, subsampling: str) -> list[bytes]:
    """The richer half of a picture's tiles, as JPEG streams."""
    corners = [(y, x) for y in range(0, _SIDE - side + 1, side) for x in range(0, _SIDE - side + 1, side)]
    streams = [
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(image[y : y + side, x : x + side]), quality=80, colorsubsampling=subsampling
        )
        for y, x in corners
    ]
    middle = float(np.median([len(stream) for stream in streams]))
    return [stream for stream in streams if len(stream) >= middle]


def timed(work: Callable[[], int], seconds: float, finish: Callable[[], None]) -> tuple[float, float]:
    """Repeat `work`, which says how many tiles it did: tiles a second by the clock, processor ms a tile."""
    work()
    finish()
    done = 0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        done += work()
    finish()
    return done / (time.perf_counter() - began), 1e3 * (time.process_time() - cpu) / done


class OnCores:
    """libjpeg-turbo on so many threads; it lets go of the interpreter while it decodes."""

    def __init__(self, streams: Sequence[bytes], side: int, cores: int) -> None:
        self._pool = ThreadPoolExecutor(cores)
        self._parts = [streams[i::cores] for i in range(cores)]
        self._buffers = [np.empty((side, side, 3), np.uint8) for _ in range(cores)]

    def work(self) -> int:
        """All tiles once."""
        return sum(self._pool.map(self._part, self._parts, self._buffers))

    @staticmethod
    def _part(streams: Sequence[bytes], buffer: np.ndarray) -> int:
        for stream in streams:
            simplejpeg.decode_jpeg(stream, "RGB", buffer=buffer)
        return len(streams)


class OnGpu:
    """nvImageCodec with one backend (None: its own choice), two batches in flight."""

    def __init__(self, streams: Sequence[bytes], batch: int, backend: str | None, threads: int) -> None:
        from nvidia import nvimgcodec as codec

        self._codec = codec
        kinds = None if backend is None else [codec.Backend(getattr(codec.BackendKind, backend))]
        device = 0 if GPU else codec.NVIMGCODEC_DEVICE_CPU_ONLY
        self._decoder = codec.Decoder(
            device_id=device, max_num_cpu_threads=threads, backends=kinds, options=":fancy_upsampling=1"
        )
        self._batches = [streams[i : i + batch] for i in range(0, len(streams) - batch + 1, batch)]
        self._images: list[Any] = [None, None]
        self._events: list[Any] = [None, None]
        self._stream = torch.cuda.Stream() if GPU else None
        self._next = 0

    def work(self) -> int:
        """One batch; waits for the last but one."""
        slot, batch = self._next % 2, self._batches[self._next % len(self._batches)]
        self._next += 1
        if self._events[slot] is not None:
            self._events[slot].synchronize()
        self._images[slot] = self.decode(batch, self._images[slot])
        if self._stream is not None:
            self._events[slot] = torch.cuda.Event()
            self._events[slot].record(self._stream)
        return len(batch)

    def decode(self, batch: Sequence[bytes], images: list[Any] | None = None) -> list[Any]:
        """Images on the GPU, or None for what was not decoded."""
        codes = [self._codec.CodeStream(stream) for stream in batch]
        if images is not None and (None in images or len(images) != len(codes)):
            images = None
        handle = 0 if self._stream is None else self._stream.cuda_stream
        return self._decoder.decode(codes, images=images, cuda_stream=handle)

    def finish(self) -> None:
        """Wait for all."""
        if self._stream is not None:
            self._stream.synchronize()

    def compare(self, rounds: int) -> tuple[int, float, int]:
        """All batches, so many times: the largest and the mean difference from libjpeg-turbo, and the tiles lost."""
        largest, lost, sums = 0, 0, []
        for number in range(rounds * len(self._batches)):
            batch = self._batches[number % len(self._batches)]
            images = self.decode(batch)
            self.finish()
            for stream, image in zip(batch, images, strict=True):
                if image is None:
                    lost += 1
                    continue
                theirs = np.asarray(image.cpu())
                ours = simplejpeg.decode_jpeg(stream, "RGB")
                apart = np.abs(theirs.astype(np.int16) - ours)
                largest = max(largest, int(apart.max()))
                sums.append(float(apart.mean()))
        return largest, float(np.mean(sums)) if sums else float("nan"), lost


class Network:
    """ResNet-50 in FP16 as a CUDA graph, over and over in a thread of its own while it is entered."""

    def __init__(self) -> None:
        import torchvision

        network = torchvision.models.resnet50().half().cuda().eval().to(memory_format=torch.channels_last)
        images = torch.rand(_NETWORK_BATCH, 3, 224, 224, device="cuda", dtype=torch.half)
        images = images.to(memory_format=torch.channels_last)
        self._stream = torch.cuda.Stream()
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.stream(self._stream):
            for _ in range(3):
                network(images)
            self._stream.synchronize()
            with torch.cuda.graph(self._graph, stream=self._stream):
                network(images)
        self._stop = threading.Event()
        self._done = 0

    def __enter__(self) -> Self:
        self._stop.clear()
        self._done, self._began = 0, time.perf_counter()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.rate = self._done * _NETWORK_BATCH / (time.perf_counter() - self._began)

    def _run(self) -> None:
        events = [torch.cuda.Event(blocking=True) for _ in range(3)]
        while not self._stop.is_set():
            event = events[self._done % 3]
            if self._done >= 3:
                event.synchronize()
            with torch.cuda.stream(self._stream):
                self._graph.replay()
                event.record(self._stream)
            self._done += 1
        self._stream.synchronize()


def measure(image: np.ndarray, side: int, subsampling: str, args: Any, network: Network | None) -> list[Row]:
    """All rows of one kind of tile."""
    streams = tiles(image, side, subsampling)
    name = f"{side} px, {subsampling}, {np.mean([len(s) for s in streams]) / 1000:.1f} kB"
    rows = []
    for cores in sorted({1, 4, len(os.sched_getaffinity(0))}):
        rate, ms = timed(OnCores(streams, side, cores).work, args.seconds, lambda: None)
        rows.append(Row(name, f"libjpeg-turbo, {cores} threads", None, rate, ms))
        print(rows[-1], file=sys.stderr, flush=True)
    backends = ("HW_GPU_ONLY", "HYBRID_CPU_GPU", "GPU_ONLY", None) if GPU else ("CPU_ONLY",)
    for backend in backends:
        for batch in args.batches:
            if batch <= len(streams):
                rows += _backend(name, streams, backend, batch, args, network)
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _backend(
    name: str, streams: Sequence[bytes], backend: str | None, batch: int, args: Any, network: Network | None
) -> list[Row]:
    label = (backend or "its choice").lower()
    try:
        decoder = OnGpu(streams, batch, backend, args.threads)
        rate, ms = timed(decoder.work, args.seconds, decoder.finish)
        rows = [Row(name, label, batch, rate, ms, *decoder.compare(1))]
        if network is not None and batch == max(b for b in args.batches if b <= len(streams)):
            with network:
                rate, ms = timed(decoder.work, 2 * args.seconds, decoder.finish)
            busy = network.rate
            with network:
                same = decoder.compare(args.rounds)
            rows.append(Row(name, f"{label}, beside the network", batch, rate, ms, *same, busy))
    except (RuntimeError, ValueError, OSError) as error:  # a finding; the other figures go on
        print(f"{name}, {label}, {batch}: {type(error).__name__}: {error}", file=sys.stderr)
        return [Row(name, label, batch, None, None)]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    made = table.parser("gpu_decode", __doc__.splitlines()[0])  # type: ignore[union-attr]
    made.add_argument("--sides", type=int, nargs="+", default=[240, 256, 512], help="of tiles (default 240 256 512)")
    made.add_argument("--subsampling", nargs="+", default=["420", "444"], help="(default 420 444)")
    made.add_argument("--batches", type=int, nargs="+", default=[32, 128], help="tiles a call (default 32 128)")
    made.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default 1)")
    made.add_argument("--rounds", type=int, default=4, help="of comparing beside the network (default 4)")
    made.add_argument("--threads", type=int, default=4, help="of nvImageCodec on the processor (default 4)")
    args = made.parse_args(arguments)
    cv2.setNumThreads(1)
    facts = table.facts()
    network = Network() if GPU else None
    rows: list[Row] = []
    if network is not None:
        with network:
            time.sleep(2 * args.seconds)
        rows.append(Row("-", "the network alone", None, None, None, network=network.rate))
    with tempfile.TemporaryDirectory() as folder:
        image = picture(Path(folder))
    for subsampling in args.subsampling:
        for side in args.sides if subsampling == args.subsampling[0] else args.sides[1:2]:
            rows += measure(image, side, subsampling, args, network)
    columns = ("tile", "decoder", "batch", "tiles/s", "processor ms", "largest", "mean", "lost", "network/s")
    cells = [
        (r.tile, r.decoder, r.batch, r.tiles_per_s, r.processor_ms, r.largest, r.mean, r.lost, r.network) for r in rows
    ]
    name = torch.cuda.get_device_name(0) if GPU else "none"
    table.emit(args.json, "JPEG tiles, by processor and GPU", columns, cells, machine=facts, gpu=name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
