"""Memory of a process, as the kernel counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

MIB = 1 << 20


def peak_mb(pid: int | str) -> float:
    """The kernel's own mark since the process began; 0 where there is none."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0
