"""What `slidestream check` says of a service: each route with its model, engine and results, and the folders it watches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from engines.errors import ModelError
from engines.probe import Probe
from pipeline.config import Config, ConfigError, memory_bound, resolve
from pipeline.machine import MIB, Machine
from pipeline.models import load_models, prove_size, size_notices, sizes
from pipeline.outdir import unwritable
from pipeline.placement import place_all
from pipeline.service.config import Route, WatchFolder
from pipeline.service.lane import check_hashes
from pipeline.service.scan import mounted

Found = tuple[str, str, str]
"""(ok, warn or FAIL; what; the words)."""


def check_service(config: Config, machine: Machine, probe: Callable[[tuple[str, ...]], Probe]) -> Iterator[Found]:
    """A line for each route and watched folder, and one for each problem. Changes nothing."""
    service = config.service
    needed = 0
    for route in service.routes:
        lines, size = _route(config, route, machine, probe)
        yield from lines
        needed += size
    if needed > machine.memory_bytes:
        text = f"all lanes together may take {needed // MIB:,} MiB of {machine.memory_bytes // MIB:,}"
        yield "FAIL", "routes", f"{text}; lower reader.workers, inference.workers or batcher.batch"
    if not service.watch and not service.submit_from:
        yield "warn", "watch", "no folder is watched and service.submit_from is empty: no slide can come"
    for folder in service.watch:
        yield _watched(folder)
    named = {name for folder in service.watch for name in folder.routes}
    for route in service.routes:
        if route.name not in named and not service.submit_from:
            yield "warn", "routes", f"{route.name}: no watched folder names it: it gets only what is submitted for it"
    for path in service.submit_from:
        if not os.path.isdir(path):
            yield "warn", "submit_from", f"{path}: is no folder"
    secret = service.webhook.secret_file
    if service.webhook.url is not None and secret is not None and not os.access(secret, os.R_OK):
        yield "FAIL", "webhook", f"{secret}: cannot be read; the service's user needs it (service.webhook.secret_file)"
    spool = service.spool.path
    place, why = (None, "") if spool is None else unwritable(Path(spool))
    if why:
        yield "FAIL", "spool", f"{place} {why}; no event can be put into {spool} (service.spool.path)"


def _route(
    config: Config, route: Route, machine: Machine, probe: Callable[[tuple[str, ...]], Probe]
) -> tuple[Sequence[Found], int]:
    """Lines, and the memory that its lane may take."""
    own = route.over(config)
    try:
        models = load_models(own)
        check_hashes(models, route.hashes)
        for model in models:
            prove_size(model)
        placement = place_all(own, models, probe)  # a lane never builds an engine: it has no slides to prove it on
        part = replace(machine, cores=max(1, machine.cores // len(config.service.routes)))
        sized = resolve(placement.config, part, **sizes(models), gpus=len(placement.devices), gpu_batch=placement.batch)
    except (ModelError, ConfigError) as error:
        return [("FAIL", "route", f"{route.name}: {' '.join(str(error).split())}"), *_results(route)], 0
    where = f"{len(placement.devices)} GPUs" if placement.devices else "the CPU"
    text = f"{route.name}: {', '.join(model.name for model in models)} by {sized.inference.engine} on {where}"
    found: list[Found] = [("ok", "route", f"{text}; {sized.reader.workers} readers; results in {route.out}")]
    found += [("warn", "route", f"{route.name}: {notice}") for notice in (*placement.notices, *size_notices(models))]
    return [*found, *_results(route)], sum(size for _, size in memory_bound(sized, **sizes(models)))


def _results(route: Route) -> Iterator[Found]:
    if route.require_mount and not mounted(os.fsencode(route.out)):
        yield "FAIL", "route", f"{route.name}: {route.out}: nothing is mounted there; mount the share of the results"
        return
    folder, why = unwritable(Path(route.out))
    if why:
        yield "FAIL", "route", f"{route.name}: {folder} {why}; results cannot be written to {route.out}"
    elif shutil.disk_usage(folder).free < 1 << 30:
        yield "warn", "route", f"{route.name}: less than 1 GiB is free in {folder}"


def _watched(folder: WatchFolder) -> Found:
    path = folder.path
    if folder.require_mount and not mounted(os.fsencode(path)):
        return "warn", "watch", f"{path}: nothing is mounted there; its slides wait until there is"
    if not os.path.isdir(path):
        return "warn", "watch", f"{path}: is no folder, or is not there yet; it is held until it is"
    if not os.access(path, os.R_OK | os.X_OK):
        return "FAIL", "watch", f"{path}: this user may not read it"
    return "ok", "watch", f"{path}: {folder.urgency}, for {', '.join(folder.routes)}"
