"""From "auto" to numbers: how many processes, threads and slots a machine gets, and how much memory they take at most.

Pure functions of the configuration and the machine; the tables are at the top.
"""

from __future__ import annotations

from pipeline.machine import MIB, Machine
from pipeline.schema import ON_CPU, Config

CPU_BATCH = 32
GPU_CONTEXTS = 3
SMALLEST_BATCH = 4  # to which an automatic batch shrinks where memory is short
# Memory that a run may take of what the machine has; the rest is for the system and its page cache, which holds slide files.
MEMORY_SHARE = 0.75
# What sizes assume while the model is not yet known.
TYPICAL_PATCH_PX = 256
TYPICAL_CLASSES = 2
TYPICAL_MODEL_BYTES = 8 * MIB
# Patches of one slide that the memory bound allows for: a full slide at 20x and 224 px has 50,000. Larger slides take more.
SLIDE_PATCHES = 250_000

# (cores up to, readers, inference processes, threads of each), as functions of the number of cores. Reading and inference
# share the cores, and which of them is slower depends on slide and model, so each side alone can fill nearly all cores; when
# slots run full the readers wait, when they run empty the inference does, and the system's scheduler finds the balance.
# Few processes with several threads take less memory than many; few threads lose less time waiting for each other.
_SHARES = (
    (1, lambda cores: (1, 1, 1)),
    (4, lambda cores: (cores, cores, 1)),
    (16, lambda cores: (cores, cores // 2, 2)),
    (1024, lambda cores: (cores, cores // 4, 4)),
)

# Each number below is what was measured, plus a third. Of a process: its resident memory with all the libraries that it
# will load, libraries counted in full although processes share them (`Rss` of /proc/self/smaps_rollup after the imports:
# supervisor 98 MiB, reader 55, tissue 49, batcher 34, inference 49, aggregator 33, writer 97).
# `python -m benchmarks.memory` sets them against a run.
PROCESS_BYTES = {
    "supervisor": 130 * MIB,
    "reader": 75 * MIB,
    "tissue": 65 * MIB,
    "batcher": 45 * MIB,
    "inference": 65 * MIB,
    "aggregator": 45 * MIB,
    "writer": 130 * MIB,
}
# Of an inference process on a GPU, beside its slots: NVIDIA's libraries, the CUDA context, and PyTorch where that is used.
GPU_PROCESS_BYTES = {"tensorrt": 2048 * MIB, "aoti": 4096 * MIB, "gpu": 4096 * MIB}
# Of one open slide: a buffer for 2048 x 2048 pixels as OpenSlide gives them (16 MiB), and tile directories.
READER_WORK_BYTES = 12 * MIB  # OpenSlide's cache during the check of a slide, read-ahead, one region before shrinking
OPEN_SLIDE_BYTES = 24 * MIB
OVERVIEW_WORK_BYTES_PER_PIXEL = 16  # pixels as read, composited RGB, and the mask's planes
PICTURE_WORK_BYTES_PER_PIXEL = 40  # of a heatmap as it is drawn and packed; 30 were measured
ACTIVATION_BYTES_PER_PIXEL = 160  # of a batch; ResNet-50's widest pair of layers takes 128
ENGINE_ROWS = {"onnx": 4}  # rows that an engine runs at a time, where that is less than a batch
MODEL_COPIES = 3.6  # as a file, as weights, and packed for the processor; ResNet-50 took 2.7 times its file
PLAN_BYTES_PER_PATCH = 24  # in the batcher: corner, order, and the plan as it came; 17 were measured
WRITER_BYTES_PER_PATCH = 240  # one slide's table, and the text of it in pieces; 176 were measured


def resolve(
    config: Config,
    machine: Machine,
    *,
    patch_px: int = TYPICAL_PATCH_PX,
    classes: int = TYPICAL_CLASSES,
    model_bytes: int = TYPICAL_MODEL_BYTES,
    models: int = 1,
    gpus: int = 0,
    gpu_batch: int | None = None,
) -> Config:
    """`config` with numbers for every `auto`. What was given as a number stays; only `auto` values shrink to fit memory.

    Of several `models`, `classes` and `model_bytes` are those of all together.
    `gpus`: how many GPUs the run has (0: it is on the CPU), `gpu_batch`: the rows that suit their engine.
    """
    readers, workers, threads = _gpu_shares(config, machine.cores, gpus) if gpus else _shares(config, machine.cores)
    batch = (gpu_batch or CPU_BATCH) if config.batcher.batch == "auto" else config.batcher.batch
    if config.inference.contexts == "auto":
        config = _replace(config, inference={"contexts": GPU_CONTEXTS if gpus else 1})
    if config.inference.patch_px == "auto":
        config = _replace(config, inference={"patch_px": patch_px})
    if config.inference.engine in ON_CPU:
        config = _replace(config, inference={"precision": "fp32"})
    while True:
        sized = _sized(config, readers, workers, threads, batch)
        needed = sum(size for _, size in memory_bound(sized, patch_px, classes, model_bytes, models))
        if needed <= machine.memory_bytes * MEMORY_SHARE:
            return sized
        if config.inference.workers == "auto" and workers > 1 and not gpus:
            workers //= 2
            threads = _threads(config, machine.cores, workers)
        elif config.reader.workers == "auto" and readers > 1:
            readers //= 2
        elif config.batcher.batch == "auto" and batch > SMALLEST_BATCH:
            batch //= 2
        else:
            return sized  # as small as it gets; `slidestream check` tells whether that fits


def _shares(config: Config, cores: int) -> tuple[int, int, int]:
    cores = max(1, min(cores, _SHARES[-1][0]))
    readers, workers, threads = next(share(cores) for limit, share in _SHARES if cores <= limit)
    if config.reader.workers != "auto":
        readers = config.reader.workers
    if config.inference.workers != "auto":
        workers = config.inference.workers
        threads = _threads(config, cores, workers)
    elif config.inference.threads != "auto":
        threads = config.inference.threads
        workers = max(1, cores // threads)
    return readers, workers, threads


def _gpu_shares(config: Config, cores: int, gpus: int) -> tuple[int, int, int]:
    """Inference on a GPU takes little of the processor, so nearly all of it reads."""
    readers = max(1, min(cores, _SHARES[-1][0])) if config.reader.workers == "auto" else config.reader.workers
    workers = gpus * config.inference.per_gpu if config.inference.workers == "auto" else config.inference.workers
    return readers, workers, 1


def _threads(config: Config, cores: int, workers: int) -> int:
    return config.inference.threads if config.inference.threads != "auto" else max(1, cores // workers)


def _sized(config: Config, readers: int, workers: int, threads: int, batch: int) -> Config:
    slots = config.batcher.slots
    if slots == "auto":
        slots = slots_wanted(config, readers, workers)
    return _replace(
        config,
        reader={"workers": readers},
        batcher={"batch": batch, "slots": slots},
        inference={"workers": workers, "threads": threads},
    )


def slots_wanted(config: Config, readers: int, workers: int) -> int:
    """Slots with which no worker ever waits for room: what inference and readers hold by their credits, and one for urgent rows."""
    return workers * (config.inference.credit + contexts(config)) + readers * config.reader.credit + 1


def contexts(config: Config) -> int:
    """Contexts of each inference process; 1 where that is not resolved yet."""
    return 1 if config.inference.contexts == "auto" else config.inference.contexts


def _replace(config: Config, **sections: dict[str, object]) -> Config:
    updated = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=updated)


def memory_bound(
    config: Config, patch_px: int, classes: int, model_bytes: int = TYPICAL_MODEL_BYTES, models: int = 1
) -> list[tuple[str, int]]:
    """What a run takes at most, as (what, bytes); `config` is resolved, `patch_px` and `classes` are the model's.

    It holds for slides of up to SLIDE_PATCHES patches; beyond that each patch adds `bytes_per_patch`.
    """
    overview = config.slides.overview_px**2
    slides_held = config.slides.ahead + 1
    under_way = 2 * config.slides.ahead + 1  # read side by side, waiting for their turn, and being written
    record = bytes_per_patch(classes)
    reader = (
        PROCESS_BYTES["reader"]
        + config.slides.cache_mb * MIB
        + READER_WORK_BYTES
        + OPEN_SLIDE_BYTES * slides_held
        + overview * OVERVIEW_WORK_BYTES_PER_PIXEL
    )
    model = int(MODEL_COPIES * model_bytes)
    rows = min(config.batcher.batch, ENGINE_ROWS.get(config.inference.engine, config.batcher.batch))
    on_gpu = GPU_PROCESS_BYTES.get(config.inference.engine)
    if on_gpu is None:
        activations = models * rows * contexts(config) * patch_px**2 * ACTIVATION_BYTES_PER_PIXEL
        inference = PROCESS_BYTES["inference"] + model + activations
    else:
        inference = on_gpu + model  # activations lie on the GPU
    return [
        (f"patches in shared memory, {config.batcher.slots} slots", slots_bytes(config, patch_px)),
        (f"overviews in shared memory, {config.batcher.overview_slots} places", overview_bytes(config)),
        ("supervisor", PROCESS_BYTES["supervisor"] + model),  # which proves the model before the start
        (f"slide readers, {config.reader.workers}", config.reader.workers * reader),
        (
            f"tissue masks, {config.tissue.workers}",
            config.tissue.workers * (PROCESS_BYTES["tissue"] + overview * OVERVIEW_WORK_BYTES_PER_PIXEL),
        ),
        ("batcher", PROCESS_BYTES["batcher"] + SLIDE_PATCHES * PLAN_BYTES_PER_PATCH * under_way),
        (f"inference, {config.inference.workers}", config.inference.workers * inference),
        ("aggregator", PROCESS_BYTES["aggregator"] + SLIDE_PATCHES * record * under_way),
        (
            f"writers, {config.writer.workers}",
            config.writer.workers
            * (
                PROCESS_BYTES["writer"]
                + SLIDE_PATCHES * (WRITER_BYTES_PER_PATCH + record)
                + overview * PICTURE_WORK_BYTES_PER_PIXEL
            ),
        ),
    ]


def bytes_per_patch(classes: int) -> int:
    """Memory of one patch in a slide's record: probabilities (float32), column, row, fraction, state."""
    return 4 * classes + 13


def slots_bytes(config: Config, patch_px: int) -> int:
    """Shared memory of all slots: uint8 RGB patches. `config` is resolved."""
    return config.batcher.slots * config.batcher.batch * patch_px**2 * 3


def overview_bytes(config: Config) -> int:
    """Shared memory of all overview places: uint8 RGB, square of the longest side."""
    return config.batcher.overview_slots * config.slides.overview_px**2 * 3
