"""Who works, and who holds what: workers, their credit, and the leases on them.

A lease has a number that rises for ever (the batcher's boot number in its high bits), and belongs to one generation of
one worker: an answer that names another lease or comes from another generation is stale and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

BOOT_SHIFT = 40  # leases per boot: 2**40, more than a batcher can hand out in a year


@dataclass(slots=True, eq=False)
class Lease:
    """One piece of work at one worker. `subject` is what it is about: a slide, a batch and its slot.

    `prompt`: its worker takes it before others that are not (pipeline.line).
    `alone`: its worker holds no other lease beside it, so that a death under it proves something (suspects.py).
    """

    number: int
    kind: str
    worker: Worker
    subject: Any
    issued_at: float
    alone: bool = False
    prompt: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """One generation of one worker process."""

    name: str
    generation: int
    kind: str
    credit: int
    heard_at: float
    detail: dict
    free_since: float = 0.0
    condemned: bool = False
    telemetry: dict = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)

    @property
    def room(self) -> int:
        if self.condemned or any(lease.alone for lease in self.leases.values()):
            return 0
        return self.credit - len(self.leases)

    @property
    def room_ahead(self) -> int:
        """For prompt leases: as many as it has credit, and one beyond it where others that it will overtake take that up."""
        if self.condemned or any(lease.alone for lease in self.leases.values()):
            return 0
        return min(self.credit + 1 - len(self.leases), self.credit - self.prompt)

    @property
    def prompt(self) -> int:
        """Leases that nothing overtakes."""
        return sum(lease.prompt for lease in self.leases.values())


class Leases:
    """The ledger of workers and leases."""

    def __init__(self, boot: int):
        self.boot = boot
        self.workers: dict[str, Worker] = {}
        self._counter = boot << BOOT_SHIFT

    def join(self, worker: Worker) -> None:
        self.workers[worker.name] = worker

    def get(self, name: str, generation: int) -> Worker | None:
        worker = self.workers.get(name)
        return worker if worker is not None and worker.generation == generation else None

    def of_kind(self, kind: str) -> Iterator[Worker]:
        return (worker for worker in self.workers.values() if worker.kind == kind)

    def able(self, kind: str, idle: bool = False, but: tuple[str, ...] = (), prompt: bool = False) -> Worker | None:
        """The worker of a kind with the least to do, if any has credit left; among equals the one idle for longest.

        `idle`: only one that holds no lease at all will do. `but`: not one of these, as long as there are others. `prompt`: to a
        prompt lease, what it overtakes is nothing to do.
        """
        if prompt and not idle:
            return self._able_ahead(kind, but)
        best: Worker | None = None
        if but and all(worker.name in but or worker.condemned for worker in self.of_kind(kind)):
            but = ()
        for worker in self.workers.values():
            # The full ones first and without `room`: with many workers, most are, and this is looked at for every message.
            if worker.kind != kind or len(worker.leases) >= worker.credit:
                continue
            if worker.room <= 0 or (idle and worker.leases) or worker.name in but:
                continue
            if best is None or (len(worker.leases), worker.free_since) < (len(best.leases), best.free_since):
                best = worker
        return best

    def _able_ahead(self, kind: str, but: tuple[str, ...]) -> Worker | None:
        able = [worker for worker in self.of_kind(kind) if worker.room_ahead > 0]
        able = [worker for worker in able if worker.name not in but] or able
        return min(able, key=lambda worker: (worker.prompt, len(worker.leases), worker.free_since), default=None)

    def grant(
        self, worker: Worker, kind: str, subject: Any, now: float, alone: bool = False, prompt: bool = False
    ) -> Lease:
        self._counter += 1
        lease = Lease(self._counter, kind, worker, subject, now, alone, prompt)
        worker.leases[lease.number] = lease
        return lease

    def settle(self, worker: Worker, number: int, kind: str, now: float) -> tuple[Lease, float] | None:
        """End a lease by its worker's answer: the lease and the seconds it was worked on; None if it is stale.

        A worker serves its leases one after the other, so work on one begins when the one before it ends.
        """
        lease = worker.leases.get(number)
        if lease is None or lease.kind != kind:
            return None
        del worker.leases[number]
        seconds = now - max(lease.issued_at, worker.free_since)
        worker.free_since = now
        return lease, seconds

    def leave(self, worker: Worker) -> list[Lease]:
        """A worker is gone: all its leases, oldest first."""
        del self.workers[worker.name]
        return list(worker.leases.values())
