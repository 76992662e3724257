"""Whether the resident memory of a tree of processes grows with its requests.

The first requests fill caches, so growth is measured after some of them: the slope of a straight line through all later
samples, times the requests between them. One late jump moves a line less than it moves the difference of two samples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression

import psutil

from bench.memory import MIB, peak_mb

GROWTH_SHARE, GROWTH_MB = 0.01, 4.0  # growth is what exceeds both; an allocator's own noise does not


@dataclass(frozen=True, slots=True)
class Growth:
    """One process, in MiB. peak: its highest ever, loading included; peak_under_load: of the samples."""

    process: str
    peak: float
    peak_under_load: float
    base: float
    end: float
    growth: float
    kib_per_request: float

    @property
    def grows(self) -> bool:
        return self.growth > max(GROWTH_MB, GROWTH_SHARE * self.base)


@dataclass(slots=True)
class MemoryRecorder:
    """Samples this process and all below it. Processes that come later, or go earlier, are left out of the result."""

    num_done: list[int] = field(default_factory=list)
    samples: list[dict[int, float]] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    peaks: dict[int, float] = field(default_factory=dict)

    def sample(self, num_done: int) -> None:
        resident: dict[int, float] = {}
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            with suppress(psutil.Error):
                resident[process.pid] = process.memory_info().rss / MIB
                if process.pid not in self.labels:
                    self.labels[process.pid] = "this process" if process == this else label(process.cmdline())
                self.peaks[process.pid] = max(peak_mb(process.pid), resident[process.pid])
        self.num_done.append(num_done)
        self.samples.append(resident)

    def result(self, base_after: int) -> list[Growth]:
        """By base, the largest first. Equal labels are numbered."""
        steady = [pid for pid in self.labels if all(pid in sample for sample in self.samples)]
        names = numbered({pid: self.labels[pid] for pid in steady})
        rows = [
            growth(names[pid], self.peaks[pid], self.num_done, [sample[pid] for sample in self.samples], base_after)
            for pid in steady
        ]
        return sorted(rows, key=lambda row: -row.base)


def growth(process: str, peak: float, num_done: Sequence[int], resident: Sequence[float], base_after: int) -> Growth:
    """resident: MiB at each of num_done, which ascends. Raises ValueError unless two samples follow the base."""
    later = [(done, mib) for done, mib in zip(num_done, resident, strict=True) if done >= base_after]
    if len(later) < 3:
        raise ValueError(f"{len(later)} samples at {base_after} requests or more give no slope; send more requests")
    slope = linear_regression([done for done, _ in later], [mib for _, mib in later]).slope
    return Growth(
        process=process,
        peak=round(peak, 1),
        peak_under_load=round(max(resident), 1),
        base=round(later[0][1], 1),
        end=round(later[-1][1], 1),
        growth=round(slope * (later[-1][0] - later[0][0]), 2),
        kib_per_request=round(1024 * slope, 3),
    )


def label(command: Sequence[str]) -> str:
    """What Ray calls its actors, a replica by its deployment; else the program, or the script that Python runs."""
    first = command[0] if command else ""
    if replica := re.match(r"ray::ServeReplica:[^:]+:(.+?)(\.[a-z_]+)?$", first):  # busy ones add their method
        return replica[1]
    if first.startswith("ray::"):
        return first.removeprefix("ray::").partition(".")[0]
    script = next((word for word in command[1:] if word.endswith(".py")), first)
    return Path(script).name or "unknown"


def numbered(labels: Mapping[int, str]) -> dict[int, str]:
    count, seen = Counter(labels.values()), Counter[str]()
    names = {}
    for key, name in labels.items():
        seen[name] += 1
        names[key] = f"{name} #{seen[name]}" if count[name] > 1 else name
    return names
