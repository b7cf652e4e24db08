"""Events as files: one JSON file each in a folder that another program empties."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.service.events import Undelivered, envelope
from pipeline.service.records import Told
from results.atomic import write_atomic

MOST_FILES = 10_000
ENDING = ".json"


class Spool:
    """A sink. Files are called <id>-<event>.json, rise in the order of the events, and are there whole or not at all.

    With `most` files in it the folder is full, and events wait in the ledger until some are taken out.
    """

    name = "spool"

    def __init__(self, folder: Path, most: int = MOST_FILES) -> None:
        self._folder, self._most = folder, most

    def send(self, event: Told) -> None:
        """Write it. Undelivered where the folder cannot be written or is full."""
        kind = re.sub(r"[^a-z0-9._-]", "_", event.event)[:64]
        try:
            if self._full():
                raise Undelivered(f"{self._folder}: {self._most} events lie there; collect them")
            write_atomic(self._folder / f"{event.id:012d}-{kind}{ENDING}", lambda file: file.write(envelope(event)))
        except OSError as error:
            raise Undelivered(f"{self._folder}: {error.strerror or error}") from error

    def _full(self) -> bool:
        try:
            with os.scandir(self._folder) as entries:
                return sum(entry.name.endswith(ENDING) for entry in entries) >= self._most
        except FileNotFoundError:
            return False
