"""The path of practice to a precision: FP16 where it loses nothing that matters, else FP32; INT8 where it is as good and
faster on this GPU. What was measured, and why it was chosen, is told and kept in the engine's sidecar.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engines.cache import Entry, record_choice, record_verification
from engines.engine import Engine
from engines.errors import EngineError
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

    def verify(self, engine: Engine, batch: int) -> Verification:
        found = run(engine.contexts(1), self.patches, batch)
        return compare(self.reference, found, bound=self.bound, labels=self.labels, positive=self.positive)


@dataclass(frozen=True, slots=True)
class Tried:
    """An engine, whether it is right, and patches/s."""

    entry: Entry
    verification: Verification
    speed: float


Opener = Callable[[Entry], Engine]
"""Opens an engine that may not have been verified yet."""


def check(entry: Entry, trial: Trial, gpu: Gpu, opened: Opener) -> Tried:
    """Verifies and times an engine and keeps what was found in its sidecar. Raises EngineError, OSError."""
    if entry.identity is None:
        raise EngineError(f"{entry.plan}: {entry.problem}")
    batch = max(profile["maximum"] for profile in entry.identity.profiles)
    engine = opened(entry)
    try:
        found = trial.verify(engine, batch)
        speed = measure(engine, trial.patches, batch, trial.contexts, trial.seconds) if found.passed else 0.0
        about = engine.describe()
    finally:
        engine.close()
    record = {**found.to_dict(), "patches_per_s": round(speed, 1), "batch": batch, "contexts": trial.contexts}
    record["when"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record["driver"] = about.get("driver", "")
    record["context_mib"] = about.get("context_mib")
    return Tried(record_verification(entry, gpu, record), found, speed)


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
