"""The state folder: what the service keeps between starts, and how its commands find it.

STATE/ledger.sqlite      every slide that was ever delivered (and .lock, held by the service)
STATE/slidestream.log    what it said, rotated
STATE/run                its private directory, with the sockets, while it runs
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config, ConfigError, load_config
from pipeline.control import ANSWER_S, ask_at

SYSTEM = Path("/var/lib/slidestream")
LEDGER, RUN = "ledger.sqlite", "run"


def own_state(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the state is if nothing says otherwise: systemd's, or in the user's folder for states (XDG)."""
    if given := environment.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(given)
    home = environment.get("XDG_STATE_HOME") or str(Path(environment.get("HOME", "/")) / ".local/state")
    return Path(home) / "slidestream"


def state_of(config: Config) -> Path:
    """The state folder of a configuration."""
    return own_state() if config.service.state is None else Path(config.service.state)


def prepare(folder: Path) -> Path:
    """The folder, made if need be, for its user only. ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as error:
        raise ConfigError(
            f"service.state: {folder}: {error.strerror}; name a folder that this user may write to"
        ) from error
    return folder


def find(service: Path | None, file: Path | None) -> Path:
    """The state folder that a command means: that given, that of a configuration file, or where a service has been."""
    if service is not None:
        return service
    if file is not None:
        return state_of(load_config(file))
    own = own_state()
    return SYSTEM if not (own / LEDGER).exists() and (SYSTEM / LEDGER).exists() else own


def ask_service(state: Path, question: dict[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """The answer of the service. ConfigError: there is none, it does not answer, or it refuses."""
    return ask_at(state / RUN, f"{state}:", "service", question, timeout_s)
