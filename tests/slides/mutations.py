"""Ways to spoil a file, for fuzzing: whatever a parser is given, it must refuse or read."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def flip(rng: np.random.Generator, data: bytearray) -> None:
    for _ in range(rng.integers(1, 8)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def overwrite(rng: np.random.Generator, data: bytearray) -> None:
    value = int(
        rng.choice([0, 1, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(data), len(data) - 4, rng.integers(1 << 32)])
    )
    width = int(rng.choice([2, 4, 8]))
    at = int(rng.integers(max(1, len(data) - width)))
    data[at : at + width] = value.to_bytes(8, "little")[:width]


def cut(rng: np.random.Generator, data: bytearray) -> None:
    del data[rng.integers(1, len(data)) :]


def repeat(rng: np.random.Generator, data: bytearray) -> None:
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    data[a:a] = data[a : min(b, a + 64)]


_KINDS = (flip, flip, overwrite, overwrite, overwrite, cut, repeat)


def mutate(rng: np.random.Generator, data: bytearray) -> None:
    """Spoil the data in one way, in place."""
    if len(data) > 16:
        _KINDS[rng.integers(len(_KINDS))](rng, data)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail a test whose body takes longer: one input must not hang the reader. For the main thread."""

    def fail(*_: object) -> None:
        raise AssertionError(f"took more than {seconds:g} s: it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
