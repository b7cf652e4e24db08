"""A process with an intake and a ledger, until it is killed: python intake_worker.py LEDGER FOLDER"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline.service.config import Route, Service, WatchFolder
from pipeline.service.intake import Intake
from pipeline.service.ledger import Ledger


def main(path: Path, folder: str) -> None:
    watch = WatchFolder(path=folder, routes=("r",), poll_s=0.05, settle_s=0.2)
    config = Service(watch=(watch,), routes=(Route(name="r", out="/results"),), give_up_s=1.0)
    with Ledger(path) as ledger:
        intake = Intake(config, ledger)
        while True:
            intake.poll(time.time(), time.monotonic())
            time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
