"""The configuration as types: every key, its default, its limits and what it is for.

The table in docs/configuration.md, the JSON Schema for editors and the error messages are all made from these fields,
so a key is described here and nowhere else. Reading files and `--set` is pipeline/config.py, sizes are pipeline/sizing.py.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from pipeline.section import Section, Text
from pipeline.section import key as _key
from pipeline.service.config import Service

OutputFormat = Literal["csv", "geojson", "parquet", "mask", "heatmap_png", "heatmap_tiff"]
ALL_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)

Auto = Literal["auto"]
Workers = Annotated[int, Field(ge=1, le=1024)] | Auto

ON_CPU = ("onnx", "null")  # engines that need no GPU


class Slides(Section):
    """How slides are opened."""

    mpp: float | None = _key(
        None,
        "Micrometres per pixel at level 0, used for every slide instead of what the slide says; null: from the slide.",
        ge=0.05, le=20.0, changes_results=True,
    )  # fmt: skip
    source: Literal["auto", "openslide", "direct"] = _key(
        "auto",
        "Who decodes: direct is slidestream itself (JPEG-tiled TIFF, SVS, Philips TIFF, NDPI); auto is direct where a check "
        "finds OpenSlide's pixels, and else OpenSlide.",
        changes_results=True,
    )
    shrink: Literal["exact", "fast"] = _key(
        "exact",
        "How patches are made smaller where no level has the wanted spacing: exact, or fast (while decoding; within 1.5 "
        "grey levels on average, tried on each slide).",
        changes_results=True,
    )
    ahead: int = _key(
        4,
        "Slides read side by side, and as many opened, masked and planned before their turn, so that no worker waits "
        "between slides.",
        ge=1, le=256,
    )  # fmt: skip
    overview_px: int = _key(
        2048, "Longest side of the overview from which the tissue mask is made, in pixels.",
        ge=256, le=8192, changes_results=True,
    )  # fmt: skip
    cache_mb: int = _key(64, "Decoded tiles that each slide reader keeps, in MiB.", ge=1, le=65536)
    preads: int = _key(
        4,
        "Reads of a slide file that each slide reader has under way while it decodes (direct reading); 1: reads when it "
        "needs the bytes. More, with a higher reader.credit, for a slow network share.",
        ge=1, le=64,
    )  # fmt: skip
    stage_dir: Text | None = _key(
        None,
        "Folder on a local disk to which slides are copied before they are read, while earlier ones run: for slides on a slow "
        "share. null: slides are read from where they lie. Urgent slides are never copied.",
    )
    stage_gb: float = _key(
        50.0, "Most that the copies in slides.stage_dir may take at a time, in GB; a larger slide is not copied.",
        ge=0.001, le=1_000_000,
    )  # fmt: skip
    read_timeout_s: float = _key(
        30.0, "A slide reader that needs longer than this for one patch is replaced, in seconds.", ge=1, le=3600
    )


class Tissue(Section):
    """What counts as tissue, and the grid of patches over it."""

    method: Literal["auto", "brightfield", "fluorescence", "none"] = _key(
        "auto", "How tissue is told from background; none: every patch of the slide is analysed.", changes_results=True
    )
    min_fraction: float = _key(
        0.1, "A patch is analysed when at least this fraction of it is tissue.", ge=0, le=1, changes_results=True
    )
    min_area_mm2: float = _key(
        0.01, "Pieces of tissue smaller than this are ignored, in mm².", ge=0, le=1000, changes_results=True
    )
    max_hole_mm2: float = _key(
        0.01, "Holes in tissue up to this size are filled, in mm².", ge=0, le=1000, changes_results=True
    )
    overlap: float = _key(
        0.0,
        "How far neighbouring patches overlap, as a fraction of the patch: 0.5 steps by half a patch.",
        ge=0, le=0.95, changes_results=True,
    )  # fmt: skip
    workers: int = _key(1, "Processes that make tissue masks.", ge=1, le=64)


class Reader(Section):
    """The processes that read patches from slides into shared memory."""

    workers: Workers = _key("auto", "Processes that read slides; auto: from the number of cores.")
    credit: int = _key(
        2, "Pieces of reading that each reader holds at a time; 2 hides the way to the batcher.", ge=1, le=64
    )


class MaxDelay(Section):
    """How long the oldest row of a slot may wait for the slot to fill, in milliseconds."""

    urgent: float = _key(20.0, "Of urgent slides, in milliseconds.", ge=0, le=60000)
    routine: float = _key(200.0, "Of all other slides, in milliseconds.", ge=0, le=60000)


class Batcher(Section):
    """The process that decides which patches are read and inferred next, and the shared memory that it deals out."""

    batch: Annotated[int, Field(ge=1, le=4096)] | Auto = _key(
        "auto",
        "Patches in a slot (and so in one run of the model) at most; auto: 32 on a CPU, on a GPU what the engine is best at.",
    )
    slots: Annotated[int, Field(ge=3, le=65536)] | Auto = _key(
        "auto",
        "Slots in shared memory; auto: enough that no worker waits for room. Each takes batch x patch x patch x 3 bytes.",
    )
    overview_slots: int = _key(
        3,
        "Places in shared memory for overviews on their way to the tissue mask; of 3 or more, one is kept for urgent slides "
        "where such may come.",
        ge=1, le=64,
    )  # fmt: skip
    max_delay_ms: MaxDelay = Field(MaxDelay(), description=MaxDelay.__doc__)
    routine_floor: float = _key(
        0.1, "Share of the work that routine slides keep while urgent slides are waiting.", ge=0, le=1
    )
    urgent: tuple[Text, ...] = _key(
        (), 'Patterns of slide ids or paths that make a slide urgent, for example ["*frozen*"].', max_length=256
    )


class Build(Section):
    """How engines of TensorRT are built, by `slidestream engine build` (its options go before) or by a run."""

    level: int = _key(3, "How hard the builder tries: 0 takes the first kernel that runs, 5 compares all.", ge=0, le=5)
    timing_iterations: int = _key(4, "Runs that are averaged where kernels are compared.", ge=1, le=100)
    aux_streams: Annotated[int, Field(ge=0, le=16)] | None = _key(
        None, "Streams beside each context's own; 0 is leaner with several contexts, null leaves it to TensorRT."
    )
    workspace_mib: Annotated[int, Field(ge=1, le=262144)] | None = _key(
        None, "Scratch memory that a kernel may take, in MiB; null: all of the GPU."
    )


class Inference(Section):
    """The processes that run the model."""

    engine: Literal["onnx", "tensorrt", "aoti", "gpu", "null"] = _key(
        "onnx",
        "What runs the model: onnx is ONNX Runtime on the CPU; tensorrt and aoti are engines built for GPUs (slidestream "
        "engine build), gpu is the faster of those; null, for benchmarks, is nothing at all.",
        changes_results=True,
    )
    patch_px: Annotated[int, Field(ge=1, le=8192)] | Auto = _key(
        "auto",
        "Side of the patches that models see, in pixels of their own spacing; auto: what each model was made for. At another "
        "size a network that takes it gives other results, which are marked as such.",
        changes_results=True, as_before=("auto",),
    )  # fmt: skip
    precision: Literal["auto", "fp16", "fp32", "int8"] = _key(
        "auto", "Precision of the engine on GPUs; auto: the fastest that was found right there.", changes_results=True
    )
    devices: Literal["all"] | Annotated[tuple[int | Text, ...], Field(min_length=1, max_length=256)] = _key(
        "all", 'GPUs to use: all, or a list of numbers or UUIDs, for example [0, 2] or ["GPU-5f9a..."].'
    )
    engines: Text | None = _key(None, "Folder of built engines; null: the user's cache.")
    missing: Literal["refuse", "build"] = _key(
        "refuse",
        "Where no engine fits the GPU: refuse to start, or build one first, verified on slides of this run (a service, which has none yet, refuses).",
    )
    build: Build = Field(Build(), description=Build.__doc__)
    fallback: Literal["none", "cpu"] = _key(
        "none", "Where there is no GPU that can be used: refuse to start, or use the engine onnx and say so."
    )
    cuda_graphs: bool | None = _key(
        None,
        "Start all kernels of a batch with one call; null: as the engine does best (aoti does, TensorRT does not).",
    )
    per_gpu: int = _key(1, "Processes for each GPU, where workers is auto.", ge=1, le=16)
    workers: Workers = _key(
        "auto", "Processes that run the model, all together; auto: from the number of cores, or of GPUs."
    )
    threads: Workers = _key("auto", "Threads of each of these processes; auto: from the number of cores.")
    contexts: Annotated[int, Field(ge=1, le=16)] | Auto = _key(
        "auto", "Batches that one process computes side by side; auto: 3 on a GPU, 1 on a CPU."
    )
    credit: int = _key(2, "Slots that each process holds at a time: one that it computes and the next.", ge=1, le=64)

    @model_validator(mode="after")
    def _precision_of_gpus(self) -> Self:
        if self.engine in ON_CPU and self.precision not in ("auto", "fp32"):
            raise ValueError(f"precision is {self.precision}, but the engine {self.engine} computes in fp32")
        if self.engine == "aoti" and self.precision == "int8":
            raise ValueError("precision is int8, but the engine aoti computes in fp16 or fp32")
        return self


class Aggregator(Section):
    """The process that writes the journals of patches and hands finished slides to the writers."""

    flush_ms: float = _key(
        50.0, "Results are on disk and acknowledged at the latest after this time, in milliseconds.", ge=0, le=10000
    )
    window: int = _key(256, "Batches of results that may be under way without acknowledgement.", ge=1, le=65536)


class Writer(Section):
    """The processes that write the result files of finished slides."""

    workers: int = _key(1, "Processes that write result files.", ge=1, le=64)


class Results(Section):
    """Which files come out."""

    formats: tuple[OutputFormat, ...] = _key(
        ALL_FORMATS, "Files written for each slide, beside its summary.", max_length=len(ALL_FORMATS)
    )
    heatmap_class: Text | None = _key(
        None, "The class that heatmap pictures show; null: the model's last class.", changes_results=True
    )

    @model_validator(mode="after")
    def _each_format_once(self) -> Self:
        if len(set(self.formats)) != len(self.formats):
            raise ValueError("formats: a format is named twice")
        return self


class Supervisor(Section):
    """How processes are watched and replaced. The defaults serve; a slow network share may need more patience."""

    beat_s: float = _key(1.0, "Each process says so often that it is well, in seconds.", ge=0.05, le=60)
    hang_s: float = _key(
        30.0, "A process silent for so long, or whose GPU is, is ended and replaced, in seconds.", ge=0.5, le=3600
    )
    start_s: float = _key(
        60.0, "A process that is not ready after this time is killed and replaced, in seconds.", ge=1, le=3600
    )
    drain_s: float = _key(
        60.0, "After Ctrl-C, work under way may take this long to reach a checkpoint, in seconds.", ge=1, le=3600
    )
    backoff_s: float = _key(
        0.5, "Pause before a dead process is started again, doubled each time, in seconds.", ge=0, le=60
    )
    backoff_max_s: float = _key(30.0, "Longest such pause, in seconds.", ge=0, le=3600)
    max_failures: int = _key(
        5, "Deaths in a row of one kind of process, without any progress, that end the run as a fault.", ge=1, le=1000
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hang_s < 3 * self.beat_s:
            raise ValueError(
                f"hang_s must be at least 3 x beat_s = {3 * self.beat_s:g}, or healthy processes are killed"
            )
        if self.backoff_max_s < self.backoff_s:
            raise ValueError(f"backoff_max_s must be at least backoff_s = {self.backoff_s:g}")
        return self


class Log(Section):
    """What is told while running."""

    level: Literal["debug", "info", "warning", "error"] = _key("info", "Least importance of a message that is shown.")
    format: Literal["auto", "console", "json"] = _key(
        "auto", "Form of messages on standard error: console for people, json for machines; auto: console."
    )
    file: bool = _key(
        True,
        "Keep all messages in slidestream.log too (in OUT; of the service, in its state folder), one JSON object a line.",
    )
    rotate_mb: float = _key(
        100.0,
        "A log file of this size is renamed to slidestream.log.1, and a new one begun, in MB.",
        ge=0.01,
        le=1_000_000,
    )
    keep: int = _key(5, "So many older log files are kept.", ge=0, le=1000)


class Config(Section):
    """slidestream's configuration. A file names only what it changes."""

    model: Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=16)] | None = _key(
        None,
        "Model directory, or a list of them that see patches of one size and spacing: all answer in one pass over a slide. "
        "null: the demonstration model, models/demo-tumour.",
    )
    slides: Slides = Field(Slides(), description=Slides.__doc__)
    tissue: Tissue = Field(Tissue(), description=Tissue.__doc__)
    reader: Reader = Field(Reader(), description=Reader.__doc__)
    batcher: Batcher = Field(Batcher(), description=Batcher.__doc__)
    inference: Inference = Field(Inference(), description=Inference.__doc__)
    aggregator: Aggregator = Field(Aggregator(), description=Aggregator.__doc__)
    writer: Writer = Field(Writer(), description=Writer.__doc__)
    results: Results = Field(Results(), description=Results.__doc__)
    supervisor: Supervisor = Field(Supervisor(), description=Supervisor.__doc__)
    log: Log = Field(Log(), description=Log.__doc__)
    service: Service = Field(Service(), description=Service.__doc__)
