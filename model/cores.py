"""How many cores this process may use: those of its affinity, and no more than its cgroups give it time for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def usable_cores() -> int:
    return limited(len(os.sched_getaffinity(0)), cgroup_cores())


def limited(num_cores: int, share: float) -> int:
    """Whole cores, at least one. share: of time, in cores: with 1.5 a second thread is still of use."""
    return max(1, num_cores if math.isinf(share) else min(num_cores, math.ceil(share)))


def cgroup_cores(mount: Path = MOUNT, own: Path = OWN) -> float:
    """The least that a cgroup of this process, or one around it, is given of time; infinite without a limit."""
    return min((share for folder in _folders(mount, own) for share in _shares(folder)), default=math.inf)


def _folders(mount: Path, own: Path) -> Iterator[Path]:
    """Of the cgroup that pays for CPU time and of all around it. Within a container its path may lie outside of what
    is mounted; then only the mounted root tells.
    """
    try:
        lines = own.read_text().splitlines()
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
    """From cpu.max (cgroup v2: quota and period, or "max") or the two files of v1, where a quota of -1 is none."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)
