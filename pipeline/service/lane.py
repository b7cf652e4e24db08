"""A lane: what `slidestream run` is, for one route of the service, with slides that come for as long as it lives.

    python -m pipeline.service.lane --run RUN --route NAME --generation N --parent PID

RUN is the service's private directory; RUN/lane-NAME.json, from the service, has what the lane is to do (see `write_settings`).
It dies with the service, and its workers with it. SIGTERM brings it to a checkpoint, as a run: exit code 75.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import zmq

from engines.errors import EngineError, ModelError
from engines.model import Model
from engines.probe import probe
from pipeline import assembly, log, memory
from pipeline.config import Config, ConfigError, memory_bound, resolve
from pipeline.control import Refusal
from pipeline.crew import crew
from pipeline.limits import bound_notices
from pipeline.log import LogSink
from pipeline.machine import MIB, detect
from pipeline.memory import MemoryLack
from pipeline.models import load_models, result_folders, result_keys, size_notices, sizes
from pipeline.outcome import said_bottleneck, snapshot
from pipeline.outdir import Held, hold, run_directory
from pipeline.placement import place_all, result_hashes
from pipeline.rundir import RunDir
from pipeline.service.config import Route
from pipeline.service.errands import Errands
from pipeline.service.lanewire import (
    Amend,
    Cancel,
    Do,
    LaneMessage,
    LaneProtocolError,
    Loud,
    Scale,
    Scaled,
    Told,
    Up,
    decode,
    encode,
)
from pipeline.service.scan import mounted
from pipeline.service.stream import Stream
from pipeline.supervisor import Ending, Supervisor
from pipeline.watch import Watch
from pipeline.worker import EXIT_CONFIGURATION, EXIT_FAULT, EXIT_INTERRUPTED, begun

TELL_S = 1.0
HELD_S = 15.0  # the processes of a lane that was killed may take so long to be gone
LINGER_MS = 2000
LOOK_S = 60.0


def write_settings(run: RunDir, route: Route, config: Config, lanes: int) -> None:
    """What the lane of a route reads. `config` has the route's model; `lanes` share the machine's cores."""
    values = {"config": config.model_dump(mode="json"), "route": route.model_dump(mode="json"), "lanes": lanes}
    (run.path / f"lane-{route.name}.json").write_text(json.dumps(values))


def command(run: RunDir, route: str, generation: int) -> list[str]:
    """How the service starts a lane, from its main thread."""
    words = ["--run", str(run.path), "--route", route, "--generation", str(generation), "--parent", str(os.getpid())]
    return [sys.executable, "-m", "pipeline.service.lane", *words]


def lane_address(run: RunDir) -> str:
    """The socket of the service that lanes connect to."""
    return f"ipc://{run.path / 'lanes'}"


def check_hashes(models: Sequence[Model], wanted: Sequence[str]) -> None:
    """ConfigError where a model is not the one that the route names."""
    for model, sha256 in zip(models, wanted, strict=bool(wanted)) if wanted else ():
        if model.sha256 != sha256:
            raise ConfigError(
                f"{model.directory}: is another model than service.routes asks for: its sha256 is {model.sha256}, not {sha256}"
            )


class _Sink(LogSink):
    """All records name the route: the service collects those of several lanes."""

    def __init__(self, route: str, level: str) -> None:
        super().__init__("json", sys.stderr)
        self._route, self.level = route, level

    def emit(self, record: MutableMapping[str, Any]) -> None:
        if log.LEVELS.get(str(record.get("level")), log.LEVELS["error"]) < log.LEVELS[self.level]:
            if self._hear is not None:  # the last words of one that dies count, shown or not
                self._hear(record)
            return  # of a worker, which began under another level
        record.setdefault("route", self._route)
        super().emit(record)


class Lane:
    """The line to the service, and what goes over it."""

    def __init__(self, address: str, name: str, sink: _Sink) -> None:
        self._sink = sink
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, name.encode())
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        self.socket.set_hwm(0)  # bounded by what the service gives us
        self.socket.connect(address)
        self._told_at = float("-inf")
        self._up = False
        self._log = structlog.get_logger()

    def say(self, message: LaneMessage) -> None:
        self.socket.send(encode(message), zmq.DONTWAIT)

    def hear(self, stream: Stream, supervisor: Supervisor) -> None:
        """Take what the service has sent."""
        while True:
            try:
                message = decode(self.socket.recv(zmq.DONTWAIT))
            except zmq.Again:
                return
            except LaneProtocolError as error:
                self._log.error("the service speaks nonsense", reason=str(error))
                continue
            match message:
                case Do():
                    stream.add(message)
                case Amend():
                    number = stream.amend(message.slide, message.attempt, message.urgent)
                    if number is not None:
                        supervisor.amend(number, message.urgent)
                case Cancel():
                    number = stream.cancel(message.slide, message.attempt)
                    if number is not None:
                        supervisor.cancel(number)
                case Loud() if message.level in log.LEVELS:
                    self._sink.level = message.level
                    log.configure("lane", "json", message.level, self._sink)
                case Scale():
                    self._scale(message, supervisor)

    def _scale(self, message: Scale, supervisor: Supervisor) -> None:
        try:
            said = supervisor.scale({"stage": message.stage, "workers": message.workers})["said"]
        except Refusal as refusal:
            self.say(Scaled(message.token, False, str(refusal)))
        else:
            self.say(Scaled(message.token, True, said))

    def tell(self, stream: Stream, watch: Watch, ahead: int) -> None:
        """To be called in the loop: that the lane is up, and once a second how it stands."""
        now = time.monotonic()
        if not self._up:
            self._up = True
            self.say(Up(ahead))
        slides = stream.watch(watch.report.get("active", []))
        if now - self._told_at < TELL_S:
            return
        self._told_at = now
        run = assembly.status_report(watch, snapshot(watch, stream, now - watch.started_at))
        tally = stream.tally
        settled = {"planned": tally.planned, "inferred": tally.inferred, "failed": tally.failed}
        self.say(Told(run, settled, slides))

    def close(self) -> None:
        self.socket.close()
        self._context.term()


@contextlib.contextmanager
def _holding(out: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """`hold`, with patience for the last lane's processes, which may still be on their way out."""
    until = time.monotonic() + HELD_S
    while True:
        try:
            holding = hold(out, folders)
            private = holding.__enter__()
            break
        except Held:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
    try:
        yield private
    finally:
        holding.__exit__(None, None, None)


def check_mount(route: Route) -> None:
    """ConfigError where the results' share has to be mounted and is not."""
    if route.require_mount and not mounted(os.fsencode(route.out)):
        raise ConfigError(f"{route.out}: nothing is mounted there; mount the share of the results")


def run_lane(service: RunDir, route: str, generation: int) -> Ending:
    """Until it is told to end. Raises ConfigError, ModelError, EngineError, MemoryLack where it cannot start."""
    given = json.loads((service.path / f"lane-{route}.json").read_text())
    config = Config.model_validate_json(json.dumps(given["config"]))
    section = Route.model_validate_json(json.dumps(given["route"]))
    out = Path(section.out)
    sink = _Sink(route, config.log.level)
    log.configure("lane", "json", config.log.level, sink)
    logger = structlog.get_logger()
    check_mount(section)
    models = load_models(config)
    check_hashes(models, section.hashes)
    facts = sizes(models)
    # No engine is built here (inference.missing): there are no slides yet that it could be proven right on.
    placement = place_all(config, models, probe)
    machine = detect()
    machine = replace(machine, cores=max(1, machine.cores // given["lanes"]))
    config = resolve(placement.config, machine, **facts, gpus=len(placement.devices), gpu_batch=placement.batch)
    bound = memory_bound(config, **facts)
    folders = result_folders(out, models)
    with _holding(out, folders) as private, run_directory(private) as run:
        for notice in (*placement.notices, *size_notices(models), *bound_notices(bound, machine)):
            logger.warning(notice)
        total = sum(size for _, size in bound) // MIB
        logger.info("lane starts", model=", ".join(m.name for m in models), out=str(out), memory_at_most_mib=total)
        keys = result_keys(models, result_hashes(config, placement, models))
        settings = assembly.settings(private, out, config, models, keys)
        settings["urgent_may_come"] = True
        if config.log.level != "debug":  # what is shown of it may become more or less at any time
            settings["config"]["log"]["level"] = "info"
        run.settings.write_text(json.dumps(settings))
        layout = memory.Layout(**settings["layout"])
        lane, errands, memory_fd = (
            Lane(lane_address(service), f"{route}.{generation}", sink),
            Errands(),
            memory.create(layout),
        )
        formats = config.results.formats
        stream = Stream(
            assembly.looker(folders, private, keys, formats),
            assembly.completed(folders, keys, formats),
            lane.say,
            errands,
            folders,
            private,
            max(LOOK_S, config.slides.read_timeout_s),
            assembly.staging(config),
        )

        def status(question: dict[str, Any]) -> dict[str, Any]:
            now = snapshot(supervisor.watch, stream, time.monotonic() - supervisor.watch.started_at)
            return {
                "lines": [said_bottleneck(supervisor.watch, bool(placement.devices))],
                "run": assembly.status_report(supervisor.watch, now),
            }

        supervisor = Supervisor(
            run,
            memory_fd,
            settings,
            crew(config, placement.devices),
            assembly.recruiter(placement),
            stream,
            sink,
            lambda watch: lane.tell(stream, watch, config.slides.ahead),
            assembly.tell_end,
            {"status": status},
        )
        supervisor.attach(lane.socket, lambda: lane.hear(stream, supervisor))
        supervisor.attach(errands.descriptor, errands.collect)
        try:
            return supervisor.run(assembly.preparation(models, run, placement))
        finally:
            stream.close()
            lane.close()
            os.close(memory_fd)


def main() -> None:
    arguments = begun("pipeline.service.lane", "service", route=str, generation=int)
    log.configure("lane", "json", "info", sys.stderr)
    logger = structlog.get_logger()
    try:
        ending = run_lane(RunDir(arguments.run), arguments.route, arguments.generation)
    except (ConfigError, EngineError, ModelError, MemoryLack) as error:
        ending = Ending(EXIT_CONFIGURATION, str(error))
    except OSError as error:
        ending = Ending(EXIT_FAULT, f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except Exception as error:  # one record in the service's log instead of loose lines
        logger.exception("crashed")
        ending = Ending(EXIT_FAULT, f"{type(error).__name__}: {error}")
    if ending.reason:
        asked_to = ending.code == EXIT_INTERRUPTED and ending.reason.startswith(("interrupted,", "stopped at once"))
        (logger.info if asked_to else logger.critical)(ending.reason)
    sys.stderr.flush()
    os._exit(ending.code)  # a thread that looks at a dead share must not hold it up


if __name__ == "__main__":
    main()
