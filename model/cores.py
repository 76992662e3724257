"""The number of cores that this process may use, by its CPU affinity and the limits of its cgroups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOUNT = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    return limit_cores(len(os.sched_getaffinity(0)), cgroup_cores())


def limit_cores(num_cores: int, share: float) -> int:
    """The number of cores to use, at least one. share: CPU time in cores; rounded up, so 1.5 gives two threads."""
    return max(1, num_cores if math.isinf(share) else min(num_cores, math.ceil(share)))


def cgroup_cores(mount: Path = MOUNT, process: Path = PROC_CGROUP) -> float:
    """The smallest CPU limit, in cores, of this process's cgroup and its parents; infinite without a limit."""
    return min((share for folder in _folders(mount, process) for share in _shares(folder)), default=math.inf)


def _folders(mount: Path, process: Path) -> Iterator[Path]:
    """The folders of the process's CPU cgroup and its parents.

    In a container the path may lie outside the mount; then only the mounted root exists.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        inner = PurePosixPath(path.lstrip("/"))
        for part in (inner, *inner.parents):
            yield root / part


def _shares(folder: Path) -> Iterator[float]:
    """The limit of a cgroup, in cores, if it has one: from cpu.max (v2) or from the two files of v1."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)
