"""What the parts of the batcher's mind share: settings, slides, leases, and the letters to be sent."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.dispatch.leases import Leases, Worker
from pipeline.dispatch.slidework import SlideWork
from pipeline.wire import Message

SUPERVISOR = "supervisor"

# What a kind of worker can be leased for.
READER, TISSUE, INFERENCE, AGGREGATOR, WRITER = "reader", "tissue", "inference", "aggregator", "writer"


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """The batcher's part of the configuration, in plain numbers.

    batch: rows per slot. shared: inference takes the cores that readers need too (it is on the CPU). reserved: free slots kept for urgent batches. delay_*_ms: how long a batch's first row may wait for
    the others (hungry: while no inference worker has anything to do). floor: share of the rows that routine gets beside
    urgent work. ahead: slides read side by side, and as many opened, masked and planned before their turn. window: records under way to the journal.
    patience: seconds without a sign of life, per kind of worker, after which a worker is condemned. folder: of the
    unfinished slides (pipeline.rundir). classes: of each model; their columns lie side by side.
    """

    run: str
    folder: str
    batch: int
    slots: int
    overview_slots: int
    reserved: int
    shared: bool
    delay_urgent_ms: float
    delay_routine_ms: float
    delay_hungry_ms: float
    floor: float
    ahead: int
    window: int
    classes: tuple[int, ...]
    patience: dict[str, float]

    @property
    def columns(self) -> int:
        """Of all models together."""
        return sum(self.classes)


@dataclass(slots=True)
class Board:
    settings: DispatchSettings
    leases: Leases
    slides: dict[int, SlideWork] = field(default_factory=dict)
    outbox: list[tuple[tuple[str, int], Message]] = field(default_factory=list)
    draining: bool = False
    quiet: bool = False  # routine gets its floor and no more (pipeline.dispatch.quiet)
    hold_fills: bool = False  # a slide that is tried alone waits for an idle reader
    engine: dict = field(default_factory=dict)

    def send(self, worker: Worker, message: Message) -> None:
        self.outbox.append(((worker.name, worker.generation), message))

    def tell_supervisor(self, message: Message) -> None:
        self.outbox.append(((SUPERVISOR, 0), message))

    def aggregator(self) -> Worker | None:
        return next(self.leases.of_kind(AGGREGATOR), None)
