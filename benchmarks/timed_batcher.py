"""The patch batcher as it is, with a clock at what it sends; started by benchmarks.urgent, not by hand.

Appends a line to $SLIDESTREAM_BENCH_TIMES when a slide is done: its number, and the seconds (monotonic) at which its first and
last message of each kind left.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import stages.batcher as stage
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.wire import Begin, Fill, Mask, Open, Record, SlideDone, Write
from pipeline.worker import main

TIMES = "SLIDESTREAM_BENCH_TIMES"


class Timed(Dispatcher):
    """Notes when something of a slide is sent."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sent: dict[int, dict[str, list[float]]] = {}

    def letters(self) -> list:
        letters = super().letters()
        now = time.monotonic()
        for _, message in letters:
            match message:
                case Fill():
                    numbers = {segment[0] for segment in message.segments}
                case Open() | Mask() | Begin() | Record() | Write() | SlideDone():
                    numbers = {message.slide}
                case _:
                    continue
            for number in numbers:
                self._sent.setdefault(number, {}).setdefault(type(message).__name__, [now, now])[1] = now
            if isinstance(message, SlideDone):
                with open(os.environ[TIMES], "a") as file:
                    file.write(json.dumps([message.slide, self._sent.pop(message.slide)]) + "\n")
        return letters


if __name__ == "__main__":
    stage.Dispatcher = Timed  # type: ignore[misc]
    main("batcher", stage.work)
