"""What this process may use of the machine: cores and memory, as limited by affinity and control groups (v1 and v2)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
NO_LIMIT = 1 << 60  # control groups of version 1 write "no limit" as a number close to 2**63


@dataclass(frozen=True, slots=True)
class Machine:
    """Usable `cores` (at least 1) and `memory_bytes`, with the words that say where each limit comes from."""

    cores: int
    memory_bytes: int
    cores_source: str = "given"
    memory_source: str = "given"


def detect(root: Path = Path("/")) -> Machine:
    """Look at this machine. `root` stands for / in tests (proc and sys below it)."""
    cores, cores_source = len(os.sched_getaffinity(0)), "affinity"
    quota = cpu_quota(root)
    # Rounded down: half a core is no core for a worker that wants a whole one.
    if quota is not None and max(1, math.floor(quota)) < cores:
        cores, cores_source = max(1, math.floor(quota)), f"control group quota of {quota:g} cores"
    memory, memory_source = _physical_memory(root), "physical memory"
    limit = memory_limit(root)
    if limit is not None and limit < memory:
        memory, memory_source = limit, "control group limit"
    return Machine(cores, memory, cores_source, memory_source)


def _physical_memory(root: Path) -> int:
    text = _read(root / "proc/meminfo") or ""
    for line in text.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be used now without swapping, by the kernel's own estimate (MemAvailable) and what this process's control
    groups leave, or 0 where neither is told."""
    free = [left for folder in _groups(root, "memory") if (left := _left(folder)) is not None]
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    return max(0, min(free, default=0))


def _left(group: Path) -> int | None:
    """What a control group's limit leaves, of version 2 or 1; None where it has none. Cached files give way, and count as free."""
    limit = _number(_read(group / "memory.max") or _read(group / "memory.limit_in_bytes") or "")
    used = _number(_read(group / "memory.current") or _read(group / "memory.usage_in_bytes") or "")
    if limit is None or used is None or not 0 < limit < NO_LIMIT:
        return None
    values = dict(line.split(maxsplit=1) for line in (_read(group / "memory.stat") or "").splitlines() if " " in line)
    names = ("inactive_file", "active_file")  # of a group of version 1 without those within it: those are total_...
    cached = sum(_number(values.get(f"total_{name}", values.get(name, ""))) or 0 for name in names)
    return limit - used + cached


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that the control groups of this process allow (the tightest of the whole branch), or None for no limit."""
    limits: list[float] = []
    for folder in _groups(root, "cpu"):
        text = _read(folder / "cpu.max")  # v2: "200000 100000" or "max 100000"
        if text is not None:
            quota, _, period = text.partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
        allowed, per = _number(quota), _number(period)
        if allowed is not None and per is not None and allowed > 0 and per > 0:
            limits.append(allowed / per)
    return min(limits, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the control groups of this process allow, or None for no limit."""
    limits: list[int] = []
    for folder in _groups(root, "memory"):
        value = _number(_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or "")
        if value is not None and 0 < value < NO_LIMIT:
            limits.append(value)
    return min(limits, default=None)


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group for a controller, and of its ancestors, v2 and v1."""
    found: list[Path] = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "")
        if hierarchy == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # In a container the path may name a group of the host that is not visible here; the mount itself then is the group.
        found += [mount.joinpath(*parts[:end]) for mount in mounts for end in range(len(parts), -1, -1)]
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
