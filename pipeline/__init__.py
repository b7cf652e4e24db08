"""What every stage stands on: command line, configuration, messages, leases and slots, worker loop, supervisor, telemetry."""

from __future__ import annotations

__version__ = "0.1.0"
