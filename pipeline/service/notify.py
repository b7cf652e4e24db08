"""What systemd is told: ready, alive, on its way out (sd_notify(3), https://systemd.io/; a datagram, so no library)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

READY, WATCHDOG, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"


def notify(*states: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell the manager, as in notify(READY, "STATUS=3 slides under way"). False where there is none, or it does not listen.

    Never waits: a full queue must not hold up the supervisor's loop.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as line:
            line.connect("\0" + address[1:] if address.startswith("@") else address)
            line.send("\n".join(state.replace("\n", " ") for state in states).encode("utf-8", "replace"))
    except OSError:
        return False
    return True


def watchdog_s(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Seconds between two signs of life: half of what the manager allows; None where it watches not, or another process."""
    try:
        allowed = int(environment.get("WATCHDOG_USEC", "0")) / 1e6
        watched = int(environment.get("WATCHDOG_PID", "0"))
    except ValueError:
        return None
    if allowed <= 0 or watched not in (0, os.getpid() if pid is None else pid):
        return None
    return allowed / 2
