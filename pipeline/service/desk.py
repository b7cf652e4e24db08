"""What operators ask of the service over its control socket: verbs in, answers out. Light work; the rest is the service's."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import ConfigError, load_config
from pipeline.control import Handler, Later, Refusal
from pipeline.roster import MOST_WORKERS, SCALABLE
from pipeline.service.config import WatchFolder, within
from pipeline.service.lifecycle import NotAllowed, Urgency
from pipeline.service.migrations import LedgerError
from pipeline.service.naming import result_name
from pipeline.service.records import Slide
from slides.discover import EXTENSIONS
from slides.errors import one_line

if TYPE_CHECKING:
    from pipeline.service.serve import Service

TEXT_MOST = 4096
# Keys that a running service takes over; a key stands for all below it.
LIVE = (
    "service.watch",
    "service.deadline_s",
    "service.submit_from",
    "service.trials",
    "service.trial_timeout_s",
    "service.give_up_s",
    "service.low_disk_gb",
    "service.retention",
    "service.http",
    "service.review",
    "service.webhook",
    "service.spool",
    "log.level",
)
_INTAKE = ("service.watch", "service.deadline_s", "service.trials", "service.trial_timeout_s", "service.give_up_s")
_WEB = ("service.http", "service.webhook", "service.spool", "log.level")
_REVIEW = ("service.review", "service.watch", "service.submit_from", "log.level")


class Desk:
    """The verbs. Each takes the question (untrusted JSON) and gives the answer, or raises Refusal."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def handlers(self) -> dict[str, Handler]:
        verbs: dict[str, Callable[[dict[str, Any]], Any]] = {
            "status": lambda question: self._service.status(),
            "submit": self.submit,
            "retry": self.retry,
            "cancel": self.cancel,
            "prioritise": self.prioritise,
            "scale": self.scale,
            "drain": self.drain,
            "reload": self.reload,
            "sent": self.sent,
        }
        return {verb: _guarded(handler) for verb, handler in verbs.items()}

    # Slides

    def submit(self, question: dict[str, Any]) -> Later:
        """{"path", "urgency"?, "route"?}: take a slide that lies in a folder from which that is allowed."""
        service = self._service
        if service.closing:
            raise Refusal("the service is draining: it takes no more slides")
        path = _text(question, "path")
        urgency = None if question.get("urgency") is None else _urgency(question)
        config = service.config.service
        roots = [folder.path for folder in config.watch] + list(config.submit_from)
        route = None if question.get("route") is None else _text(question, "route")
        if route is not None and route not in service.foreman.lanes:
            raise Refusal(f"{route}: no such route; there are {', '.join(service.foreman.lanes)}")
        later = Later()

        def found(root: str) -> None:
            folder = next((one for one in config.watch if one.path == root), None)
            routes = (route,) if route is not None else _routes(folder, list(service.foreman.lanes))
            wanted = urgency or (Urgency.ROUTINE if folder is None else Urgency(folder.urgency))
            name = result_name(os.fsencode(os.path.relpath(path, root)))
            service.intake.submit(os.fsencode(path), routes, wanted, name, time.monotonic())
            service.log.info("submitted", slide=name, urgency=wanted, routes=", ".join(routes))
            later.answer({"said": f"{one_line(name)}: taken as {wanted}, for {', '.join(routes)}"})

        def lost(error: Exception) -> None:
            later.refuse(str(error) if isinstance(error, Refusal) else f"{one_line(path)}: {_words(error)}")

        service.errands.run(lambda: confine(path, roots), found, lost)
        return later

    def retry(self, question: dict[str, Any]) -> dict[str, Any]:
        """{"slide", "route"?}: as if it had never failed."""
        return self._each(question, lambda slide, now: self._service.ledger.retry(slide.id, now), "is queued again")

    def cancel(self, question: dict[str, Any]) -> dict[str, Any]:
        """{"slide", "route"?}: take it out, also while it runs."""

        def stop(slide: Slide, now: float) -> None:
            self._service.ledger.cancel(slide.id, now)
            self._service.foreman.stop_what_is_over()

        return self._each(question, stop, "is cancelled")

    def prioritise(self, question: dict[str, Any]) -> dict[str, Any]:
        """{"slide", "urgency", "route"?}: another class, with its deadline from now."""
        urgency = _urgency(question)
        within_s = getattr(self._service.config.service.deadline_s, urgency)

        def move(slide: Slide, now: float) -> None:
            deadline = None if within_s is None else now + within_s
            self._service.foreman.amend(self._service.ledger.prioritise(slide.id, urgency, deadline, now))

        return self._each(question, move, f"is {urgency} now")

    def _each(self, question: dict[str, Any], act: Callable[[Slide, float], Any], words: str) -> dict[str, Any]:
        """All slides of the name, one a route; refused where none can be."""
        name = _text(question, "slide")
        route = None if question.get("route") is None else _text(question, "route")
        slides = [slide for slide in self._service.ledger.named(name) if route in (None, slide.route)]
        if not slides:
            raise Refusal(f"{one_line(name)}: no slide of this name or number is known")
        said, refused = [], []
        for slide in slides:
            label = f"{one_line(slide.name)} ({slide.route})"
            try:
                act(slide, time.time())
            except NotAllowed as problem:
                refused.append(f"{label}: {problem}")
            else:
                said.append(f"{label} {words}")
                self._service.log.info("operator", slide=slide.name, route=slide.route, did=words)
        if not said:
            raise Refusal("; ".join(refused))
        return {"said": "\n".join(said + refused)}

    # The service

    def scale(self, question: dict[str, Any]) -> Later:
        """{"stage", "workers", "route"?}: in the lane of a route, or in the only one."""
        lanes = self._service.foreman.lanes
        stage, workers = question.get("stage"), question.get("workers")
        if stage not in SCALABLE:
            raise Refusal(f"{stage}: no such stage, or one that has one worker; there are {', '.join(SCALABLE)}")
        if type(workers) is not int or not 1 <= workers <= MOST_WORKERS:
            raise Refusal(f"{stage}={workers}: a stage has 1 to {MOST_WORKERS} workers")
        name = next(iter(lanes)) if question.get("route") is None and len(lanes) == 1 else question.get("route")
        if name not in lanes:
            raise Refusal(f"name one of the routes {', '.join(lanes)} (--route)")
        if not lanes[name].up:
            raise Refusal(f"the lane of {name} is not up; try again when it is")
        return self._service.foreman.scale(lanes[name], stage, workers)

    def drain(self, question: dict[str, Any]) -> dict[str, Any]:
        """{"finish"?}: bring what is under way to a checkpoint, or do it to its end, then end."""
        if question.get("finish") is True and not self._service.draining:
            self._service.finish()
            return {"said": "draining: ends when what is under way is done; the next start goes on with the rest"}
        within_s = self._service.config.supervisor.drain_s
        self._service.drain()
        return {"said": f"draining: ends within {within_s:g} s; the next start goes on"}

    def sent(self, question: dict[str, Any]) -> dict[str, Any]:
        """{"sink", "event"}: a receiver has all events up to this one."""
        event = question.get("event")
        if type(event) is not int:
            raise Refusal("event: a whole number")
        self._service.ledger.sent(_text(question, "sink"), event)
        return {"said": "noted"}

    def reload(self, question: dict[str, Any]) -> dict[str, Any]:
        """Read the configuration again and take over what can change while running; the rest is named."""
        service = self._service
        try:
            fresh = load_config(*service.source)
        except ConfigError as error:
            raise Refusal(f"nothing is changed: {error}") from error
        for folder in fresh.service.watch:
            for route in folder.routes:
                if route not in service.foreman.lanes:
                    raise Refusal(f"nothing is changed: the route {route} of {folder.path} is new; restart the service")
        changed = differences(service.config.model_dump(mode="json"), fresh.model_dump(mode="json"))
        live = sorted({key for key in LIVE for name in changed if _below(name, key)})
        rest = sorted(name for name in changed if not any(_below(name, key) for key in LIVE))
        keep = service.config
        log = keep.log.model_copy(update={"level": fresh.log.level})
        own = {
            key.split(".")[1]: getattr(fresh.service, key.split(".")[1]) for key in LIVE if key.startswith("service.")
        }
        service.config = keep.model_copy(update={"log": log, "service": keep.service.model_copy(update=own)})
        if any(key in _INTAKE for key in live):
            service.watch_anew()
        if any(key in _WEB for key in live):
            service.tell_anew()
        if any(key in _REVIEW for key in live):
            service.review_anew()
        said = [f"changed: {', '.join(live)}" if live else "nothing has changed that can change while running"]
        if rest:
            said.append(f"changes only with a restart: {', '.join(rest)}")
        service.log.info("reloaded", changed=live, needs_restart=rest)
        return {"said": "\n".join(said)}

    def reload_from_signal(self) -> None:
        """SIGHUP: as `reload`, with the answer in the log."""
        try:
            _guarded(self.reload)({})
        except Refusal as refusal:
            self._service.log.error("not reloaded", reason=str(refusal))


def confine(path: str, roots: list[str]) -> str:
    """The folder of `roots` in which a slide lies, links followed. Refusal where it is none of ours. OSError."""
    if not os.path.isabs(path) or ".." in path.split("/"):
        raise Refusal(f"{one_line(path)}: must be an absolute path without ..")
    root = max((root for root in roots if within(path, root) and path != root), key=len, default=None)
    if root is None:
        raise Refusal(
            f"{one_line(path)}: lies in no folder from which slides are taken; add its folder to service.submit_from and reload"
        )
    real = os.path.realpath(path, strict=True)
    if not any(within(real, os.path.realpath(one)) for one in roots):
        raise Refusal(f"{one_line(path)}: is a link that leads out of {one_line(root)}")
    if Path(path).suffix.lower() not in EXTENSIONS or not os.path.isfile(real):
        raise Refusal(f"{one_line(path)}: is no slide: {', '.join(sorted(EXTENSIONS))} are")
    return root


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all values that differ; a list is one value."""
    found = []
    for name in old.keys() | new.keys():
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}")
    return sorted(found)


def _below(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _routes(folder: WatchFolder | None, lanes: list[str]) -> tuple[str, ...]:
    if folder is not None:
        return folder.routes
    if len(lanes) == 1:
        return (lanes[0],)
    raise Refusal(f"name one of the routes {', '.join(lanes)} (--route)")


def _text(question: dict[str, Any], name: str) -> str:
    value = question.get(name)
    if not isinstance(value, str) or not value or len(value) > TEXT_MOST or "\0" in value:
        raise Refusal(f"{name}: a text of 1 to {TEXT_MOST} signs is needed")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(f"{name}: must be UTF-8; rename the file") from None
    return value


def _urgency(question: dict[str, Any]) -> Urgency:
    try:
        return Urgency(question.get("urgency"))
    except ValueError:
        raise Refusal(f"urgency: {' or '.join(Urgency)}") from None


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _guarded(handler: Callable[[dict[str, Any]], Any]) -> Handler:
    def answer(question: dict[str, Any]) -> dict[str, Any] | Later:
        try:
            return handler(question)
        except LedgerError as error:
            raise Refusal(str(error)) from error
        except sqlite3.Error as error:
            raise Refusal(f"the ledger cannot be read: {error}") from error
        except KeyError as error:
            raise Refusal(str(error.args[0])) from error

    return answer
