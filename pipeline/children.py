"""The supervisor's processes: started, watched by pidfd, reaped, and judged by how they died."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engines.python_path import python_path
from pipeline.crew import VISIBLE, Member
from pipeline.rundir import RunDir

# Threads that numerical libraries would start in every process; the engine sets its own number.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(slots=True)
class Child:
    """One generation of one worker process."""

    kind: str
    name: str
    generation: int
    process: subprocess.Popen
    pidfd: int
    stderr: int
    started_at: float
    oom_kills: int
    device: str = ""  # the GPU that it works on
    sentence: str = ""  # why we killed it, if we did
    joined: bool = False
    cpu_s: float = 0.0  # processor time, user and system, of all its life; told by `reap`

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def kill(self, reason: str) -> None:
        """SIGKILL; its death is found by `reap` like any other."""
        self.sentence = self.sentence or reason
        if self.running:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)  # Popen's own would reap one that is dead already

    def reap(self) -> int | None:
        """The exit status once it is dead (then nothing of it can write any more), else None."""
        if self.running:
            self.cpu_s = cpu_seconds(self.process.pid)
        return self.process.poll()

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.stderr)


def spawn(member: Member, generation: int, run: RunDir, memory_fd: int) -> Child:
    """Start `python -m stages.<kind>`. To be called from the main thread: the child dies with the thread that made it."""
    kind, name = member.kind, member.name
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    command = [sys.executable, "-m", f"stages.{kind}", "--run", str(run.path), "--name", name]
    command += ["--generation", str(generation), "--memory", str(memory_fd), "--parent", str(os.getpid())]
    try:
        with _on_cores(member.cpus):
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                pass_fds=(memory_fd,),
                start_new_session=True,  # Ctrl-C on the terminal reaches the supervisor alone
                env={
                    **_ONE_THREAD,
                    **os.environ,
                    "PYTHONPATH": python_path(),
                    "PYTHONUNBUFFERED": "1",
                    **member.environment,
                },
            )
    finally:
        os.close(write_end)
    pidfd, began, device = os.pidfd_open(process.pid), time.monotonic(), member.environment.get(VISIBLE, "")
    return Child(kind, name, generation, process, pidfd, read_end, began, oom_kills(), device)


@contextmanager
def _on_cores(cores: str) -> Iterator[None]:
    """What this thread starts within the block has these cores ("0,1,8") from its first page on; empty: as this thread."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    # The system refuses where none of them may be used any more, as the container was changed: rather a far core than none.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, user and system; also of a dead one, until it is reaped (proc(5))."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system = after_name[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory since boot; 0 where that cannot be read."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended. `blame`: its own work may have done it."""

    cause: str
    blame: bool
    code: int


def judge(code: int, sentence: str, out_of_memory: bool) -> Death:
    """What an exit status means. A kill that came neither from us nor from the kernel's lack of memory is no one's fault."""
    if sentence:
        return Death(sentence, True, code)
    if code >= 0:
        return Death(f"exit code {code}", code != 0, code)
    try:
        number = signal.Signals(-code)
    except ValueError:
        return Death(f"signal {-code}", True, code)
    if number is signal.SIGKILL and out_of_memory:
        return Death("killed by the kernel for lack of memory", True, code)
    return Death(f"killed by {number.name}", number not in _FROM_OUTSIDE, code)


@dataclass(slots=True)
class Backoff:
    """When a dead worker of one kind is started again, and when there is no point in it any more."""

    first_s: float
    longest_s: float
    limit: int
    in_a_row: int = 0
    progress: object = field(default=None)

    def died(self, blame: bool, progress: object) -> float | None:
        """Seconds to wait before the next start; None: too many deaths in a row without any progress of the run."""
        if progress != self.progress:
            self.in_a_row = 0
        self.progress = progress
        if not blame:
            return 0.0
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            return None
        if self.in_a_row == 1:
            return 0.0
        return min(self.longest_s, self.first_s * 2 ** (self.in_a_row - 2))
