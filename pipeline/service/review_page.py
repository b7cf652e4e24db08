"""The review page as the service starts it: a process of its own (`review.served`), which RUN/review.json tells what to serve.

The service knows of the page only this: it must never wait for it, nor end because of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from pipeline.config import Config
from pipeline.rundir import RunDir

SETTINGS, ADDRESS = "review.json", "review"


def command(run: RunDir) -> list[str]:
    """How the service starts it, from its main thread."""
    return [sys.executable, "-m", "review.served", "--run", str(run.path), "--parent", str(os.getpid())]


def write_settings(run: RunDir, ledger: Path, version: str, config: Config) -> bool:
    """What it reads; False where it is not wanted. OSError."""
    service = config.service
    (run.path / ADDRESS).unlink(missing_ok=True)
    if not service.review.enabled:
        return False
    values = {
        "version": version,
        "level": config.log.level,
        "ledger": str(ledger),
        "routes": [route.model_dump(mode="json", include={"name", "out", "require_mount"}) for route in service.routes],
        # Of other files nothing is shown, whatever a result says where its slide lies.
        "slides": [folder.path for folder in service.watch] + list(service.submit_from),
        "review": service.review.model_dump(mode="json"),
    }
    (run.path / SETTINGS).write_text(json.dumps(values))
    return True


def address(run: RunDir) -> str | None:
    """Where the page is ("http://127.0.0.1:8017/"), or None while it is not served."""
    with contextlib.suppress(OSError):
        return (run.path / ADDRESS).read_text().strip() or None
    return None
