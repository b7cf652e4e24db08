"""The path of practice to a precision: FP16 where it loses nothing that matters, else FP32; INT8 where it is as good and
faster on this GPU. What was measured, and why it was chosen, is told and kept in the engine's sidecar.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engines.cache import Entry, record_choice, record_verification
from engines.engine import Engine
from engines.errors import DeadlyError, EngineError
from engines.gpu import Gpu
from engines.make import Maker, Order
from engines.verify import BOUND, Verification, compare, run

FASTER = 1.02  # int8 must win by more than the measurement wavers
_SECONDS = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What engines are tried on: patches uint8 (n, P, P, 3) with the reference's probabilities, and perhaps labels."""

    patches: np.ndarray
    reference: np.ndarray
    labels: np.ndarray | None = None
    positive: int = -1
    bound: float = BOUND
    seconds: float = _SECONDS
    contexts: int = 2
    others: tuple[Trial, ...] = ()
    """The same at the other patch sizes that engines are built for. All must pass; the speed is that of the first."""

    @property
    def patch_px(self) -> int:
        return int(self.patches.shape[1])

    def verify(self, engine: Engine, batch: int) -> Verification:
        found = run(engine.contexts(1), self.patches, batch)
        return compare(self.reference, found, bound=self.bound, labels=self.labels, positive=self.positive)


@dataclass(frozen=True, slots=True)
class Tried:
    """An engine, whether it is right, and patches/s."""

    entry: Entry
    verification: Verification
    speed: float


Opener = Callable[[Entry, int], Engine]
"""Opens an engine that may not have been verified yet, for patches of so many px."""


def check(entry: Entry, trial: Trial, gpu: Gpu, opened: Opener) -> Tried:
    """Verifies and times an engine, at every patch size of `trial`, and keeps what was found in its sidecar.

    What counts is the worst of the sizes. Raises EngineError, OSError; DeadlyError, which is kept there too.
    """
    if entry.identity is None:
        raise EngineError(f"{entry.plan}: {entry.problem}")
    lacking = {profile["patch_px"] for profile in entry.identity.profiles} - {
        part.patch_px for part in (trial, *trial.others)
    }
    if lacking:
        raise EngineError(f"{entry.plan}: nothing to verify it with at {', '.join(map(str, sorted(lacking)))} px")
    sizes = []
    worst: Verification | None = None
    for part in (trial, *trial.others):
        try:
            found, numbers = _try(entry, part, opened)
        except DeadlyError as error:
            record_verification(entry, gpu, {"passed": False, "reason": str(error), "loss": None, "when": _now()})
            raise
        sizes.append({"patch_px": part.patch_px, **numbers})
        if trial.others and found.reason:
            found = replace(found, reason=f"{part.patch_px} px: {found.reason}")
        if worst is None or _badness(found) > _badness(worst):
            worst = found
    record = {
        **worst.to_dict(),
        **{name: sizes[0][name] for name in ("patches_per_s", "batch", "context_mib", "driver")},
    }
    record["contexts"] = trial.contexts
    record["when"] = _now()
    record["sizes"] = sizes
    return Tried(record_verification(entry, gpu, record), worst, sizes[0]["patches_per_s"])


def _try(entry: Entry, trial: Trial, opened: Opener) -> tuple[Verification, dict[str, Any]]:
    profiles = entry.identity.profiles if entry.identity else []
    batch = max((profile["maximum"] for profile in profiles if profile["patch_px"] == trial.patch_px), default=1)
    engine = opened(entry, trial.patch_px)
    try:
        found = trial.verify(engine, batch)
        speed = measure(engine, trial.patches, batch, trial.contexts, trial.seconds) if found.passed else 0.0
        about = engine.describe()
    finally:
        engine.close()
    return found, {
        "loss": found.loss,
        "patches_per_s": round(speed, 1),
        "batch": batch,
        "context_mib": about.get("context_mib"),
        "driver": about.get("driver", ""),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _badness(found: Verification) -> tuple[bool, float]:
    return not found.passed, math.inf if found.loss is None else found.loss


def choose(
    maker: Maker, order: Order, trial: Trial, gpu: Gpu, opened: Opener, *, rebuild: bool = False
) -> tuple[Entry, list[str]]:
    """The engine for `order`, whose precision is not looked at; and the reasons. Raises EngineError: none is right."""
    reasons: list[str] = []
    measured: dict[str, Any] = {}

    def attempt(precision: str) -> Tried | None:
        make = maker.make_int8 if precision == "int8" else maker.make
        try:
            tried = check(make(replace(order, precision=precision), rebuild=rebuild), trial, gpu, opened)
        except EngineError as error:
            if error.fatal:
                raise
            say(f"{precision}: {error}")
            return None
        speed = f", {tried.speed:,.0f} patches/s" if tried.speed else ""
        say(f"{precision}: {tried.verification.show()}{speed}")
        measured[precision] = {"loss": tried.verification.loss, "patches_per_s": round(tried.speed, 1)}
        return tried if tried.verification.passed else None

    def say(line: str) -> None:
        reasons.append(line)
        maker.tell(line)

    best = attempt("fp16") or attempt("fp32")
    if best is None:
        raise EngineError(f"no engine is right: {'; '.join(reasons)}")
    if order.calibration is None:
        say("int8: not tried, it wants tissue to calibrate with (--calibrate)")
    else:
        small = attempt("int8")
        if small is not None and small.speed > FASTER * best.speed:
            best = small
        elif small is not None:
            say(f"int8: as good, but not faster than {best.entry.identity.precision if best.entry.identity else '?'}")
    precision = best.entry.identity.precision if best.entry.identity else "?"
    say(f"chosen: {precision}")
    return record_choice(best.entry, {"precision": precision, "reasons": reasons, "measured": measured}), reasons


def measure(engine: Engine, patches: np.ndarray, batch: int, contexts: int, seconds: float) -> float:
    """Patches/s of full batches, from one array over and over, all contexts kept busy."""
    idle = deque(engine.contexts(contexts))
    full = np.ascontiguousarray(np.resize(patches, (batch, *patches.shape[1:])))
    busy: deque[Any] = deque()
    started, rows = 0.0, 0
    warm = 2 * contexts
    while True:
        while idle:
            context = idle.popleft()
            context.submit(full)
            busy.append(context)
        context = busy.popleft()
        done = len(context.result())
        idle.append(context)
        if warm:
            warm -= 1
            started = time.monotonic()
            continue
        rows += done
        elapsed = time.monotonic() - started
        if elapsed >= seconds:
            for context in busy:
                context.result()
            return rows / elapsed
