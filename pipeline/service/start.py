"""From the command line to the service: configuration, state folder, locks, logs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from pipeline import __version__, log
from pipeline.assembly import open_sink
from pipeline.config import Config, ConfigError, load_config
from pipeline.models import load_models
from pipeline.outdir import run_directory, sweep_last_run
from pipeline.service.lane import check_hashes
from pipeline.service.migrations import LedgerError
from pipeline.service.serve import Service
from pipeline.service.state import LEDGER, prepare, state_of
from pipeline.service.store import held_by


def serve(file: Path, sets: Sequence[str]) -> int:
    """Run the service until it is told to end; the exit code. ConfigError, ModelError where it cannot start."""
    file = file.absolute()
    config = load_config(file, sets)
    check(config)
    state = prepare(state_of(config))
    if holder := held_by(state / LEDGER):
        raise ConfigError(
            f"{state}: another service works with this state folder (process {holder}); stop that one first"
        )
    sweep_last_run(state)
    sink = open_sink(config, state)
    log.configure("service", "json", config.log.level, sink)
    logger = structlog.get_logger()
    try:
        with run_directory(state) as run:
            logger.info("service starts", version=__version__, state=str(state), config=str(file))
            ending = Service(config, (file, tuple(sets)), state, run, sink).run()
    except LedgerError as error:
        sink.close()
        raise ConfigError(str(error)) from error
    say = logger.critical if ending.code not in (0, 75) else logger.info
    say("service ends", reason=ending.reason, code=ending.code)
    sink.close()
    if ending.code == 2:
        raise ConfigError(ending.reason)
    sys.stderr.flush()
    return ending.code


def check(config: Config) -> None:
    """What can be known to be wrong before anything is started. ConfigError, ModelError."""
    service = config.service
    if not service.routes:
        raise ConfigError(
            "service.routes: names no route; a route is a model and a results folder (configs/service.yaml)"
        )
    for route in service.routes:
        check_hashes(load_models(route.over(config)), route.hashes)
