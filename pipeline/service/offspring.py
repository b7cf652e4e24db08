"""A child process of the service (a lane, the HTTP process): its standard error is read, its death is seen, it dies with us."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from engines.python_path import python_path
from pipeline.children import oom_kills

_PIPE_BYTES = 1 << 16


class Offspring:
    """One process. To be made in the main thread: a child dies with the thread that made it."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """OSError where it cannot be started."""
        self.name, self.started_at, self.oom_kills = name, time.monotonic(), oom_kills()
        self.sentence = ""
        self.stderr, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.stderr, False)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,  # Ctrl-C on the terminal reaches the service alone
                env={**os.environ, "PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"},
            )
        except BaseException:
            os.close(self.stderr)
            raise
        finally:
            os.close(write_end)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def read(self) -> bytes:
        """What it has said since; empty where that is nothing."""
        try:
            return os.read(self.stderr, _PIPE_BYTES)
        except BlockingIOError:
            return b""

    def reap(self) -> int | None:
        """The exit status once it is dead, else None."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to come to an end."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self, reason: str) -> None:
        """SIGKILL."""
        self.sentence = self.sentence or reason
        if self._process.returncode is None:
            self._process.kill()

    def close(self) -> None:
        """When it is reaped."""
        os.close(self.pidfd)
        os.close(self.stderr)

    def wait(self) -> None:
        """Until it is dead."""
        self._process.wait()

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel has killed anything for lack of memory since it was started."""
        return oom_kills() > self.oom_kills
