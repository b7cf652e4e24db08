"""A process that does random work on a ledger, and says on standard output what was committed, until it is killed.

python ledger_worker.py LEDGER SEED
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from pipeline.service.ledger import Ledger
from pipeline.service.lifecycle import NotAllowed, State, Urgency
from pipeline.service.reasons import Kind
from pipeline.service.records import Filter
from tests.pipeline.service.ledgers import delivery


def main(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Ledger(path) as ledger:
        now = 1000.0 * seed
        for slide in ledger.recover(now):
            say("recovered", slide.id, "queued")
        say("ready", 0, "")
        while True:
            now += chance.random()
            step(ledger, chance, now, f"{seed}-{chance.randrange(40)}")


def step(ledger: Ledger, chance: random.Random, now: float, name: str) -> None:
    match chance.randrange(7):
        case 0 | 1:
            urgency = chance.choice(list(Urgency))
            for slide in ledger.deliver(delivery(name, urgency=urgency, routes=("a", "b")), now):
                say("delivered", slide.id, slide.state)
        case 2 | 3:
            for slide in ledger.next_due(now + 100, 3):
                say("started", slide.id, ledger.started(slide.id, now).state)
        case 4:
            for slide in ledger.running():
                if ledger.finished(slide.id, slide.attempts, State.COMPLETE, {"planned": 1}, now):
                    say("finished", slide.id, "complete")
        case 5:
            for slide in ledger.running():
                failed = ledger.fail(slide.id, slide.attempts, chance.choice(list(Kind)), "bad luck", now)
                if failed is not None:
                    say("failed", slide.id, failed.state)
        case 6:
            with ledger.batch():
                done = []
                for slide in ledger.rows(Filter(), limit=5):
                    try:
                        done.append(ledger.cancel(slide.id, now))
                    except NotAllowed:
                        pass
            for slide in done:
                say("cancelled", slide.id, slide.state)


def say(what: str, slide: int, state: str) -> None:
    sys.stdout.write(json.dumps([what, slide, state]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
