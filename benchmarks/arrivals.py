"""A day's slides, and how they come: most whole, some slowly, some broken, some urgent, some twice."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.inputs import synthetic_slide

MPP = 0.5
# (width, height) in pixels, and how often: some 100 to 1,600 patches of 64 px
SIZES = (((1024, 768), 50), ((1536, 1152), 30), ((2304, 1728), 15), ((4096, 3072), 5))
GOOD, SLOW, AGAIN, DAMAGED, TRUNCATED, RUBBISH = "good", "slow", "again", "damaged", "truncated", "rubbish"
BROKEN = (DAMAGED, TRUNCATED, RUBBISH)
PIECES = 6
RUSH = ((0.35, 0.06, 0.3), (0.7, 0.05, 0.25))  # the middle of a rush, its width, its share of all slides; in days


@dataclass(frozen=True, slots=True)
class Arrival:
    """One file that comes. `at`: seconds from the start; `name`: its path below the watched folder, without extension.

    `how`: good, whole at once; slow, in pieces with pauses longer than the settle time; again, content that came before
    under another name (`source` is its file); damaged, a tile of it is not readable; truncated; rubbish, no slide at all.
    """

    name: str
    how: str
    urgent: bool
    at: float
    source: Path

    @property
    def in_frozen(self) -> bool:
        """Urgent by its folder; the others that are urgent are so by their name."""
        return self.urgent and "frozen" not in self.name


def stock(count: int, seed: int) -> list[Path]:
    """So many different slides, made once and kept."""
    rng = random.Random(seed)
    sizes = rng.choices([size for size, _ in SIZES], [weight for _, weight in SIZES], k=count)
    return [synthetic_slide(*size, seed=1000 + number, mpp=MPP) for number, size in enumerate(sizes)]


def plan(slides: list[Path], seconds: float, broken: float, urgent: float, seed: int) -> list[Arrival]:
    """When what comes, in order of time. `broken`, `urgent`: parts of all slides; 3 % come slowly, 2 % a second time."""
    rng = random.Random(seed)
    count = len(slides)
    numbers = rng.sample(range(count), count)
    hows = [BROKEN[i % len(BROKEN)] for i in range(round(broken * count))] + [SLOW] * max(1, round(0.03 * count))
    how = dict(zip(numbers, hows, strict=False))
    stat = set([n for n in numbers if n not in how][: max(1, round(urgent * count))])
    arrivals = []
    for number, source in enumerate(slides):
        name = f"ward {number % 3}/s{number:04}"
        if number in stat and number % 2:
            name += " frozen"
        at = _hour(rng) * seconds
        arrivals.append(Arrival(name, how.get(number, GOOD), number in stat, at, source))
    good = [one for one in arrivals if one.how == GOOD]
    for number, one in enumerate(rng.sample(good, min(len(good), max(1, round(0.02 * count))))):
        at = min(seconds, one.at + rng.uniform(0.1, 0.3) * seconds)
        arrivals.append(Arrival(f"copies/c{number:03}", AGAIN, False, at, one.source))
    return sorted(arrivals, key=lambda one: one.at)


def _hour(rng: random.Random) -> float:
    """A time of the day, 0 to 1: two rushes, and the rest at any time."""
    dice = rng.random()
    for middle, width, share in RUSH:
        if dice < share:
            return min(1.0, max(0.0, rng.gauss(middle, width)))
        dice -= share
    return rng.random()


@dataclass
class Courier:
    """Brings slides to the watched folders. `came`: by name, the wall-clock time at which a file was complete."""

    routine: Path
    frozen: Path
    arrivals: list[Arrival]
    seed: int
    came: dict[str, float] = field(default_factory=dict)
    _began: float | None = None
    _next: int = 0
    _slow: list[tuple[float, Arrival, Iterator[float]]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether all have come."""
        return self._next == len(self.arrivals) and not self._slow

    def step(self) -> None:
        """Bring what is due."""
        now = time.monotonic()
        self._began = self._began or now
        while self._next < len(self.arrivals) and now - self._began >= self.arrivals[self._next].at:
            one = self.arrivals[self._next]
            self._next += 1
            if one.how == SLOW:
                self._slow.append((now, one, self._pieces(one)))
            else:
                self._at_once(one)
        for entry in [entry for entry in self._slow if now >= entry[0]]:
            self._slow.remove(entry)
            _, one, pieces = entry
            pause = next(pieces, None)
            if pause is None:
                self.came[one.name] = time.time()
            else:
                self._slow.append((now + pause, one, pieces))

    def target(self, one: Arrival) -> Path:
        """Where it comes to lie."""
        return (self.frozen if one.in_frozen else self.routine) / f"{one.name}.tif"

    def _at_once(self, one: Arrival) -> None:
        to = self.target(one)
        to.parent.mkdir(parents=True, exist_ok=True)
        part = to.with_name(f".{to.name}.part")  # as a scanner does that writes under a temporary name first
        part.write_bytes(content(one, self.seed))
        part.rename(to)
        self.came[one.name] = time.time()

    def _pieces(self, one: Arrival) -> Iterator[float]:
        """Write it piece by piece; the pause after each, in s. The settle time is within the range of the pauses."""
        to, data, rng = self.target(one), content(one, self.seed), random.Random(f"{self.seed} {one.name}")
        to.parent.mkdir(parents=True, exist_ok=True)
        step = -(-len(data) // PIECES)
        for start in range(0, len(data), step):
            with to.open("ab") as file:
                file.write(data[start : start + step])
            if start + step < len(data):
                yield rng.uniform(0.2, 2.0)


def content(one: Arrival, seed: int) -> bytes:
    """The bytes of the file as it is in the end."""
    data = one.source.read_bytes()
    rng = random.Random(f"{seed} {one.name}")
    if one.how == TRUNCATED:
        return data[: int(len(data) * rng.uniform(0.2, 0.8))]
    if one.how == RUBBISH:
        return rng.randbytes(rng.randrange(50_000, 200_000))
    if one.how == DAMAGED:
        return damaged(data)
    return data


def damaged(data: bytes) -> bytes:
    """The same slide with rubbish in place of the JPEG stream that is largest: a tile of tissue at level 0."""
    starts = []
    at = data.find(b"\xff\xd8\xff")
    while at >= 0:
        starts.append(at)
        at = data.find(b"\xff\xd8\xff", at + 3)
    ends = [*starts[1:], len(data)]
    start, end = max(zip(starts, ends, strict=True), key=lambda span: span[1] - span[0])
    size = data.find(b"\xff\xd9", start, end) + 2 - start
    return data[:start] + b"\xaa" * size + data[start + size :]


def link(one: Arrival, folder: Path, seed: int) -> None:
    """The file as it is in the end, under its name in `folder`, for an undisturbed run."""
    to = folder / f"{one.name}.tif"
    to.parent.mkdir(parents=True, exist_ok=True)
    if one.how == DAMAGED:
        to.write_bytes(content(one, seed))
    else:
        os.link(one.source, to) if one.source.stat().st_dev == folder.stat().st_dev else to.symlink_to(one.source)
