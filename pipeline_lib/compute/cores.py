"""The processor's cores."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS_OF_PROCESS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def num_cores() -> int:
    """Return how many cores this process may use: its affinity, or the CPU quota of its cgroups if that is less."""
    quota = min(_quotas(), default=math.inf)
    return max(1, min(len(core_numbers()), math.ceil(quota))) if quota < math.inf else len(core_numbers())


def core_numbers() -> list[int]:
    """Return the cores that this process may run on; where the system has no affinity, as macOS, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the process's cgroups and of those around them; versions 1 and 2, Linux only."""
    try:
        lines = CGROUPS_OF_PROCESS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers
        group = root / path.lstrip("/")
        # In a container the path may be that of the host, which is not mounted: what is mounted, at the root, applies.
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """Yield the quota of one cgroup, if it has one."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
