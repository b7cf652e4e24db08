"""From a model directory to an engine in the cache: fold, change of precision, build, and what is recorded of it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.build import Progress, build, check_targets
from engines.cache import EngineCache, Entry
from engines.calibration import Patches
from engines.errors import EngineError
from engines.flavour import Flavour
from engines.fold import fold
from engines.gpu import Gpu
from engines.identity import Identity, identity, suited, target
from engines.model import Model
from engines.precision import graph_sha256, to_half
from engines.quantize import (
    PRODUCTS,
    QUANTISABLE,
    WITHOUT_CONVOLUTIONS,
    Ranges,
    calibrate,
    load_ranges,
    quantise,
    quantiser,
    save_ranges,
)
from engines.recipe import BuildOptions, Profile

Tell = Callable[[str], None]
# What int8 quantises, from the most to the least: not every flavour takes everything.
_INT8 = (
    (QUANTISABLE, "convolutions and matrix products"),
    (WITHOUT_CONVOLUTIONS, "matrix products and, as such, convolutions of one pixel"),
    (PRODUCTS, "matrix products alone"),
)


@dataclass(frozen=True, slots=True)
class Order:
    """An engine that is wanted."""

    model: Model
    precision: str
    profiles: tuple[Profile, ...]
    options: BuildOptions
    flavour: Flavour
    gpu: Gpu | None
    calibration: Patches | None = None
    """Needed for int8 alone."""
    quantised: tuple[str, ...] = QUANTISABLE
    """Operators that int8 may quantise."""

    @property
    def suited(self) -> BuildOptions:
        """The options, for the GPU at hand where they name none."""
        return suited(self.options, self.flavour, self.gpu)

    def folded(self) -> Any:
        """The graph for its patch sizes, in float32. Raises ModelError."""
        sizes = {profile.patch_px for profile in self.profiles}
        return fold(self.model, any_size=sizes != {self.model.patch_px})

    def identity(self, graph: str) -> Identity:
        """`graph` is the sha256 of the folded graph."""
        return identity(
            model=self.model.sha256,
            graph=graph,
            precision=self.precision,
            quantiser=quantiser(self.quantised),
            calibration=self.calibration.sha256 if self.calibration and self.precision == "int8" else "",
            classes=len(self.model.classes),
            profiles=self.profiles,
            options=self.suited,
            flavour=self.flavour,
            gpu=self.gpu,
        )


class Maker:
    """Makes engines in a cache. `tell` takes lines for a person, `progress` the builder's steps."""

    def __init__(
        self,
        cache: EngineCache,
        *,
        threads: int = 1,
        tell: Tell = lambda line: None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self.cache, self.threads, self.tell, self.progress, self.cancel = cache, threads, tell, progress, cancel

    def find(self, order: Order) -> Entry | str:
        """The engine that was ordered, or in words why there is none."""
        wanted = order.identity(graph_sha256(order.folded()))
        entry = self.cache.find(wanted)
        if entry is None:
            return self.cache.why_not(wanted)
        return f"{entry.plan.name}: {entry.problem}" if entry.problem else entry

    def make(self, order: Order, *, rebuild: bool = False) -> Entry:
        """The engine that was ordered, built where it is not there. Raises ModelError, EngineError, BuildCanceled."""
        # Both raise before the long work.
        check_targets(order.options, order.flavour)
        target(order.flavour, order.suited, order.gpu)
        graph = order.folded()
        sha256 = graph_sha256(graph)
        wanted = order.identity(sha256)
        entry = None if rebuild else self.cache.find(wanted)
        if entry is not None and not entry.problem:
            self.tell(f"{entry.plan.name}: is there already")
            return entry
        if entry is not None:
            self.tell(f"{entry.plan.name}: {entry.problem}; building it again")
        details: dict[str, Any] = {}
        if order.precision == "int8":
            if order.calibration is None or not len(order.calibration):
                raise EngineError("int8 wants tissue to calibrate with: give --calibrate SLIDE_OR_FOLDER...")
            details["calibration"] = order.calibration.to_dict()
            graph = quantise(graph, self._ranges(order, graph, sha256, order.calibration), order.quantised)
        if order.precision != "fp32":
            graph = to_half(graph)
        self._say_sizes(order)
        timing = self.cache.folder / _timing_name(order)
        built = build(
            graph,
            order.precision,
            order.profiles,
            order.suited,
            order.flavour,
            timing_cache=timing,
            progress=self.progress,
            cancel=self.cancel,
        )
        self.tell(f"built in {built.seconds:.1f} s: {len(built.plan) >> 20} MiB; {built.census.show()}")
        for warning in built.warnings:
            self.tell(f"TensorRT: {warning}")
        return self.cache.put(order.model.name, wanted, built, order.gpu, details)

    def make_int8(self, order: Order, *, rebuild: bool = False) -> Entry:
        """As `make`; where the flavour refuses int8 convolutions, without them. See engines.quantize.POINTWISE."""
        check_targets(order.options, order.flavour)  # or each recipe would be tried in vain
        recipes = list(_INT8) if order.quantised == QUANTISABLE else [(order.quantised, "")]
        while True:
            operators, _ = recipes.pop(0)
            try:
                return self.make(replace(order, quantised=operators), rebuild=rebuild)
            except EngineError as error:
                if not recipes or order.calibration is None or error.fatal:
                    raise
                self.tell(f"{error}")
                self.tell(f"trying again with {recipes[0][1]} in int8")

    def _ranges(self, order: Order, graph: Any, sha256: str, patches: Patches) -> Ranges:
        path = self.cache.folder / "calibrations" / f"{sha256[:16]}-{patches.sha256[:16]}.json"
        found = load_ranges(path)
        if found is not None:
            self.tell(f"calibration: known already ({path.name})")
            return found
        for problem in patches.shortcomings():
            self.tell(f"calibration: {problem}")
        self.tell(f"calibration: {len(patches)} patches on the CPU")
        report = None
        if self.progress is not None:
            progress = self.progress
            report = lambda done, total: progress("Calibrating", done, total)
        with tempfile.TemporaryDirectory(prefix="slidestream-") as folder:
            found = calibrate(graph, patches.pixels, Path(folder), threads=self.threads, progress=report)
        save_ranges(path, found)
        return found

    def _say_sizes(self, order: Order) -> None:
        for profile in order.profiles:
            one = profile.minimum == profile.maximum
            sizes = f"{profile.minimum} to {profile.maximum}, best at {profile.optimum}"
            self.tell(
                f"profile {profile.patch_px} px: batches of {profile.maximum if one else sizes}; "
                f"{batch_bytes(profile, len(order.model.classes)) / 2**20:.0f} MiB of input and output "
                "for each context, beside what the network takes"
            )


def batch_bytes(profile: Profile, classes: int) -> int:
    """GPU memory for the largest batch's patches and answers."""
    return profile.maximum * (profile.patch_px**2 * 3 + 4 * classes)


def profiles_for(sizes: Sequence[int], minimum: int, optimum: int, maximum: int) -> tuple[Profile, ...]:
    return tuple(Profile(size, minimum, optimum, maximum) for size in sizes)


def _timing_name(order: Order) -> str:
    gpu = str(order.gpu) if order.gpu else "no GPU"
    text = f"timing-{order.flavour.name}-{order.flavour.version}-{gpu}"
    return "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in text) + ".cache"
