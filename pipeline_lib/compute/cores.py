"""CPU cores available to this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

PROCESS_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def num_cores() -> int:
    """Return the number of cores this process may use: the smaller of its affinity and its cgroups' CPU quota (rounded up)."""
    quota = min(_quotas(), default=math.inf)
    return max(1, min(len(core_numbers()), math.ceil(quota))) if quota < math.inf else len(core_numbers())


def core_numbers() -> list[int]:
    """Return the numbers of the cores in this process's affinity; all cores on systems without affinity, such as macOS."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the process's cgroups and their parents (versions 1 and 2, Linux only)."""
    try:
        lines = PROCESS_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers
        group = root / path.lstrip("/")
        # In a container the path may be the host's, which is not mounted; then the mounted root applies.
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
